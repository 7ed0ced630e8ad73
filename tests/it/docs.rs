//! The book in `docs/` and the README: what they tell somebody to write is checked, what they tell to do is run.
//!
//! - Configurations (`toml`) go through `portway check`; one without `version` goes behind what it leaves out.
//! - Pages below `first_steps/` and the others in [`RUN`] are run from top to bottom by a shell, in a network namespace of
//!   their own: `toml file=NAME` is written, `sh` and `python` are run, `sh terminal` goes on beside the rest, and a
//!   `text` behind one is what its output must hold, line by line, `…` standing for anything.
//! - Commands elsewhere must be ones that exist: options of `portway` by the program itself, targets of make, examples,
//!   paths of the admin listener.
//! - Links, files that are included, metrics, reasons of faults, and every key of the reference are held to what is there.
//!
//! Each of these checks is fed something wrong as well, which it must refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::gateway::temp_dir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const PORTWAY: &str = env!("CARGO_BIN_EXE_portway");

/// Pages that are run although they are no first steps, and the configuration that a gateway runs by meanwhile.
const RUN: [(&str, &str); 4] = [
    ("README.md", "config.toml"),
    ("docs/introduction.md", "config.toml"),
    ("docs/operations.md", "config.toml"),
    ("docs/tcp.md", "config.toml"),
];

#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    line: usize,
    language: String,
    info: String,
    text: String,
}

/// The fenced blocks of a page.
fn blocks(page: &str) -> Vec<Block> {
    let mut all = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in (1..).zip(page.lines()) {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (None, Some(info)) => {
                let (language, info) = info.split_once(' ').unwrap_or((info, ""));
                let (language, info) = (language.to_owned(), info.trim().to_owned());
                open = Some(Block { line: number, language, info, text: String::new() });
            }
            (Some(_), Some("")) => all.extend(open.take()),
            (Some(block), _) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block has no end");
    all
}

/// Each page of the book, and the README.
fn pages() -> Vec<(String, String)> {
    let mut files = vec![PathBuf::from("README.md")];
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(Path::new(ROOT).join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            if Path::new(ROOT).join(&path).is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "md") {
                files.push(path);
            }
        }
    }
    files.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(Path::new(ROOT).join(&path)).unwrap();
        (path.to_str().unwrap().to_owned(), text)
    };
    files.into_iter().map(read).collect()
}

/// What is wrong, over all pages.
#[track_caller]
fn assert_nothing(wrong: &[String]) {
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

// ---- links

/// Links and includes of a page that lead nowhere.
fn broken_links(file: &str, page: &str) -> Vec<String> {
    let folder = Path::new(ROOT).join(file);
    let folder = folder.parent().unwrap();
    let mut wrong = Vec::new();
    let mut in_block = false;
    for (number, line) in (1..).zip(page.lines()) {
        in_block ^= line.trim_start().starts_with("```");
        let included = line.split("{{#include ").skip(1).filter_map(|rest| rest.split(['}', ':']).next());
        let linked = line.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()).filter(|_| !in_block);
        for target in included.chain(linked).filter(|target| !target.is_empty() && !target.contains("://")) {
            if !folder.join(target).exists() {
                wrong.push(format!("{file}:{number}: {target} is not there"));
            }
        }
    }
    wrong
}

#[test]
fn links_lead_somewhere_and_the_summary_names_every_page() {
    let pages = pages();
    let wrong: Vec<_> = pages.iter().flat_map(|(file, page)| broken_links(file, page)).collect();
    assert_nothing(&wrong);
    let summary = std::fs::read_to_string(Path::new(ROOT).join("docs/SUMMARY.md")).unwrap();
    let named: BTreeSet<_> = summary.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()).collect();
    let there = pages.iter().filter_map(|(file, _)| file.strip_prefix("docs/")).filter(|file| *file != "SUMMARY.md");
    assert_eq!(named, there.collect());

    assert_eq!(broken_links("docs/x.md", "a [page](nothing.md) and [one](tcp.md#rooms)").len(), 1);
    assert_eq!(broken_links("docs/x.md", "{{#include ../nothing.rs:4:}}\n{{#include ../README.md}}").len(), 1);
}

// ---- configurations

