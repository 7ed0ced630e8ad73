//! `portway doctor`: what it says of ports, certificates and files of keys that a configuration names.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use crate::gateway::{free, temp_dir};

/// What it says of the machine.
const WORDS: [&str; 6] = ["open files", "steering", "CAP_NET_ADMIN", "UDP", "net.core.rmem_max", "net.core.wmem_max"];

#[test]
fn the_doctor_names_what_lacks_and_what_mends_it() {
    let dir = temp_dir();
    let certificate = |name: &str, until: i32, mode: u32| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let cert = params.self_signed(&key).unwrap();
        let (cert_file, key_file) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        std::fs::write(&cert_file, cert.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(mode)).unwrap();
        format!("[[certificate]]\nname = \"{name}\"\ncert = {cert_file:?}\nkey = {key_file:?}\n")
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = |name: &str, at: &str| {
        format!("[[listener]]\nname = \"{name}\"\nlisten = \"{at}\"\nprotocol = \"framed\"\nservice = \"echo\"\n")
    };
    let text = [
        format!("version = 1\n[admin]\nlisten = \"0.0.0.0:{}\"\ntoken = \"0123456789abcdef\"\n", free().port()),
        certificate("old", 2021, 0o600),
        certificate("good", 2100, 0o644),
        listener("one", &free().to_string()),
        listener("two", &taken.local_addr().unwrap().to_string()),
        // TEST-NET-1: of no machine.
        listener("elsewhere", "192.0.2.1:7001"),
    ]
    .concat();
    std::fs::write(dir.join("config.toml"), &text).unwrap();
    let doctor = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portway"));
        let output = command.args(["doctor", "-c", "config.toml"]).current_dir(&dir).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = doctor();
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let said: Vec<_> = said.lines().map(words).collect();
    let key = dir.join("good.key");
    for line in [
        "good clock plausible".to_owned(),
        "good ports 2 free".to_owned(),
        format!("less port of two {} is in use over TCP", taken.local_addr().unwrap()),
        "good key".to_owned(),
        format!("`chmod 600 {}`", key.display()),
        "less certificate old expired".to_owned(),
        "good certificate good good for".to_owned(),
        "less admin listener plain HTTP for other machines".to_owned(),
        "MISSING port of elsewhere 192.0.2.1:7001 over TCP".to_owned(),
    ] {
        assert!(said.iter().any(|said| said.starts_with(&line)), "{line} is not in\n{}", said.join("\n"));
    }
    // What they say of this machine is its own affair; each is looked at.
    for of_machine in WORDS {
        assert!(said.iter().any(|line| line.contains(of_machine)), "{of_machine:?} is not in\n{}", said.join("\n"));
    }
    assert_eq!(code, Some(1), "a listener could not start");
    std::fs::write(dir.join("config.toml"), text.replace(&listener("elsewhere", "192.0.2.1:7001"), "")).unwrap();
    assert_eq!(doctor().0, Some(0), "all else works with less");
    std::fs::remove_dir_all(dir).unwrap();
}
