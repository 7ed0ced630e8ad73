//! TLS of the admin listener: the context its connections begin with, and who is there at the other end.

use std::sync::Arc;

use boring::ssl::{Ssl, SslContext};
use tokio::net::TcpStream;
use tokio_boring::{SslStream, SslStreamBuilder};

use super::access::Names;
use crate::actors::Fault;
use crate::gateway::StartError;
use crate::gateway::config::Admin;
use crate::gateway::sites::Certificates;
use crate::transports::tls::{ServerSettings, TlsError};

/// What is said in handshakes.
pub(crate) struct Secured {
    settings: ServerSettings,
    context: SslContext,
    names: Names,
}

impl std::fmt::Debug for Secured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secured").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Secured {
    /// Reads what `[admin]` names, if it speaks TLS; the very same as `before` if nothing in it differs.
    ///
    /// # Errors
    /// Certificates or authorities that cannot be used.
    pub(super) fn of(
        admin: &Admin,
        certificates: &Certificates,
        before: Option<&Arc<Self>>,
    ) -> Result<Option<Arc<Self>>, StartError> {
        let Some(tls) = &admin.tls else { return Ok(None) };
        let fail = |error: TlsError| StartError::Tls { of: "[admin]".to_owned(), error };
        let mut settings = certificates.server("admin", tls, vec![b"http/1.1".to_vec()]).map_err(fail)?;
        // Few come, and each shows its certificate itself.
        settings.tickets = None;
        if let Some(before) = before.filter(|before| before.settings == settings) {
            return Ok(Some(before.clone()));
        }
        let context = settings.builder().map_err(fail)?.build();
        let names = settings.certificates.iter().flat_map(|certificate| certificate.names());
        Ok(Some(Arc::new(Self { names: Names::new(names), context, settings })))
    }

    /// The names of the certificates.
    pub(super) const fn names(&self) -> &Names {
        &self.names
    }

    /// Whether whoever comes in has shown a certificate that an authority of ours signed.
    pub(super) const fn demands_certificate(&self) -> bool {
        self.settings.clients.is_some()
    }

    /// The handshake.
    ///
    /// # Errors
    /// The caller's, with the reason for the counter: `certificate` if it has none that is trusted, else `handshake`.
    pub(super) async fn accept(&self, stream: TcpStream) -> Result<SslStream<TcpStream>, Fault> {
        let ssl = Ssl::new(&self.context).map_err(|error| Fault::local("tls", error.to_string()))?;
        SslStreamBuilder::new(ssl, stream).accept().await.map_err(|error| {
            let text = error.to_string();
            // The words of BoringSSL for a client that showed none, or one that others signed.
            let untrusted = ["PEER_DID_NOT_RETURN_A_CERTIFICATE", "CERTIFICATE_VERIFY_FAILED"];
            let certificate = untrusted.iter().any(|words| text.contains(words));
            Fault::peer(if certificate { "certificate" } else { "handshake" }, text)
        })
    }
}
