//! What is said to servers over TCP in TLS handshakes, and demanded of them, for each upstream that has an
//! `[upstream.tls]`.

#[cfg(feature = "http")]
use std::collections::BTreeMap;
#[cfg(feature = "http")]
use std::sync::Arc;

#[cfg(feature = "http")]
use crate::gateway::config;

/// What is said to servers over TCP in TLS handshakes, by upstream.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Secure {
    #[cfg(feature = "http")]
    by_name: BTreeMap<String, Arc<crate::transports::tls::ClientSettings>>,
}

impl Secure {
    /// Reads what the upstreams name.
    ///
    /// # Errors
    /// The first that cannot be used.
    #[cfg(feature = "http")]
    pub(crate) fn load(
        upstreams: &[config::Upstream],
        certificates: &crate::gateway::certificates::Certificates,
    ) -> Result<Self, crate::gateway::StartError> {
        let mut by_name = BTreeMap::new();
        for upstream in upstreams.iter().filter(|upstream| !upstream.is_over_quic()) {
            let Some(tls) = &upstream.tls else { continue };
            let settings = certificates.client(tls);
            let settings = settings.map_err(|error| crate::gateway::StartError::Tls {
                of: format!("upstream `{}`", upstream.name),
                error,
            })?;
            by_name.insert(upstream.name.clone(), Arc::new(settings));
        }
        Ok(Self { by_name })
    }

    #[cfg(feature = "http")]
    pub(crate) fn get(&self, upstream: &str) -> Option<&Arc<crate::transports::tls::ClientSettings>> {
        self.by_name.get(upstream)
    }

    #[cfg(feature = "http")]
    pub(crate) fn only(&self, upstream: &str) -> Self {
        Self {
            by_name: self.by_name.get_key_value(upstream).map(|(k, v)| (k.clone(), v.clone())).into_iter().collect(),
        }
    }

    #[cfg(not(feature = "http"))]
    pub(crate) fn only(&self, _: &str) -> Self {
        Self::default()
    }
}
