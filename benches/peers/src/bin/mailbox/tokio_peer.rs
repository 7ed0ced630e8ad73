//! A bare tokio channel of 1,024 with a task behind it: no actor at all, the floor of what a channel costs.

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use crate::{Account, BATCH, Case, Load, Verb, WINDOW, pin};

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
    assert!(to.send(Msg::Ask(Load::new(n), reply)).await.is_ok(), "closed");
    answer.await.expect("an answer");
}

async fn send(case: Case, to: &mpsc::Sender<Msg>, messages: u64) {
    let mut n = 0;
    while n < messages {
        match case.verb {
            Verb::Tell => {
                for _ in 0..WINDOW {
                    assert!(to.try_send(Msg::Tell(Load::new(n))).is_ok(), "full");
                    n += 1;
                }
                ask(to, n).await;
            }
            Verb::Many | Verb::Vector => {
                for _ in 0..WINDOW / BATCH {
                    assert!(to.try_send(Msg::Vector((n..n + BATCH).map(Load::new).collect())).is_ok(), "full");
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

pub fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Runs `receiver` and hands what it answers to `sender`: both on this thread, or on a thread and CPU each.
pub fn on_threads<T, R, S, F>(cross: bool, receiver: R, sender: S)
where
    T: Send + 'static,
    R: AsyncFnOnce() -> T + Send + 'static,
    S: FnOnce(T) -> F,
    F: Future<Output = ()>,
{
    let local = LocalSet::new();
    if !cross {
        local.block_on(&runtime(), async { sender(receiver().await).await });
        return;
    }
    let (tell, told) = std::sync::mpsc::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        pin(0);
        LocalSet::new().block_on(&runtime(), async {
            tell.send(receiver().await).expect("the sender waits");
            let _dropped = stopped.await;
        });
    });
    let to = told.recv().expect("the receiver started");
    pin(1);
    local.block_on(&runtime(), sender(to));
    drop(stop);
    thread.join().expect("the receiver ended");
}

pub fn run(case: Case, messages: u64) {
    let receiver = async || {
        let (to, from) = mpsc::channel(1_024);
        tokio::task::spawn_local(sink(from));
        to
    };
    on_threads(case.cross(), receiver, async move |to| {
        send(case, &to, messages.min(4_096)).await;
        let account = Account::open(messages);
        send(case, &to, messages).await;
        account.close();
    });
}