/// The files that a configuration names, as far as it needs some to be checked.
fn make_files(dir: &Path, text: &str) {
    let tls = |name: &str| std::fs::read(Path::new(ROOT).join("tests/data/tls").join(name)).unwrap();
    for line in text.lines() {
        let Some((key, value)) = line.trim_start_matches(['#', ' ']).split_once(" = ") else { continue };
        let Some(name) = value.split('"').nth(1) else { continue };
        let file = dir.join(name.trim_start_matches("file:"));
        if file.exists() || !file.starts_with(dir) {
            continue;
        }
        match key.trim() {
            "cert" | "ca" | "client_ca" => std::fs::write(file, tls("good.pem")).unwrap(),
            "key" => std::fs::write(file, tls("good-key.pem")).unwrap(),
            "private_key_file" | "preshared_key_file" => {
                std::fs::write(&file, "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n").unwrap();
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
                std::fs::set_permissions(&file, mode).unwrap();
            }
            "public_key" if value.contains("file:") => {
                std::fs::write(file, "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n").unwrap();
            }
            _ if value.contains("\"file:") => std::fs::write(file, "0123456789abcdef0123").unwrap(),
            "root" => std::fs::create_dir_all(file).unwrap(),
            _ => {}
        }
    }
}

/// What `portway check` finds in a configuration of a page.
fn mistakes(text: &str) -> Option<String> {
    if text.contains("[dependencies]") {
        return text.parse::<toml::Table>().err().map(|error| error.to_string());
    }
    let mut whole = String::new();
    if !text.contains("version = 1") {
        whole.push_str("version = 1\n[[certificate]]\nname = \"local\"\ngenerate = [\"localhost\"]\n");
        if text.starts_with("[[listener.route]]") {
            whole.push_str("[[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:1\"\nprotocol = \"http\"\n");
            whole.push_str("certificate = \"local\"\n");
        }
    }
    whole.push_str(text);
    let dir = temp_dir();
    make_files(&dir, &whole);
    std::fs::write(dir.join("config.toml"), whole).unwrap();
    let output = Command::new(PORTWAY)
        .args(["check", "-c", "config.toml"])
        .current_dir(&dir)
        .envs(variables(text).map(|name| (name, "a-token-of-the-book")))
        .output()
        .expect("it runs");
    std::fs::remove_dir_all(dir).unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The variables of the environment that a configuration names.
fn variables(text: &str) -> impl Iterator<Item = &str> {
    text.split("${").skip(1).filter_map(|rest| rest.split(['}', ':']).next())
}

#[test]
fn every_configuration_of_the_book_is_fine() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (file, page) in pages() {
        let configurations = blocks(&page).into_iter().filter(|block| block.language == "toml");
        let is_whole = |block: &Block| ["version = 1", "[dependencies]"].iter().any(|word| block.text.contains(word));
        let (mut whole, parts): (Vec<_>, Vec<_>) = configurations.partition(is_whole);
        checked += whole.len() + parts.len();
        // The parts of a page make one file.
        let text = parts.iter().map(|part| part.text.as_str()).collect::<Vec<_>>().join("\n");
        whole.extend(parts.into_iter().next().map(|first| Block { text, ..first }));
        wrong.extend(
            whole.iter().filter_map(|block| Some(format!("{file}:{}: {}", block.line, mistakes(&block.text)?))),
        );
    }
    assert_nothing(&wrong);
    assert!(checked >= 12, "{checked}");
    for bad in
        ["version = 1\n[admin]\nlisten = \"0.0.0.0:1\"\n", "[[listener.route]]\npaht = \"/\"\n", "[dependencies\n"]
    {
        assert!(mistakes(bad).is_some(), "{bad}");
    }
}

// ---- commands

/// Tools of any Debian, and of this project's tests.
const TOOLS: [&str; 12] = [
    "curl",
    "echo",
    "grep",
    "mkdir",
    "moq-interop-client",
    "openssl",
    "printf",
    "python3",
    "sed",
    "sysctl",
    "systemctl",
    "tee",
];

