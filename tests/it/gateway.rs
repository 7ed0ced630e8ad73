//! A gateway for a test, in this process or as the real binary, and what tests ask of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use portway::actors::Totals;
use portway::gateway::{Builder, Gateway, check};

use crate::probe::{SOON, assert_nothing_out, eventually, now, view};

/// A gateway in this process.
pub(crate) struct Running {
    gateway: Option<Gateway>,
}

impl Running {
    pub(crate) fn start(text: &str) -> Self {
        Self::with(&Builder::new(), text, &check::Known::default())
    }

    pub(crate) fn with(builder: &Builder, text: &str, known: &check::Known) -> Self {
        let config = check::parse("test.toml", text, known).unwrap_or_else(|report| panic!("{}", report.render(false)));
        Self { gateway: Some(builder.start(config).expect("it starts")) }
    }

    pub(crate) fn of(gateway: Gateway) -> Self {
        Self { gateway: Some(gateway) }
    }

    pub(crate) fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().expect("until dropped")
    }

    pub(crate) fn address(&self, name: &str) -> SocketAddr {
        self.gateway().listeners().into_iter().find(|(n, _)| **n == *name).expect("a listener of that name").1
    }

    pub(crate) fn totals(&self) -> Totals {
        view(self.gateway().mesh()).totals
    }

    /// Waits until a counter has risen to `value`, and then a little to see that it does not rise further.
    pub(crate) fn counts(&self, family: &str, scope: &str, reason: &str, value: u64) {
        eventually(&format!("{family} {reason}"), || self.totals().get(family, scope, reason) >= value);
        assert_eq!(self.totals().get(family, scope, reason), value, "{family} {scope} {reason}");
    }

    /// Nothing is left: no connection, no byte of the budget.
    pub(crate) fn is_empty(&self) {
        let mesh = self.gateway().mesh().clone();
        eventually("no connection is left", || view(&mesh).of_kind("framed").count() == 0);
        assert_nothing_out(&mesh);
        // What the pools keep for the next goes back as well, if nobody comes.
        eventually("the budget got everything back", || self.gateway().memory_leased() == 0);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(gateway) = self.gateway.take() {
            let mesh = gateway.mesh().clone();
            gateway.stop();
            if !std::thread::panicking() {
                assert_nothing_out(&mesh);
            }
        }
    }
}

/// A framed client that blocks.
pub(crate) struct Client(pub(crate) TcpStream);

impl Client {
    pub(crate) fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, SOON).expect("it connects");
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    pub(crate) fn send(&mut self, body: &[u8]) {
        let frame = [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat();
        self.0.write_all(&frame).expect("it takes the message");
    }

    pub(crate) fn recv(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).expect("a length");
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut body).expect("a message");
        body
    }

    pub(crate) fn echoes(&mut self, body: &[u8]) {
        self.send(body);
        assert_eq!(self.recv(), body);
    }

    /// Reads to the end; what came.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset after a fault of ours is an end as well.
        let _reset = self.0.read_to_end(&mut rest);
        rest
    }
}

/// A neighbour on the same listener that must lose nothing.
pub(crate) struct Neighbour {
    client: Client,
    number: u64,
}

impl Neighbour {
    pub(crate) fn of(address: SocketAddr) -> Self {
        let mut neighbour = Self { client: Client::to(address), number: 0 };
        neighbour.works();
        neighbour
    }

    pub(crate) fn works(&mut self) {
        for _ in 0..10 {
            self.number += 1;
            self.client.echoes(&self.number.to_be_bytes());
        }
    }
}

/// The real binary.
pub(crate) struct Binary {
    child: Child,
    log: std::sync::mpsc::Receiver<String>,
    seen: Vec<String>,
    dir: PathBuf,
}

static PORTS: AtomicU32 = AtomicU32::new(0);

