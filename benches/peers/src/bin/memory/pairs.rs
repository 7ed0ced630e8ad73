//! One thread: nanoseconds of its CPU time for an operation, in rounds over all rows, and the ratio within a round.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use portway::memory::{Managed, Pool, Secret, Shared, SingleThreaded, Snapshot, Table, ThreadSafe};
use portway_peers::{Args, median};
use rustix::time::{ClockId, clock_gettime};

const TIMES: u64 = 2_000_000;
const WAIT: Duration = Duration::from_millis(1);

/// 64 bytes, as a small configuration or a route.
#[derive(Debug, Clone)]
struct Value([u64; 8]);

struct Row {
    name: &'static str,
    /// The row it is compared with; empty for none.
    beside: &'static str,
    run: Box<dyn FnMut(u64)>,
}

fn row(name: &'static str, beside: &'static str, mut one: impl FnMut(u64) + 'static) -> Row {
    // The loop is inside: a call through a pointer for each operation would be more than some of them cost.
    Row { name, beside, run: Box::new(move |times| (0..times).for_each(&mut one)) }
}

/// One of 64 buffers goes and another comes, in no order; around them lie other things of many sizes.
fn held<B: 'static>(name: &'static str, beside: &'static str, mut make: impl FnMut() -> B + 'static) -> Row {
    let run = move |times| {
        let mut others: Vec<_> = (0..4_000_usize).map(|n| Some(vec![0_u8; 32 + n * 7_919 % 4_000])).collect();
        others.iter_mut().step_by(2).for_each(|other| *other = None);
        let mut held: Vec<Option<B>> = (0..64).map(|_| Some(make())).collect();
        let mut at = 1_usize;
        for _ in 0..times {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let place = &mut held[at >> 58];
            *place = None;
            *place = Some(black_box(make()));
        }
    };
    Row { name, beside, run: Box::new(run) }
}

fn seen<T>(value: T) {
    black_box(value);
}

fn at(n: u64) -> usize {
    (n & 7) as usize
}

