//! Judges listeners that relay UDP.

use super::listener::{copied, count, span_of};
use super::quic::Around;
use super::upstream::Kind;
use crate::gateway::config::{FramedService, Udp};
use crate::gateway::raw::RawListener;
use crate::gateway::raw::section::{At, Field};
use crate::gateway::report::Mistakes;

pub(super) fn udp(raw: &RawListener, around: &Around<'_>, mistakes: &mut Mistakes) -> Option<Udp> {
    if !cfg!(feature = "udp") {
        mistakes.add(raw.header, "protocol `udp` needs a build with the feature `udp`", "take the listener out");
        return None;
    }
    for (key, span, hint) in [
        ("idle", span_of(&raw.limits.idle), "write `idle` or `idle_answered` in `[listener.udp]`"),
        ("first_message", span_of(&raw.limits.first_message), "write `idle` in `[listener.udp]`"),
    ] {
        let Some(span) = span else { continue };
        mistakes.add(span, format!("`{key}` of `[listener.limits]` does not belong to protocol `udp`"), hint);
    }
    let upstream = match (&raw.service, &raw.upstream) {
        (Field::Is(service), Field::Is(upstream)) => {
            let message = "a listener of datagrams has a `service` or an `upstream`, not both";
            mistakes.add_pair(upstream.span, message, "take one of the two out", service.span, "the service");
            return None;
        }
        (Field::Is(service), _) => {
            if service.value != FramedService::Echo {
                let hint = "write `service = \"echo\"`, or `upstream` for servers over UDP";
                mistakes.add(service.span, "this service is one of protocol `framed`", hint);
            }
            None
        }
        (Field::Absent, Field::Is(upstream)) => {
            around.upstreams.need(upstream, mistakes);
            around.upstreams.no_circle(&upstream.value.text, &raw.listen, mistakes);
            if around.upstreams.kind(&upstream.value.text).is_some_and(|kind| kind != Kind::Udp) {
                let hint = "name an upstream whose servers begin with udp://";
                mistakes.add(upstream.span, "datagrams are relayed to servers over UDP alone", hint);
            }
            Some(upstream.value.text.clone())
        }
        (Field::Absent, Field::Absent) => {
            let hint = format!("{}, or `service = \"echo\"`", around.upstreams.example());
            mistakes.add(raw.header, "a `[[listener]]` with protocol `udp` lacks `upstream`", hint);
            return None;
        }
        (Field::Bad, _) | (_, Field::Bad) => return None,
    };
    let default = Udp { upstream, ..Udp::default() };
    let Some(At { value: table, .. }) = &raw.udp else { return Some(default) };
    if let (Field::Is(At { value: true, span }), None) = (&table.proxy_out, &default.upstream) {
        mistakes.add(*span, "an echo has no server to tell who its client is", "take it out");
    }
    let some = |field: &Field<u64>| span_of(field).map(|_| copied(field, 0));
    Some(Udp {
        idle: copied(&table.idle, default.idle),
        idle_answered: copied(&table.idle_answered, default.idle_answered),
        max_datagram: count(&table.max_datagram, default.max_datagram),
        packets_per_second: some(&table.packets_per_second),
        bytes_per_second: some(&table.bytes_per_second),
        proxy_out: copied(&table.proxy_out, default.proxy_out),
        gso: copied(&table.gso, default.gso),
        socket_buffer: count(&table.socket_buffer, default.socket_buffer),
        ..default
    })
}