/// An address that nobody listens on, each time another one, below the ports that the kernel gives to clients.
pub(crate) fn free() -> SocketAddr {
    loop {
        let next = std::process::id().wrapping_mul(97).wrapping_add(PORTS.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(12_000 + next % 20_000).unwrap()));
        if std::net::TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

static DIRS: AtomicU32 = AtomicU32::new(0);

pub(crate) fn temp_dir() -> PathBuf {
    let number = DIRS.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("portway-it-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    dir
}

impl Binary {
    pub(crate) fn start(text: &str) -> Self {
        Self::start_with(text, &[])
    }

    pub(crate) fn start_with(text: &str, environment: &[(&str, &str)]) -> Self {
        let dir = temp_dir();
        std::fs::write(dir.join("config.toml"), text).unwrap();
        let (child, log) = run(&dir, environment);
        Self { child, log, seen: Vec::new(), dir }
    }

    /// With sockets that somebody else has opened, from descriptor 3 on, as a service manager passes them.
    pub(crate) fn start_passed(text: &str, first: OwnedFd, second: OwnedFd) -> Self {
        let dir = temp_dir();
        std::fs::write(dir.join("config.toml"), text).unwrap();
        let (child, log) = run_passed(&dir, first, second);
        Self { child, log, seen: Vec::new(), dir }
    }

    /// The same once more, after it has ended.
    pub(crate) fn again_passed(&mut self, first: OwnedFd, second: OwnedFd) {
        (self.child, self.log) = run_passed(&self.dir, first, second);
        self.seen.clear();
    }

    /// With no more than `files` file descriptors.
    pub(crate) fn start_limited(text: &str, files: usize) -> Self {
        let dir = temp_dir();
        std::fs::write(dir.join("config.toml"), text).unwrap();
        let command = format!("ulimit -n {files}; exec {} run -c config.toml", env!("CARGO_BIN_EXE_portway"));
        let mut shell = Command::new("sh");
        shell.args(["-c", &command]).current_dir(&dir);
        let (child, log) = spawn(&mut shell);
        Self { child, log, seen: Vec::new(), dir }
    }

    /// The same once more, in the same place, after it has ended.
    pub(crate) fn again(&mut self, text: &str) {
        self.rewrite(text);
        (self.child, self.log) = run(&self.dir, &[]);
        self.seen.clear();
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Bytes of memory that the process has in use, as the kernel counts them.
    pub(crate) fn resident(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line of it");
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
    }

    /// File descriptors that the process has open.
    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it runs").count()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits for a line of the log that contains `what`.
    pub(crate) fn says(&mut self, what: &str) -> String {
        if let Some(line) = self.seen.iter().find(|line| line.contains(what)) {
            return line.clone();
        }
        let end = now() + SOON;
        loop {
            let left = end.saturating_duration_since(now());
            match self.log.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(what) {
                        return line;
                    }
                }
                Err(_) => panic!("it did not say {what:?}: {:#?}", self.seen),
            }
        }
    }

    /// Lines of the log that were looked at and contain `what`.
    pub(crate) fn said(&self, what: &str) -> usize {
        self.seen.iter().filter(|line| line.contains(what)).count()
    }

    pub(crate) fn address(&mut self, listener: &str) -> SocketAddr {
        let line = self.says(&format!("listener={listener} "));
        let at = line.split("address=").nth(1).expect("an address");
        at.split_whitespace().next().unwrap().parse().expect("an address")
    }

    pub(crate) fn text(&self) -> String {
        std::fs::read_to_string(self.dir.join("config.toml")).unwrap()
    }

    /// Another command of the binary, with the same configuration.
    pub(crate) fn portway(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portway"));
        command.args(arguments).arg("-c").arg(self.dir.join("config.toml")).output().expect("it runs")
    }

    pub(crate) fn rewrite(&self, text: &str) {
        std::fs::write(self.dir.join("config.toml"), text).unwrap();
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    pub(crate) fn ends_within(&mut self, time: Duration) -> ExitStatus {
        let end = now() + time;
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                return status;
            }
            assert!(now() < end, "still running: {:#?}", self.seen);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn run(dir: &Path, environment: &[(&str, &str)]) -> (Child, std::sync::mpsc::Receiver<String>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portway"));
    command.args(["run", "-c"]).arg(dir.join("config.toml")).envs(environment.iter().copied());
    spawn(&mut command)
}

fn run_passed(dir: &Path, first: OwnedFd, second: OwnedFd) -> (Child, std::sync::mpsc::Receiver<String>) {
    let passed = "exec 3<&0 4<&1 </dev/null >/dev/null; LISTEN_FDS=2 LISTEN_PID=$$";
    let command = format!("{passed} exec {} run -c config.toml", env!("CARGO_BIN_EXE_portway"));
    let mut shell = Command::new("sh");
    let mut child =
        shell.args(["-c", &command]).current_dir(dir).stdin(first).stdout(second).stderr(Stdio::piped()).spawn();
    let stderr = child.as_mut().expect("the binary starts").stderr.take().expect("piped");
    (child.expect("it runs"), lines_of(stderr))
}

fn spawn(command: &mut Command) -> (Child, std::sync::mpsc::Receiver<String>) {
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("the binary starts");
    let stderr = child.stderr.take().expect("piped");
    (child, lines_of(stderr))
}

fn lines_of(stderr: std::process::ChildStderr) -> std::sync::mpsc::Receiver<String> {
    let (tell, log) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    log
}

/// How long a binary that a test has left running may take to its orderly end.
const LEFT_RUNNING: Duration = Duration::from_secs(2);

impl Drop for Binary {
    /// After each test: a gateway that comes to its orderly end says that every buffer is back.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && !std::thread::panicking() {
            self.signal("TERM");
            let end = now() + LEFT_RUNNING;
            while matches!(self.child.try_wait(), Ok(None)) && now() < end {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        let _over = self.child.kill();
        let ended = self.child.wait();
        let _gone = std::fs::remove_dir_all(&self.dir);
        let deadline = now() + SOON;
        while let Ok(line) = self.log.recv_timeout(deadline.saturating_duration_since(now())) {
            self.seen.push(line);
        }
        if !std::thread::panicking() {
            let says = |what: &str| self.seen.iter().any(|line| line.contains(what));
            assert!(!says("buffers were leaked"), "{:#?}", self.seen);
            let orderly = ended.is_ok_and(|status| status.success()) && says("drained");
            assert!(!orderly || says("buffers_out=0") || says("\"buffers_out\":0"), "{:#?}", self.seen);
        }
    }
}

/// One HTTP/1.1 request, by hand: status and body.
pub(crate) fn http(address: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect_timeout(&address, SOON).expect("it connects");
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

pub(crate) fn get(address: SocketAddr, path: &str) -> (u16, String) {
    http(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"))
}

/// An HTTP connection that stays open.
pub(crate) struct Kept(BufReader<TcpStream>);

impl Kept {
    pub(crate) fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, SOON).expect("it connects");
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self(BufReader::new(stream))
    }

    pub(crate) fn get(&mut self, path: &str) -> String {
        self.0.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        let (mut line, mut length) = (String::new(), 0);
        while line != "\r\n" {
            line.clear();
            assert!(self.0.read_line(&mut line).expect("an answer") > 0);
            if let Some((_, value)) = line.to_ascii_lowercase().split_once("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        String::from_utf8(body).unwrap()
    }
}
