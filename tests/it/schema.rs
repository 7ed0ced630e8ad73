//! What the binary prints without a configuration: its schema, examples, completions and manual page.

use std::path::Path;
use std::process::{Command, Output};

use crate::gateway::temp_dir;

fn portway(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portway"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("PORTWAY_CONFIG").args(arguments).output().unwrap()
}

#[track_caller]
fn printed(arguments: &[&str]) -> String {
    let output = portway(arguments);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What the validator in Python says.
#[cfg(feature = "quic")]
fn judged(arguments: &[&str]) -> u64 {
    let output = Command::new(crate::quic_interop::python())
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/schema.py"))
        .args(arguments)
        .output()
        .expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
}

#[cfg(feature = "quic")]
#[test]
fn a_foreign_validator_agrees_with_the_parser() {
    let dir = temp_dir();
    let schema = dir.join("schema.json");
    std::fs::write(&schema, printed(&["schema"])).unwrap();
    let schema = schema.to_str().unwrap();

    // Valid for the parser, so for the schema; but those with protocols of other programs.
    let files = |folder: &str| {
        let entries = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path().to_str().unwrap().to_owned());
        paths.filter(|path| path.ends_with(".toml")).collect::<Vec<_>>()
    };
    let mut good = files("examples/configs");
    good.extend(files("tests/data/config/good"));
    good.push(concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml").to_owned());
    let foreign = |path: &String| {
        let text = std::fs::read_to_string(path).unwrap();
        ["shout", "kept", "chat"].iter().any(|name| text.contains(&format!("protocol = \"{name}\"")))
    };
    good.retain(|path| !foreign(path));
    let mut arguments = vec![schema, "good"];
    arguments.extend(good.iter().map(String::as_str));
    assert_eq!(judged(&arguments), good.len() as u64);
    assert!(good.len() > 12, "{good:?}");

    let keys = judged(&[schema, "keys"]);
    assert!(keys > 150, "{keys} keys");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn examples_have_names_and_each_is_printed() {
    let list = printed(&["example", "--list"]);
    let names: Vec<_> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names.first(), Some(&"default"));
    assert!(names.contains(&"http_proxy") && names.contains(&"site_to_site"), "{list}");
    assert!(list.lines().all(|line| line.len() > 25), "each has a line about it: {list}");
    for name in &names {
        assert!(printed(&["example", name]).starts_with('#'), "{name}");
    }
    assert_eq!(printed(&["example"]), printed(&["example", "default"]));
    let unknown = portway(&["example", "none"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("http_proxy"), "{unknown:?}");
}

#[test]
fn completions_are_understood_by_their_shell() {
    let dir = temp_dir();
    for (shell, checker) in [("bash", "bash"), ("zsh", ""), ("fish", ""), ("elvish", ""), ("powershell", "")] {
        let script = printed(&["completions", shell]);
        for word in ["reload", "doctor", "schema"] {
            assert!(script.contains(word), "{shell} does not know {word}");
        }
        if !checker.is_empty() {
            let file = dir.join(shell);
            std::fs::write(&file, &script).unwrap();
            // Sourced by the shell itself, which then names what comes after `portway st`.
            let asked = format!(
                "source {} && COMP_WORDS=(portway st) COMP_CWORD=1 && _portway portway st portway && \
                 echo ${{COMPREPLY[@]}}",
                file.display()
            );
            let output = Command::new(checker).args(["-c", &asked]).output().expect("bash runs");
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(said.trim(), "status", "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    assert_eq!(portway(&["completions", "tcsh"]).status.code(), Some(2));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn the_manual_page_has_every_command_and_option() {
    let page = printed(&["man"]);
    assert!(page.contains(".TH portway 1"), "{}", page.get(..400).unwrap_or(&page));
    let help = printed(&["--help"]);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands = commands.take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    let mut seen = 0;
    for command in commands.filter(|command| *command != "help") {
        assert!(page.contains(&format!(".SS portway {command}\n")), "{command}");
        seen += 1;
    }
    assert!(seen > 8, "{help}");
    let plain = page.replace("\\-", "-");
    assert!(plain.contains("PORTWAY_CONFIG") && plain.contains("--json") && plain.contains("--everything"), "{plain}");
}
