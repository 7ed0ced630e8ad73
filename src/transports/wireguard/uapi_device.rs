//! A running interface as `wg` sees and changes it.

use std::fmt;
use std::io;
use std::net::UdpSocket;
use std::time::Duration;

use socket2::SockRef;

use super::actor_device::DeviceMsg;
use super::codec_keys::SecretKey;
use super::codec_uapi::{DeviceView, Edit, Errno, PeerView};
use super::interface::Interface;
use super::settings::PeerSettings;
use super::state_uapi;
use super::uapi::Tunnel;
use crate::actors::clock;

/// How long a device may take to answer: its turn comes many times a second.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is told of the peers after `wg` has changed them, or the mark.
type Told = Box<dyn Fn(&[PeerSettings]) + Send>;

/// See the top of the file.
pub struct Live {
    interface: Interface,
    /// A second handle on the interface's socket, for its port and its mark.
    socket: UdpSocket,
    secret: SecretKey,
    told: Option<Told>,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("interface", &self.interface).finish_non_exhaustive()
    }
}

impl Live {
    /// For a running interface; `socket` is the one it was started with.
    ///
    /// # Errors
    /// The socket cannot be shared.
    pub fn new(interface: Interface, socket: &UdpSocket, secret: SecretKey) -> io::Result<Self> {
        Ok(Self { interface, socket: socket.try_clone()?, secret, told: None })
    }

    /// The same, and `told` learns of all peers after each change that was made, be it of the mark, on the thread of
    /// this actor.
    #[must_use]
    pub fn telling(self, told: impl Fn(&[PeerSettings]) + Send + 'static) -> Self {
        Self { told: Some(Box::new(told)), ..self }
    }

    async fn peers(&self) -> Option<Vec<super::actor_device::PeerView>> {
        self.interface.device().ask_urgent(DeviceMsg::Peers, PATIENCE).await.ok()
    }

    fn port(&self) -> u16 {
        self.socket.local_addr().map_or(0, |address| address.port())
    }
}

impl Tunnel for Live {
    async fn view(&self) -> Option<DeviceView> {
        let now = clock::since_1970();
        let one = |peer: super::actor_device::PeerView| PeerView {
            public_key: peer.settings.public_key,
            preshared_key: peer.settings.preshared_key.clone(),
            endpoint: peer.endpoint,
            last_handshake: peer.handshake_ago.map(|ago| now.saturating_sub(ago)),
            received: peer.received,
            sent: peer.sent,
            keepalive: peer.settings.keepalive.unwrap_or(0),
            allowed_ips: peer.settings.allowed.clone(),
        };
        Some(DeviceView {
            private_key: Some(self.secret.clone()),
            listen_port: self.port(),
            fwmark: SockRef::from(&self.socket).mark().unwrap_or(0),
            peers: self.peers().await?.into_iter().map(one).collect(),
        })
    }

    /// The key and the port of a running interface stay: asked for another, nothing is changed.
    async fn apply(&self, edit: Edit) -> Errno {
        if edit.private_key.as_ref().is_some_and(|key| key.as_ref() != Some(&self.secret))
            || edit.listen_port.is_some_and(|port| port != self.port())
        {
            return Errno::UNSUPPORTED;
        }
        let Some(peers) = self.peers().await else { return Errno::BUSY };
        let before: Vec<PeerSettings> = peers.into_iter().map(|peer| (*peer.settings).clone()).collect();
        let mark = edit.fwmark;
        let after = match state_uapi::applied(before.clone(), edit) {
            Ok(after) => after,
            Err(errno) => return errno,
        };
        if let Some(mark) = mark
            && let Err(error) = SockRef::from(&self.socket).set_mark(mark)
        {
            return Errno(error.raw_os_error().unwrap_or(Errno::INVALID.0));
        }
        let changed = after != before;
        if changed && self.interface.device().tell(DeviceMsg::Replace(after.clone())).is_err() {
            return Errno::BUSY;
        }
        if let Some(told) = self.told.as_ref().filter(|_| changed || mark.is_some()) {
            told(&after);
        }
        Errno::NONE
    }
}
