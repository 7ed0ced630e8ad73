//! The decisions of one framed connection.
