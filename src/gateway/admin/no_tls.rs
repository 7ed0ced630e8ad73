//! Stands for `tls` in a build without HTTP, whose check refuses a `certificate` in `[admin]`.

use std::sync::Arc;

use super::access::Names;
use crate::actors::Fault;
use crate::gateway::StartError;
use crate::gateway::config::Admin;
use crate::gateway::sites::Certificates;

/// No listener has it.
#[derive(Debug)]
pub(crate) enum Secured {}

impl Secured {
    pub(super) fn of(admin: &Admin, _: &Certificates, _: Option<&Arc<Self>>) -> Result<Option<Arc<Self>>, StartError> {
        if admin.tls.is_none() {
            return Ok(None);
        }
        let message = "TLS needs a build with the feature `http`".to_owned();
        Err(StartError::Options { listener: "admin".to_owned(), place: admin.place.clone(), message })
    }

    pub(super) const fn names(&self) -> &Names {
        match *self {}
    }

    pub(super) const fn demands_certificate(&self) -> bool {
        match *self {}
    }

    #[expect(clippy::unused_async, reason = "with HTTP it waits for the caller")]
    pub(super) async fn accept(&self, _: tokio::net::TcpStream) -> Result<tokio::net::TcpStream, Fault> {
        match *self {}
    }
}
