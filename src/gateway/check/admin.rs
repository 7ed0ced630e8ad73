//! Judges `[admin]`: who may reach it, and what they have to show.
use std::net::SocketAddr;

use super::quic::{Around, authorities, is, listener_tls};
use crate::gateway::config::{Admin, ListenerTls};
use crate::gateway::raw::RawAdmin;
use crate::gateway::raw::section::{At, Field};
use crate::gateway::raw::text::Text;
use crate::gateway::report::Mistakes;
use crate::gateway::report::source::Source;
use crate::memory::Secret;

/// What fewer characters say can be guessed.
const SHORTEST_TOKEN: usize = 16;
const TOKEN: &str = "write `token = \"file:admin.token\"`, a file that `openssl rand -hex 32` filled";
const CERTIFICATE: &str = "add `certificate = \"local\"` and a `[[certificate]]` with that name";

/// The admin listener. Notes its mistakes; `None` if its address is one of them.
pub(super) fn admin(
    raw: RawAdmin,
    around: &Around<'_>,
    source: &mut Source<'_>,
    mistakes: &mut Mistakes,
) -> Option<Admin> {
    let tls = tls(&raw, around, mistakes);
    let shows_certificate = !matches!(raw.client_ca, Field::Absent);
    let token = token(&raw.listen, raw.token, shows_certificate, mistakes);
    let At { value: listen, span } = raw.listen.at()?;
    Some(Admin {
        listen,
        control: raw.control.value().map(|path| around.folder.join(path.into_plain())),
        token,
        watch: raw.watch.value().unwrap_or(false),
        tls,
        place: source.place(span.start),
    })
}

fn tls(raw: &RawAdmin, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<ListenerTls> {
    let mut tls = listener_tls(&raw.certificate, None, around, mistakes);
    tls.client_ca = is(&raw.client_ca).and_then(|file| authorities("client_ca", file, around.folder, mistakes));
    match (&raw.certificate, &raw.client_ca) {
        (Field::Is(list), _) if list.value.is_empty() => {
            mistakes.add(list.span, "`certificate` is empty", CERTIFICATE);
            None
        }
        (Field::Is(list), _) if !cfg!(feature = "http") => {
            mistakes.add(list.span, "TLS in `[admin]` needs a build with the feature `http`", "take it out");
            None
        }
        (Field::Is(_), _) => Some(tls),
        (Field::Absent, Field::Is(file)) => {
            mistakes.add(file.span, "`client_ca` in `[admin]` needs its `certificate`", CERTIFICATE);
            None
        }
        (Field::Absent | Field::Bad, _) => None,
    }
}

/// Whoever is not on this machine has to show something: a token, or a certificate. Without either, only reading from
/// here is allowed.
fn token(
    listen: &Field<SocketAddr>,
    token: Field<Text>,
    shows_certificate: bool,
    mistakes: &mut Mistakes,
) -> Option<Secret> {
    if let (Field::Is(listen), Field::Absent, false) = (listen, &token, shows_certificate)
        && !listen.value.ip().is_loopback()
    {
        let message = "others than this machine reach this address: `[admin]` lacks `token` or `client_ca`";
        mistakes.add(listen.span, message, TOKEN);
    }
    let At { value, span } = token.at()?;
    let plain = |b: u8| b.is_ascii_graphic();
    if value.text.len() < SHORTEST_TOKEN || !value.text.bytes().all(plain) {
        mistakes.add(span, "`token` is not 16 or more letters, digits and signs", TOKEN);
        return None;
    }
    Some(Secret::from(value.text.clone()))
}
