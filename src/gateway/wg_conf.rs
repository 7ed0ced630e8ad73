//! Reads a wg-quick file for a listener, with its mistakes reported as those of our own configuration.

use std::fs;
use std::path::Path;

use zeroize::Zeroizing;

use super::report::{Mistakes, Report, Span};
use crate::transports::wireguard::codec_conf::{self, Conf};

/// The longest file: some ten thousand peers.
const LONGEST: u64 = 4 << 20;

/// Reads and checks a file. Its notes, with their lines, are for the caller to say.
///
/// # Errors
/// Every mistake in the file with its place, keys masked; or why the file cannot be read.
pub fn load(path: &Path) -> Result<Conf, Report> {
    let cannot = |error: std::io::Error| {
        Report::of_file(path, format!("{}: {error}", path.display()), "`conf` names a file that wg-quick understands")
    };
    if fs::metadata(path).map_err(cannot)?.len() > LONGEST {
        let hint = "write the peers into the gateway's own configuration";
        return Err(Report::of_file(path, format!("{} is larger than 4 MiB", path.display()), hint));
    }
    let text = Zeroizing::new(fs::read_to_string(path).map_err(cannot)?);
    let mut conf = parse(&path.display().to_string(), &text)?;
    for note in &mut conf.notes {
        let line = text.get(..note.place.start).map_or(1, |before| before.matches('\n').count() + 1);
        note.message = format!("line {line}: {}", note.message);
    }
    Ok(conf)
}

/// The same for a text; `file` is what the report calls it.
///
/// # Errors
/// As [`load`].
pub fn parse(file: &str, text: &str) -> Result<Conf, Report> {
    codec_conf::read(text).map_err(|found| {
        let mut mistakes = Mistakes::default();
        for mistake in found.mistakes {
            match mistake.also {
                None => mistakes.add(mistake.place.into(), mistake.message, mistake.hint),
                Some((other, label)) => {
                    mistakes.add_pair(mistake.place.into(), mistake.message, mistake.hint, other.into(), label);
                }
            }
        }
        mistakes.into_report(file, text, found.secrets.into_iter().map(Span::from).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_shown_in_its_line_and_no_key_is() {
        let text = "[Interface]\nPrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk= # mine\nMTU = 9\n\
                    [Peer]\nPublicKey = short\nPresharedKey = almost-a-secret\n";
        let report = parse("wg0.conf", text).unwrap_err();
        let rendered = report.render(false);
        for part in
            ["wg0.conf:3:7", "MTU is out of its range", "wg0.conf:5:13", "wg0.conf:6:16", "3 mistakes in wg0.conf"]
        {
            assert!(rendered.contains(part), "{part} in\n{rendered}");
        }
        assert!(!rendered.contains("almost-a-secret") && !rendered.contains("yAnz5"), "{rendered}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let report = load(Path::new("/nonexistent/wg0.conf")).unwrap_err();
        assert!(report.render(false).contains("/nonexistent/wg0.conf"));
    }
}
