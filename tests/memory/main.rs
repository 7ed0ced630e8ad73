//! What the memory library does with memory, seen by an allocator that counts and looks. A binary of its own: the
//! allocator belongs to all of it.
#![allow(unsafe_code, reason = "an allocator is unsafe by nature; this one passes everything on to the system's")]

#[cfg(feature = "wireguard")]
mod tunnels;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use portway::memory::{
    AtomicPolicy, Budget, Busy, Exhausted, Managed, Pool, Secret, Shared, SingleThreaded, Snapshot, Table, ThreadSafe,
};

struct Watching;

thread_local! {
    /// Allocations of this thread.
    static COUNT: Cell<usize> = const { Cell::new(0) };
    /// Memory to look at when it is freed, and whether it was all zero then.
    static WATCHED: Cell<(usize, Option<bool>)> = const { Cell::new((0, None)) };
}

// SAFETY: every call goes to the system's allocator as it came. Before memory is given back to it, memory that is still
// allocated and was initialised by `Secret` is read.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ending = COUNT.try_with(|count| count.set(count.get() + 1));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let _ending = WATCHED.try_with(|watched| {
            if watched.get().0 == at as usize {
                let bytes = unsafe { std::slice::from_raw_parts(at, layout.size()) };
                watched.set((0, Some(bytes.iter().all(|byte| *byte == 0))));
            }
        });
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static WATCHING: Watching = Watching;

/// Allocations while `f` runs.
fn allocations(f: impl FnOnce()) -> usize {
    let before = COUNT.get();
    f();
    COUNT.get() - before
}

#[test]
fn it_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1_u8; 10]))), 1);
}

fn refusals_of_shared<P: AtomicPolicy>(expected: Busy) {
    let shared: Shared<u8, P> = Shared::ranked(3, 1);
    let _writing = shared.write().unwrap();
    let none = allocations(|| {
        assert_eq!(shared.read().err(), Some(expected));
        assert_eq!(shared.write().err(), Some(expected));
        if cfg!(debug_assertions) {
            assert!(matches!(shared.read_within(Duration::MAX), Err(Busy::WouldDeadlock { .. })));
            assert!(matches!(shared.write_within(Duration::MAX), Err(Busy::WouldDeadlock { .. })));
        }
    });
    assert_eq!(none, 0);
}

#[test]
fn a_refusal_allocates_nothing() {
    refusals_of_shared::<SingleThreaded>(Busy::Borrowed);
    refusals_of_shared::<ThreadSafe>(Busy::Contended);

    let shared: Shared<u8, ThreadSafe> = Shared::new(1);
    std::thread::scope(|scope| {
        let (has, had) = std::sync::mpsc::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let held = &shared;
        scope.spawn(move || {
            let _writing = held.write().unwrap();
            has.send(()).unwrap();
            let _over = released.recv();
        });
        had.recv().unwrap();
        // The first wait of a thread makes what parking_lot parks it on.
        assert!(shared.read_within(Duration::from_micros(10)).is_err());
        assert_eq!(allocations(|| assert!(shared.read_within(Duration::from_micros(10)).is_err())), 0);
        drop(release);
    });

    let mut table = Table::new(1);
    let gone = table.insert(1).unwrap();
    let budget = Budget::new(100);
    let (full, tight) = (Pool::new(10, 1, None), Pool::new(81, 1, Some(&budget)));
    let (_only, managed) = (full.lease().unwrap(), Managed::<u8, ThreadSafe>::new(1));
    let mut another = managed.clone();
    let none = allocations(|| {
        assert!(table.insert(2).is_err());
        table.remove(gone);
        assert_eq!(table.get(gone), None);
        assert_eq!(full.lease().err(), Some(Exhausted::Limit));
        assert_eq!(tight.lease().err(), Some(Exhausted::Memory));
        assert!(budget.lease(81).is_err());
        assert!(another.unique().is_none());
        assert!(managed.reclaim().is_err());
    });
    assert_eq!(none, 0);
}

#[test]
fn the_steady_path_allocates_nothing() {
    let snapshot = Snapshot::new(vec![1, 2, 3]);
    let (mut view, pool) = (snapshot.view(), Pool::new(1_500, 64, None));
    let (mut unique, mut table) = (Managed::<Vec<u8>, ThreadSafe>::new(vec![0; 10]), Table::new(10));
    let (shared, away) = (Shared::<u8, ThreadSafe>::new(1), Shared::<u8>::new(1));
    // Once, to make what is kept.
    drop((pool.lease().unwrap(), pool.lease().unwrap()));
    // With feature `deadlock`, parking_lot's list of the locks that this thread holds.
    drop(shared.read());
    let key = table.insert(0).unwrap();
    table.remove(key);
    let none = allocations(|| {
        for n in 0..100 {
            let (mut a, b) = (pool.lease().unwrap(), pool.lease().unwrap());
            a.extend_from_slice(&[n; 1_500]);
            drop((a, b));
            unique.make_mut()[0] = view.get()[0] + *shared.read().unwrap() + *away.read().unwrap();
            drop(unique.clone());
            *shared.write_within(Duration::from_micros(1)).unwrap() = n;
            let key = table.insert(n).unwrap();
            assert_eq!(table.remove(key), Some(n));
        }
    });
    assert_eq!(none, 0);
}

