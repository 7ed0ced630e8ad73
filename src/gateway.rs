//! The gateway: from one configuration file to running listeners.
