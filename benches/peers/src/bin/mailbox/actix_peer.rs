//! actix: `do_send`, which no bound holds back, and `send`.

use actix::{Actor, Addr, Arbiter, Context, Handler, Message, System};

use crate::{Account, BATCH, Case, Load, Verb, WINDOW, pin};

#[derive(Message)]
#[rtype(result = "()")]
struct Tell(Load);

#[derive(Message)]
#[rtype(result = "()")]
struct Vector(Vec<Load>);

#[derive(Message)]
#[rtype(result = "u64")]
struct Ask(Load);

#[derive(Default)]
struct Sink {
    sum: u64,
}

impl Actor for Sink {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(1_024);
    }
}

impl Handler<Tell> for Sink {
    type Result = ();

    fn handle(&mut self, m: Tell, _: &mut Context<Self>) {
        self.sum = self.sum.wrapping_add(m.0.last());
    }
}

impl Handler<Vector> for Sink {
    type Result = ();

    fn handle(&mut self, m: Vector, _: &mut Context<Self>) {
        self.sum = m.0.iter().fold(self.sum, |sum, load| sum.wrapping_add(load.last()));
    }
}

impl Handler<Ask> for Sink {
    type Result = u64;

    fn handle(&mut self, m: Ask, _: &mut Context<Self>) -> u64 {
        self.sum = self.sum.wrapping_add(m.0.last());
        self.sum
    }
}

async fn send(case: Case, sink: &Addr<Sink>, messages: u64) {
    let mut n = 0;
    while n < messages {
        match case.verb {
            Verb::Tell => {
                for _ in 0..WINDOW {
                    sink.do_send(Tell(Load::new(n)));
                    n += 1;
                }
                sink.send(Ask(Load::new(n))).await.expect("an answer");
            }
            Verb::Many | Verb::Vector => {
                for _ in 0..WINDOW / BATCH {
                    sink.do_send(Vector((n..n + BATCH).map(Load::new).collect()));
                    n += BATCH;
                }
                sink.send(Ask(Load::new(n))).await.expect("an answer");
            }
            Verb::Ask => {
                sink.send(Ask(Load::new(n))).await.expect("an answer");
                n += 1;
            }
        }
    }
}

pub fn run(case: Case, messages: u64) {
    System::new().block_on(async move {
        let other = case.cross().then(Arbiter::new);
        let sink = match &other {
            Some(other) => {
                other.spawn_fn(|| pin(0));
                Sink::start_in_arbiter(&other.handle(), |_| Sink::default())
            }
            None => Sink::default().start(),
        };
        // The other arbiter has started by the time it answers; only then may this thread leave its CPU to it.
        sink.send(Ask(Load::new(0))).await.expect("an answer");
        pin(usize::from(case.cross()));
        send(case, &sink, messages.min(4_096)).await;
        let account = Account::open(messages);
        send(case, &sink, messages).await;
        account.close();
    });
}
