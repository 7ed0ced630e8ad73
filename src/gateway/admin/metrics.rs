//! The metrics page: what the arbiters counted, summed, and the gauges of this moment.
//!
//! No label carries a peer's address: the number of time series is bounded by the configuration and the code.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
#[cfg(feature = "http")]
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::metrics_memory;
use crate::actors::{MeshView, Totals};
use crate::gateway::Status;
use crate::transports::kit::balance::{Balancer, ServerView};

/// The families we raise ourselves: name, label of the scope, label of the reason, help.
const FAMILIES: &[(&str, &str, &str, &str)] = &[
    ("admin_evicted", "listener", "", "Admin connections ended to let another in"),
    ("admin_events_skipped", "listener", "", "Samples that a slow reader of the event stream was not told"),
    ("admin_refused", "listener", "reason", "Admin requests refused, by reason"),
    ("actor_exits", "kind", "reason", "Actors that ended, by kind and reason"),
    ("actor_panics", "kind", "place", "Panics contained, by kind of actor and place"),
    ("actor_restarts", "kind", "reason", "Actors made anew by their group, by kind and reason of the failure"),
    ("actor_slow_turns", "kind", "message", "Turns longer than 5 ms, by kind of actor and last message"),
    ("bytes_in", "listener", "", "Bytes read from peers"),
    ("bytes_out", "listener", "", "Bytes written to peers"),
    ("connections_accepted", "listener", "", "Connections let in"),
    ("connections_closed", "listener", "reason", "Connections closed, by reason"),
    ("connections_refused", "listener", "reason", "Connections refused, by reason"),
    ("forward_refused", "listener", "", "Connections out of a tunnel to where they may not go"),
    ("http_early_dropped", "listener", "", "Heads before an answer (1xx) that could not be written before it"),
    ("http_denied", "route", "reason", "Requests that a route did not let pass, by reason"),
    ("http3_errors", "listener", "code", "HTTP/3 connections closed for a broken rule, by code"),
    ("http3_refused", "listener", "reason", "HTTP/3 requests and datagrams that were not taken, by reason"),
    ("http3_waits", "listener", "", "Answers over HTTP/3 that waited for their client"),
    ("http_broken", "listener", "reason", "Answers that did not come to their end, by reason"),
    ("http_failures", "upstream", "reason", "Attempts that gave no answer, by reason"),
    ("http_refused", "listener", "reason", "Clients whose bytes two parsers could read differently, by reason"),
    ("http_requests", "listener", "class", "Requests answered, by class of status; broken = not to the end"),
    ("http_retries", "upstream", "reason", "Requests sent again, by what went wrong"),
    ("http_route_requests", "route", "class", "Requests of a route, by class of status"),
    ("http_upstream_requests", "upstream", "class", "Requests to an upstream, by class of status"),
    ("messages_dropped", "listener", "reason", "Messages dropped for a slow reader"),
    ("messages_in", "listener", "", "Messages received whole"),
    ("messages_out", "listener", "", "Messages accepted for sending"),
    ("moq_batches", "relay", "", "Batches of objects that tracks passed on to arbiters with subscribers"),
    ("moq_bytes_in", "relay", "", "Bytes of objects that came from publishers"),
    ("moq_bytes_out", "relay", "", "Bytes of objects written to subscribers"),
    ("moq_client_datagrams_dropped", "client", "reason", "Datagrams that came to clients and were dropped, by reason"),
    ("moq_client_goaways", "client", "", "GOAWAYs that came to clients"),
    ("moq_client_sessions", "client", "draft", "Sessions of clients of Media over QUIC that were set up, by draft"),
    ("moq_client_sessions_failed", "client", "reason", "Sessions of clients closed for a rule the relay broke"),
    ("moq_client_streams_dropped", "client", "reason", "Streams that came to clients and were not read, by reason"),
    ("moq_cross_arbiter", "relay", "", "Messages with objects from a track to another arbiter"),
    ("moq_datagrams_dropped", "relay", "reason", "Datagrams with objects dropped, by reason"),
    ("moq_datagrams_in", "relay", "", "Objects that came in datagrams"),
    ("moq_datagrams_out", "relay", "", "Objects sent in datagrams"),
    ("moq_duplicates", "relay", "", "Objects that were there already"),
    ("moq_evicted", "relay", "reason", "Subgroups and datagrams that left the cache early, for its bounds or memory"),
    ("moq_fetches", "relay", "source", "Fetches answered, by where the objects were"),
    ("moq_goaways", "relay", "way", "GOAWAYs sent and received"),
    ("moq_malformed", "relay", "reason", "Tracks that contradicted themselves, by how"),
    ("moq_mirrors_behind", "relay", "", "Times an arbiter had no room for what came of a track"),
    ("moq_namespaces_unlisted", "relay", "", "Namespaces that an origin lists beyond the 10,000 that are kept"),
    ("moq_objects_in", "relay", "", "Objects that came from publishers"),
    ("moq_origin_lost", "upstream", "", "Times the session of a relay with its origin ended, or could not be begun"),
    ("moq_origin_refused", "upstream", "reason", "What an origin would not list to its edge, by reason"),
    ("moq_requests", "relay", "kind", "Requests of peers, by kind"),
    ("moq_requests_refused", "relay", "reason", "Requests refused, by reason"),
    ("moq_sessions", "relay", "draft", "Sessions of Media over QUIC that were set up, by draft"),
    ("moq_sessions_ended", "relay", "reason", "Sessions that ended, by reason"),
    ("moq_sessions_failed", "relay", "reason", "Sessions closed because their peer broke a rule, by which"),
    ("moq_setups_abandoned", "relay", "reason", "Sessions that ended before they were set up, by reason"),
    ("moq_skipped", "relay", "", "Subgroups and datagrams that subscribers missed because they were slow or late"),
    ("moq_streams_dropped", "relay", "reason", "Streams of publishers dropped, by reason"),
    ("moq_streams_in", "relay", "", "Streams with objects that came from publishers"),
    ("moq_streams_out", "relay", "", "Streams with objects opened to subscribers"),
    ("moq_streams_reset", "relay", "reason", "Streams to subscribers given up, by reason"),
    ("quic_bytes_in", "listener", "", "Bytes of UDP datagrams received for QUIC connections"),
    ("quic_bytes_out", "listener", "", "Bytes of UDP datagrams sent by QUIC connections"),
    ("quic_connections_closed", "listener", "reason", "QUIC connections closed, by reason"),
    ("quic_connections_opened", "listener", "", "QUIC handshakes begun"),
    ("quic_connections_refused", "listener", "reason", "QUIC handshakes and connections refused, by reason"),
    ("quic_datagrams_dropped", "listener", "reason", "QUIC datagrams dropped in a connection's queue, by reason"),
    ("quic_datagrams_relayed", "listener", "way", "QUIC datagrams relayed: up from clients, down from servers"),
    ("quic_datagrams_unrelayed", "listener", "reason", "QUIC datagrams that were not relayed, by reason"),
    ("quic_forwarded", "listener", "", "UDP datagrams forwarded to the arbiter of their connection"),
    ("quic_migrations", "listener", "", "QUIC connections that moved to another path"),
    ("quic_packets_dropped", "listener", "reason", "UDP datagrams dropped before any QUIC connection, by reason"),
    ("quic_packets_in", "listener", "", "UDP datagrams received for QUIC connections"),
    ("quic_packets_out", "listener", "", "UDP datagrams sent by QUIC connections"),
    ("quic_qlog_files", "listener", "", "Logs of QUIC connections begun"),
    ("quic_qlog_lost", "listener", "reason", "Logs of QUIC connections not begun or cut, by reason"),
    ("quic_receive_errors", "listener", "", "Reads of UDP sockets that failed"),
    ("quic_resets_sent", "listener", "", "Stateless resets sent"),
    ("quic_retries", "listener", "result", "Retry packets sent, and tokens that came back, by result"),
    ("quic_send_blocked", "listener", "", "Sends that waited for room in a UDP socket"),
    ("quic_send_errors", "listener", "", "UDP datagrams that the system refused to send"),
    ("quic_streams_refused", "listener", "reason", "Streams of clients given up at once, by reason"),
    ("quic_tls_refused", "listener", "alert", "QUIC handshakes that this end refused, by TLS alert"),
    ("quic_tls_refused_by_peers", "listener", "alert", "QUIC handshakes that the other end refused, by TLS alert"),
    ("quic_version_negotiations", "listener", "", "Version negotiations sent"),
    ("relay_hello", "listener", "reason", "Connections closed before they could be relayed by their TLS, by reason"),
    ("relay_bytes_down", "listener", "", "Bytes relayed from servers to clients"),
    ("relay_bytes_spliced", "listener", "", "Bytes relayed that the kernel moved through pipes"),
    ("relay_bytes_up", "listener", "", "Bytes relayed from clients to servers"),
    ("relay_no_pipe", "listener", "", "Streams that were to be spliced and found no pipe"),
    ("netstack_accepted", "listener", "", "Connections inside tunnels that a netstack served"),
    ("netstack_bytes_in", "listener", "", "Bytes that netstacks received in connections"),
    ("netstack_bytes_out", "listener", "", "Bytes that netstacks sent in connections"),
    ("netstack_datagrams", "listener", "direction", "Datagrams forwarded out of tunnels (up) and into them (down)"),
    ("netstack_dropped", "listener", "reason", "Packets and connections a netstack did not serve, by reason"),
    ("netstack_opened", "listener", "", "Connections that a netstack opened"),
    ("rooms_announced", "listener", "", "Messages by which arbiters tell each other where rooms have members"),
    ("rooms_broadcasts", "listener", "", "Messages said in rooms"),
    ("rooms_cross_arbiter", "listener", "", "Messages that carried what was said to another arbiter"),
    ("rooms_deliveries", "listener", "", "Messages handed to members of rooms"),
    ("rooms_joined", "listener", "", "Joins of rooms"),
    ("rooms_left", "listener", "", "Leaves of rooms"),
    ("rooms_refused", "listener", "reason", "Commands of rooms refused, by reason"),
    ("upstream_checks", "upstream", "result", "Active checks of servers, by result"),
    ("upstream_failures", "upstream", "reason", "Streams that a server did not take or broke, by reason"),
    ("upstream_resolve", "upstream", "result", "Look-ups of names, by result"),
    ("tun_dropped", "listener", "reason", "Packets a TUN interface lost, by reason"),
    ("tun_offload_off", "listener", "reason", "Times a kind of super-packet was given up"),
    ("tun_packets_in", "listener", "", "Packets written to a TUN interface"),
    ("tun_packets_out", "listener", "", "Packets read from a TUN interface"),
    ("tun_writes", "listener", "", "Writes to a TUN interface"),
    ("udp_calls", "listener", "way", "System calls that moved relayed datagrams, by way"),
    ("udp_datagrams", "listener", "way", "Datagrams relayed, by way"),
    ("udp_dropped", "listener", "reason", "Datagrams that were not relayed, by reason"),
    ("udp_kernel_dropped", "listener", "", "Datagrams the kernel dropped since nobody had read them in time"),
    ("webtransport_client_failed", "client", "reason", "Sessions a client did not get, or lost to a broken rule"),
    ("webtransport_client_strays", "client", "", "Datagrams that belong to no session of a client"),
    ("wireguard_bytes_in", "listener", "", "Bytes of packets that came out of tunnels"),
    ("wireguard_bytes_out", "listener", "", "Bytes of packets that went into tunnels"),
    ("wireguard_cookies", "listener", "", "Cookies sent to sources of handshakes under load"),
    ("wireguard_datagram_bytes_in", "listener", "", "Bytes of datagrams received"),
    ("wireguard_datagram_bytes_out", "listener", "", "Bytes of datagrams sent"),
    ("wireguard_datagrams_in", "listener", "", "Datagrams received"),
    ("wireguard_datagrams_out", "listener", "", "Datagrams sent"),
    ("wireguard_deferred", "listener", "", "Packets that waited for a session"),
    ("wireguard_dropped", "listener", "reason", "Datagrams and packets that came to nothing, by reason"),
    ("wireguard_gso_refused", "listener", "", "Times the system refused to send a train in one call"),
    ("wireguard_handshakes", "listener", "", "Sessions agreed"),
    ("wireguard_initiations", "listener", "", "Initiations let in"),
    ("wireguard_kernel_dropped", "listener", "", "Datagrams the kernel dropped unread"),
    ("wireguard_packets_in", "listener", "", "Packets that came out of tunnels"),
    ("wireguard_packets_out", "listener", "", "Packets that went into tunnels"),
    ("wireguard_peer_bytes_in", "peer", "", "Bytes of packets from a peer whose configuration asks for it"),
    ("wireguard_peer_bytes_out", "peer", "", "Bytes of packets to a peer whose configuration asks for it"),
    ("wireguard_receive_errors", "listener", "", "Errors of the system while receiving"),
    ("wireguard_roamed", "listener", "", "Times a peer came from another address"),
    ("wireguard_send_errors", "listener", "", "Datagrams the system did not send"),
    ("wireguard_sessions_started", "listener", "", "Session actors started"),
    ("wireguard_uapi_refused", "listener", "reason", "Requests of wg that were refused, by reason"),
    ("wireguard_trains_passed_whole", "listener", "", "Trains of datagrams handed to a session as they came"),
    ("other", "scope", "reason", "Counters beyond the bound on names"),
];

