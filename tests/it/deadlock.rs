//! A gateway finds threads of its process that wait for each other (feature `deadlock`).

use std::sync::{Arc, Barrier};

use parking_lot::Mutex;

use crate::gateway::{Running, free, get};
use crate::probe::eventually;

#[test]
fn a_circle_of_threads_is_counted() {
    let admin = free();
    let text = format!("version = 1\n[admin]\nlisten = \"{admin}\"\n[[listener]]\nname = \"echo\"\n");
    let _running = Running::start(&(text + "listen = \"127.0.0.1:0\"\nprotocol = \"framed\"\nservice = \"echo\"\n"));
    let counted = |times: u32| {
        let (_, metrics) = get(admin, "/metrics");
        metrics.lines().any(|line| line == format!("portway_deadlocks_total{{}} {times}"))
    };
    assert!(counted(0));
    let locks = Arc::new((Mutex::new(()), Mutex::new(()), Barrier::new(2)));
    for turned in [false, true] {
        let locks = locks.clone();
        // Until the end of the process.
        std::thread::spawn(move || {
            let (first, second) = if turned { (&locks.1, &locks.0) } else { (&locks.0, &locks.1) };
            let _first = first.lock();
            locks.2.wait();
            let _never = second.lock();
        });
    }
    eventually("the circle is found", || counted(1));
}
