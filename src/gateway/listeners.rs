//! From a listener's configuration to its acceptor.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use super::config::{self, FramedService, Listener, Place, ProxyOut};
use super::passed::Passed;
use super::sites::{Certificates, Web};
use super::upstreams::Upstreams;
use super::{Factory, ListenerStatus, Made, StartError};
use crate::actors::{Budget, Control, Mesh};
use crate::memory;
use crate::transports::framed::{self, ByteOrder, Echo, Format, LengthBytes, Settings, WhenSlow, rooms};
use crate::transports::kit::admission::{Caps, Occupancy};
use crate::transports::relay::{self, Frames, ProxyVersion, RelaySettings};
use crate::transports::tcp::{self, Acceptor, AcceptorSettings, OnAccept};

/// What a connection takes of the memory budget before it buffers anything: its actor, measured (benches/RESULTS.md).
const BASE_BYTES: usize = 4 << 10;
/// New connections are refused while every arbiter is later than this.
const SHED_DELAY: Duration = Duration::from_millis(500);

/// Ports that are tried for one that is free for TCP and UDP.
#[cfg(all(feature = "http", feature = "quic"))]
const PORTS: usize = 16;

pub(super) fn bind(name: &str, address: SocketAddr, place: &Place) -> Result<TcpListener, StartError> {
    tcp::bind(address).map_err(|error| StartError::Bind {
        listener: name.to_owned(),
        address,
        place: place.clone(),
        error,
    })
}

/// As [`bind`]; if the kernel chooses the port and HTTP/3 is to be spoken on it too, one that is free for UDP as well.
fn bind_for(listener: &Listener) -> Result<TcpListener, StartError> {
    #[cfg_attr(not(all(feature = "http", feature = "quic")), expect(unused_mut, reason = "another is looked for"))]
    let mut socket = bind(&listener.name, listener.listen, &listener.place)?;
    #[cfg(all(feature = "http", feature = "quic"))]
    if listener.listen.port() == 0
        && let config::Protocol::Http(http) = &listener.protocol
        && http.settings.http3
    {
        for _ in 0..PORTS {
            let free = socket.local_addr().and_then(std::net::UdpSocket::bind);
            if free.is_ok() {
                break;
            }
            socket = bind(&listener.name, listener.listen, &listener.place)?;
        }
    }
    Ok(socket)
}

/// The socket that the service manager has passed on for this address, or one that is bound now.
pub(super) fn taken_or_bound(listener: &Listener, passed: &Passed) -> Result<Arc<TcpListener>, StartError> {
    match passed.tcp(listener.listen) {
        Some(socket) => {
            tracing::info!(listener = %listener.name, address = %listener.listen, "takes a socket of the service manager");
            Ok(socket)
        }
        None => bind_for(listener).map(Arc::new),
    }
}

/// The port a listener has, which the kernel may have chosen.
pub(super) fn port_of(listener: &Listener, socket: &TcpListener) -> u16 {
    socket.local_addr().unwrap_or(listener.listen).port()
}

/// What is needed to make a listener.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    pub(super) protocols: &'a BTreeMap<String, Factory>,
    pub(super) upstreams: &'a Upstreams,
    pub(super) certificates: &'a Certificates,
}

/// Makes what will start the connections of a listener, whose predecessor is `before`.
pub(super) fn prepare(
    listener: &Listener,
    around: Around<'_>,
    before: Option<&ListenerStatus>,
    port: u16,
) -> Result<(Made, Option<Web>), StartError> {
    #[cfg(feature = "http")]
    if let config::Protocol::Http(http) = &listener.protocol {
        let web = before.and_then(|before| before.web.as_ref());
        let made = super::sites::make(listener, http, around.upstreams, around.certificates, web, port);
        return made.map(|(made, web)| (made, Some(web))).map_err(|message| StartError::Options {
            listener: listener.name.clone(),
            place: listener.place.clone(),
            message,
        });
    }
    #[cfg(feature = "http")]
    if let config::Protocol::Relay(relay) = &listener.protocol
        && (relay.tls.is_some() || !relay.routes.is_empty())
    {
        let made = super::sites::hello::make(listener, relay, around.upstreams, around.certificates);
        return made.map(|made| (made, None)).map_err(|message| StartError::Options {
            listener: listener.name.clone(),
            place: listener.place.clone(),
            message,
        });
    }
    let (_, _, _) = (before, around.certificates, port);
    made(listener, around.protocols, around.upstreams).map(|made| (made, None))
}

