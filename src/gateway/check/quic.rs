//! Judges certificates, and what listeners and upstreams over QUIC say together.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::listener::{copied, count};
use super::upstream::{Kind, Names};
use crate::gateway::config::{
    Certificate, CertificateSource, ListenerTls, Moq, Quic, QuicService, QuicSettings, Route, UpstreamTls,
};
use crate::gateway::raw::RawListener;
use crate::gateway::raw::quic::{RawCertificate, RawQuic, RawRoute, RawTls, RouteService, Texts};
use crate::gateway::raw::section::{At, Field};
use crate::gateway::raw::text::Text;
use crate::gateway::raw::upstream::{RawUpstreamTls, is_name};
use crate::gateway::raw::words::nearest_or_list;
use crate::gateway::report::source::Source;
use crate::gateway::report::{Mistakes, Span};

/// What the drafts of Media over QUIC are called in handshakes, the most wanted first.
pub(crate) const MOQ_DRAFTS: [&str; 2] = ["moqt-20", "moqt-18"];
/// Streams of each kind that a peer may have open with a relay.
const MOQ_STREAMS: usize = 1_000;
const EARLY_DATA: &str = "early data (0-RTT) can be replayed by anybody who saw it, and is refused here";

/// What is needed to judge what one table says of another.
pub(super) struct Around<'a> {
    pub(super) upstreams: &'a Names,
    pub(super) certificates: &'a CertificateNames,
    /// The folder of the file, from which paths count.
    pub(super) folder: &'a Path,
}

/// The names of all certificates, also of those with mistakes.
pub(super) struct CertificateNames {
    names: Vec<Text>,
    /// Some certificate has no name that can be read: it may be the one that is meant.
    unknown: bool,
}

impl CertificateNames {
    /// The one that comes first in the file.
    pub(super) fn first(&self) -> Option<String> {
        self.names.first().map(|name| name.text.clone())
    }

    pub(super) fn of(raw: &[RawCertificate]) -> Self {
        let names: Vec<_> = raw.iter().filter_map(|raw| is(&raw.name).map(|name| name.value.clone())).collect();
        Self { unknown: names.len() < raw.len(), names }
    }

    /// The name, if a certificate has it; else the mistake is noted.
    fn need(&self, name: &At<Text>, mistakes: &mut Mistakes) -> Option<String> {
        if self.unknown || self.names.iter().any(|known| known.text == name.value.text) {
            return Some(name.value.text.clone());
        }
        let known: Vec<&str> = self.names.iter().filter(|name| !name.hidden).map(|name| name.text.as_str()).collect();
        let hint = if known.is_empty() {
            "add a `[[certificate]]` with this name".to_owned()
        } else {
            nearest_or_list(&name.value, &known)
        };
        mistakes.add(name.span, format!("{} is not the name of a `[[certificate]]`", name.value.shown()), hint);
        None
    }
}

/// All certificates; those with mistakes are left out. Files are read here, so that one that cannot be used is found
/// with everything else.
pub(super) fn certificates(
    raw: Vec<RawCertificate>,
    folder: &Path,
    source: &mut Source<'_>,
    mistakes: &mut Mistakes,
) -> Vec<Certificate> {
    let mut names: BTreeMap<String, Span> = BTreeMap::new();
    let mut certificates = Vec::with_capacity(raw.len());
    for raw in raw {
        if !cfg!(feature = "tls") {
            mistakes.add(raw.header, "certificates need a build with the feature `tls`", "take it out");
        }
        if let Some(name) = is(&raw.name) {
            if let Some(first) = names.get(&name.value.text) {
                let hint = "give each certificate its own name";
                mistakes.add_pair(name.span, "this name is taken", hint, *first, "taken here");
            } else {
                names.insert(name.value.text.clone(), name.span);
            }
        }
        certificates.extend(certificate(raw, folder, source, mistakes));
    }
    certificates
}

