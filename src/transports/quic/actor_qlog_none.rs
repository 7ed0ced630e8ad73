//! Stands in for the logs of connections where they are not built in: there are none.

use std::sync::Arc;
use std::time::Instant;

use super::actor_engine::Quic;
use super::session::Role;
use super::settings::Transport;
use crate::actors::{Mesh, SpawnError};

/// There is none of these.
#[derive(Debug, Clone)]
pub(super) enum Log {}

impl Log {
    pub(super) const fn of(_: &Mesh, _: &Arc<str>, _: &Transport) -> Result<Option<Self>, SpawnError> {
        Ok(None)
    }

    pub(super) const fn same(_: &Transport, _: &Transport) -> bool {
        true
    }

    pub(super) const fn attach(&self, _: &mut Quic, _: Role) {
        match *self {}
    }

    pub(super) const fn is(&self, _: &Self) -> bool {
        match *self {}
    }

    pub(super) const fn end(&self, _: Instant) {
        match *self {}
    }
}
