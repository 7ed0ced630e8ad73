//! The handshakes of one upstream: one context for each name that a certificate must have and each list of protocols,
//! on each arbiter.
//!
//! There are as many as the configuration names servers. Chain and name are verified by the context itself; there is no
//! way to leave that out.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use boring::ssl::{Ssl, SslContext};

use super::{ClientSettings, PeerName};
use crate::actors::shelf;

#[derive(Default)]
struct Contexts(RefCell<BTreeMap<(String, Vec<u8>), SslContext>>);

/// What a handshake with a server is made with that must have this name. `protocols` are offered to it, most wanted
/// first; those of `tls` are not.
///
/// # Errors
/// What BoringSSL or the settings say against it: nothing of it is the server's fault.
pub(crate) fn handshake(tls: &Arc<ClientSettings>, protocols: &[&[u8]], name: &PeerName) -> Result<Ssl, String> {
    let contexts = shelf(tls, Contexts::default);
    let host = match name {
        PeerName::Host(host) => host.clone(),
        PeerName::Address(address) => address.to_string(),
    };
    let key = (host, protocols.join(&0));
    let known = contexts.0.borrow().get(&key).cloned();
    let context = match known {
        Some(context) => context,
        None => {
            let protocols = protocols.iter().map(|name| name.to_vec()).collect();
            let settings = ClientSettings { name: name.clone(), protocols, ..ClientSettings::clone(tls) };
            let context = settings.builder().map_err(|error| error.to_string())?.build();
            contexts.0.borrow_mut().insert(key, context.clone());
            context
        }
    };
    let mut ssl = Ssl::new(&context).map_err(|error| error.to_string())?;
    if let Some(host) = name.sni() {
        ssl.set_hostname(host).map_err(|error| error.to_string())?;
    }
    Ok(ssl)
}
