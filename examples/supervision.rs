//! cargo run --example supervision
//!
//! A worker that fails is made anew with its mailbox kept; a group of two is made anew together; and a budget ends
//! what fails too often.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use std::time::Duration;

use portway::actors::{Budget, Fault, Mail, Mesh, MeshConfig, Place, Protocol, Reply, Spec, Strategy, Turn};

enum Msg {
    Work(u32),
    Done(Reply<Vec<u32>>),
}

#[derive(Default)]
struct Worker {
    done: Vec<u32>,
}

impl Protocol for Worker {
    type Msg = Msg;
    const KIND: &'static str = "worker";

    fn on(&mut self, m: Msg, _: &mut Turn<'_, Msg>) -> Result<(), Fault> {
        match m {
            Msg::Work(13) => return Err(Fault::local("unlucky", "thirteen")),
            Msg::Work(n) => self.done.push(n),
            Msg::Done(reply) => drop(reply.send(self.done.clone())),
        }
        Ok(())
    }
}

fn done(worker: &Mail<Msg>) -> Result<Vec<u32>, portway::actors::AskError> {
    worker.ask_blocking(Msg::Done, Duration::from_secs(5))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mesh = Mesh::start(MeshConfig::default())?;
    let budget = Budget { failures: 3, within: Duration::from_secs(10), ..Budget::default() };

    let alone = mesh.supervise(Place::On(0), Spec::named("alone"), budget, Worker::default)?;
    for n in 11..=16 {
        alone.tell(Msg::Work(n))?;
    }
    println!("alone: {:?} (a new state, and nothing of what waited was lost)", done(&alone)?);

    let group = mesh.group(Strategy::OneForAll, budget);
    let first = group.spawn(Place::On(0), Spec::named("first"), Worker::default)?;
    let second = group.spawn(Place::LeastLoaded, Spec::named("second"), Worker::default)?;
    first.tell(Msg::Work(1))?;
    println!("first: {:?}", done(&first)?);
    second.tell(Msg::Work(13))?;
    while !done(&first)?.is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("first: {:?} (made anew because second failed)", done(&first)?);

    for _ in 0..4 {
        alone.tell(Msg::Work(13))?;
    }
    while !alone.is_closed() {
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("alone: {:?} (the budget is spent)", alone.exit());
    mesh.stop()?;
    Ok(())
}
