//! Network namespaces for tests: made, joined and, whatever happens, removed again. Needs root.

use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::probe::eventually;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A name that no other test has, of at most 15 characters: for interfaces too.
pub(crate) fn unique(prefix: &str) -> String {
    format!("{prefix}{}x{}", std::process::id() % 100_000, NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// A network namespace, and the programs in it.
pub(crate) struct Netns {
    name: String,
    children: Vec<Child>,
}

impl Netns {
    pub(crate) fn new() -> Self {
        let name = unique("pw");
        run("ip", &["netns", "add", &name]);
        let netns = Self { name, children: Vec::new() };
        netns.ip(&["link", "set", "lo", "up"]);
        netns
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A program inside, bounded in time.
    pub(crate) fn output(&self, program: &str, arguments: &[&str]) -> Output {
        let out = Command::new("timeout")
            .args(["60", "ip", "netns", "exec", &self.name, program])
            .args(arguments)
            .stdin(Stdio::null())
            .output();
        out.unwrap_or_else(|error| panic!("{program} runs: {error}"))
    }

    /// What a program inside prints; it must succeed.
    #[track_caller]
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        let out = self.output(program, arguments);
        let (text, error) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{program} {arguments:?}: {}\n{text}{error}", out.status);
        text.into_owned()
    }

    #[track_caller]
    pub(crate) fn ip(&self, arguments: &[&str]) -> String {
        self.run("ip", arguments)
    }

    /// Starts a program inside that is killed with the namespace. Answers its process.
    pub(crate) fn spawn(&mut self, program: &str, arguments: &[&str]) -> u32 {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).args(arguments);
        self.adopt(&mut command)
    }

    /// The same for a command that leads inside by itself.
    pub(crate) fn adopt(&mut self, command: &mut Command) -> u32 {
        let child = command.stdin(Stdio::null()).spawn().expect("it starts");
        let process = child.id();
        self.children.push(child);
        process
    }

    /// Ends one of them now, as if it had crashed.
    pub(crate) fn kill(&mut self, process: u32) {
        for child in self.children.iter_mut().filter(|child| child.id() == process) {
            let _gone_already = child.kill();
            let _reaped = child.wait();
        }
    }

    /// Runs `f` on a thread inside.
    pub(crate) fn inside<R: Send + 'static>(&self, f: impl FnOnce() -> R + Send + 'static) -> R {
        let path = format!("/var/run/netns/{}", self.name);
        let thread = std::thread::spawn(move || {
            use std::os::fd::AsFd;
            let file = std::fs::File::open(path).expect("the namespace");
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter");
            f()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Answers of `ping`, of so many asked for 50 ms apart.
    pub(crate) fn pings(&self, to: &str, count: u32) -> u32 {
        // Whoever asks for several wants all of them, on a machine that is busy as well; it waits for what is missing alone.
        let patience = if count > 1 { "3" } else { "1" };
        let out = self.output("ping", &["-q", "-n", "-i", "0.05", "-W", patience, "-c", &count.to_string(), to]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let received = text.split(" received").next().and_then(|text| text.rsplit(", ").next());
        received.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
    }

    /// Waits until a ping is answered.
    #[track_caller]
    pub(crate) fn reaches(&self, to: &str) {
        eventually(&format!("{to} answers"), || self.pings(to, 1) == 1);
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // A daemon that is killed leaves its socket behind, under the name of its interface.
        let links = Command::new("ip").args(["-n", &self.name, "-br", "link"]).output();
        let links = String::from_utf8_lossy(&links.map(|out| out.stdout).unwrap_or_default()).into_owned();
        let sockets = links.lines().filter_map(|line| line.split_whitespace().next());
        let sockets: Vec<String> = sockets.map(|name| format!("/var/run/wireguard/{name}.sock")).collect();
        for child in &mut self.children {
            let _gone_already = child.kill();
            let _reaped = child.wait();
        }
        // Whatever a program left behind: a daemon of wg-quick.
        let left = Command::new("ip").args(["netns", "pids", &self.name]).output();
        for process in String::from_utf8_lossy(&left.map(|out| out.stdout).unwrap_or_default()).lines() {
            let _gone_already = Command::new("kill").args(["-9", process]).status();
        }
        let _gone_already = Command::new("ip").args(["netns", "del", &self.name]).status();
        for socket in sockets {
            let _not_one = std::fs::remove_file(socket);
        }
    }
}

/// Two namespaces with a cable between them: `10.99.0.1` and `fd99::1` here, `10.99.0.2` and `fd99::2` there.
pub(crate) struct Pair {
    pub(crate) a: Netns,
    pub(crate) b: Netns,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let (a, b) = (Netns::new(), Netns::new());
        run(
            "ip",
            &["link", "add", "cable", "netns", a.name(), "type", "veth", "peer", "name", "cable", "netns", b.name()],
        );
        for (netns, host) in [(&a, 1), (&b, 2)] {
            netns.ip(&["addr", "add", &format!("10.99.0.{host}/24"), "dev", "cable"]);
            netns.ip(&["addr", "add", &format!("fd99::{host}/64"), "dev", "cable", "nodad"]);
            netns.ip(&["link", "set", "cable", "up"]);
        }
        Self { a, b }
    }
}

#[track_caller]
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let out = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let out = out.unwrap_or_else(|error| panic!("{program} runs: {error}"));
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {arguments:?} (this test needs root): {}\n{error}", out.status);
    String::from_utf8_lossy(&out.stdout).into_owned()
}