fn certificate(
    raw: RawCertificate,
    folder: &Path,
    source: &mut Source<'_>,
    mistakes: &mut Mistakes,
) -> Option<Certificate> {
    let both = "write `cert = \"cert.pem\"` and `key = \"cert.key\"`, or `generate = [\"localhost\"]`";
    let (place, from) = match (raw.cert, raw.key, raw.generate) {
        (Field::Absent, Field::Absent, Field::Absent) => {
            mistakes.add(raw.header, "a `[[certificate]]` has neither files nor `generate`", both);
            return None;
        }
        (Field::Absent, Field::Absent, generate) => generated(generate, mistakes)?,
        (Field::Is(At { span, .. }), _, Field::Is(_)) | (_, Field::Is(At { span, .. }), Field::Is(_)) => {
            mistakes.add(span, "a certificate is either read from files or generated, not both", both);
            return None;
        }
        (Field::Is(cert), Field::Is(key), Field::Absent) => files(&cert, &key, folder, mistakes)?,
        (Field::Is(cert), Field::Absent, _) => {
            mistakes.add(cert.span, "`cert` needs its `key`", "add `key = \"cert.key\"`, the private key in PEM");
            return None;
        }
        (Field::Absent, Field::Is(key), _) => {
            mistakes.add(key.span, "`key` needs its `cert`", "add `cert = \"cert.pem\"`, the certificate in PEM");
            return None;
        }
        _ => return None,
    };
    Some(Certificate { name: raw.name.value()?.into_plain(), source: from, place: source.place(place.start) })
}

fn generated(generate: Texts, mistakes: &mut Mistakes) -> Option<(Span, CertificateSource)> {
    let At { value: texts, span } = generate.at()?;
    if texts.is_empty() {
        mistakes.add(span, "`generate` is empty", "write `generate = [\"localhost\", \"127.0.0.1\"]`");
        return None;
    }
    let (mut names, many) = (Vec::new(), texts.len());
    for text in texts {
        let Some(At { value: text, span }) = text.at() else { continue };
        let host = text.text.strip_prefix("*.").unwrap_or(&text.text);
        let is_host = is_name(host) && !host.ends_with('.');
        if !is_host && text.text.parse::<std::net::IpAddr>().is_err() {
            let hint = "write host names and addresses without ports, such as \"localhost\" or \"::1\"";
            mistakes.add(span, format!("{} is neither a host name nor an address", text.shown()), hint);
        } else {
            names.push(text.into_plain());
        }
    }
    // Whichever is missing was told of.
    (names.len() == many).then_some((span, CertificateSource::Generated(names)))
}

fn files(cert: &At<Text>, key: &At<Text>, folder: &Path, mistakes: &mut Mistakes) -> Option<(Span, CertificateSource)> {
    let (cert_file, key_file) = (folder.join(&cert.value.text), folder.join(&key.value.text));
    if let Err((at_key, why)) = library::pair(&cert_file, &key_file) {
        let (what, span, other) = if at_key { ("key", key.span, cert.span) } else { ("cert", cert.span, key.span) };
        let hint = "both are PEM files, the key without a passphrase; paths count from the folder of this file";
        mistakes.add_pair(span, format!("`{what}` cannot be used: {why}"), hint, other, "the other file");
        return None;
    }
    Some((cert.span, CertificateSource::Files { cert: cert_file, key: key_file }))
}

/// What a listener says in its handshakes. `header` is where a missing certificate is reported.
pub(super) fn listener_tls(
    certificates: &Texts,
    raw: Option<&At<RawTls>>,
    around: &Around<'_>,
    mistakes: &mut Mistakes,
) -> ListenerTls {
    let named = certificates_of(certificates).filter_map(|name| around.certificates.need(name, mistakes)).collect();
    let mut tls = ListenerTls { certificates: named, ..ListenerTls::default() };
    if let Some(At { value: raw, .. }) = raw {
        tls.client_ca = is(&raw.client_ca).and_then(|file| authorities("client_ca", file, around.folder, mistakes));
        tls.curves = curves(&raw.both.curves, mistakes).unwrap_or(tls.curves);
        tls.keylog = path(&raw.both.keylog, around.folder);
        no_early_data(&raw.both.early_data, mistakes);
    }
    tls
}

