//! Our mailbox, with both bounds at work. The sender is an actor as well: one future on its own arbiter.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::time::Duration;

use portway::actors::{Fault, Kind, Mail, Mesh, MeshConfig, Place, Protocol, Reply, Spec, Turn};

use crate::{Account, BATCH, Case, Load, Verb, WINDOW};

const PATIENCE: Duration = Duration::from_secs(10);

enum Msg {
    Tell(Load),
    Vector(Vec<Load>),
    Ask(Load, Reply<u64>),
}

#[derive(Default)]
struct Sink {
    sum: u64,
}

impl Protocol for Sink {
    type Msg = Msg;
    const KIND: &'static str = "sink";

    fn size(m: &Msg) -> usize {
        match m {
            Msg::Tell(_) | Msg::Ask(..) => size_of::<Load>(),
            Msg::Vector(loads) => size_of::<Load>() * loads.len(),
        }
    }

    fn on(&mut self, m: Msg, _: &mut Turn<'_, Msg>) -> Result<(), Fault> {
        match m {
            Msg::Tell(load) => self.sum = self.sum.wrapping_add(load.last()),
            Msg::Vector(loads) => self.sum = loads.iter().fold(self.sum, |sum, load| sum.wrapping_add(load.last())),
            Msg::Ask(load, reply) => {
                self.sum = self.sum.wrapping_add(load.last());
                let _gone = reply.send(self.sum);
            }
        }
        Ok(())
    }
}

struct Sender;

impl Kind for Sender {
    const KIND: &'static str = "sender";
}

async fn ask(sink: &Mail<Msg>, n: u64) {
    sink.ask(|reply| Msg::Ask(Load::new(n), reply), PATIENCE).await.expect("an answer");
}

async fn send(case: Case, sink: &Mail<Msg>, messages: u64) {
    let mut n = 0;
    let mut queue = VecDeque::with_capacity(BATCH as usize);
    while n < messages {
        match case.verb {
            Verb::Tell => {
                for _ in 0..WINDOW {
                    sink.tell(Msg::Tell(Load::new(n))).expect("room");
                    n += 1;
                }
                ask(sink, n).await;
            }
            Verb::Many => {
                for _ in 0..WINDOW / BATCH {
                    queue.extend((n..n + BATCH).map(|n| Msg::Tell(Load::new(n))));
                    assert_eq!(sink.tell_many(&mut queue), BATCH as usize);
                    n += BATCH;
                }
                ask(sink, n).await;
            }
            Verb::Vector => {
                for _ in 0..WINDOW / BATCH {
                    sink.tell(Msg::Vector((n..n + BATCH).map(Load::new).collect())).expect("room");
                    n += BATCH;
                }
                ask(sink, n).await;
            }
            Verb::Ask => {
                ask(sink, n).await;
                n += 1;
            }
        }
    }
}

pub fn run(case: Case, messages: u64) {
    let arbiters = NonZeroUsize::new(if case.cross() { 2 } else { 1 });
    let mesh = Mesh::start(MeshConfig { arbiters, pin_cores: true, ..MeshConfig::default() }).expect("a mesh");
    let sink = mesh.spawn(Place::On(0), Spec::default(), Sink::default).expect("a sink");
    let place = Place::On(usize::from(case.cross()));
    let (done, finished) = std::sync::mpsc::channel();
    let sender = mesh.drive::<Sender, _>(place, Spec::default(), move |_| async move {
        send(case, &sink, messages.min(4_096)).await;
        let account = Account::open(messages);
        send(case, &sink, messages).await;
        account.close();
        let _gone = done.send(());
        Ok(())
    });
    sender.expect("a sender");
    finished.recv().expect("the sender ran to its end");
    mesh.stop().expect("called from a plain thread");
}
