//! `portway doctor`: what this machine gives a gateway, and what a configuration would miss of it.
//!
//! Looks and tries, and leaves nothing behind: a private network is made and ended, sockets are opened and closed. Each
//! finding is a line, with what to do where something lacks. Whether it fails is whether a listener of the
//! configuration could not start; everything else works with less.

mod places;

use std::fmt::{self, Write as _};

use super::limits;

#[cfg(feature = "wireguard")]
mod tunnels {
    //! What tunnels need.

    use std::path::{Path, PathBuf};
    use std::process::Command;

    use super::{Finding, read_number};
    use crate::gateway::config::Config;
    use crate::gateway::config::wireguard::{Mode, Wireguard};
    use crate::gateway::tunnels;
    use crate::transports::tun::{PrivateNetwork, PrivateSettings};
    use crate::transports::udp::{Options, trains};

    /// CAP_NET_ADMIN, as capabilities(7) counts.
    const NET_ADMIN: u32 = 12;

    /// What can be had here.
    struct Here {
        private: Result<(), String>,
        admin: bool,
    }

    pub(super) fn findings(config: Option<&Config>, helper: &Path) -> Vec<Finding> {
        let listeners = || config.iter().flat_map(|config| &config.listeners);
        let interfaces: Vec<(&str, &Wireguard)> =
            listeners().filter_map(|one| tunnels::of(one).map(|it| (one.name.as_str(), it))).collect();
        let node = interfaces.first().map_or_else(|| PathBuf::from("/dev/net/tun"), |(_, it)| it.tun_node.clone());
        let here = Here { private: private(&node, helper), admin: may_administer() };
        let mut all = vec![
            match &here.private {
                Ok(()) => {
                    Finding::good("private network", "works: services in tunnels get the kernel's TCP, without root")
                }
                Err(why) => {
                    Finding::less("private network", why.clone(), "tunnels in mode `auto` have a netstack inside")
                }
            },
            if here.admin {
                Finding::good("CAP_NET_ADMIN", "held: tunnels in mode `tun` can be made")
            } else {
                Finding::less("CAP_NET_ADMIN", "not held", "mode `tun` needs it; `private` and `netstack` do not")
            },
            datagrams(),
        ];
        all.extend(["rmem_max", "wmem_max"].map(buffer));
        if interfaces.iter().any(|(_, it)| it.masquerade || !it.forward.is_empty()) {
            all.push(if Command::new("nft").arg("--version").output().is_ok() {
                Finding::good("nft", "found")
            } else {
                Finding::less(
                    "nft",
                    "not found",
                    "`forward` in a private network and `masquerade` need it: install nftables",
                )
            });
        }
        if interfaces.iter().any(|(_, it)| it.masquerade) && read_number("/proc/sys/net/ipv4/ip_forward") != Some(1) {
            let hint = "the host forwards nothing until `sysctl net.ipv4.ip_forward=1`";
            all.push(Finding::less("net.ipv4.ip_forward", "off", hint));
        }
        all.extend(interfaces.iter().map(|(name, it)| judge(name, it, &here)));
        all
    }

    /// What becomes of one listener.
    fn judge(name: &str, it: &Wireguard, here: &Here) -> Finding {
        let what = format!("listener {name}");
        match (it.mode, &here.private) {
            (Mode::Tun, _) if !here.admin => Finding::missing(what, "mode `tun` without CAP_NET_ADMIN", "see above"),
            (Mode::Private, Err(why)) => Finding::missing(what, format!("mode `private`, but {why}"), "see above"),
            (Mode::Auto, Ok(())) => Finding::good(what, "mode `auto` becomes private"),
            (Mode::Auto, Err(_)) => {
                Finding::less(what, "mode `auto` becomes netstack", "it sends slowly over paths that lose packets")
            }
            (mode, _) => Finding::good(what, format!("mode `{mode}`")),
        }
    }

    /// Makes a private network and lets it go.
    fn private(node: &Path, helper: &Path) -> Result<(), String> {
        let settings = PrivateSettings {
            program: helper.to_owned(),
            arguments: vec![tunnels::kernel::HELPER.to_owned()],
            node: node.to_owned(),
            name: "tun0".to_owned(),
            mtu: 1_420,
            offload: true,
            addresses: Vec::new(),
            congestion: None,
        };
        PrivateNetwork::start(&settings).map(drop).map_err(|error| error.to_string())
    }

    fn may_administer() -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let held = held.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0);
        held >> NET_ADMIN & 1 == 1
    }

    fn datagrams() -> Finding {
        match trains() {
            Ok((out, back)) if out > 1 && back > 1 => {
                Finding::good("UDP", format!("sends up to {out} and receives up to {back} datagrams in one call"))
            }
            Ok(_) => Finding::less("UDP", "no segmentation offload", "each datagram costs a system call"),
            Err(error) => Finding::less("UDP", format!("no socket: {error}"), "tunnels and QUIC need one"),
        }
    }

    fn buffer(key: &str) -> Finding {
        let options = Options::default();
        let wanted = if key == "rmem_max" { options.receive_buffer } else { options.send_buffer } as u64;
        let what = format!("net.core.{key}");
        match read_number(&format!("/proc/sys/net/core/{key}")) {
            Some(given) if given >= wanted => Finding::good(what, given.to_string()),
            Some(given) => {
                let hint = format!("`sysctl net.core.{key}={wanted}` lets sockets have the buffers they ask for");
                Finding::less(what, given.to_string(), hint)
            }
            None => Finding::good(what, "not to be seen here"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    /// It works, with less.
    Less,
    /// Something that is configured cannot start.
    Missing,
}

/// One thing that was looked at.
struct Finding {
    state: State,
    what: String,
    found: String,
    hint: String,
}

impl Finding {
    fn good(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { state: State::Good, what: what.into(), found: found.into(), hint: String::new() }
    }

    fn less(what: impl Into<String>, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { state: State::Less, what: what.into(), found: found.into(), hint: hint.into() }
    }

    fn missing(what: impl Into<String>, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { state: State::Missing, what: what.into(), found: found.into(), hint: hint.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.state {
            State::Good => "good",
            State::Less => "less",
            State::Missing => "MISSING",
        };
        write!(f, "{word:<8} {:<20} {}", self.what, self.found)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "\n{:<29} {}", "", self.hint) }
    }
}

/// What was found, as text, and whether everything that is configured can start. `helper` is the program that makes
/// private networks.
pub(super) fn look(config: Option<&super::config::Config>, helper: &std::path::Path) -> (String, bool) {
    let files = limits::raise_open_files();
    let files = if files >= 65_536 {
        Finding::good("open files", files.to_string())
    } else {
        Finding::less("open files", files.to_string(), "each connection is one, a relayed one two: `ulimit -n 65536`")
    };
    let mut all = vec![files];
    all.extend(places::findings(config));
    #[cfg(feature = "wireguard")]
    all.extend(tunnels::findings(config, helper));
    #[cfg(not(feature = "wireguard"))]
    let _ = helper;
    let text = all.iter().fold(String::new(), |mut text, finding| {
        let _infallible = writeln!(text, "{finding}");
        text
    });
    (text, all.iter().all(|finding| finding.state != State::Missing))
}

#[cfg(feature = "wireguard")]
fn read_number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