fn certificates_of(certificates: &Texts) -> impl Iterator<Item = &At<Text>> {
    is(certificates).into_iter().flat_map(|list| list.value.iter().filter_map(is))
}

/// A PEM file of authorities that can be read now.
pub(super) fn authorities(key: &str, file: &At<Text>, folder: &Path, mistakes: &mut Mistakes) -> Option<PathBuf> {
    let path = folder.join(&file.value.text);
    if let Err(why) = library::authorities(&path) {
        let hint = "name a PEM file of certificates; paths count from the folder of this file";
        mistakes.add(file.span, format!("`{key}` cannot be used: {why}"), hint);
        return None;
    }
    Some(path)
}

fn curves(raw: &Texts, mistakes: &mut Mistakes) -> Option<Vec<String>> {
    let At { value: texts, span } = is(raw)?;
    let names: Vec<String> = texts.iter().filter_map(|text| is(text).map(|at| at.value.text.clone())).collect();
    if names.len() < texts.len() {
        return None;
    }
    if !library::knows_curves(&names) {
        let hint = "known here: X25519, P-256, P-384, P-521, X25519MLKEM768";
        mistakes.add(*span, "`curves` is empty or names a key agreement nobody knows", hint);
        return None;
    }
    Some(names)
}

fn no_early_data(raw: &Field<bool>, mistakes: &mut Mistakes) {
    if let Field::Is(At { value: true, span }) = raw {
        let hint = "take it out; bytes and streams that are relayed cannot tell a repeated request from a new one";
        mistakes.add(*span, EARLY_DATA, hint);
    }
}

fn path(raw: &Field<Text>, folder: &Path) -> Option<PathBuf> {
    is(raw).map(|at| folder.join(&at.value.text))
}

