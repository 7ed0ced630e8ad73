//! The keys of a configuration that belong to the gateway as a whole: which of them a reload takes over, and which hold
//! until a restart.

use crate::gateway::config::{Admin, Config, Runtime};

/// What differs between two configurations beside listeners, upstreams and certificates, as keys of the file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Differences {
    /// Taken over at once.
    pub(super) taken: Vec<&'static str>,
    /// Held until a restart.
    pub(super) held: Vec<&'static str>,
}

impl Differences {
    pub(super) fn between(running: &Config, new: &Config) -> Self {
        let (was, now) = (&running.runtime, &new.runtime);
        let mut out = Self::default();
        out.note(&[
            ("runtime.memory", was.memory != now.memory, true),
            ("runtime.drain", was.drain != now.drain, true),
            ("runtime.arbiters", was.arbiters != now.arbiters, false),
            ("runtime.pin_cores", was.pin_cores != now.pin_cores, false),
            ("log.level", running.log.level != new.log.level, true),
            ("log.format", running.log.format != new.log.format, false),
        ]);
        match (&running.admin, &new.admin) {
            (Some(was), Some(now)) => out.note(&[
                ("admin.token", was.token != now.token, true),
                ("admin.watch", was.watch != now.watch, true),
                ("admin.tls", was.tls != now.tls, true),
                ("admin.listen", was.listen != now.listen, false),
                ("admin.control", was.control != now.control, false),
            ]),
            (None, None) => {}
            (Some(_), None) | (None, Some(_)) => out.held.push("admin"),
        }
        out
    }

    fn note(&mut self, keys: &[(&'static str, bool, bool)]) {
        for (key, _, taken) in keys.iter().filter(|(_, differs, _)| *differs) {
            if *taken { &mut self.taken } else { &mut self.held }.push(key);
        }
    }
}

/// The settings in use once `new` was taken over by a gateway that runs by `running`.
pub(super) fn runtime(running: &Config, new: &Config) -> Runtime {
    Runtime { memory: new.runtime.memory, drain: new.runtime.drain, ..running.runtime.clone() }
}

/// The same for `[admin]`.
pub(super) fn admin(running: &Config, new: &Config) -> Option<Admin> {
    let mut admin = running.admin.clone();
    if let (Some(admin), Some(new)) = (&mut admin, &new.admin) {
        (admin.token, admin.watch, admin.tls) = (new.token.clone(), new.watch, new.tls.clone());
    }
    admin
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::gateway::check::{self, Known};

    fn config(text: &str) -> Config {
        check::parse("test.toml", &format!("version = 1\n{text}"), &Known::default()).expect("it is right")
    }

    #[test]
    fn what_was_taken_over_differs_no_longer_and_what_is_held_still_does() {
        let running = config("[runtime]\nmemory = \"64MiB\"\n[admin]\nlisten = \"127.0.0.1:1\"\n");
        let text = "[runtime]\nmemory = \"32MiB\"\ndrain = \"3s\"\narbiters = 2\n[log]\nlevel = \"debug\"\nformat = \"json\"\n\
                    [admin]\nlisten = \"127.0.0.1:2\"\nwatch = true\n";
        let new = config(text);
        let differences = Differences::between(&running, &new);
        assert_eq!(differences.taken, ["runtime.memory", "runtime.drain", "log.level", "admin.watch"]);
        assert_eq!(differences.held, ["runtime.arbiters", "log.format", "admin.listen"]);

        let (runtime, admin) = (runtime(&running, &new), admin(&running, &new));
        assert_eq!((runtime.memory, runtime.drain, runtime.arbiters), (Some(32 << 20), Duration::from_secs(3), None));
        let log = crate::gateway::config::Log { level: new.log.level, ..running.log };
        let after = Differences::between(&Config { runtime, admin, log, ..running }, &new);
        assert_eq!((after.taken, after.held), (Vec::new(), differences.held));
    }

    #[test]
    fn an_admin_table_that_comes_or_goes_waits_for_a_restart() {
        let (without, with) = (config(""), config("[admin]\nlisten = \"127.0.0.1:1\"\n"));
        for (a, b) in [(&without, &with), (&with, &without)] {
            assert_eq!(Differences::between(a, b), Differences { taken: Vec::new(), held: vec!["admin"] });
        }
    }
}
