//! ractor: `cast`, which no bound holds back, and `call`.

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, call};

use crate::tokio_peer::on_threads;
use crate::{Account, BATCH, Case, Load, Verb, WINDOW};

enum Msg {
    Tell(Load),
    Vector(Vec<Load>),
    Ask(Load, RpcReplyPort<u64>),
}

struct Sink;

impl Actor for Sink {
    type Msg = Msg;
    type State = u64;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Msg>, (): ()) -> Result<u64, ActorProcessingErr> {
        Ok(0)
    }

    async fn handle(&self, _: ActorRef<Msg>, m: Msg, sum: &mut u64) -> Result<(), ActorProcessingErr> {
        match m {
            Msg::Tell(load) => *sum = sum.wrapping_add(load.last()),
            Msg::Vector(loads) => *sum = loads.iter().fold(*sum, |sum, load| sum.wrapping_add(load.last())),
            Msg::Ask(load, reply) => {
                *sum = sum.wrapping_add(load.last());
                let _gone = reply.send(*sum);
            }
        }
        Ok(())
    }
}

async fn ask(sink: &ActorRef<Msg>, n: u64) {
    call!(sink, |reply| Msg::Ask(Load::new(n), reply)).expect("an answer");
}

async fn send(case: Case, sink: &ActorRef<Msg>, messages: u64) {
    let mut n = 0;
    while n < messages {
        match case.verb {
            Verb::Tell => {
                for _ in 0..WINDOW {
                    sink.cast(Msg::Tell(Load::new(n))).expect("alive");
                    n += 1;
                }
                ask(sink, n).await;
            }
            Verb::Many | Verb::Vector => {
                for _ in 0..WINDOW / BATCH {
                    sink.cast(Msg::Vector((n..n + BATCH).map(Load::new).collect())).expect("alive");
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
    let receiver = async || Actor::spawn(None, Sink, ()).await.expect("an actor").0;
    on_threads(case.cross(), receiver, async move |sink| {
        send(case, &sink, messages.min(4_096)).await;
        let account = Account::open(messages);
        send(case, &sink, messages).await;
        account.close();
    });
}
