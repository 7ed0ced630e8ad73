//! HTTP/3 of a listener: what it has on UDP beside its TCP socket, started with it and handed on by a reload.

use std::sync::Arc;

use crate::gateway::config::{Http, Listener};
use crate::gateway::quic::{self, Around, H3, QuicListener};
use crate::gateway::{ListenerStatus, StartError};
use crate::transports::quic as transport;
use crate::transports::tls::ServerSettings;

/// Starts HTTP/3 for a listener that was just started and nobody knows of yet, if it speaks it.
///
/// # Errors
/// See [`StartError`].
pub(crate) fn start(
    listener: &Listener,
    http: &Http,
    around: &Around<'_>,
    status: &mut Arc<ListenerStatus>,
) -> Result<(), StartError> {
    let Some(tls) = tls_of(listener, http, around)? else { return Ok(()) };
    let Some(status) = Arc::get_mut(status) else { return Ok(()) };
    let Some(web) = &status.web else { return Ok(()) };
    let (site, settings) = (web.over_quic.clone(), &http.settings);
    let limits = (settings.streams, settings.head_timeout);
    let address = status.address;
    let running = quic::for_http(listener, address, (tls, site), limits, around, status.occupancy.clone())?;
    status.quic = Some(running);
    tracing::info!(listener = %listener.name, %address, protocol = "http/3", "listening");
    Ok(())
}

/// The same for a listener that has a predecessor: on the same address its UDP sockets go on, with other certificates and
/// limits if they have changed, which is left to the caller.
///
/// # Errors
/// See [`StartError`].
pub(crate) fn renew(
    listener: &Listener,
    http: &Http,
    around: &Around<'_>,
    status: &mut Arc<ListenerStatus>,
    before: Option<&Arc<ListenerStatus>>,
) -> Result<Option<(QuicListener, transport::ServerSettings)>, StartError> {
    let running = before.filter(|before| before.address == status.address).and_then(|before| before.quic.clone());
    let Some(running) = running else {
        start(listener, http, around, status)?;
        return Ok(None);
    };
    let Some(tls) = tls_of(listener, http, around)? else { return Ok(None) };
    let limits = (http.settings.streams, http.settings.head_timeout);
    let settings = quic::settings_for_http(listener, status.address, tls, limits, around.budget);
    let changed = running.would_change(&settings).then(|| (running.clone(), settings));
    if let Some(status) = Arc::get_mut(status) {
        status.quic = Some(running);
    }
    Ok(changed)
}

/// What is said in handshakes; `None` without HTTP/3.
fn tls_of(listener: &Listener, http: &Http, around: &Around<'_>) -> Result<Option<ServerSettings>, StartError> {
    let Some(tls) = http.tls.as_ref().filter(|_| http.settings.http3) else { return Ok(None) };
    let settings = around.certificates.server(&listener.name, tls, vec![H3.to_vec()]);
    let settings = settings.map_err(|error| StartError::Tls { of: format!("listener `{}`", listener.name), error })?;
    Ok(Some(settings))
}
