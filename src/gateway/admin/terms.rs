//! By what terms the admin listener lets callers in. A reload publishes all of them as one, so that no caller meets half
//! of a change; a connection that came by other TLS than is spoken now is refused what it asks next, and ends.

use std::sync::Arc;

use super::tls::Secured;
use crate::gateway::StartError;
use crate::gateway::config::Admin;
use crate::gateway::sites::Certificates;
use crate::memory::Secret;

/// The terms of one configuration.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    /// What changes over HTTP need.
    pub(super) token: Option<Secret>,
    /// `None`: plain HTTP.
    pub(super) tls: Option<Arc<Secured>>,
}

impl Terms {
    /// Those of a configuration. TLS that stays as it was `before` stays the very same.
    ///
    /// # Errors
    /// [`StartError::Tls`] for certificates that cannot be used.
    pub(crate) fn of(
        admin: Option<&Admin>,
        certificates: &Certificates,
        before: Option<&Self>,
    ) -> Result<Self, StartError> {
        let Some(admin) = admin else { return Ok(Self::default()) };
        let before = before.and_then(|terms| terms.tls.as_ref());
        Ok(Self { token: admin.token.clone(), tls: Secured::of(admin, certificates, before)? })
    }

    /// Whether a connection that came by `tls` came by what holds now.
    pub(super) fn still(&self, tls: Option<&Arc<Secured>>) -> bool {
        match (&self.tls, tls) {
            (None, None) => true,
            (Some(now), Some(then)) => Arc::ptr_eq(now, then),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }
}
