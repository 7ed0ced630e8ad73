//! The actor library: arbiters, mailboxes and the hosts that run protocols on them.
