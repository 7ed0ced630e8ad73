//! The real binary and its configuration file: what it prints, where, and how it exits.
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output};

fn portway(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portway"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("PORTWAY_CONFIG").args(arguments);
    command.envs(variables.iter().copied()).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// A configuration file that is gone when its test ends.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("portway-it-{}-{name}.toml", std::process::id()));
        fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

#[test]
fn seven_mistakes_are_seven_places_and_exit_2() {
    let file = "tests/data/config/bad/seven.toml";
    for command in ["check", "run"] {
        let output = portway(&[command, "--config", file], &[]);
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(stdout(&output), "");
        let text = stderr(&output);
        let places: Vec<_> = text.lines().filter_map(|line| line.trim_start().strip_prefix("--> ")).collect();
        let expected = ["5:9", "8:9", "12:1", "17:8", "18:10", "19:12", "22:15"].map(|at| format!("{file}:{at}"));
        assert_eq!(places, expected, "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("error: ")).count(), 7);
        assert!(text.ends_with(&format!("7 mistakes in {file}\n")), "{text}");
        assert!(!text.contains('\u{1b}'), "no colours into a pipe");
    }
}

#[test]
fn the_shipped_file_and_the_examples_are_fine() {
    let output = portway(&["check"], &[]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), "config.toml: fine, 5 listeners\n"));
    assert_eq!(stderr(&output), "");
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/configs")).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("custom_protocol.toml") || path.ends_with("http_middleware.toml") {
            // Their protocols are the examples' own; `embed` and `http_routes` check them with these.
            continue;
        }
        let output = portway(&["check", "-c", path.to_str().unwrap()], &[]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
}

#[test]
fn example_prints_a_file_that_checks() {
    let output = portway(&["example"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let file = Temporary::new("example", stdout(&output));
    let checked = portway(&["check", "-c", file.path()], &[]);
    let said = stdout(&checked);
    assert!(said.starts_with(&format!("{}: fine, ", file.path())), "{said}");
}

#[test]
fn an_upstream_that_is_not_there_is_named_with_the_nearest() {
    let output = portway(&["check", "--config", "tests/data/config/bad/relays.toml"], &[("PORTWAY_TEST_HOST", "a")]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.contains("`ap` is not the name of an `[[upstream]]`"), "{text}");
    assert!(text.contains("did you mean `app`?"), "{text}");
}

#[test]
fn check_opens_no_socket() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let file = Temporary::new("bind", &fs::read_to_string("examples/configs/environment.toml").unwrap());
    let address = taken.local_addr().unwrap().to_string();
    let output = portway(&["check"], &[("PORTWAY_CONFIG", file.path()), ("PORTWAY_LISTEN", &address)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn the_environment_reaches_the_file_and_stays_hidden() {
    let file = "examples/configs/environment.toml";
    let output = portway(&["check", "-c", file], &[("PORTWAY_LISTEN", "hunter2:1")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("the referenced value is not an address"), "{}", stderr(&output));
    assert!(!stderr(&output).contains("hunter2"), "{}", stderr(&output));
}

#[test]
fn bad_usage_and_unreadable_files_exit_2() {
    let unreadable = portway(&["check", "-c", "no/such.toml"], &[]);
    assert_eq!(unreadable.status.code(), Some(2));
    assert!(stderr(&unreadable).contains("cannot read no/such.toml: no such file"), "{}", stderr(&unreadable));
    for arguments in [&[][..], &["frobnicate"], &["check", "--colour"]] {
        assert_eq!(portway(arguments, &[]).status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(portway(&["--help"], &[]).status.code(), Some(0));
    assert_eq!(portway(&["--version"], &[]).status.code(), Some(0));
}

#[cfg(feature = "wireguard")]
#[test]
fn keys_are_made_that_wg_takes_and_only_their_owner_reads() {
    use std::os::unix::fs::PermissionsExt;

    let printed = portway(&["keygen", "wireguard"], &[]);
    assert!(printed.status.success());
    let lines: Vec<_> = stdout(&printed).lines().map(|line| line.split(" = ").next().unwrap()).collect();
    assert_eq!(lines, ["private_key", "public_key", "preshared_key"]);
    let dir = crate::gateway::temp_dir();
    let name = dir.join("wg0");
    let made = portway(&["keygen", "wireguard", "--out", name.to_str().unwrap()], &[]);
    assert!(made.status.success(), "{}", stderr(&made));
    for file in ["wg0.key", "wg0.psk"] {
        assert_eq!(fs::metadata(dir.join(file)).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let key = fs::File::open(dir.join("wg0.key")).unwrap();
    let public = Command::new("wg").arg("pubkey").stdin(key).output().expect("wg runs");
    let public = String::from_utf8(public.stdout).unwrap();
    assert!(stdout(&made).contains(public.trim()), "{public} in {}", stdout(&made));
    let again = portway(&["keygen", "wireguard", "--out", name.to_str().unwrap()], &[]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("wg0.key"), "{}", stderr(&again));
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn what_is_no_regular_file_is_refused_and_not_waited_for() {
    let dir = crate::gateway::temp_dir();
    let fifo = dir.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for path in [fifo.as_path(), std::path::Path::new("/dev/zero"), dir.as_path()] {
        let mut check = Command::new(env!("CARGO_BIN_EXE_portway"))
            .args(["check", "-c"])
            .arg(path)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        crate::probe::eventually("it ends", || check.try_wait().unwrap().is_some());
        let output = check.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("not a regular file"), "{said}");
    }
    fs::remove_dir_all(dir).unwrap();
}
