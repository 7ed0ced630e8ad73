//! The door of one arbiter: reads the port, knows the flows, lets new ones in and hands each what is for it.
//!
//! It reads in bounded runs; what one read brought for the same flow goes to it as one message. New flows are its
//! children and live beside it. It is supervised: one that fails is made anew on the same socket, and its flows end with
//! it, since the table that leads to them may be half changed; a client's next datagram makes another. Draining, it takes
//! in no new flows and goes on until the last one has ended.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdSocket};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::actor_flow::{Flow, Parts, ROOM, Server, Shared, Side, ToFlow, header};
use super::codec::{Joint, count};
use super::counts::Counts;
use super::settings::{Terms, To};
use super::state_table::{Ends, Flows};
use crate::actors::clock::{self, later};
use crate::actors::{Control, Fault, Mail, Progress, Protocol, Refused, Spec, Turn};
use crate::memory::{Budget, Key, View};
use crate::transports::kit::admission::{Admission, Occupancy, Refusal};
use crate::transports::kit::balance::Address;
use crate::transports::udp::{Group, Options, RecvMeta, UdpSocket};

/// Trains received in one system call, and such calls per turn, at most.
const AT_ONCE: usize = 16;
const RECEIVES: usize = 4;
/// Time for them; looked at after each call that was full.
const READ_TIME: Duration = Duration::from_micros(100);
/// Messages and bytes that wait for one flow.
const FLOW_INBOX: (usize, usize) = (256, 2 << 20);
/// How often a draining door without flows looks whether the others are done too.
const LAST_LOOK: Duration = Duration::from_millis(20);
/// How often the kernel is asked what it dropped, while datagrams come.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a door is told.
pub(super) enum ToDoor {
    /// A flow has ended.
    Ended(Key),
    /// For tests: fail in the midst of a turn.
    #[cfg(test)]
    Panic,
}

/// What a door is made of, and made of again after a failure.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) name: Arc<str>,
    pub(super) group: Group,
    pub(super) member: usize,
    pub(super) options: Options,
    pub(super) terms: crate::memory::Snapshot<Arc<Terms>>,
    pub(super) budget: Budget,
    pub(super) occupancy: Arc<Occupancy>,
}

/// The actor.
pub(super) struct Door {
    plan: Plan,
    shared: Option<Rc<Shared>>,
    view: View<Arc<Terms>>,
    terms: Arc<Terms>,
    admission: Admission,
    flows: Flows<Mail<ToFlow>>,
    room: Vec<u8>,
    quiet: bool,
    draining: bool,
    random: RandomState,
    drawn: u64,
    dropped: u32,
    /// When to ask the kernel what it dropped, and whether other doors are done.
    look: Option<Instant>,
}

impl Door {
    pub(super) fn new(plan: Plan) -> Self {
        let mut view = plan.terms.view();
        let terms = view.get().clone();
        let admission = Admission::new(terms.caps, plan.budget.clone(), plan.occupancy.clone());
        Self {
            plan,
            shared: None,
            view,
            terms,
            admission,
            flows: Flows::new(),
            room: Vec::new(),
            quiet: false,
            draining: false,
            random: RandomState::new(),
            drawn: 0,
            dropped: 0,
            look: None,
        }
    }

    fn open(&self) -> io::Result<Option<UdpSocket>> {
        let Some(member) = self.plan.group.member(self.plan.member)? else { return Ok(None) };
        // The plan keeps the group open.
        UdpSocket::new(member.into_parts().0, &self.plan.options).map(Some)
    }

    /// What a reload has changed holds for flows from now on.
    fn look_at_terms(&mut self) {
        let now = self.view.get();
        if !Arc::ptr_eq(now, &self.terms) {
            self.terms = now.clone();
            self.admission = Admission::new(now.caps, self.plan.budget.clone(), self.plan.occupancy.clone());
        }
    }

