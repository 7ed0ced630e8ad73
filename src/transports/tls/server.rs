//! What a listener says in its handshakes, as plain data, and the context built from it.

use std::path::PathBuf;
use std::sync::Arc;

use boring::sha::Sha256;
use boring::ssl::{
    AlpnError, ClientHello, NameType, SelectCertError, SslContextBuilder, SslMethod, SslOptions, SslRef, SslVerifyMode,
    SslVersion,
};
use boring::x509::store::{X509Store, X509StoreBuilder};

use super::certificate::{Certificate, certificates};
use super::keylog::KeyLog;
use super::state::{NameTable, choose_protocol, protocol_list};
use super::tickets::Tickets;
use super::{TlsError, WRITES};

/// The groups for key agreement, most wanted first, by their names in BoringSSL.
///
/// The default begins with X25519: the hybrid X25519MLKEM768 costs a server about half as much again per handshake. A
/// site that fears recorded traffic puts it first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Curves(Vec<String>);

impl Default for Curves {
    fn default() -> Self {
        Self(["X25519", "P-256", "P-384", "X25519MLKEM768"].map(String::from).to_vec())
    }
}

impl Curves {
    /// A list of one's own.
    ///
    /// # Errors
    /// [`TlsError::Value`] if it is empty or holds a group that BoringSSL does not know.
    pub fn new(names: Vec<String>) -> Result<Self, TlsError> {
        let curves = Self(names);
        curves.set(&mut SslContextBuilder::new(SslMethod::tls())?)?;
        Ok(curves)
    }

    pub(super) fn set(&self, builder: &mut SslContextBuilder) -> Result<(), TlsError> {
        builder.set_curves_list(&self.0.join(":")).map_err(|_| {
            let known = "X25519, P-256, P-384, P-521 and X25519MLKEM768";
            TlsError::Value(format!("unknown key agreement in {:?}; known are {known}", self.0.join(", ")))
        })
    }
}

/// Clients must show a certificate that one of these authorities signed.
///
/// Mandatory, in each full handshake: a client without one is refused with an alert.
#[derive(Clone)]
pub struct ClientCertificates {
    store: X509Store,
    fingerprint: [u8; 32],
    file: PathBuf,
}

impl std::fmt::Debug for ClientCertificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientCertificates").field("file", &self.file).finish_non_exhaustive()
    }
}

impl ClientCertificates {
    /// Reads the authorities from a PEM file.
    ///
    /// # Errors
    /// A file that cannot be read or holds no certificate.
    pub fn signed_by(file: PathBuf) -> Result<Self, TlsError> {
        let mut store = X509StoreBuilder::new()?;
        let mut hash = Sha256::new();
        for authority in certificates(&file)? {
            hash.update(&authority.to_der()?);
            store.add_cert(&authority)?;
        }
        Ok(Self { store: store.build(), fingerprint: hash.finish(), file })
    }
}

/// What a listener says in its handshakes. One generation of it; see the top of `tls`.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// The name of the listener. Tickets are good for the listener that gave them.
    pub listener: Arc<str>,
    /// The certificates; the first one answers clients that name none of the others' hosts.
    pub certificates: Vec<Arc<Certificate>>,
    /// The protocols spoken, most wanted first (RFC 7301). With any, a client that offers none of them is refused with
    /// `no_application_protocol`. One that offers no list at all is let in over TCP, and refused by QUIC.
    pub protocols: Vec<Vec<u8>>,
    /// Whether clients must show a certificate, and whose.
    pub clients: Option<ClientCertificates>,
    /// The keys of session tickets. None: clients get no tickets.
    pub tickets: Option<Arc<Tickets>>,
    /// Key agreement.
    pub curves: Curves,
    /// Where secrets are written, on request.
    pub keylog: Option<Arc<KeyLog>>,
}

/// What makes a difference to clients is compared: not the tickets, which are shared by all generations, and not the
/// file behind the key log.
impl PartialEq for ServerSettings {
    fn eq(&self, other: &Self) -> bool {
        let authorities = |settings: &Self| settings.clients.as_ref().map(|clients| clients.fingerprint);
        self.listener == other.listener
            && self.certificates == other.certificates
            && self.protocols == other.protocols
            && authorities(self) == authorities(other)
            && self.tickets.is_some() == other.tickets.is_some()
            && self.curves == other.curves
            && self.keylog.is_some() == other.keylog.is_some()
    }
}