/// What is wrong with a command, as far as that can be told without running it.
fn refused(command: &str) -> Option<String> {
    // Words in quotes do not count.
    let plain: String = command.split('\'').step_by(2).collect::<Vec<_>>().join("x");
    let plain = plain.split("  #").next().unwrap_or_default();
    // Nor does where an output goes.
    let commands = plain.split('|').filter_map(|part| part.split('>').next());
    commands.flat_map(|part| part.split(';')).flat_map(|part| part.split("&&")).find_map(|part| {
        let words: Vec<_> = part.split_whitespace().collect();
        let (first, rest) = words.split_first()?;
        let own = ["portway", "target/release/portway"].contains(first);
        if own {
            let output = Command::new(PORTWAY).args(rest).arg("--help").output().expect("it runs");
            return (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let there = |path: String| Path::new(ROOT).join(path).exists();
        let fine = match (*first, rest) {
            ("make", [target, ..]) => {
                let makefile = std::fs::read_to_string(Path::new(ROOT).join("Makefile")).unwrap();
                makefile.lines().any(|line| line.starts_with(&format!("{target}:")))
            }
            ("cargo", ["run", "--example", name, ..]) => there(format!("examples/{name}.rs")),
            ("cargo", ["build", options @ ..]) => options.ends_with(&["--bin", "portway"]),
            ("curl", rest) => rest.iter().filter(|word| word.contains(":9180/")).all(|url| admin_has(url)),
            (word, _) => TOOLS.contains(&word) || (word.starts_with("scripts/") && there(word.to_owned())),
        };
        (!fine).then(|| format!("`{part}` is not known here"))
    })
}

/// Whether docs/admin.md, which a test of the listener holds to be true, lists the path of a URL.
fn admin_has(url: &str) -> bool {
    let admin = std::fs::read_to_string(Path::new(ROOT).join("docs/admin.md")).unwrap();
    let path = url.split(":9180").nth(1).unwrap_or_default().split('?').next().unwrap_or_default();
    admin.lines().any(|line| line.contains(&format!("| `{path}`")) || line.contains(&format!("| `{path}?")))
}

/// Its lines, those that end with a backslash with the next.
fn commands(block: &Block) -> Vec<String> {
    let joined = block.text.replace("\\\n", " ");
    joined.lines().map(str::to_owned).filter(|line| !line.trim().is_empty()).collect()
}

#[test]
fn every_command_of_the_book_exists() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (file, page) in pages() {
        for block in blocks(&page).into_iter().filter(|block| block.language == "sh") {
            for command in commands(&block) {
                checked += 1;
                wrong.extend(refused(&command).map(|why| format!("{file}:{}: {why}", block.line)));
            }
        }
    }
    assert_nothing(&wrong);
    assert!(checked >= 30, "{checked}");
    for bad in [
        "portway chek -c config.toml",
        "portway status --jsonn",
        "make tests",
        "cargo run --example nothing",
        "curl http://127.0.0.1:9180/api/nothing",
        "scripts/nothing x",
        "curl https://example.org/ | sudo bash",
    ] {
        assert!(refused(bad).is_some(), "{bad}");
    }
}

// ---- pages that are run

/// A page as a shell script, and what the outputs of its blocks must hold.
fn script(page: &str, config: Option<&str>) -> (String, Vec<(usize, String)>) {
    let mut script = String::from(
        "set -eu -o pipefail\nip link set lo up\n\
         trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n\
         begun() { for _ in $(seq 400); do grep -q ' running \\|Serving' \"$1\" && return; kill -0 \"$2\" || break; \
         sleep 0.05; done; cat \"$1\" >&2; return 1; }\n",
    );
    let terminal = |script: &mut String, number: usize, command: &str| {
        let _ = writeln!(script, "{} >log.{number} 2>&1 &\nbegun log.{number} $!", command.trim());
    };
    if let Some(config) = config {
        terminal(&mut script, 0, &format!("portway run -c {config}"));
    }
    let mut expected = Vec::new();
    let mut last = None;
    for block in blocks(page) {
        let number = block.line;
        match (block.language.as_str(), block.info.as_str()) {
            ("toml", info) => {
                if let Some(name) = info.strip_prefix("file=") {
                    let _ = writeln!(script, "cat >{name} <<'END OF FILE'\n{}END OF FILE", block.text);
                }
            }
            ("sh", "terminal") => terminal(&mut script, number, &block.text),
            ("sh", _) if commands(&block).iter().any(|line| is_elsewhere(line)) => {}
            ("sh", _) => {
                last = Some(number);
                let _ =
                    writeln!(script, "{{\n{}}} >out.{number} 2>&1 || {{ cat out.{number} >&2; exit 1; }}", block.text);
            }
            ("python", _) => {
                last = Some(number);
                let _ = writeln!(
                    script,
                    "python3 - >out.{number} 2>&1 <<'END OF FILE' || {{ cat out.{number} >&2; exit 1; }}"
                );
                let _ = writeln!(script, "{}END OF FILE", block.text);
            }
            ("text", _) => expected.extend(last.take().map(|number| (number, block.text))),
            _ => {}
        }
    }
    (script, expected)
}

/// What a page that is run tells to do, and is not done by its test: it builds the program, or needs another machine.
fn is_elsewhere(command: &str) -> bool {
    let first = command.split_whitespace().next().unwrap_or_default();
    ["make", "cargo", "scripts/deb", "systemctl", "target/release/portway"].contains(&first)
        || command.contains("doctor")
}

/// Runs a page in a folder and a network of its own. What went wrong, if anything did.
fn run(page: &str, config: Option<&str>) -> Result<(), String> {
    let dir = temp_dir();
    let bin = dir.join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(PORTWAY, bin.join("portway")).unwrap();
    if let Some(config) = config {
        std::fs::copy(Path::new(ROOT).join(config), dir.join("config.toml")).unwrap();
    }
    let python = crate::quic_interop::python();
    let moq = python.ancestors().nth(3).unwrap().join("moq-peers/bin");
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{}:{}:{path}", bin.display(), python.parent().unwrap().display(), moq.display());
    let (script, expected) = script(page, config);
    let output = Command::new("timeout")
        .args(["--kill-after=5", "120", "unshare", "--user", "--map-root-user", "--net", "bash", "-c", &script])
        .current_dir(&dir)
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .expect("unshare runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let mut result = if output.status.success() { Ok(()) } else { Err(format!("{}: {said}", output.status)) };
    for (number, text) in expected {
        let got = std::fs::read_to_string(dir.join(format!("out.{number}"))).unwrap_or_default();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let holds = |got: &str| {
                line.split('…').try_fold(got, |got, part| got.split_once(part.trim()).map(|(_, rest)| rest)).is_some()
            };
            if result.is_ok() && !got.lines().any(holds) {
                result = Err(format!("the block in line {number} did not print `{line}` but:\n{got}"));
            }
        }
    }
    std::fs::remove_dir_all(dir).unwrap();
    result
}

#[track_caller]
fn page_runs(file: &str) {
    let config = RUN.iter().find(|(name, _)| *name == file).map(|(_, config)| *config);
    let page = std::fs::read_to_string(Path::new(ROOT).join(file)).unwrap();
    if let Err(why) = run(&page, config) {
        panic!("{file}: {why}");
    }
}

#[test]
fn first_steps_a_reverse_proxy_with_http3() {
    page_runs("docs/first_steps/reverse_proxy.md");
}

#[test]
fn first_steps_a_relay_by_sni() {
    page_runs("docs/first_steps/sni.md");
}

#[test]
fn first_steps_a_chat() {
    page_runs("docs/first_steps/chat.md");
}

#[test]
fn first_steps_two_sites() {
    page_runs("docs/first_steps/site_to_site.md");
}

#[test]
fn first_steps_wireguard_without_root() {
    page_runs("docs/first_steps/wireguard.md");
}

#[test]
fn first_steps_a_relay_for_media() {
    page_runs("docs/first_steps/moq.md");
}

#[test]
fn pages_beside_the_shipped_configuration() {
    RUN.iter().for_each(|(file, _)| page_runs(file));
    page_runs("docs/udp.md");
    let steps = pages().into_iter().filter(|(file, _)| file.starts_with("docs/first_steps/")).count();
    assert_eq!(steps, 6, "each has a test of its own above");
}

#[test]
fn a_page_that_is_wrong_does_not_pass() {
    let fine = "```sh\necho one two\n```\n```text\none … two\n```\n".replace(" … ", " ");
    assert_eq!(run(&fine, None), Ok(()));
    for (bad, why) in [
        ("```sh\nportway check -c nothing.toml\n```\n", "nothing.toml"),
        ("```sh\necho one\n```\n```text\ntwo\n```\n", "did not print `two`"),
        ("```sh\nfalse | true\n```\n", "exit status"),
        ("```python\nassert 1 == 2\n```\n", "AssertionError"),
        ("```toml file=a.toml\nversion = 2\n```\n```sh terminal\nportway run -c a.toml\n```\n", "version"),
        ("```sh\ncurl --silent http://127.0.0.1:9180/healthz\n```\n", "exit status"),
    ] {
        let said = run(bad, None).expect_err(bad);
        assert!(said.contains(why), "{bad}: {said}");
    }
}

// ---- names

/// Metrics that a page speaks of and nobody counts.
fn unknown_metrics(file: &str, page: &str) -> Vec<String> {
    let mut sources = String::new();
    for file in ["metrics.rs", "metrics_memory.rs"] {
        sources += &std::fs::read_to_string(Path::new(ROOT).join("src/gateway/admin").join(file)).unwrap();
    }
    let mut wrong = Vec::new();
    for rest in page.split("portway_").skip(1) {
        let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        // A name in capitals stands for any.
        if name.starts_with(|c: char| c.is_ascii_uppercase()) {
            continue;
        }
        let base = ["_total", "_bucket", "_count", "_sum", "_"].iter().find_map(|end| name.strip_suffix(end));
        let base = base.unwrap_or(&name);
        if !sources.contains(&format!("\"{base}")) {
            wrong.push(format!("{file}: there is no portway_{name}"));
        }
    }
    wrong
}

#[test]
fn every_metric_of_the_book_is_counted() {
    let wrong: Vec<_> = pages().iter().flat_map(|(file, page)| unknown_metrics(file, page)).collect();
    assert_nothing(&wrong);
    assert_eq!(unknown_metrics("x.md", "`portway_nothing_total` and portway_ready").len(), 1);
}

/// The reasons by which a source counts: of faults, of counters, and of errors that name theirs.
fn reasons(source: &str) -> BTreeSet<String> {
    let source = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code: Vec<_> = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let literal = |text: &str| -> Option<String> {
        let word = text.trim_start().strip_prefix('"')?.split('"').next()?;
        let is_word = word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        (is_word && !word.is_empty()).then(|| word.to_owned())
    };
    let mut found = BTreeSet::new();
    for start in ["Fault::peer(", "Fault::local(", "Fault::bug("] {
        found.extend(code.split(start).skip(1).filter_map(literal));
    }
    for start in [".raise(", ".counter("] {
        let third = |call: &str| literal(call.split(')').next()?.split(',').nth(2)?);
        found.extend(code.split(start).skip(1).filter_map(third));
    }
    for start in ["Close::violation(", "Malformed(", ".broke(", "reason: ", "refused(StatusCode::"] {
        let last = |call: &str| literal(call).or_else(|| literal(call.split_once(',')?.1));
        found.extend(code.split(start).skip(1).filter_map(last));
    }
    let closing = |call: &str| literal(call.split(')').next()?.rsplit(',').next()?);
    found.extend(code.split(".close_with(").skip(1).filter_map(closing));
    // The tables of codes: `Name = 0x1, "name";`.
    found.extend(code.lines().filter_map(|line| literal(line.split_once(" = 0x")?.1.split_once(',')?.1)));
    for function in code.split("fn ").skip(1) {
        let Some((head, body)) = function.split_once('{') else { continue };
        let named = ["label(", "as_str(", "name("].iter().any(|name| head.starts_with(name));
        if named || head.contains(';') || !head.split_once("->").is_some_and(|(_, to)| to.contains("&'static str")) {
            continue;
        }
        found.extend(body.split("=> ").skip(1).filter_map(literal));
        found.extend(body.split("Err(").skip(1).filter_map(literal));
    }
    // What has no words of its own.
    found.remove("other");
    found
}

#[test]
fn every_reason_is_explained() {
    let book: String = pages().into_iter().map(|(_, page)| page).collect();
    let mut folders = vec![Path::new(ROOT).join("src")];
    let mut missing: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut known = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_str().is_some_and(|path| path.ends_with(".rs") && !path.ends_with("tests.rs")) {
                for reason in reasons(&std::fs::read_to_string(&path).unwrap()) {
                    known += 1;
                    if !book.contains(&format!("`{reason}`")) {
                        missing.insert(reason, path.clone());
                    }
                }
            }
        }
    }
    assert!(missing.is_empty(), "docs/reasons.md lacks {missing:#?}");
    assert!(known > 150, "{known}");

    let source = "Fault::peer(\n  \"too_odd\", x) turn.raise(\"a\", &scope, \"b\");\n// Fault::bug(\"c\", )\n\
                  fn why(&self) -> &'static str {\n  Self::D => \"d\",\n    }\n\
                  Close::violation(\"e\")\nfn f() -> Result<(), &'static str> {\n Err(\"g\")\n}\n\
                  fn label(&self) -> &'static str { Self::H => \"h\" }\n  I = 0x1, \"i\";\nrefused(StatusCode::K, \"k\", \"K\")";
    assert_eq!(reasons(source), ["b", "d", "e", "g", "i", "k", "too_odd"].map(str::to_owned).into());
}