#[test]
fn a_secret_is_wiped_before_its_memory_is_free() {
    let freed_as_zeros = |secret: Secret| {
        WATCHED.set((secret.expose().as_ptr() as usize, None));
        drop(secret);
        WATCHED.take().1
    };
    let mut roomy = Vec::with_capacity(64);
    roomy.extend_from_slice(b"hunter2");
    assert_eq!(freed_as_zeros(Secret::from(roomy)), Some(true));
    let one = Secret::from("hunter2".to_owned());
    assert_eq!(freed_as_zeros(one.clone()), Some(true));
    assert_eq!(freed_as_zeros(one), Some(true));

    // The watch can tell.
    let plain = b"hunter2".to_vec();
    WATCHED.set((plain.as_ptr() as usize, None));
    drop(plain);
    assert_eq!(WATCHED.take().1, Some(false));
}

/// Whether this text is anywhere in the memory of this process. It is given with each byte turned around, so that the
/// search finds not itself.
#[cfg(feature = "gateway")]
fn lies_somewhere(inverted: &[u8]) -> bool {
    use std::os::unix::fs::FileExt;

    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    let mut piece = vec![0; 1 << 20];
    let mut found = false;
    for line in maps.lines().filter(|line| line.contains(" rw") && !line.contains("[v")) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let (mut at, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
        while at < to {
            let most = usize::try_from(to - at).unwrap_or(usize::MAX).min(piece.len());
            let Ok(count @ 1..) = memory.read_at(&mut piece[..most], at) else { break };
            let begins = piece[..count].iter().enumerate().filter(|(_, byte)| **byte == !inverted[0]);
            let rest = |at: usize| piece[at..count].iter().take(inverted.len());
            found |= begins
                .map(|(at, _)| rest(at))
                .any(|seen| seen.len() == inverted.len() && seen.zip(inverted).all(|(seen, byte)| *seen == !*byte));
            // What lies across two pieces is seen by the second.
            at += (count.saturating_sub(if count == most && most == piece.len() { 64 } else { 0 })) as u64;
        }
    }
    piece.fill(0);
    found
}

/// What a configuration file holds or refers to is gone with the configuration: its text, what a reference was expanded
/// to, the options of an embedding program. Only what the end of a freed piece of memory shows can be seen; the
/// allocator writes over its start.
#[cfg(feature = "gateway")]
#[test]
fn the_secrets_of_a_configuration_are_gone_with_it() {
    use portway::gateway::check;

    // 48 bytes each, of which the last 32 are looked for; never whole in this program.
    let letter = |name: u16, n: u16| b'A' + ((n * 7 + name * 11) % 26) as u8;
    let inverted = |name| -> Vec<u8> { (16..48).map(|n| !letter(name, n)).collect() };
    let (inline, kept) = (inverted(0), inverted(1));
    let dir = std::env::temp_dir().join(format!("portway-memory-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    {
        let text = |name| {
            let letters: Vec<u8> = (0..48).map(|n| letter(name, n)).collect();
            zeroize::Zeroizing::new(String::from_utf8(letters).unwrap())
        };
        let mut file = zeroize::Zeroizing::new(String::with_capacity(4_096));
        for part in [
            "version = 1\n[[listener]]\nname = \"mine\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"mine\"\n[listener.options]\nlist = [\"",
            text(0).as_str(),
            "\"]\nother = \"prefix-${HOME:-x}-",
            text(0).as_str(),
            "\"\nkept = \"file:kept\"\n",
        ] {
            file.push_str(part);
        }
        std::fs::write(dir.join("config.toml"), &*file).unwrap();
        std::fs::write(dir.join("kept"), &*text(1)).unwrap();
    }
    assert!(!lies_somewhere(&inline) && !lies_somewhere(&kept), "this test leaves none itself");
    let config = check::load(&dir.join("config.toml"), &check::Known::default().protocol("mine")).unwrap();
    assert!(lies_somewhere(&inline) && lies_somewhere(&kept), "it can be found");
    drop(config);
    assert!(!lies_somewhere(&inline), "what stood in the file");
    assert!(!lies_somewhere(&kept), "what the file referred to");
    std::fs::remove_dir_all(dir).unwrap();
}
