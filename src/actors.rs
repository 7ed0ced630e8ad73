//! The actor library: arbiters, mailboxes, and the hosts that run protocols on them.
//!
//! # Life of an actor
//! [`Mesh::spawn`] admits it (or refuses: [`SpawnError`]), carries its `make` closure to the arbiter that [`Place`]
//! names and runs it there; what the closure makes, a [`Protocol`], stays on that thread for life. From then on it
//! lives in turns: the host wakes when a message, a signal, its timer, its own socket or one of its jobs has
//! something, and runs one bounded turn (at most 256 messages or about 100 µs). It ends with an [`Exit`]: `Normal`,
//! `Fault`, `Panic` or `Deadline`; watchers learn which.
//!
//! # Order of messages
//! Messages of one sender arrive in the order they were told. Control signals (stop, drain, quiesce) come first in a
//! turn, then urgent messages, the deadline, the actor's own I/O, then data, then answers of its jobs, then `flush`.
//!
//! # Stop and drain
//! [`Control::Stop`] ends an actor at its next turn; what is queued is dropped, and askers learn `Closed`.
//! [`Control::Drain`] lets it finish what it accepted, under a deadline. [`Mesh::drain`] does that for all actors,
//! leaves first and those that carry what others send last ([`Layer`]), and reports who did not finish.
//!
//! # A full mailbox
//! gives the message back to its sender ([`Refused::Full`]); nothing is buffered beyond the bound, in messages and in
//! bytes, over all clones of a [`Mail`]. Readers of streams take a [`Permit`] first and read after; readers of
//! datagrams drop and count.
//!
//! # Panics
//! A panic in any hook ends that actor alone, before any further hook could see half-changed state. A panic in a job
//! is that job's answer. Both are counted (`actor_panics`, by kind of actor and place).
//!
//! # The thread rule
//! A protocol need not be `Send`, and hosts and [`Pinned`] values never are: the compiler refuses to carry them to
//! another thread, and debug builds check the thread again in each turn. [`Pinned::detach`] is the explicit way over.

mod alarm;
mod blocking;
mod buffers;
pub mod clock;
mod drain;
mod driven;
mod host;
mod introspect;
mod jobs;
mod lane;
mod local;
mod mailbox;
mod mesh;
mod metrics;
mod pinned;
mod placement;
mod protocol;
mod registry;
mod shelf;
pub mod sim;
pub mod sim_link;
mod sim_link_datagram;
mod sim_link_datagram_way;
mod sim_link_stream;
mod sim_link_stream_way;
pub mod sim_random;
mod supervise;
mod sync;
mod ticker;

pub use blocking::{BLOCKING, NotDone, blocking};
pub use drain::{DrainReport, Unfinished};
pub use driven::{Driver, Kind};
pub use host::{Deliver, Host};
pub use introspect::{ActorGlance, ActorView, ArbiterGlance, ArbiterView, MeshView};
pub use lane::{Depth, Refused};
pub use mailbox::{ActorId, AskError, Control, Inbox, Mail, Permit, Reply, WATCHERS, WatchError};
#[cfg(feature = "quic")]
pub(crate) use mailbox::{Answer, wait_blocking};
pub use mesh::{Mesh, MeshConfig, MeshError, OnArbiter, Place, SpawnError, Spec, WithAddr};
pub use metrics::{COUNTERS, Counter, CounterName, Totals};
pub use pinned::{Detached, Pinned};
pub use protocol::{Exit, Fault, JobPanicked, Layer, Progress, Protocol, Tally, Traffic, Turn, Whose};
pub use registry::{GROUP_MEMBERS, Members, Name, REGISTERED, RegistryError};
pub use shelf::shelf;
pub use supervise::{Budget, Group, Strategy};
