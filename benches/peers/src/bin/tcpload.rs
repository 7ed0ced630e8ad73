//! Loads a framed echo server and keeps the account: CPU per message, latency, memory per connection.
//!
//!     tcpload --target 127.0.0.1:7001 --pid P --conns 1000 --size 100 --seconds 5       closed loop
//!     tcpload ... --rate 20000                                                          open loop, messages/s in all
//!     tcpload ... --mode connect --conns 16                                             connect, one message, reset
//!     tcpload ... --mode idle --conns 10000 --seconds 10                                what silence costs
//!
//! Every connection sends one message before an account is opened: by then the server has accepted them all.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use portway_peers::cpu::{Meter, resident};
use portway_peers::histogram::Histogram;
use portway_peers::{Args, Line, raise_open_files};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, sleep_until};

fn main() {
    let args = Args::parse();
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let load = Load {
        target: args.text("target", "127.0.0.1:9100").parse().expect("--target: an address and a port"),
        server: args.has("pid").then(|| args.number("pid", 0) as u32),
        connections: args.number("conns", 100),
        frame: frame(args.number("size", 100) as u32),
        time: args.seconds("seconds", 5.0),
        rate: args.number("rate", 0),
        name: args.text("name", "tcpload"),
    };
    match args.text("mode", "echo").as_str() {
        "echo" => LocalSet::new().block_on(&runtime, load.echo()),
        "idle" => LocalSet::new().block_on(&runtime, load.idle()),
        "connect" => LocalSet::new().block_on(&runtime, load.connections()),
        mode => panic!("--mode {mode}: echo, connect or idle"),
    }
}

fn frame(size: u32) -> Rc<[u8]> {
    let mut frame = size.to_be_bytes().to_vec();
    frame.resize(4 + size as usize, 0x5a);
    frame.into()
}

struct Load {
    target: SocketAddr,
    server: Option<u32>,
    connections: u64,
    frame: Rc<[u8]>,
    time: Duration,
    rate: u64,
    name: String,
}

impl Load {
    async fn connect(&self) -> Vec<TcpStream> {
        let mut streams = Vec::new();
        let mut answer = vec![0; self.frame.len()];
        for n in 0..self.connections {
            let stream = TcpStream::connect(self.target).await;
            let mut stream = stream.unwrap_or_else(|error| panic!("connection {n}: {error}"));
            stream.set_nodelay(true).expect("a socket option");
            stream.write_all(&self.frame).await.expect("sent");
            stream.read_exact(&mut answer).await.unwrap_or_else(|error| panic!("first echo of {n}: {error}"));
            assert_eq!(answer, *self.frame, "the echo differs");
            streams.push(stream);
        }
        streams
    }

    async fn echo(self) {
        let streams = self.connect().await;
        // One histogram for all: ten thousand of them would be this client's own cache misses.
        let seen = Rc::new(RefCell::new(Histogram::default()));
        let stop = Rc::new(Cell::new(false));
        let meter = Meter::start(self.server);
        let start = Instant::now() + Duration::from_millis(self.connections / 50);
        let mut tasks = JoinSet::new();
        for (n, stream) in streams.into_iter().enumerate() {
            let client = Client { stream, frame: self.frame.clone(), seen: seen.clone() };
            if self.rate > 0 {
                let gap = Duration::from_secs_f64(self.connections as f64 / self.rate as f64);
                let first = start + gap.mul_f64(n as f64 / self.connections as f64);
                tasks.spawn_local(client.open_loop(first, gap, start + self.time));
            } else {
                tasks.spawn_local(client.closed_loop(start + self.time, stop.clone()));
            }
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("no panic").expect("the server answers to the end");
        }
        let spent = meter.stop();
        let seen = seen.borrow();
        let messages = seen.count() as f64;
        Line::new(&self.name)
            .with("msg_s", messages / spent.wall)
            .with("srv_us_per_msg", spent.server * 1e6 / messages)
            .with("cli_us_per_msg", spent.own * 1e6 / messages)
            .with("p50_us", seen.quantile(0.5))
            .with("p99_us", seen.quantile(0.99))
            .with("p999_us", seen.quantile(0.999))
            .with("max_us", seen.longest())
            .with("srv_busy", spent.server / spent.wall)
            .with("others_busy", spent.others / spent.wall)
            .print();
    }

    /// `connections` tasks that each connect, send one message, wait for its echo and reset, over and over: a reset
    /// leaves no port in TIME_WAIT.
    async fn connections(self) {
        let count = Rc::new(Cell::new(0u64));
        let meter = Meter::start(self.server);
        let end = Instant::now() + self.time;
        let mut tasks = JoinSet::new();
        for _ in 0..self.connections {
            let (count, frame, target) = (count.clone(), self.frame.clone(), self.target);
            tasks.spawn_local(async move {
                let mut answer = vec![0; frame.len()];
                while Instant::now() < end {
                    let mut stream = TcpStream::connect(target).await.expect("it connects");
                    stream.write_all(&frame).await.expect("sent");
                    stream.read_exact(&mut answer).await.expect("an echo");
                    stream.set_zero_linger().expect("a socket option");
                    count.set(count.get() + 1);
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("no panic");
        }
        let spent = meter.stop();
        let done = count.get() as f64;
        Line::new(&self.name)
            .with("conn_s", done / spent.wall)
            .with("srv_us_per_msg", spent.server * 1e6 / done)
            .with("srv_busy", spent.server / spent.wall)
            .with("others_busy", spent.others / spent.wall)
            .print();
    }

    async fn idle(self) {
        let server = self.server.expect("--pid");
        let before = resident(server);
        let _streams = self.connect().await;
        sleep(Duration::from_secs(2)).await;
        let grown = resident(server).saturating_sub(before);
        let meter = Meter::start(self.server);
        sleep(self.time).await;
        let spent = meter.stop();
        Line::new(&self.name)
            .with("conns", self.connections as f64)
            .with("rss_bytes_per_conn", grown as f64 / self.connections as f64)
            .with("rss_before_mib", before as f64 / f64::from(1 << 20))
            .with("srv_cpu_percent", spent.server * 100.0 / spent.wall)
            .print();
    }
}

struct Client {
    stream: TcpStream,
    frame: Rc<[u8]>,
    seen: Rc<RefCell<Histogram>>,
}

impl Client {
    async fn closed_loop(mut self, end: Instant, stop: Rc<Cell<bool>>) -> std::io::Result<()> {
        let mut answer = vec![0; self.frame.len()];
        while !stop.get() {
            let sent = Instant::now();
            self.stream.write_all(&self.frame).await?;
            self.stream.read_exact(&mut answer).await?;
            let now = Instant::now();
            self.seen.borrow_mut().add(now - sent);
            stop.set(now >= end);
        }
        Ok(())
    }

    /// Latency counts from when the message was due, so that a server that stalls is charged for all who wait.
    async fn open_loop(mut self, first: Instant, gap: Duration, end: Instant) -> std::io::Result<()> {
        let mut answer = vec![0; self.frame.len()];
        let mut due = first;
        while due < end {
            sleep_until(due.into()).await;
            // The runtime's timer has a grain of 1 ms: up to 2 ms late is its rounding, more is queueing and counts.
            let now = Instant::now();
            let late = now.saturating_duration_since(due) > Duration::from_millis(2);
            let from = if late { due + Duration::from_millis(1) } else { now };
            self.stream.write_all(&self.frame).await?;
            self.stream.read_exact(&mut answer).await?;
            self.seen.borrow_mut().add(from.elapsed());
            due += gap;
        }
        Ok(())
    }
}
