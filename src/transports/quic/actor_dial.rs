//! What the endpoint of a client does beside carrying packets: it dials, and gives connections that move a socket of
//! their own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::actor_connection::Purpose;
use super::actor_endpoint::Endpoint;
use super::actor_engine::Quic;
use super::codec::Cid;
use super::messages::{Connect, ConnectError, SlotId, ToConnection, ToEndpoint};
use super::session::Role;
use crate::actors::Turn;
use crate::transports::tls;
use crate::transports::udp::UdpSocket;

/// TLS contexts that are kept.
const CONTEXTS: usize = 16;
/// Sockets of connections that have moved, at most.
const OTHERS: usize = 64;

impl Endpoint {
    /// Makes a connection for a client.
    pub(super) fn connect(&mut self, connect: Connect, turn: &Turn<'_, ToEndpoint>) {
        let Connect { to, tls, session, log, reply, application } = connect;
        let fail = |error| Err(error);
        if self.quiet {
            drop(reply.send(fail(ConnectError::Closed)));
            return;
        }
        if self.connections >= self.plan.connections {
            drop(reply.send(fail(ConnectError::Full)));
            return;
        }
        let quic = match self.dial(to, &tls, session.as_deref()) {
            Ok(quic) => quic,
            Err(error) => {
                drop(reply.send(fail(error)));
                return;
            }
        };
        let (mut quic, id) = quic;
        if let Some(log) = log.as_ref().or(self.plan.log.as_ref()) {
            log.attach(&mut quic, Role::Client);
        }
        // If it cannot be started, the reply is dropped with its purpose, and says `Closed`.
        let _started = self.start(quic, Role::Client, id, None, Purpose::Wanted(reply, application), turn);
    }

    fn dial(
        &mut self,
        to: SocketAddr,
        tls: &Arc<tls::ClientSettings>,
        session: Option<&[u8]>,
    ) -> Result<(Quic, Cid), ConnectError> {
        let local = self.shared.as_ref().map(|shared| shared.socket.local_addr()).ok_or(ConnectError::NoSocket)?;
        let id = self.new_id().ok_or(ConnectError::Quic("no random numbers"))?;
        let at = match self.contexts.iter().position(|(known, _)| Arc::ptr_eq(known, tls)) {
            Some(at) => at,
            None => {
                let builder = tls.builder().map_err(ConnectError::Tls)?;
                let config =
                    self.plan.transport.config(builder).map_err(|_| ConnectError::Quic("its configuration"))?;
                if self.contexts.len() >= CONTEXTS {
                    self.contexts.remove(0);
                }
                self.contexts.push((tls.clone(), config));
                self.contexts.len() - 1
            }
        };
        let (_, config) = self.contexts.get_mut(at).ok_or(ConnectError::Quic("its configuration"))?;
        let scid = quiche::ConnectionId::from_ref(id.bytes());
        let mut quic: Quic = quiche::connect_with_buffer_factory(tls.name.sni(), &scid, local, to, config)
            .map_err(|_| ConnectError::Quic("connect"))?;
        if let Some(session) = session {
            // One that cannot be used means a full handshake.
            let _resumes = quic.set_session(session);
        }
        Ok((quic, id))
    }

    /// A socket for one connection that moves.
    pub(super) fn open_other(&mut self, id: SlotId) {
        let opened = self.bind_other();
        if let Err(error) = &opened {
            tracing::warn!(name = %self.plan.scope, %error, "no socket for a connection that moves");
        }
        let Some(slot) = self.slot(id) else {
            opened.into_iter().for_each(|local| self.close_other(local));
            return;
        };
        slot.sockets.extend(opened.as_ref().ok());
        drop(slot.mail.tell(ToConnection::Opened(opened.ok())));
    }

    fn bind_other(&mut self) -> io::Result<SocketAddr> {
        let shared = self.shared.as_ref().filter(|_| self.plan.listen.is_none() && self.others < OTHERS);
        let shared = shared.ok_or_else(|| io::Error::other("as many sockets as there may be"))?;
        let socket = std::net::UdpSocket::bind(SocketAddr::new(shared.socket.local_addr().ip(), 0))?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::new(socket, &self.options())?;
        let local = socket.local_addr();
        shared.add(socket);
        self.others += 1;
        Ok(local)
    }

    pub(super) fn close_other(&mut self, local: SocketAddr) {
        if let Some(shared) = &self.shared {
            shared.remove(local);
            self.others = self.others.saturating_sub(1);
        }
    }

    pub(super) fn leave_other(&mut self, id: SlotId, local: SocketAddr) {
        let Some(slot) = self.slot(id) else { return };
        if let Some(at) = slot.sockets.iter().position(|known| *known == local) {
            slot.sockets.remove(at);
            self.close_other(local);
        }
    }
}
