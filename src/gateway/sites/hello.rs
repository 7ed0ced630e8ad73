//! From the configuration of a relay that looks into TLS to what starts its connections.

use std::sync::Arc;
use std::time::Duration;

use super::Certificates;
use crate::gateway::Made;
use crate::gateway::config::{Listener, Relay};
use crate::gateway::listeners::relay_to;
use crate::gateway::upstreams::Upstreams;
use crate::transports::relay::codec_hello::HelloRule;
use crate::transports::relay::{HelloConnections, HelloRoute, HelloSettings};
use crate::transports::tcp::OnAccept;

/// How long a hello may take where `first_message` is without limit.
const LONGEST: Duration = Duration::from_secs(10);

/// What starts the connections of a listener.
pub(crate) fn make(
    listener: &Listener,
    relay: &Relay,
    upstreams: &Upstreams,
    certificates: &Certificates,
) -> Result<Made, String> {
    let to = |rule: HelloRule, upstream: &str| -> Result<HelloRoute, String> {
        let settings = Arc::new(relay_to(listener, relay, upstream, upstreams)?);
        Ok(HelloRoute { rule, settings, network: upstreams.network(upstream) })
    };
    let mut routes = Vec::with_capacity(relay.routes.len() + 1);
    for route in &relay.routes {
        let protocol = route.alpn.as_ref().map(|alpn| alpn.as_bytes().to_vec());
        routes.push(to(HelloRule { name: route.sni.clone(), protocol }, &route.upstream)?);
    }
    if relay.others {
        routes.push(to(HelloRule::default(), &relay.upstream)?);
    }
    let tls = match &relay.tls {
        None => None,
        Some(tls) => {
            // What clients may speak is the business of the servers: whatever routes ask for is agreed to.
            let mut protocols: Vec<Vec<u8>> = Vec::new();
            for alpn in relay.routes.iter().filter_map(|route| route.alpn.as_ref()) {
                if !protocols.iter().any(|known| known == alpn.as_bytes()) {
                    protocols.push(alpn.as_bytes().to_vec());
                }
            }
            let settings = certificates.server(&listener.name, tls, protocols).map_err(|error| error.to_string())?;
            settings.builder().map_err(|error| error.to_string())?;
            Some(Arc::new(settings))
        }
    };
    let first = listener.limits.first_message;
    let within = if first.is_zero() { LONGEST } else { first };
    let settings = Arc::new(HelloSettings { routes, within, tls });
    let name: Arc<str> = Arc::from(listener.name.as_str());
    Ok(Box::new(move || Box::new(HelloConnections::new(name.clone(), settings.clone())) as Box<dyn OnAccept>))
}