/// Those that are shown as histograms: family, name on the page, label of the scope, help.
#[cfg(feature = "http")]
const HISTOGRAMS: &[(&str, &str, &str, &str)] = &[
    ("http_route_duration", "http_route_duration_seconds", "route", "How long requests of a route took to the end"),
    ("http_upstream_duration", "http_upstream_duration_seconds", "upstream", "How long requests to an upstream took"),
];

/// There are none.
#[cfg(feature = "http")]
type Exemplars = std::collections::HashMap<usize, Exemplar<[(&'static str, &'static str); 0], f64>>;

/// Encodes a family of counters as a histogram, if it is one.
#[cfg(feature = "http")]
fn histogram(family: &str, totals: &Totals, encoder: &mut DescriptorEncoder<'_>) -> Result<bool, fmt::Error> {
    use crate::transports::http::{DURATION_SUM, DURATIONS};
    let Some((_, name, label, help)) = HISTOGRAMS.iter().find(|(of, ..)| *of == family) else { return Ok(false) };
    let of = || totals.iter().filter(|(name, _)| name.family == family);
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    let mut scopes: Vec<Arc<str>> = of().map(|(name, _)| name.scope.clone()).collect();
    scopes.dedup();
    for scope in scopes {
        let count =
            |word: &str| of().find(|(name, _)| name.scope == scope && name.reason == word).map_or(0, |(_, n)| n);
        let end =
            |end: std::time::Duration| if end == std::time::Duration::MAX { f64::INFINITY } else { end.as_secs_f64() };
        let buckets: Vec<(f64, u64)> = DURATIONS.iter().map(|(at, word)| (end(*at), count(word))).collect();
        let all = buckets.iter().map(|(_, n)| n).sum();
        let none: Option<&Exemplars> = None;
        metric.encode_family(&[(*label, &*scope)])?.encode_histogram(
            count(DURATION_SUM) as f64 / 1e6,
            all,
            &buckets,
            none,
        )?;
    }
    Ok(true)
}

