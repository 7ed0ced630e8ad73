//! A bare tokio channel of 1,024 with a task behind it: no actor at all, the floor of what a channel costs.

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use crate::{Account, BATCH, Case, Load, Verb, WINDOW};

enum Msg {
    Tell(Load),
    Vector(Vec<Load>),
    Ask(Load, oneshot::Sender<u64>),
}

async fn sink(mut from: mpsc::Receiver<Msg>) {
    let mut sum = 0_u64;
    while let Some(m) = from.recv().await {
        match m {
            Msg::Tell(load) => sum = sum.wrapping_add(load.last()),
            Msg::Vector(loads) => sum = loads.iter().fold(sum, |sum, load| sum.wrapping_add(load.last())),
            Msg::Ask(load, reply) => {
                sum = sum.wrapping_add(load.last());
                let _gone = reply.send(sum);
            }
        }
    }
}

async fn ask(to: &mpsc::Sender<Msg>, n: u64) {
    let (reply, answer) = oneshot::channel();
    to.send(Msg::Ask(Load::new(n), reply)).await.ok().expect("room");
    answer.await.expect("an answer");
}

async fn send(case: Case, to: &mpsc::Sender<Msg>, messages: u64) {
    let mut n = 0;
    while n < messages {
        match case.verb {
            Verb::Tell => {
                for _ in 0..WINDOW {
                    to.try_send(Msg::Tell(Load::new(n))).ok().expect("room");
                    n += 1;
                }
                ask(to, n).await;
            }
            Verb::Many | Verb::Vector => {
                for _ in 0..WINDOW / BATCH {
                    to.try_send(Msg::Vector((n..n + BATCH).map(Load::new).collect())).ok().expect("room");
                    n += BATCH;
                }
                ask(to, n).await;
            }
            Verb::Ask => {
                ask(to, n).await;
                n += 1;
            }
        }
    }
}

/// What kameo and ractor run on: one thread, or a pool of two.
pub fn runtime(pool: bool) -> Runtime {
    let mut builder = if pool { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    builder.worker_threads(2).enable_all().build().expect("a runtime")
}

fn on_this_thread<F: Future>(future: F) -> F::Output {
    LocalSet::new().block_on(&runtime(false), future)
}

pub fn run(case: Case, messages: u64) {
    let (to, from) = mpsc::channel(1_024);
    let client = async move {
        send(case, &to, messages.min(4_096)).await;
        let account = Account::open(messages);
        send(case, &to, messages).await;
        account.close();
    };
    if case.cross {
        let sink = std::thread::spawn(move || on_this_thread(sink(from)));
        on_this_thread(client);
        sink.join().expect("the sink ended");
    } else {
        on_this_thread(async move {
            tokio::task::spawn_local(sink(from));
            client.await;
        });
    }
}