pub(super) fn made(
    listener: &Listener,
    protocols: &BTreeMap<String, Factory>,
    upstreams: &Upstreams,
) -> Result<Made, StartError> {
    let refuse = |message: String| StartError::Options {
        listener: listener.name.clone(),
        place: listener.place.clone(),
        message,
    };
    match &listener.protocol {
        config::Protocol::Framed(framed) => {
            let settings = settings_of(listener, framed).map_err(refuse)?;
            let name: Arc<str> = Arc::from(listener.name.as_str());
            let service = framed.service;
            if let Some(upstream) = &framed.upstream {
                let to = forward_to(listener, framed, upstream, upstreams).map_err(refuse)?;
                let network = upstreams.network(upstream);
                return Ok(Box::new(move || {
                    Box::new(relay::Connections::through(network.clone(), name.clone(), to.clone()))
                }));
            }
            Ok(Box::new(move || -> Box<dyn OnAccept> {
                match service {
                    // Forwarding without an upstream is refused by the check.
                    FramedService::Echo | FramedService::Forward => {
                        Box::new(framed::Connections::new(name.clone(), settings.clone(), || Echo))
                    }
                    FramedService::Rooms => {
                        Box::new(rooms::Rooms::new(name.clone(), settings.clone(), rooms::Limits::default()))
                    }
                }
            }))
        }
        config::Protocol::Relay(relay) => {
            let settings = relay_to(listener, relay, &relay.upstream, upstreams).map_err(refuse)?;
            let name: Arc<str> = Arc::from(listener.name.as_str());
            let network = upstreams.network(&relay.upstream);
            Ok(Box::new(move || {
                Box::new(relay::Connections::through(network.clone(), name.clone(), settings.clone()))
                    as Box<dyn OnAccept>
            }))
        }
        #[cfg(feature = "http")]
        config::Protocol::Http(_) => Err(refuse("an HTTP listener is made of its site".to_owned())),
        config::Protocol::Quic(_) => Err(refuse("protocol `quic` is not served over TCP".to_owned())),
        config::Protocol::Udp(_) => Err(refuse("protocol `udp` is not served over TCP".to_owned())),
        #[cfg(feature = "wireguard")]
        config::Protocol::Wireguard(_) => Err(refuse("a tunnel is no listener of TCP".to_owned())),
        config::Protocol::Custom { protocol, options } => match protocols.get(protocol) {
            Some(factory) => factory(options).map_err(refuse),
            None => Err(refuse(format!("no protocol `{protocol}` is registered"))),
        },
    }
}

/// How a relay's streams go to one of its upstreams.
pub(super) fn relay_to(
    listener: &Listener,
    relay: &config::Relay,
    upstream: &str,
    upstreams: &Upstreams,
) -> Result<RelaySettings, String> {
    let mut settings = relay_settings(listener, upstream, upstreams)?;
    settings.attempts = usize::try_from(relay.attempts).unwrap_or(usize::MAX);
    settings.proxy_in = relay.proxy_in;
    settings.proxy_out = match relay.proxy_out {
        ProxyOut::Off => None,
        ProxyOut::V1 => Some(ProxyVersion::V1),
        ProxyOut::V2 => Some(ProxyVersion::V2),
    };
    Ok(settings)
}

/// How whole messages go to an upstream.
pub(super) fn forward_to(
    listener: &Listener,
    framed: &config::Framed,
    upstream: &str,
    upstreams: &Upstreams,
) -> Result<RelaySettings, String> {
    let settings = settings_of(listener, framed)?;
    let mut to = relay_settings(listener, upstream, upstreams)?;
    to.frames = Some(Frames {
        format: settings.format,
        first_message: settings.first_message,
        message_timeout: settings.message_timeout,
        slow_after: settings.slow_after,
    });
    Ok(to)
}

/// Who may come in.
pub(super) const fn caps(limits: &config::Limits) -> Caps {
    let config::Limits { connections, per_source, half_open, .. } = *limits;
    Caps { connections, per_source, half_open, base_bytes: BASE_BYTES }
}

