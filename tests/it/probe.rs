//! An actor that does what a test tells it to, and the waits that tests share.

use std::rc::Rc;
use std::time::{Duration, Instant};

use portway::actors::{Exit, Fault, Mail, Mesh, MeshConfig, MeshView, Progress, Protocol, Reply, Turn};

pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) enum Msg {
    /// Counted, and answered by `Seen`.
    Note(u64),
    /// Keeps the arbiter for this long.
    Busy(Duration),
    /// As `Busy`, and says when it began.
    Hold(Duration, std::sync::mpsc::Sender<()>),
    Seen(Reply<Vec<u64>>),
    Arbiter(Reply<(usize, std::thread::ThreadId)>),
    Panic,
    PanicInFlush,
    PanicInClosed,
    PanicInJob,
    Fail(&'static str),
    /// Starts a job that answers `Note` after this long.
    Job(Duration, u64),
    Watch(Mail<Self>),
    Gone(Exit),
    Exits(Reply<Vec<Exit>>),
    Stop,
    Ignore,
    Big(usize),
}

/// Not `Send`, on purpose.
#[derive(Default)]
pub(crate) struct Probe {
    seen: Vec<u64>,
    exits: Vec<Exit>,
    panic_in_flush: bool,
    panic_in_closed: bool,
    never_drains: bool,
    _not_send: Rc<()>,
}

impl Probe {
    pub(crate) fn endless() -> Self {
        Self { never_drains: true, ..Self::default() }
    }
}

impl Protocol for Probe {
    type Msg = Msg;
    const KIND: &'static str = "probe";

    fn size(m: &Msg) -> usize {
        if let Msg::Big(bytes) = m { *bytes } else { 0 }
    }

    fn label(m: &Msg) -> &'static str {
        if matches!(m, Msg::Busy(_)) { "busy" } else { "message" }
    }

    fn on(&mut self, m: Msg, turn: &mut Turn<'_, Msg>) -> Result<(), Fault> {
        match m {
            Msg::Note(n) => self.seen.push(n),
            Msg::Busy(time) => {
                let end = now() + time;
                while now() < end {
                    std::hint::spin_loop();
                }
            }
            Msg::Hold(time, began) => {
                began.send(()).expect("the test waits");
                std::thread::sleep(time);
            }
            Msg::Seen(reply) => drop(reply.send(self.seen.clone())),
            Msg::Arbiter(reply) => drop(reply.send((turn.arbiter(), std::thread::current().id()))),
            Msg::Panic => panic!("told to"),
            Msg::PanicInFlush => self.panic_in_flush = true,
            Msg::PanicInClosed => {
                self.panic_in_closed = true;
                turn.stop();
            }
            Msg::PanicInJob => turn
                .job(async { panic!("told to") }, |out: Result<(), _>| Msg::Note(if out.is_err() { 99 } else { 0 }))
                .map_err(|_| Fault::bug("no_room", ""))?,
            Msg::Fail(reason) => return Err(Fault::peer(reason, "told to")),
            Msg::Job(time, n) => turn
                .job(portway::actors::clock::sleep(time), move |_| Msg::Note(n))
                .map_err(|_| Fault::bug("no_room", ""))?,
            Msg::Watch(other) => turn
                .watch(&other, |exit| Msg::Gone(exit.clone()))
                .map_err(|error| Fault::bug("watch", error.to_string()))?,
            Msg::Gone(exit) => self.exits.push(exit),
            Msg::Exits(reply) => drop(reply.send(self.exits.clone())),
            Msg::Stop => turn.stop(),
            Msg::Ignore | Msg::Big(_) => {}
        }
        Ok(())
    }

    fn flush(&mut self, _: &mut Turn<'_, Msg>) -> Result<Progress, Fault> {
        assert!(!self.panic_in_flush, "told to");
        Ok(Progress::Idle)
    }

    fn drain(&mut self, _: Instant, turn: &mut Turn<'_, Msg>) {
        if !self.never_drains {
            turn.stop_when_empty();
        }
    }

    fn closed(&mut self, _: &Exit) {
        assert!(!self.panic_in_closed, "told to");
    }
}

#[expect(clippy::disallowed_methods, reason = "tests measure real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

pub(crate) fn mesh(arbiters: usize) -> Mesh {
    Mesh::start(MeshConfig { arbiters: std::num::NonZeroUsize::new(arbiters), ..MeshConfig::default() })
        .expect("a mesh starts")
}

/// Waits for a future on this plain thread.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    wait_within(SOON * 6, future)
}

/// Waits for a future that may take longer than others.
pub(crate) fn wait_within<F: Future>(limit: Duration, future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(async { tokio::time::timeout(limit, future).await.expect("in time") })
}

/// Ends a mesh and sees that nothing was leaked.
#[track_caller]
pub(crate) fn stop(mesh: &Mesh) {
    mesh.stop().expect("not on an arbiter");
    if !std::thread::panicking() {
        assert_nothing_out(mesh);
    }
}

/// Of a mesh that has ended, or on which nothing moves: every buffer has come home.
#[track_caller]
pub(crate) fn assert_nothing_out(mesh: &Mesh) {
    let out: Vec<_> = mesh.pools().into_iter().filter(|(_, pools)| pools.iter().any(|pool| pool.out > 0)).collect();
    assert!(out.is_empty(), "buffers were leaked: {out:#?}");
}

pub(crate) fn view(mesh: &Mesh) -> MeshView {
    wait(mesh.view())
}

/// Waits until `done`, looking every few milliseconds.
pub(crate) fn eventually(what: &str, done: impl FnMut() -> bool) {
    eventually_within(SOON, what, done);
}

pub(crate) fn eventually_within(time: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let end = now() + time;
    while !done() {
        assert!(now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Keeps an actor's arbiter for `time` and comes back when that has begun.
pub(crate) fn hold(mail: &Mail<Msg>, time: Duration) {
    let (began, begins) = std::sync::mpsc::channel();
    mail.tell(Msg::Hold(time, began)).expect("room");
    begins.recv_timeout(SOON).expect("it begins");
}

pub(crate) fn seen(mail: &Mail<Msg>) -> Vec<u64> {
    mail.ask_blocking(Msg::Seen, SOON).expect("an answer")
}