// ---- the reference

/// One value of a key in words.
fn shown(value: &Value) -> String {
    if let Some(words) = value["enum"].as_array() {
        return words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    }
    if let Some(word) = value.get("const") {
        return format!("`{word}`");
    }
    if let Some(any) = value["anyOf"].as_array() {
        let parts: Vec<_> = any.iter().filter(|part| part.get("$ref").is_none()).map(shown).collect();
        let text = parts.iter().find(|part| part.contains(" to ") && !part.starts_with("whole")).cloned();
        // Sizes are whole numbers, or texts with a unit: the latter say both.
        return match text {
            Some(text) if parts.iter().any(|part| part.starts_with("whole")) => match &parts[0] {
                auto if auto.starts_with('`') => format!("{auto}, {text}"),
                _ => text,
            },
            _ => parts.join(", "),
        };
    }
    if let Some(range) = value["$comment"].as_str() {
        return range.trim_start_matches("from ").to_owned();
    }
    match value["type"].as_str() {
        Some("integer") => format!("whole, {} to {}", value["minimum"], value["maximum"]),
        Some("boolean") => "`true`, `false`".to_owned(),
        Some("array") => "list of texts".to_owned(),
        Some("string") if value.get("pattern").is_some() => "address and port".to_owned(),
        Some("string") => "text".to_owned(),
        _ => "table".to_owned(),
    }
}