/// What a stream to a server of an upstream may do.
fn relay_settings(listener: &Listener, upstream: &str, upstreams: &Upstreams) -> Result<RelaySettings, String> {
    upstreams.relay(upstream, &listener.limits).ok_or_else(|| format!("there is no upstream `{upstream}`"))
}

pub(super) fn settings_of(listener: &Listener, framed: &config::Framed) -> Result<Settings, String> {
    let length_bytes = match framed.length_bytes {
        1 => LengthBytes::One,
        2 => LengthBytes::Two,
        8 => LengthBytes::Eight,
        _ => LengthBytes::Four,
    };
    let byte_order = match framed.byte_order {
        config::ByteOrder::Big => ByteOrder::Big,
        config::ByteOrder::Little => ByteOrder::Little,
    };
    let format = Format::new(length_bytes, byte_order, framed.length_includes_header, framed.max_message)
        .map_err(|error| error.to_string())?;
    let some = |time: Duration| (!time.is_zero()).then_some(time);
    Ok(Settings {
        format,
        first_message: some(listener.limits.first_message),
        idle: some(listener.limits.idle),
        message_timeout: some(framed.message_timeout),
        outbound: framed.outbound,
        when_slow: match framed.when_slow {
            config::WhenSlow::Close => WhenSlow::Close,
            config::WhenSlow::DropOldest => WhenSlow::DropOldest,
            config::WhenSlow::DropNewest => WhenSlow::DropNewest,
        },
        slow_after: framed.slow_after,
    })
}

/// A listener of which nothing can fail any more but its start.
pub(super) struct Prepared {
    pub(super) listener: Listener,
    pub(super) socket: Arc<TcpListener>,
    pub(super) made: Made,
    pub(super) web: Option<Web>,
    /// Who is in: of the listener's predecessor, if it has one.
    pub(super) occupancy: Arc<Occupancy>,
    /// The tunnel in which its address is, if it is not the host's.
    pub(super) inside: Option<String>,
}

/// Starts the acceptors. They share the data arbiters by turns.
pub(super) fn start_all(
    mesh: &Mesh,
    bound: Vec<Prepared>,
    budget: &memory::Budget,
    passed: &Passed,
) -> Result<Vec<Arc<ListenerStatus>>, StartError> {
    let mut started = Vec::new();
    for (index, Prepared { listener, socket, made, web, occupancy, inside }) in bound.into_iter().enumerate() {
        let address = socket.local_addr().unwrap_or(listener.listen);
        let name: Arc<str> = Arc::from(listener.name.as_str());
        let settings = AcceptorSettings {
            name: name.clone(),
            caps: caps(&listener.limits),
            budget: budget.clone(),
            shed_delay: SHED_DELAY,
            occupancy: occupancy.clone(),
        };
        let place = crate::actors::Place::On(index % mesh.arbiters().max(1));
        let weak = Arc::downgrade(&socket);
        let socket = passed.listening(socket);
        let acceptor = match Acceptor::start(mesh, place, socket, settings, Budget::default(), made) {
            Ok(acceptor) => acceptor,
            Err(error) => {
                started.iter().for_each(|status: &Arc<ListenerStatus>| status.acceptor.control(Control::Stop));
                return Err(StartError::Spawn(error));
            }
        };
        let (protocol, inside) = (name_of(&listener.protocol), inside.as_deref().map(tracing::field::display));
        tracing::info!(listener = %name, %address, inside, protocol, "listening");
        started.push(Arc::new(ListenerStatus {
            name,
            address,
            configured: listener.listen,
            socket: weak,
            protocol: name_of(&listener.protocol).to_owned(),
            occupancy,
            web,
            acceptor,
            #[cfg(feature = "quic")]
            quic: None,
            #[cfg(feature = "udp")]
            udp: None,
        }));
    }
    Ok(started)
}

pub(super) fn name_of(protocol: &config::Protocol) -> &str {
    match protocol {
        config::Protocol::Framed(_) => "framed",
        config::Protocol::Relay(_) => "relay",
        #[cfg(feature = "http")]
        config::Protocol::Http(_) => "http",
        config::Protocol::Quic(quic) if quic.moq.is_some() => "moq",
        config::Protocol::Quic(_) => "quic",
        config::Protocol::Udp(_) => "udp",
        #[cfg(feature = "wireguard")]
        config::Protocol::Wireguard(_) => "wireguard",
        config::Protocol::Custom { protocol, .. } => protocol,
    }
}