fn rows() -> Vec<Row> {
    let value = || Value([1; 8]);
    let mut rows = Vec::new();

    // Reading what is published.
    let lock = Arc::new(parking_lot::RwLock::new(value()));
    rows.push(row("read: Arc<RwLock>", "", move |n| seen(lock.read().0[at(n)])));
    let lock = Arc::new(std::sync::RwLock::new(value()));
    rows.push(row("read: Arc<std RwLock>", "", move |n| seen(lock.read().expect("no panic").0[at(n)])));
    let lock = Arc::new(std::sync::Mutex::new(value()));
    rows.push(row("read: Arc<std Mutex>", "", move |n| seen(lock.lock().expect("no panic").0[at(n)])));
    let lock = Arc::new(parking_lot::Mutex::new(value()));
    rows.push(row("read: Arc<Mutex>", "", move |n| seen(lock.lock().0[at(n)])));
    let swap = Arc::new(arc_swap::ArcSwap::from_pointee(value()));
    let mut cache = arc_swap::Cache::new(swap.clone());
    rows.push(row("read: ArcSwap load", "", move |n| seen(swap.load().0[at(n)])));
    rows.push(row("read: arc_swap::Cache", "", move |n| seen(cache.load().0[at(n)])));
    let snapshot = Snapshot::new(value());
    let mut view = snapshot.view();
    rows.push(row("read: Snapshot::read", "read: ArcSwap load", move |n| seen(snapshot.read().0[at(n)])));
    rows.push(row("read: View::get", "read: arc_swap::Cache", move |n| seen(view.get().0[at(n)])));

    // One value that all see.
    let cell = Rc::new(RefCell::new(value()));
    let (a, b) = (cell.clone(), cell);
    rows.push(row("shared read: Rc<RefCell>", "", move |n| seen(a.borrow().0[at(n)])));
    rows.push(row("shared write: Rc<RefCell>", "", move |n| b.borrow_mut().0[at(n)] = n));
    let ours: Shared<Value, SingleThreaded> = Shared::new(value());
    let (a, b) = (ours.clone(), ours);
    rows.push(row("shared read: Shared, one thread", "shared read: Rc<RefCell>", move |n| {
        seen(a.read().expect("free").0[at(n)]);
    }));
    rows.push(row("shared write: Shared, one thread", "shared write: Rc<RefCell>", move |n| {
        b.write().expect("free").0[at(n)] = n;
    }));
    let lock = Arc::new(parking_lot::RwLock::new(value()));
    let (a, b) = (lock.clone(), lock);
    rows.push(row("shared read: Arc<RwLock> try_read", "", move |n| {
        seen(a.try_read().expect("free").0[at(n)]);
    }));
    rows.push(row("shared write: Arc<RwLock> try_write", "", move |n| b.try_write().expect("free").0[at(n)] = n));
    let ours: Shared<Value, ThreadSafe> = Shared::new(value());
    let (a, b, c) = (ours.clone(), ours.clone(), ours);
    rows.push(row("shared read: Shared, any thread", "shared read: Arc<RwLock> try_read", move |n| {
        seen(a.read().expect("free").0[at(n)]);
    }));
    rows.push(row("shared write: Shared, any thread", "shared write: Arc<RwLock> try_write", move |n| {
        b.write().expect("free").0[at(n)] = n;
    }));
    rows.push(row("shared read: Shared, read_within", "shared read: Arc<RwLock> try_read", move |n| {
        seen(c.read_within(WAIT).expect("free").0[at(n)]);
    }));

    // A value edited by its only holder.
    let mut it = Rc::new(value());
    rows.push(row("edit: Rc::make_mut", "", move |n| Rc::make_mut(black_box(&mut it)).0[at(n)] = n));
    let mut it = Arc::new(value());
    rows.push(row("edit: std Arc::make_mut", "", move |n| Arc::make_mut(black_box(&mut it)).0[at(n)] = n));
    let mut it = triomphe::Arc::new(value());
    rows.push(row("edit: triomphe make_mut", "", move |n| triomphe::Arc::make_mut(black_box(&mut it)).0[at(n)] = n));
    let mut it: Managed<Value, SingleThreaded> = Managed::new(value());
    rows.push(row("edit: Managed, one thread", "edit: Rc::make_mut", move |n| {
        black_box(&mut it).make_mut().0[at(n)] = n;
    }));
    let mut it: Managed<Value, ThreadSafe> = Managed::new(value());
    rows.push(row("edit: Managed, any thread", "edit: triomphe make_mut", move |n| {
        black_box(&mut it).make_mut().0[at(n)] = n;
    }));
    let it = Arc::new(value());
    rows.push(row("clone and drop: std Arc", "", move |_| seen(it.clone())));
    let it: Managed<Value, ThreadSafe> = Managed::new(value());
    rows.push(row("clone and drop: Managed, any thread", "clone and drop: std Arc", move |_| {
        seen(it.clone());
    }));

    // Buffers for a packet.
    rows.push(row("buffer: malloc and free, 1,500", "", |_| seen(Vec::<u8>::with_capacity(1_500))));
    rows.push(row("buffer: malloc and free, 16 KiB", "", |_| seen(Vec::<u8>::with_capacity(16 << 10))));
    let pool = Pool::new(1_500, 64, None);
    rows.push(row("buffer: Pool, 1,500", "buffer: malloc and free, 1,500", move |_| {
        seen(pool.lease().expect("one"));
    }));
    let pool = Pool::new(16 << 10, 64, None);
    rows.push(row("buffer: Pool, 16 KiB", "buffer: malloc and free, 16 KiB", move |_| {
        seen(pool.lease().expect("one"));
    }));

    // Several at a time, as the connections of an arbiter hold them, in a heap that is in use.
    rows.push(held("64 buffers held: malloc", "", || Vec::<u8>::with_capacity(1_500)));
    let pool = Pool::new(1_500, 65, None);
    rows.push(held("64 buffers held: Pool", "64 buffers held: malloc", move || pool.lease().expect("one")));
    rows.push(held("64 large buffers held: malloc", "", || Vec::<u8>::with_capacity(64 << 10)));
    let pool = Pool::new(64 << 10, 65, None);
    rows.push(held("64 large buffers held: Pool", "64 large buffers held: malloc", move || pool.lease().expect("one")));

    // Values by key: 1,000 of them.
    let map: HashMap<u64, Value> = (0..1_000).map(|n| (n, value())).collect();
    rows.push(row("look up: HashMap", "", move |n| seen(map.get(&(n % 1_000)).map(|v| v.0[at(n)]))));
    let mut table = Table::new(1_000);
    let keys: Vec<_> = (0..1_000).map(|_| table.insert(value()).expect("room")).collect();
    rows.push(row("look up: Table", "look up: HashMap", move |n| {
        seen(table.get(keys[(n % 1_000) as usize]).map(|v| v.0[at(n)]));
    }));

    let (secret, guess) = (Secret::new([7_u8; 32]), [7_u8; 32]);
    rows.push(row("compare: 32 bytes", "", move |_| seen(black_box(&[7_u8; 32]) == black_box(&guess))));
    rows.push(row("compare: Secret, 32 bytes", "compare: 32 bytes", move |_| {
        seen(black_box(&secret).is(black_box(&guess)));
    }));
    rows
}

fn cpu() -> f64 {
    let at = clock_gettime(ClockId::ThreadCPUTime);
    at.tv_sec as f64 * 1e9 + at.tv_nsec as f64
}

pub(crate) fn run(args: &Args) {
    let rounds = args.number("pairs", 10);
    let only = args.text("only", "");
    let mut rows: Vec<Row> = rows().into_iter().filter(|row| row.name.contains(&only)).collect();
    let mut taken = vec![Vec::new(); rows.len()];
    for row in &mut rows {
        (row.run)(TIMES / 10);
    }
    for _ in 0..rounds {
        for (row, taken) in rows.iter_mut().zip(&mut taken) {
            let before = cpu();
            (row.run)(TIMES);
            taken.push((cpu() - before) / TIMES as f64);
        }
    }
    println!("| operation | CPU ns | lowest–highest | beside | ours ÷ it |\n|---|---:|---:|---|---:|");
    for (row, ours) in rows.iter().zip(&taken) {
        let sorted = |pick: fn(f64, f64) -> f64| ours.iter().copied().reduce(pick).unwrap_or(f64::NAN);
        let other = rows.iter().position(|other| other.name == row.beside);
        let ratio = other.and_then(|other| taken.get(other)).map(|other| {
            let ratios: Vec<f64> = ours.iter().zip(other).map(|(a, b)| a / b).collect();
            format!("{:.2}", median(&ratios))
        });
        println!(
            "| {} | {:.2} | {:.2}–{:.2} | {} | {} |",
            row.name,
            median(ours),
            sorted(f64::min),
            sorted(f64::max),
            row.beside,
            ratio.unwrap_or_default()
        );
    }
}