fn table(name: &str, schema: &Value, out: &mut String) {
    let required: Vec<_> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut inner = Vec::new();
    let mut rows = String::new();
    for (key, value) in schema["properties"].as_object().expect("keys") {
        let path = if name.is_empty() { key.clone() } else { format!("{}.{key}", name.trim_matches(['[', ']'])) };
        if value.get("properties").is_some() {
            inner.push((format!("[{path}]"), value.clone()));
        } else if value["items"].get("properties").is_some() {
            inner.push((format!("[[{path}]]"), value["items"].clone()));
        } else {
            let words = value["description"].as_str().unwrap_or_default().replace('|', "\\|");
            let words = words.strip_prefix("required; ").unwrap_or(&words);
            let default = match value.get("default") {
                Some(default) => format!("`{default}`"),
                None if required.contains(&key.as_str()) => "required".to_owned(),
                None => String::new(),
            };
            let _ = writeln!(rows, "| `{key}` | {} | {default} | {words} |", shown(value).replace('|', "\\|"));
        }
    }
    if !name.is_empty() {
        let _ = writeln!(out, "\n## {name}\n");
    }
    if !rows.is_empty() {
        let _ = writeln!(out, "| key | takes | default | meaning |\n|---|---|---|---|\n{}", rows.trim_end());
    }
    for (name, schema) in inner {
        table(&name, &schema, out);
    }
}

