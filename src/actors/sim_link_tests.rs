//! What the tests of both kinds of links need: a clock that moves only when nobody has anything to do.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use proptest::prelude::*;
use static_assertions::assert_impl_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::clock::{VirtualClock, now};
use super::*;

assert_impl_all!(DatagramPlug: Send);
assert_impl_all!(DatagramControl: Send, Sync);
assert_impl_all!(StreamPlug: Send);
assert_impl_all!(StreamControl: Send, Sync);

pub(in super::super) const MS: Duration = Duration::from_millis(1);

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(in super::super) type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Runs all tasks to their end on virtual time. A task is polled only after it was woken; panics if none ever is.
pub(in super::super) fn run<'a>(tasks: impl IntoIterator<Item = Task<'a>>) {
    let clock = VirtualClock::new();
    let _entered = clock.enter();
    let mut tasks: Vec<_> = tasks.into_iter().map(|task| (Arc::new(Flag(AtomicBool::new(true))), task)).collect();
    while !tasks.is_empty() {
        let mut idle = true;
        tasks.retain_mut(|(flag, task)| {
            if !flag.0.swap(false, Ordering::Relaxed) {
                return true;
            }
            idle = false;
            task.as_mut().poll(&mut Context::from_waker(&Waker::from(flag.clone()))).is_pending()
        });
        if idle {
            clock.advance(clock.next().expect("a task that is never woken"));
        }
    }
    assert_eq!(clock.next(), None, "a timer is left behind");
}

pub(in super::super) fn block_on<'a>(task: impl Future<Output = ()> + 'a) {
    run([Box::pin(task) as Task<'a>]);
}

pub(in super::super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Random::new(seed).fill(&mut bytes);
    bytes
}

prop_compose! {
    pub(in super::super) fn any_faults()(
        delay in 0..30_u32,
        jitter in 0..30_u32,
        p in prop::array::uniform5(0.0..1.0_f64),
        rate in prop_oneof![Just(0), 1_000..1_000_000_u64],
        mtu in prop::option::of(0..3_000_usize),
        queue in 0..100_000_usize,
    ) -> Faults {
        let faults = Faults { mtu, ..Faults::none().delay(delay * MS).jitter(jitter * MS).chop(p[0]).loss(p[1]) };
        faults.duplicate(p[2]).corrupt(p[3]).reorder(p[4], 10 * MS).rate(rate).queue(queue)
    }
}

#[test]
fn sim_link_types_tell_about_themselves() {
    let (a, b) = stream_link(45, Faults::none(), Faults::none(), 10);
    let (c, d) = datagram_link(45, Faults::none(), Faults::none());
    let texts = [format!("{a:?}"), format!("{:?}", b.control()), format!("{:?}", c.control()), format!("{c:?}")];
    let texts = [&texts[..], &[format!("{:?}", b.open()), format!("{:?}", d.open())]].concat();
    assert!(texts.iter().all(|text| text.contains("Stream") || text.contains("Datagram")), "{texts:?}");
}

#[test]
fn sim_links_work_on_real_time() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let slow = Faults::none().delay(3 * MS);
        let (a, b) = datagram_link(46, slow, slow);
        let (a, b) = (a.open(), b.open());
        let start = now();
        a.send(b"hello").await.unwrap();
        assert_eq!(b.recv(&mut [0; 9]).await.unwrap(), 5);
        assert!(now() - start >= 3 * MS);
        let (c, d) = stream_link(47, slow, slow, 4);
        let (mut c, mut d) = (c.open(), d.open());
        let mut all = Vec::new();
        let mut write = pin!(async {
            c.write_all(b"0123456789").await.unwrap();
            c.shutdown().await.unwrap();
        });
        let mut read = pin!(d.read_to_end(&mut all));
        let mut written = false;
        poll_fn(|cx| {
            written = written || write.as_mut().poll(cx).is_ready();
            read.as_mut().poll(cx)
        })
        .await
        .unwrap();
        assert_eq!(all, b"0123456789");
    });
}

#[test]
fn sim_faults_are_plain_data() {
    let faults = Rc::new(Faults::none().rate(7));
    assert_eq!(faults.rate.map(NonZeroU64::get), Some(7));
    assert_eq!(faults.rate(0), Faults::default());
}