pub(super) fn render(view: &MeshView, status: &Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("portway");
    registry.register_collector(Box::new(Page { gauges: gauges(view, status), totals: view.totals.clone() }));
    registry.register_collector(Box::new(metrics_memory::Pools::of(view)));
    registry.register_collector(Box::new(metrics_memory::Locks(status.reloading.contention())));
    registry.register_collector(Box::new(Reloads(status.reloads())));
    #[cfg(feature = "deadlock")]
    registry.register_collector(Box::new(metrics_memory::Deadlocks));
    let mut out = String::new();
    encode(&mut out, &registry)?;
    Ok(out)
}

/// Reloads by their result.
#[derive(Debug)]
struct Reloads([(&'static str, u64); 2]);

impl Collector for Reloads {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Configurations applied to the running gateway, or refused";
        let mut metric = encoder.encode_descriptor("reloads", help, None, MetricType::Counter)?;
        for (result, count) in self.0 {
            ConstCounter::new(count).encode(metric.encode_family(&[("result", result)])?)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Gauge {
    name: &'static str,
    help: &'static str,
    values: Vec<(Option<(&'static str, String)>, f64)>,
}

#[derive(Debug)]
struct Page {
    gauges: Vec<Gauge>,
    totals: Totals,
}

fn gauges(view: &MeshView, status: &Status) -> Vec<Gauge> {
    let by_arbiter = |value: &dyn Fn(&crate::actors::ArbiterView) -> f64| {
        view.arbiters.iter().map(|a| (Some(("arbiter", a.name.to_string())), value(a))).collect()
    };
    let by_listener = |value: &dyn Fn(&super::super::ListenerStatus) -> f64| {
        status.listeners().iter().map(|l| (Some(("listener", l.name.to_string())), value(l))).collect()
    };
    let upstreams = status.upstreams();
    let now = crate::actors::clock::now();
    let by_upstream = |value: &dyn Fn(&ServerView) -> f64| {
        let sum = |balancer: &Balancer| balancer.view(now).iter().map(value).sum();
        upstreams.iter().map(|(name, balancer)| (Some(("upstream", name.to_owned())), sum(balancer))).collect()
    };
    let mut kinds = std::collections::BTreeMap::<&str, (usize, usize)>::new();
    for actor in view.actors() {
        let entry = kinds.entry(actor.kind).or_default();
        entry.0 += 1;
        entry.1 += actor.inbox;
    }
    let gauge = |name, help, values| Gauge { name, help, values };
    vec![
        gauge(
            "ready",
            "1 while every listener accepts",
            vec![(None, f64::from(u8::from(status.not_ready().is_none())))],
        ),
        gauge(
            "actors",
            "Actors alive, by kind",
            kinds.iter().map(|(kind, (n, _))| (Some(("kind", (*kind).to_owned())), *n as f64)).collect(),
        ),
        gauge(
            "actor_inbox_messages",
            "Messages that wait in mailboxes, by kind of actor",
            kinds.iter().map(|(kind, (_, n))| (Some(("kind", (*kind).to_owned())), *n as f64)).collect(),
        ),
        gauge(
            "arbiter_up",
            "1 if the arbiter answered within a second",
            by_arbiter(&|a| f64::from(u8::from(a.answered))),
        ),
        gauge(
            "arbiter_busy_ratio",
            "CPU time over wall time, last 100 ms",
            by_arbiter(&|a| f64::from(a.busy_permille) / 1_000.0),
        ),
        gauge("arbiter_delay_seconds", "What a message waits for at least", by_arbiter(&|a| a.delay.as_secs_f64())),
        gauge("connections", "Connections now", by_listener(&|l| l.occupancy.connections() as f64)),
        gauge(
            "connections_half_open",
            "Connections that have not said anything whole yet",
            by_listener(&|l| l.occupancy.half_open() as f64),
        ),
        gauge(
            "upstream_connections",
            "Connections to the servers of an upstream",
            by_upstream(&|server| server.connections as f64),
        ),
        gauge(
            "upstream_servers_up",
            "Servers of an upstream that are neither down nor ejected",
            by_upstream(&|server| f64::from(u8::from(server.healthy && server.ejected.is_none()))),
        ),
        gauge(
            "wireguard_sessions",
            "Peers with a session now",
            status
                .tunnels()
                .iter()
                .map(|tunnel| (Some(("listener", tunnel.row().name.to_string())), tunnel.row().sessions as f64))
                .collect(),
        ),
        gauge(
            "log_lines_dropped",
            "Log lines lost: standard error was not read, or could not be written",
            vec![(None, crate::gateway::log::lines_dropped() as f64)],
        ),
        gauge("memory_budget_bytes", "Bytes that sessions may hold", vec![(None, status.budget.limit() as f64)]),
        gauge("memory_leased_bytes", "Bytes that sessions hold", vec![(None, status.budget.used() as f64)]),
    ]
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for gauge in &self.gauges {
            let mut metric = encoder.encode_descriptor(gauge.name, gauge.help, None, MetricType::Gauge)?;
            for (label, value) in &gauge.values {
                match label {
                    Some((name, of)) => {
                        ConstGauge::new(*value).encode(metric.encode_family(&[(*name, of.as_str())])?)?
                    }
                    None => {
                        let none: [(&str, &str); 0] = [];
                        ConstGauge::new(*value).encode(metric.encode_family(&none)?)?;
                    }
                }
            }
        }
        let mut families: Vec<&'static str> = self.totals.iter().map(|(name, _)| name.family).collect();
        families.dedup();
        for family in families {
            #[cfg(feature = "http")]
            if histogram(family, &self.totals, &mut encoder)? {
                continue;
            }
            let known = FAMILIES.iter().find(|(name, ..)| *name == family);
            let (scope, reason, help) =
                known.map_or(("scope", "reason", "A counter of a custom protocol"), |(_, s, r, h)| (s, r, h));
            let mut metric = encoder.encode_descriptor(family, help, None, MetricType::Counter)?;
            for (name, value) in self.totals.iter().filter(|(name, _)| name.family == family) {
                let of: Arc<str> = name.scope.clone();
                let mut labels = vec![(scope, &*of)];
                if !name.reason.is_empty() {
                    labels.push((if reason.is_empty() { "reason" } else { reason }, name.reason));
                }
                ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