/// A listener that speaks QUIC.
pub(super) fn quic(raw: &RawListener, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<Quic> {
    if !cfg!(feature = "quic") {
        mistakes.add(raw.header, "protocol `quic` needs a build with the feature `quic`", "take the listener out");
        return None;
    }
    let tls = listener_tls(&raw.certificate, raw.tls.as_ref(), around, mistakes);
    let certificate_missing =
        matches!(raw.certificate, Field::Absent) || is(&raw.certificate).is_some_and(|list| list.value.is_empty());
    if certificate_missing {
        let hint = "add `certificate = \"local\"` and a `[[certificate]]` with that name";
        mistakes.add(raw.header, "a `[[listener]]` with protocol `quic` lacks `certificate`", hint);
    }
    if raw.routes.is_empty() {
        let hint = "add a `[[listener.route]]` with `alpn = \"echo\"` and `service = \"echo\"`";
        mistakes.add(raw.header, "a `[[listener]]` with protocol `quic` lacks a `[[listener.route]]`", hint);
    }
    let mut seen: BTreeMap<&str, Span> = BTreeMap::new();
    for alpn in raw.routes.iter().filter_map(|route| is(&route.alpn)) {
        match seen.get(alpn.value.text.as_str()) {
            Some(first) => {
                let hint = "one protocol leads to one place; take one of the two out";
                mistakes.add_pair(alpn.span, "this protocol has a route already", hint, *first, "it is here");
            }
            None => drop(seen.insert(&alpn.value.text, alpn.span)),
        }
    }
    let routes: Vec<Route> = raw.routes.iter().filter_map(|raw| route(raw, around, mistakes)).collect();
    let settings = settings(raw.quic.as_ref().map(|at| &at.value), around.folder, mistakes);
    (!certificate_missing && !routes.is_empty()).then_some(Quic { tls, routes, settings, moq: None })
}

/// A listener of Media over QUIC: its protocols are those of the drafts.
pub(super) fn moq_listener(raw: &RawListener, moq: Moq, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<Quic> {
    let tls = listener_tls(&raw.certificate, raw.tls.as_ref(), around, mistakes);
    let missing =
        matches!(raw.certificate, Field::Absent) || is(&raw.certificate).is_some_and(|list| list.value.is_empty());
    if missing {
        let hint = "add `certificate = \"local\"` and a `[[certificate]]` with that name";
        mistakes.add(raw.header, "a `[[listener]]` with protocol `moq` lacks `certificate`", hint);
    }
    let raw = raw.quic.as_ref().map(|at| &at.value);
    let mut settings = settings(raw, around.folder, mistakes);
    // Each request has a stream, and so has each subgroup.
    settings.streams = raw.map_or(MOQ_STREAMS, |raw| count(&raw.streams, MOQ_STREAMS));
    settings.uni_streams = raw.map_or(MOQ_STREAMS, |raw| count(&raw.uni_streams, MOQ_STREAMS));
    let route = |alpn: &str| Route { alpn: alpn.to_owned(), service: QuicService::Moq, datagrams: None };
    let routes = MOQ_DRAFTS.map(route).to_vec();
    (!missing).then(|| Quic { tls, routes, settings, moq: Some(Box::new(moq)) })
}

fn route(raw: &RawRoute, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<Route> {
    for (key, span) in raw.http.given().chain(is(&raw.sni).map(|sni| ("sni", sni.span))) {
        mistakes.add(span, format!("`{key}` does not belong to a route of QUIC"), "take it out");
    }
    if matches!(raw.alpn, Field::Absent) {
        mistakes.add(raw.header, "a `[[listener.route]]` of QUIC lacks `alpn`", "add `alpn = \"echo\"`");
    }
    if let Field::Is(At {
        value:
            RouteService::Static
            | RouteService::Respond
            | RouteService::Demo
            | RouteService::Moq
            | RouteService::Fingerprint,
        span,
    }) = raw.service
    {
        mistakes.add(span, "this service is one of protocol `http`", "write `service = \"echo\"`");
        return None;
    }
    let alpn = is(&raw.alpn)?;
    if !(1..=255).contains(&alpn.value.text.len()) {
        mistakes.add(alpn.span, "`alpn` has 1 to 255 bytes", "write the name of a protocol, such as \"echo\"");
        return None;
    }
    let (service, datagrams) = ways(raw, around, mistakes)?;
    Some(Route { alpn: alpn.value.text.clone(), service, datagrams })
}

/// Where streams and datagrams of a route go.
pub(super) fn ways(
    raw: &RawRoute,
    around: &Around<'_>,
    mistakes: &mut Mistakes,
) -> Option<(QuicService, Option<String>)> {
    let hint = "write `service = \"echo\"` or `upstream = \"app\"`, or `datagrams` for datagrams alone";
    let (service, kind) = match (&raw.service, &raw.upstream) {
        (Field::Absent, Field::Absent) if !matches!(raw.datagrams, Field::Absent) => (QuicService::Nothing, None),
        (Field::Absent, Field::Absent) => {
            mistakes.add(raw.header, "a `[[listener.route]]` says neither `service` nor `upstream`", hint);
            return None;
        }
        (Field::Is(service), Field::Is(upstream)) => {
            let message = "a route has a `service` or an `upstream`, not both";
            mistakes.add_pair(upstream.span, message, hint, service.span, "the service");
            return None;
        }
        (Field::Is(_), Field::Absent) => (QuicService::Echo, None),
        (Field::Absent, Field::Is(upstream)) => {
            around.upstreams.need(upstream, mistakes);
            let kind = around.upstreams.kind(&upstream.value.text);
            if kind == Some(Kind::Udp) {
                let hint = "its servers take datagrams: name it in `datagrams`, and here one over TCP, Unix or QUIC";
                mistakes.add(upstream.span, "streams cannot go to a server over UDP", hint);
                return None;
            }
            (QuicService::Upstream(upstream.value.text.clone()), kind)
        }
        _ => return None,
    };
    let datagrams = match &raw.datagrams {
        Field::Is(datagrams) => {
            around.upstreams.need(datagrams, mistakes);
            if matches!(around.upstreams.kind(&datagrams.value.text), Some(Kind::Stream | Kind::Tls)) {
                let hint = "name an upstream whose servers begin with udp:// or quic://";
                mistakes.add(datagrams.span, "datagrams cannot go to a server over TCP or a Unix socket", hint);
                return None;
            }
            if let Field::Is(service) = &raw.service {
                let hint = "an echo sends datagrams back as well: take `datagrams` out";
                mistakes.add_pair(datagrams.span, "datagrams go where the streams go", hint, service.span, "the echo");
                return None;
            }
            if kind == Some(Kind::Quic) && is(&raw.upstream).is_some_and(|up| up.value.text != datagrams.value.text) {
                let hint = "take `datagrams` out: they go with the streams";
                mistakes.add(datagrams.span, "streams over QUIC and their datagrams go to one upstream", hint);
                return None;
            }
            Some(datagrams.value.text.clone())
        }
        Field::Absent => None,
        Field::Bad => return None,
    };
    Some((service, datagrams))
}

fn settings(raw: Option<&RawQuic>, folder: &Path, mistakes: &mut Mistakes) -> QuicSettings {
    let default = QuicSettings::default();
    let Some(raw) = raw else { return default };
    if let (Field::Is(stream), Field::Is(connection)) = (&raw.stream_window, &raw.connection_window)
        && stream.value > connection.value
    {
        let hint = "one stream cannot have more room than all of them";
        let message = "`stream_window` is larger than `connection_window`";
        mistakes.add_pair(stream.span, message, hint, connection.span, "the room of all streams");
    }
    QuicSettings {
        idle_timeout: copied(&raw.idle_timeout, default.idle_timeout),
        streams: count(&raw.streams, default.streams),
        uni_streams: count(&raw.uni_streams, default.uni_streams),
        stream_window: count(&raw.stream_window, default.stream_window),
        connection_window: count(&raw.connection_window, default.connection_window),
        congestion: copied(&raw.congestion, default.congestion),
        retry: copied(&raw.retry, default.retry),
        secret_file: path(&raw.secret_file, folder),
        migration: copied(&raw.migration, default.migration),
        max_datagram: count(&raw.max_datagram, default.max_datagram),
        mtu_discovery: copied(&raw.mtu_discovery, default.mtu_discovery),
        gso: copied(&raw.gso, default.gso),
        steer: copied(&raw.steer, default.steer),
        socket_buffer: count(&raw.socket_buffer, default.socket_buffer),
        qlog: qlog(&raw.qlog, folder, mistakes),
    }
}

/// The folder of logs, which must be there.
fn qlog(raw: &Field<Text>, folder: &Path, mistakes: &mut Mistakes) -> Option<PathBuf> {
    let path = path(raw, folder)?;
    let span = is(raw)?.span;
    if !cfg!(feature = "qlog") {
        mistakes.add(span, "`qlog` needs a build with the feature `qlog`", "take it out");
        return None;
    }
    if !path.is_dir() {
        let hint = "make the folder, where this program may write; paths count from the folder of this file";
        mistakes.add(span, "`qlog` is not a folder", hint);
        return None;
    }
    Some(path)
}

/// What an upstream over QUIC demands. Nothing if it has mistakes.
pub(super) fn upstream_tls(
    raw: &At<RawUpstreamTls>,
    over_quic: bool,
    certificates: &CertificateNames,
    folder: &Path,
    mistakes: &mut Mistakes,
) -> Option<UpstreamTls> {
    let At { value: raw, span } = raw;
    no_early_data(&raw.both.early_data, mistakes);
    if let (Field::Is(ca), Field::Is(trust)) = (&raw.ca, &raw.trust) {
        let hint = "`ca` trusts what authorities signed, `trust` exactly one certificate; take one out";
        mistakes.add_pair(trust.span, "`trust` and `ca` exclude each other", hint, ca.span, "the authorities");
    }
    let name = is(&raw.name);
    if let Some(At { value, span }) = name
        && value.text.parse::<std::net::IpAddr>().is_err()
        && !is_name(&value.text)
    {
        let hint = "write whom the certificate names: a host name or an address, without a port";
        mistakes.add(*span, format!("{} is neither a host name nor an address", value.shown()), hint);
    }
    let alpn = match &raw.alpn {
        Field::Is(alpn) if (1..=255).contains(&alpn.value.text.len()) => Some(alpn.value.text.clone()),
        Field::Is(alpn) => {
            mistakes.add(alpn.span, "`alpn` has 1 to 255 bytes", "write the name of a protocol, such as \"app\"");
            None
        }
        // HTTP offers what it speaks, and relays nothing.
        Field::Absent if !over_quic => Some(String::new()),
        Field::Absent => {
            let hint = "add `alpn = \"app\"`, the protocol that its servers speak";
            mistakes.add(*span, "`[upstream.tls]` lacks `alpn`", hint);
            None
        }
        Field::Bad => None,
    };
    let default = UpstreamTls::new(alpn?);
    Some(UpstreamTls {
        ca: is(&raw.ca).and_then(|file| authorities("ca", file, folder, mistakes)),
        trust: is(&raw.trust).and_then(|name| certificates.need(name, mistakes)),
        name: name.map(|name| name.value.text.clone()),
        certificate: is(&raw.certificate).and_then(|name| certificates.need(name, mistakes)),
        curves: curves(&raw.both.curves, mistakes).unwrap_or_else(|| default.curves.clone()),
        keylog: path(&raw.both.keylog, folder),
        qlog: upstream_qlog(&raw.qlog, over_quic, folder, mistakes),
        ..default
    })
}

/// As [`qlog`], of servers over QUIC alone.
fn upstream_qlog(raw: &Field<Text>, over_quic: bool, folder: &Path, mistakes: &mut Mistakes) -> Option<PathBuf> {
    if let Field::Is(at) = raw
        && !over_quic
    {
        mistakes.add(
            at.span,
            "`qlog` is for servers over QUIC",
            "take it out, or write servers as \"quic://HOST:PORT\"",
        );
        return None;
    }
    qlog(raw, folder, mistakes)
}

pub(super) fn is<T>(field: &Field<T>) -> Option<&At<T>> {
    match field {
        Field::Is(at) => Some(at),
        Field::Absent | Field::Bad => None,
    }
}

/// What only the TLS library can tell.
#[cfg(feature = "tls")]
mod library {
    use std::path::Path;

    use crate::transports::tls::{Certificate, ClientCertificates, Curves, TlsError};

    /// Whether two files are a certificate and its key; if not, whether the key is at fault, and why.
    pub(super) fn pair(cert: &Path, key: &Path) -> Result<(), (bool, String)> {
        Certificate::from_files(cert, key).map(drop).map_err(|error| {
            let mismatch = matches!(error, TlsError::Mismatch { .. });
            (mismatch || (error.file().is_some_and(|file| file == key) && cert != key), error.reason().to_owned())
        })
    }

    pub(super) fn authorities(file: &Path) -> Result<(), String> {
        ClientCertificates::signed_by(file.into()).map(drop).map_err(|error| error.reason().to_owned())
    }

    pub(super) fn knows_curves(names: &[String]) -> bool {
        Curves::new(names.to_vec()).is_ok()
    }
}

/// Without it nothing can be told, and what needs it is refused elsewhere.
#[cfg(not(feature = "tls"))]
mod library {
    use std::path::Path;

    pub(super) const fn pair(_: &Path, _: &Path) -> Result<(), (bool, String)> {
        Ok(())
    }

    pub(super) const fn authorities(_: &Path) -> Result<(), String> {
        Ok(())
    }

    pub(super) const fn knows_curves(_: &[String]) -> bool {
        true
    }
}
