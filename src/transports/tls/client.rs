//! What this side says and demands when it is the client: whom it trusts, whom it expects, and what it shows.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use boring::ssl::{SslContextBuilder, SslMethod, SslVerifyMode, SslVersion};
use boring::x509::store::X509StoreBuilder;
use boring::x509::verify::{X509CheckFlags, X509VerifyFlags};

use super::certificate::{Certificate, certificates};
use super::keylog::KeyLog;
use super::server::Curves;
use super::state::protocol_list;
use super::{TlsError, WRITES};

/// Which authorities a client trusts. There is no "none": a connection that anybody may answer is not offered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Roots {
    /// Those of the system.
    #[default]
    System,
    /// Those in a PEM file, and no others.
    File(PathBuf),
    /// Exactly this certificate: for one that was generated.
    Only(Arc<Certificate>),
}

/// Whom the server's certificate must name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerName {
    /// A host name, which is also sent to the server (SNI).
    Host(String),
    /// An address. RFC 6066, section 3, has no room for it in SNI: nothing is sent.
    Address(IpAddr),
}

impl PeerName {
    /// Reads a host name or an address, without brackets.
    #[must_use]
    pub fn new(name: &str) -> Self {
        name.parse().map_or_else(|_| Self::Host(name.into()), Self::Address)
    }

    /// What is sent as SNI.
    #[must_use]
    pub fn sni(&self) -> Option<&str> {
        match self {
            Self::Host(name) => Some(name),
            Self::Address(_) => None,
        }
    }
}

/// What a client says and demands in its handshakes with one server. One generation of it; see the top of `tls`.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// Whom the certificate must name. Whoever connects sends [`PeerName::sni`].
    pub name: PeerName,
    /// Whom to trust.
    pub roots: Roots,
    /// The protocols offered, most wanted first (RFC 7301).
    pub protocols: Vec<Vec<u8>>,
    /// What to show a server that asks.
    pub certificate: Option<Arc<Certificate>>,
    /// Key agreement.
    pub curves: Curves,
    /// Where secrets are written, on request.
    pub keylog: Option<Arc<KeyLog>>,
}

/// What makes a difference to servers is compared, not the file behind the key log.
impl PartialEq for ClientSettings {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
            && self.roots == other.roots
            && self.protocols == other.protocols
            && self.certificate == other.certificate
            && self.curves == other.curves
            && self.keylog.is_some() == other.keylog.is_some()
    }
}

impl ClientSettings {
    /// Expects this server, with a certificate the system trusts.
    #[must_use]
    pub fn new(name: PeerName) -> Self {
        Self {
            name,
            roots: Roots::default(),
            protocols: Vec::new(),
            certificate: None,
            curves: Curves::default(),
            keylog: None,
        }
    }

    /// Builds a context's builder, which verifies chain and name by itself: whoever uses it need not.
    ///
    /// # Errors
    /// A file of authorities that cannot be used; a name that no certificate can hold; a protocol name TLS cannot carry.
    pub fn builder(&self) -> Result<SslContextBuilder, TlsError> {
        let mut builder = SslContextBuilder::new(SslMethod::tls())?;
        builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
        builder.set_mode(WRITES);
        self.curves.set(&mut builder)?;
        builder.set_verify(SslVerifyMode::PEER);
        builder.set_cert_store_builder(self.trusted()?);
        let list = protocol_list(&self.protocols)
            .ok_or_else(|| TlsError::Value("a protocol name has 1 to 255 bytes".into()))?;
        if !list.is_empty() {
            builder.set_alpn_protos(&list)?;
        }
        if let Some(own) = &self.certificate {
            builder.set_certificate(&own.leaf)?;
            builder.set_private_key(&own.key)?;
            for link in &own.chain {
                builder.add_extra_chain_cert(link.clone())?;
            }
        }
        if let Some(keylog) = self.keylog.clone() {
            builder.set_keylog_callback(move |_, line| keylog.line(line));
        }
        Ok(builder)
    }

    fn trusted(&self) -> Result<X509StoreBuilder, TlsError> {
        let mut store = X509StoreBuilder::new()?;
        match &self.roots {
            Roots::System => store.set_default_paths()?,
            Roots::File(file) => {
                for authority in certificates(file)? {
                    store.add_cert(&authority)?;
                }
            }
            Roots::Only(certificate) => {
                store.add_cert(&certificate.leaf)?;
                // Also one that an authority signed, which is not asked for.
                store.verify_param_mut().try_set_flags(X509VerifyFlags::PARTIAL_CHAIN)?;
            }
        }
        // The name is demanded here and not by each connection, since a connection to an address sends no SNI, and
        // without SNI quiche checks no name.
        let demanded = store.verify_param_mut();
        match &self.name {
            PeerName::Host(name) => {
                demanded.set_hostflags(X509CheckFlags::NO_PARTIAL_WILDCARDS);
                demanded.set_host(name).map_err(|_| TlsError::Value(format!("{name:?} is not a host name")))?;
            }
            PeerName::Address(ip) => demanded.set_ip(*ip)?,
        }
        Ok(store)
    }
}