impl ServerSettings {
    /// Settings with these certificates and nothing else.
    #[must_use]
    pub fn new(listener: &str, certificates: Vec<Arc<Certificate>>) -> Self {
        Self {
            listener: listener.into(),
            certificates,
            protocols: Vec::new(),
            clients: None,
            tickets: None,
            curves: Curves::default(),
            keylog: None,
        }
    }

    /// Builds a context's builder; QUIC takes it as it is. TLS 1.2 is the oldest version spoken, and QUIC speaks 1.3
    /// only, by itself.
    ///
    /// # Errors
    /// [`TlsError::Value`] without a certificate or with a protocol name that TLS cannot carry.
    pub fn builder(&self) -> Result<SslContextBuilder, TlsError> {
        let mut builder = SslContextBuilder::new(SslMethod::tls())?;
        builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
        builder.set_options(SslOptions::CIPHER_SERVER_PREFERENCE | SslOptions::NO_RENEGOTIATION);
        builder.set_mode(WRITES);
        self.curves.set(&mut builder)?;
        self.present(&mut builder)?;
        self.speak(&mut builder)?;
        if let Some(clients) = &self.clients {
            builder.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
            builder.set_cert_store_ref(&clients.store);
        }
        // A resumed handshake shows no certificate. A ticket of a listener that asks for none, or that trusts others,
        // must not open this one.
        builder.set_session_id_context(&self.session_context())?;
        match &self.tickets {
            Some(tickets) => tickets.install(&mut builder),
            None => drop(builder.set_options(SslOptions::NO_TICKET)),
        }
        if let Some(keylog) = self.keylog.clone() {
            builder.set_keylog_callback(move |_, line| keylog.line(line));
        }
        Ok(builder)
    }

    fn present(&self, builder: &mut SslContextBuilder) -> Result<(), TlsError> {
        let certificates = self.certificates.clone();
        let first = certificates.first().ok_or_else(|| TlsError::Value("a TLS listener needs a certificate".into()))?;
        if certificates.len() == 1 {
            builder.set_certificate(&first.leaf)?;
            builder.set_private_key(&first.key)?;
            for link in &first.chain {
                builder.add_extra_chain_cert(link.clone())?;
            }
            return Ok(());
        }
        let table = NameTable::new(certificates.iter().map(|certificate| certificate.names()));
        // Not by `set_ssl_context`: BoringSSL's bindings look callbacks up in the context of the moment, and the ticket
        // callback of one that was swapped away would not be found.
        builder.set_select_certificate_callback(move |mut hello: ClientHello<'_>| {
            let number = table.find(hello.servername(NameType::HOST_NAME));
            let certificate = certificates.get(number).ok_or(SelectCertError::ERROR)?;
            show(hello.ssl_mut(), certificate).map_err(|_| SelectCertError::ERROR)
        });
        Ok(())
    }

    fn speak(&self, builder: &mut SslContextBuilder) -> Result<(), TlsError> {
        if protocol_list(&self.protocols).is_none() {
            return Err(TlsError::Value("a protocol name has 1 to 255 bytes".into()));
        }
        if !self.protocols.is_empty() {
            let ours = self.protocols.clone();
            builder.set_alpn_select_callback(move |_, offered| {
                choose_protocol(&ours, offered).ok_or(AlpnError::ALERT_FATAL)
            });
        }
        Ok(())
    }

    fn session_context(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.listener.as_bytes());
        hash.update(&[u8::from(self.clients.is_some())]);
        if let Some(clients) = &self.clients {
            hash.update(&clients.fingerprint);
        }
        hash.finish()
    }
}

fn show(ssl: &mut SslRef, certificate: &Certificate) -> Result<(), boring::error::ErrorStack> {
    ssl.set_certificate(&certificate.leaf)?;
    ssl.set_private_key(&certificate.key)?;
    certificate.chain.iter().try_for_each(|link| ssl.add_chain_cert(link))
}
