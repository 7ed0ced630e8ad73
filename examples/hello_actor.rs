//! cargo run --example hello_actor
//!
//! The smallest actor: counts greetings, answers how many, stops when asked to.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use std::time::Duration;

use portway::actors::{Fault, Mesh, MeshConfig, Place, Protocol, Reply, Spec, Turn};

enum Msg {
    Greet(String),
    HowMany(Reply<u32>),
    Bye,
}

#[derive(Default)]
struct Greeter {
    greeted: u32,
}

impl Protocol for Greeter {
    type Msg = Msg;
    const KIND: &'static str = "greeter";

    fn on(&mut self, m: Msg, turn: &mut Turn<'_, Msg>) -> Result<(), Fault> {
        match m {
            Msg::Greet(name) => {
                self.greeted += 1;
                println!("hello {name}, from arbiter {}", turn.arbiter());
            }
            Msg::HowMany(reply) => drop(reply.send(self.greeted)),
            Msg::Bye => turn.stop(),
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mesh = Mesh::start(MeshConfig::default())?;
    let greeter = mesh.spawn(Place::LeastLoaded, Spec::named("greeter"), Greeter::default)?;
    for name in ["Ada", "Grace", "Barbara"] {
        greeter.tell(Msg::Greet(name.to_owned()))?;
    }
    let greeted = greeter.ask_blocking(Msg::HowMany, Duration::from_secs(1))?;
    println!("greeted {greeted}");
    greeter.tell(Msg::Bye)?;
    mesh.stop()?;
    println!("the greeter ended: {:?}", greeter.exit());
    Ok(())
}