    fn read(&mut self, room: &mut [u8], turn: &Turn<'_, ToDoor>) -> Progress {
        let Some(shared) = self.shared.clone() else { return Progress::Idle };
        self.look_at_terms();
        for _ in 0..RECEIVES {
            let mut metas = [RecvMeta::default(); AT_ONCE];
            let mut places = room.chunks_mut(ROOM);
            let mut slices: [IoSliceMut<'_>; AT_ONCE] =
                std::array::from_fn(|_| IoSliceMut::new(places.next().unwrap_or_default()));
            let received = match shared.socket.poll_recv(&mut turn.cx(), &mut slices, &mut metas) {
                Poll::Pending => return Progress::Idle,
                Poll::Ready(Ok(received)) => received,
                Poll::Ready(Err(error)) => {
                    tracing::debug!(listener = %self.plan.name, %error, "receive");
                    continue;
                }
            };
            if received < AT_ONCE {
                shared.socket.emptied();
            }
            self.look.get_or_insert_with(|| later(turn.now(), LOOK_EVERY));
            self.sort(room, metas.get(..received).unwrap_or_default(), &shared, turn);
            if received == AT_ONCE && clock::now().saturating_duration_since(turn.now()) > READ_TIME {
                break;
            }
        }
        Progress::More
    }

    /// Hands on what one system call brought: what is next to each other and of one flow in one message.
    fn sort(&mut self, room: &[u8], metas: &[RecvMeta], shared: &Shared, turn: &Turn<'_, ToDoor>) {
        let counts = &shared.counts;
        counts.from_clients.one_call(metas.iter().map(|meta| count(meta.len, meta.stride) as u64).sum());
        counts.bytes_in.add(metas.iter().map(|meta| meta.len as u64).sum());
        let mut start = 0;
        while let Some(first) = metas.get(start) {
            let mut joint = Joint::of(first.len, first.stride);
            let same = |next: &RecvMeta| next.addr == first.addr && next.dst_ip == first.dst_ip;
            let more = metas.iter().skip(start + 1).take_while(|next| same(next) && joint.join(next.len, next.stride));
            let end = start + 1 + more.count();
            let ends = Ends { peer: first.addr, asked: shared.socket.asked(first).ip() };
            self.hand_over(ends, joint, (room, metas, start..end), shared, turn);
            start = end;
        }
    }

    fn hand_over(
        &mut self,
        ends: Ends,
        joint: Joint,
        of: (&[u8], &[RecvMeta], Range<usize>),
        shared: &Shared,
        turn: &Turn<'_, ToDoor>,
    ) {
        let told = self.tell(ends, joint, of, turn);
        if let Err(reason) = told {
            shared.counts.dropped.add(turn, reason, count(joint.length, joint.stride) as u64);
        }
    }

    fn tell(
        &mut self,
        ends: Ends,
        joint: Joint,
        (room, metas, which): (&[u8], &[RecvMeta], Range<usize>),
        turn: &Turn<'_, ToDoor>,
    ) -> Result<(), &'static str> {
        let key = match self.flows.find(&ends) {
            Some(key) => key,
            None => self.begin(ends, turn)?,
        };
        let mut contents = turn.buffer(joint.length);
        for (place, meta) in room.chunks(ROOM).zip(metas).skip(which.start).take(which.len()) {
            contents.extend_from_slice(place.get(..meta.len).unwrap_or_default());
        }
        let message = ToFlow::Send { contents, stride: joint.stride };
        match self.flows.get(key).ok_or("no_flow")?.tell(message) {
            Ok(()) => Ok(()),
            // It has ended just now, and the news is still on the way.
            Err(Refused::Closed(message)) => {
                self.flows.remove(key);
                let key = self.begin(ends, turn)?;
                self.flows.get(key).and_then(|flow| flow.tell(message).ok()).ok_or("flow_busy")
            }
            Err(Refused::Full(_) | Refused::TooLarge(_)) => Err("flow_busy"),
        }
    }

