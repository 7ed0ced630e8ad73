//! Commands that print a text and need no configuration: examples, the schema, completions, the manual page.

use std::io;
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Arguments, FAILED, REFUSED, say, say_error};
use crate::gateway::check::Known;
use crate::gateway::schema;

/// The shipped file first, then the examples, by name.
const EXAMPLES: [(&str, &str); 15] = [
    ("default", include_str!("../../../config.toml")),
    ("custom_protocol", include_str!("../../../examples/configs/custom_protocol.toml")),
    ("echo", include_str!("../../../examples/configs/echo.toml")),
    ("environment", include_str!("../../../examples/configs/environment.toml")),
    ("http_middleware", include_str!("../../../examples/configs/http_middleware.toml")),
    ("http_proxy", include_str!("../../../examples/configs/http_proxy.toml")),
    ("open_network", include_str!("../../../examples/configs/open_network.toml")),
    ("site_to_site", include_str!("../../../examples/configs/site_to_site.toml")),
    ("small_headers", include_str!("../../../examples/configs/small_headers.toml")),
    ("sni_passthrough", include_str!("../../../examples/configs/sni_passthrough.toml")),
    ("static_site", include_str!("../../../examples/configs/static_site.toml")),
    ("tls_to_servers", include_str!("../../../examples/configs/tls_to_servers.toml")),
    ("udp_relay", include_str!("../../../examples/configs/udp_relay.toml")),
    ("wireguard_netstack", include_str!("../../../examples/configs/wireguard_netstack.toml")),
    ("wireguard_tun", include_str!("../../../examples/configs/wireguard_tun.toml")),
];

/// Prints an example, the shipped file if none is named; `list` prints the names, each with its first line.
pub(crate) fn example(name: Option<&str>, list: bool) -> ExitCode {
    if list {
        let line = |(name, text): &(&str, &str)| {
            let first = text.lines().next().unwrap_or_default().trim_start_matches(['#', ' ']);
            format!("{name:<20}{first}\n")
        };
        return say(&EXAMPLES.iter().map(line).collect::<String>());
    }
    let name = name.unwrap_or("default");
    match EXAMPLES.iter().find(|(known, _)| *known == name) {
        Some((_, text)) => say(text),
        None => {
            let names: Vec<_> = EXAMPLES.iter().map(|(name, _)| *name).collect();
            say_error(&format!("there is no example `{name}`; there are: {}", names.join(", ")), REFUSED)
        }
    }
}

pub(crate) fn schema(known: &Known) -> ExitCode {
    match serde_json::to_string_pretty(&schema::of(known)) {
        Ok(text) => say(&(text + "\n")),
        Err(error) => say_error(&error.to_string(), FAILED),
    }
}

pub(crate) fn completions(shell: Shell) -> ExitCode {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "portway", &mut out);
    say(&String::from_utf8_lossy(&out))
}

/// The manual page: the program, then each of its commands, all in one.
pub(crate) fn man() -> ExitCode {
    let mut command = Arguments::command();
    command.build();
    let page = Man::new(command.clone());
    let mut out = Vec::new();
    let mut render = || -> io::Result<()> {
        page.render_title(&mut out)?;
        page.render_name_section(&mut out)?;
        page.render_synopsis_section(&mut out)?;
        page.render_options_section(&mut out)?;
        out.extend_from_slice(b".SH COMMANDS\n");
        commands(&command, "portway", &mut out)?;
        page.render_version_section(&mut out)
    };
    if let Err(error) = render() {
        return say_error(&error.to_string(), FAILED);
    }
    // Each part begins with these two; the page needs them once.
    let page = String::from_utf8_lossy(&out);
    let preamble = |line: &str| line.starts_with(".ie ") || line.starts_with(".el ");
    let lines = page.lines().enumerate().filter(|(at, line)| *at < 2 || !preamble(line));
    say(&lines.map(|(_, line)| format!("{line}\n")).collect::<String>())
}

/// A subsection for each command below this one, and for those below them.
fn commands(of: &Command, name: &str, out: &mut Vec<u8>) -> io::Result<()> {
    for command in of.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help") {
        let name = format!("{name} {}", command.get_name());
        let mut section = Vec::new();
        let page = Man::new(command.clone());
        page.render_description_section(&mut section)?;
        page.render_options_section(&mut section)?;
        out.extend_from_slice(format!(".SS {name}\n").as_bytes());
        // Of its sections only what stands in them: those of the page are the program's.
        for line in String::from_utf8_lossy(&section).lines() {
            match line {
                ".SH DESCRIPTION" => {}
                ".SH OPTIONS" => out.extend_from_slice(b".PP\n"),
                line => out.extend_from_slice(format!("{line}\n").as_bytes()),
            }
        }
        commands(command, &name, out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_examples_are_known_by_name() {
        let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/configs")).unwrap();
        let mut files: Vec<_> = folder
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "toml"))
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        files.sort();
        let known: Vec<_> = EXAMPLES.iter().skip(1).map(|(name, _)| *name).collect();
        assert_eq!(known, files);
    }
}