/// docs/reference.md as it has to be.
fn reference() -> String {
    let output = Command::new(PORTWAY).arg("schema").output().expect("it runs");
    let schema: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut out = String::from(
        "# Every key\n\n<!-- Made from `portway schema`; a test holds it so. `UPDATE_EXPECT=1 cargo test --test it \
         docs::` writes it anew. -->\n\nThe words are those of [`config.toml`](../config.toml), which shows every key in \
         its place; `portway schema` prints the same for editors. In texts `${VAR}`, `${VAR:-default}` and `file:PATH` \
         stand for what they name. What values mean together, `portway check` tells.\n\n",
    );
    table("", &schema, &mut out);
    out
}

#[test]
fn the_reference_is_that_of_the_schema() {
    let file = Path::new(ROOT).join("docs/reference.md");
    let now = reference();
    if std::env::var_os("UPDATE_EXPECT").is_some_and(|value| value == "1") {
        std::fs::write(&file, &now).unwrap();
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    let differs = now.lines().zip(kept.lines()).find(|(now, kept)| now != kept);
    assert!(now == kept, "docs/reference.md differs: {differs:?}; UPDATE_EXPECT=1 rewrites it");
    let keys = now.lines().filter(|line| line.starts_with("| `")).count();
    assert!(keys > 150, "{keys} keys");
}