    /// Makes a flow, or counts why not.
    fn begin(&mut self, ends: Ends, turn: &Turn<'_, ToDoor>) -> Result<Key, &'static str> {
        let Some(shared) = self.shared.clone() else { return Err("no_flow") };
        self.try_begin(ends, &shared, turn).inspect(|_| shared.counts.accepted.add(1)).map_err(|reason| {
            shared.counts.refused.add(turn, reason, 1);
            "no_flow"
        })
    }

    fn try_begin(&mut self, ends: Ends, shared: &Rc<Shared>, turn: &Turn<'_, ToDoor>) -> Result<Key, &'static str> {
        if self.quiet {
            return Err(Refusal::Closing.reason());
        }
        let ticket = self.admission.admit(ends.peer.ip()).map_err(Refusal::reason)?;
        let side = self.side(ends, turn)?;
        let (shared, terms, now) = (shared.clone(), self.terms.clone(), turn.now());
        let make = move || Flow::new(Parts { shared, ends, ticket, side, terms, now });
        let spec = Spec::default().inbox(FLOW_INBOX.0, FLOW_INBOX.1);
        let flow = turn.spawn_here(spec, make).map_err(|_| Refusal::Closing.reason())?;
        let Ok(key) = self.flows.insert(ends, flow.clone()) else {
            flow.control(Control::Stop);
            return Err(Refusal::Connections.reason());
        };
        if turn.watch(&flow, move |_| ToDoor::Ended(key)).is_err() {
            // Without the news of its end its place would be lost: it does not live then.
            self.flows.remove(key);
            flow.control(Control::Stop);
            return Err(Refusal::Connections.reason());
        }
        Ok(key)
    }

    /// The other end of a new flow.
    fn side(&mut self, ends: Ends, turn: &Turn<'_, ToDoor>) -> Result<Side, &'static str> {
        let To::Upstream { name, balancer } = &self.terms.to else { return Ok(Side::Echo) };
        self.drawn = self.drawn.wrapping_add(1);
        let seed = balancer.seed(self.random.hash_one(self.drawn), ends.peer.ip());
        let picked = balancer.pick(turn.now(), seed, &[]).map_err(|why| {
            Counts::failed(turn, name, why.reason());
            "no_server"
        })?;
        let Address::Udp(address) = *picked.address() else { return Err("no_server") };
        let socket = connected(address, self.plan.options.gso).map_err(|error| {
            tracing::debug!(listener = %self.plan.name, %error, "a socket for a flow");
            "no_socket"
        })?;
        let header = self.terms.proxy.then(|| header(&ends, self.plan.group.local_addr().port()));
        let upstream = name.clone();
        Ok(Side::Server(Box::new(Server { upstream, address, socket, picked, header })))
    }
}

/// A socket that only this server's datagrams reach.
fn connected(to: SocketAddr, gso: bool) -> io::Result<UdpSocket> {
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = StdSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(to)?;
    UdpSocket::new(socket, &Options { receive_buffer: 0, send_buffer: 0, gso, fragment: true })
}

impl Protocol for Door {
    type Msg = ToDoor;
    const KIND: &'static str = "udp_door";

    fn started(&mut self, turn: &mut Turn<'_, ToDoor>) -> Result<(), Fault> {
        let socket = self.open().map_err(|error| Fault::local("udp_socket", error.to_string()))?;
        let socket = socket.ok_or_else(|| Fault::bug("no_member", ""))?;
        self.dropped = socket.dropped().unwrap_or_default();
        let counts = Counts::new(turn, &self.plan.name);
        self.shared = Some(Rc::new(Shared::new(self.plan.name.clone(), socket, counts)));
        Ok(())
    }

    fn on(&mut self, m: ToDoor, _: &mut Turn<'_, ToDoor>) -> Result<(), Fault> {
        match m {
            ToDoor::Ended(key) => self.flows.remove(key),
            #[cfg(test)]
            ToDoor::Panic => panic!("told to"),
        }
        Ok(())
    }

    fn io(&mut self, turn: &mut Turn<'_, ToDoor>) -> Result<Progress, Fault> {
        let mut room = std::mem::take(&mut self.room);
        if room.is_empty() {
            room = vec![0; AT_ONCE * ROOM];
        }
        let progress = self.read(&mut room, turn);
        self.room = room;
        Ok(progress)
    }

    fn deadline(&self) -> Option<Instant> {
        self.look
    }

    fn on_deadline(&mut self, _: &mut Turn<'_, ToDoor>) -> Result<(), Fault> {
        self.look = None;
        if let Some(shared) = &self.shared
            && let Some(dropped) = shared.socket.dropped()
        {
            shared.counts.kernel.add(u64::from(dropped.wrapping_sub(self.dropped)));
            self.dropped = dropped;
        }
        Ok(())
    }

    fn flush(&mut self, turn: &mut Turn<'_, ToDoor>) -> Result<Progress, Fault> {
        if self.draining && self.flows.is_empty() {
            // Those who come in vain are counted as long as the port is open for the flows of other doors.
            if self.plan.occupancy.connections() == 0 {
                turn.stop();
            } else {
                let soon = later(turn.now(), LAST_LOOK);
                self.look = Some(self.look.map_or(soon, |at| at.min(soon)));
            }
        }
        Ok(Progress::Idle)
    }

    fn quiesce(&mut self, _: &mut Turn<'_, ToDoor>) {
        self.quiet = true;
    }

    fn drain(&mut self, by: Instant, _: &mut Turn<'_, ToDoor>) {
        self.quiet = true;
        self.draining = true;
        self.flows.iter().for_each(|flow| flow.control(Control::Drain(by)));
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Also after a failure: nobody else reads what their clients send.
        self.flows.iter().for_each(|flow| flow.control(Control::Stop));
    }
}
