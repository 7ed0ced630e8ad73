//! kameo, with its bounded mailbox.

use kameo::Actor;
use kameo::actor::{ActorRef, Spawn};
use kameo::message::{Context, Message};

use crate::tokio_peer::on_threads;
use crate::{Account, BATCH, Case, Load, Verb, WINDOW};

struct Tell(Load);
struct Vector(Vec<Load>);
struct Ask(Load);

#[derive(Actor, Default)]
struct Sink {
    sum: u64,
}

impl Message<Tell> for Sink {
    type Reply = ();

    async fn handle(&mut self, m: Tell, _: &mut Context<Self, ()>) {
        self.sum = self.sum.wrapping_add(m.0.last());
    }
}

impl Message<Vector> for Sink {
    type Reply = ();

    async fn handle(&mut self, m: Vector, _: &mut Context<Self, ()>) {
        self.sum = m.0.iter().fold(self.sum, |sum, load| sum.wrapping_add(load.last()));
    }
}

impl Message<Ask> for Sink {
    type Reply = u64;

    async fn handle(&mut self, m: Ask, _: &mut Context<Self, u64>) -> u64 {
        self.sum = self.sum.wrapping_add(m.0.last());
        self.sum
    }
}

async fn send(case: Case, sink: &ActorRef<Sink>, messages: u64) {
    let mut n = 0;
    while n < messages {
        match case.verb {
            Verb::Tell => {
                for _ in 0..WINDOW {
                    sink.tell(Tell(Load::new(n))).await.expect("room");
                    n += 1;
                }
                sink.ask(Ask(Load::new(n))).await.expect("an answer");
            }
            Verb::Many | Verb::Vector => {
                for _ in 0..WINDOW / BATCH {
                    sink.tell(Vector((n..n + BATCH).map(Load::new).collect())).await.expect("room");
                    n += BATCH;
                }
                sink.ask(Ask(Load::new(n))).await.expect("an answer");
            }
            Verb::Ask => {
                sink.ask(Ask(Load::new(n))).await.expect("an answer");
                n += 1;
            }
        }
    }
}

pub fn run(case: Case, messages: u64) {
    let receiver = async || Sink::spawn_with_mailbox(Sink::default(), kameo::mailbox::bounded(1_024));
    on_threads(case.cross(), receiver, async move |sink| {
        send(case, &sink, messages.min(4_096)).await;
        let account = Account::open(messages);
        send(case, &sink, messages).await;
        account.close();
    });
}
