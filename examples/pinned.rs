//! cargo run --example pinned
//!
//! A value that belongs to one thread (`Pinned`), the explicit way to another (`detach`, `bind`), and an actor whose
//! state is not `Send` at all. Uncomment the line marked below and the compiler refuses.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use portway::actors::{Detached, Fault, Mesh, MeshConfig, Pinned, Place, Protocol, Reply, Spec, Turn};

/// Stands for what only one thread may touch: a QUIC connection, a tunnel's keys.
struct Session {
    packets: u64,
}

struct Keeper {
    session: Pinned<Session>,
    /// Not `Send`, and fine: the actor never leaves its arbiter.
    log: Rc<RefCell<Vec<u64>>>,
}

enum Msg {
    Packet(u64),
    Report(Reply<(u64, usize, String)>),
}

impl Protocol for Keeper {
    type Msg = Msg;
    const KIND: &'static str = "keeper";

    fn on(&mut self, m: Msg, _: &mut Turn<'_, Msg>) -> Result<(), Fault> {
        match m {
            Msg::Packet(n) => {
                self.session.packets += 1;
                self.log.borrow_mut().push(n);
            }
            Msg::Report(reply) => {
                let thread = std::thread::current().name().unwrap_or("?").to_owned();
                drop(reply.send((self.session.packets, self.log.borrow().len(), thread)));
            }
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mesh = Mesh::start(MeshConfig::default())?;
    let prepared = Pinned::new(Session { packets: 10 });
    // std::thread::spawn(move || prepared.packets);   // refused: `Pinned` is not `Send`
    let parcel: Detached<Session> = prepared.detach();
    let keeper =
        mesh.spawn(Place::On(0), Spec::named("keeper"), move || Keeper { session: parcel.bind(), log: Rc::default() })?;
    for n in 0..5 {
        keeper.tell(Msg::Packet(n))?;
    }
    let (packets, logged, thread) = keeper.ask_blocking(Msg::Report, Duration::from_secs(1))?;
    println!("{packets} packets, {logged} of them logged, all on {thread}");
    mesh.stop()?;
    Ok(())
}
