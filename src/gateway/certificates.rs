//! The certificates of a running gateway, by name, and what listeners and upstreams say in handshakes with them.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::StartError;
use super::config::{self, CertificateSource, ListenerTls, UpstreamTls};
use super::watch::{Stamp, stamp};
use crate::transports::tls::{
    Certificate, ClientCertificates, ClientSettings, Curves, KeyLog, PeerName, Roots, ServerSettings, Tickets, TlsError,
};

/// Days before the end of a certificate from which on it is warned of.
const SOON: i64 = 14;

/// The certificates by name. A clone holds the same ones.
#[derive(Debug, Clone)]
pub(super) struct Certificates {
    by_name: BTreeMap<String, (CertificateSource, Arc<Certificate>)>,
    tickets: Arc<Tickets>,
}

impl Certificates {
    /// Reads and makes all certificates. Those that are the same as `before` stay the very same, made ones as well.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub(super) fn load(certificates: &[config::Certificate], before: Option<&Self>) -> Result<Self, StartError> {
        let tickets = match before {
            Some(before) => before.tickets.clone(),
            None => Tickets::new().map_err(|error| StartError::Tls { of: "session tickets".to_owned(), error })?,
        };
        let mut by_name = BTreeMap::new();
        for certificate in certificates {
            let known = before.and_then(|before| before.by_name.get(&certificate.name));
            let loaded = one(&certificate.source, known.filter(|(source, _)| *source == certificate.source))
                .map_err(|error| StartError::Tls { of: format!("certificate `{}`", certificate.name), error })?;
            let days = loaded.days_left();
            if days < SOON {
                tracing::warn!(certificate = %certificate.name, days, "the certificate expires soon, or has expired");
            }
            by_name.insert(certificate.name.clone(), (certificate.source.clone(), loaded));
        }
        Ok(Self { by_name, tickets })
    }

    /// Puts a new key for session tickets in front.
    pub(super) fn rotate_tickets(&self) {
        if let Err(error) = self.tickets.rotate() {
            tracing::warn!(%error, "the key of session tickets stays as it is");
        }
    }

    /// Whether a listener would say the same in its handshakes with these others.
    #[cfg(feature = "http")]
    pub(super) fn same_for(&self, other: &Self, tls: &ListenerTls) -> bool {
        tls.certificates.iter().all(|name| match (self.get(name), other.get(name)) {
            (Ok(a), Ok(b)) => Arc::ptr_eq(&a, &b),
            _ => false,
        })
    }

    fn get(&self, name: &str) -> Result<Arc<Certificate>, TlsError> {
        let found = self.by_name.get(name).map(|(_, certificate)| certificate.clone());
        found.ok_or_else(|| TlsError::Value(format!("there is no certificate `{name}`")))
    }

    /// The SHA-256 of one.
    ///
    /// # Errors
    /// There is none of that name.
    #[cfg(feature = "http")]
    pub(super) fn fingerprint(&self, name: &str) -> Result<Vec<u8>, TlsError> {
        self.get(name)?.fingerprint()
    }

    /// What a listener says in its handshakes.
    ///
    /// # Errors
    /// A certificate, a file of authorities or a key log that cannot be used.
    pub(super) fn server(
        &self,
        listener: &str,
        tls: &ListenerTls,
        protocols: Vec<Vec<u8>>,
    ) -> Result<ServerSettings, TlsError> {
        let certificates = tls.certificates.iter().map(|name| self.get(name)).collect::<Result<_, _>>()?;
        let mut settings = ServerSettings::new(listener, certificates);
        settings.protocols = protocols;
        settings.clients = tls.client_ca.clone().map(ClientCertificates::signed_by).transpose()?;
        settings.tickets = Some(self.tickets.clone());
        settings.curves = Curves::new(tls.curves.clone())?;
        settings.keylog = tls.keylog.as_deref().map(keylog).transpose()?;
        Ok(settings)
    }

    /// What is said to servers of an upstream, and demanded of them; whom their certificate must name is set for each.
    ///
    /// # Errors
    /// As [`server`](Self::server).
    pub(super) fn client(&self, tls: &UpstreamTls) -> Result<ClientSettings, TlsError> {
        let mut settings = ClientSettings::new(PeerName::new(tls.name.as_deref().unwrap_or("localhost")));
        settings.roots = match (&tls.trust, &tls.ca) {
            (Some(name), _) => Roots::Only(self.get(name)?),
            (None, Some(file)) => Roots::File(file.clone()),
            (None, None) => Roots::System,
        };
        if !tls.alpn.is_empty() {
            settings.protocols = vec![tls.alpn.as_bytes().to_vec()];
        }
        settings.certificate = tls.certificate.as_deref().map(|name| self.get(name)).transpose()?;
        settings.curves = Curves::new(tls.curves.clone())?;
        settings.keylog = tls.keylog.as_deref().map(keylog).transpose()?;
        // Once now, so that what cannot work is found before a connection needs it.
        settings.builder()?;
        Ok(settings)
    }
}

/// What tells whether the files of certificates have changed.
pub(super) fn stamps(certificates: &[config::Certificate]) -> Vec<Stamp> {
    let files = certificates.iter().flat_map(|certificate| match &certificate.source {
        CertificateSource::Files { cert, key } => vec![cert, key],
        CertificateSource::Generated(_) => Vec::new(),
    });
    files.map(|file| stamp(file)).collect()
}

fn one(
    source: &CertificateSource,
    before: Option<&(CertificateSource, Arc<Certificate>)>,
) -> Result<Arc<Certificate>, TlsError> {
    match (source, before) {
        (CertificateSource::Generated(_), Some((_, before))) => Ok(before.clone()),
        (CertificateSource::Generated(names), None) => Ok(Arc::new(Certificate::generate(names)?)),
        (CertificateSource::Files { cert, key }, before) => {
            let read = Certificate::from_files(cert, key)?;
            match before {
                Some((_, before)) if **before == read => Ok(before.clone()),
                _ => Ok(Arc::new(read)),
            }
        }
    }
}

fn keylog(file: &Path) -> Result<Arc<KeyLog>, TlsError> {
    let opened = KeyLog::open(file).map_err(|error| TlsError::Read {
        file: file.into(),
        reason: match error.kind() == ErrorKind::NotFound {
            true => "no such folder".into(),
            false => error.to_string(),
        },
    })?;
    tracing::warn!(file = %file.display(), "the secrets of connections are written to a file");
    Ok(Arc::new(opened))
}
