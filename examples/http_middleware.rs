//! cargo run --example http_middleware -- run -c examples/configs/http_middleware.toml
//!
//! A decision of your own about each HTTP request, in one file: request in, decision out. Here the path `/private` takes a
//! key, and whoever may pass is named to what answers. Try it: `curl http://127.0.0.1:7110/private -H "x-key: sesame"`.

use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use portway::gateway::{Builder, cli};
use portway::transports::http::state_routes::Rule;
use portway::transports::http::{Action, Asked, Connections, Decision, Hook, Published, Route, Settings, Site};

/// Lets whoever knows the key see what is private.
#[derive(Debug)]
struct Doorkeeper {
    key: String,
}

impl Hook for Doorkeeper {
    fn decide(&self, request: &Asked<'_>) -> Decision {
        if !request.uri.path().starts_with("/private") {
            return Decision::Pass;
        }
        match request.fields.get("x-key") {
            Some(key) if key.as_bytes() == self.key.as_bytes() => {
                let who = (HeaderName::from_static("x-who"), HeaderValue::from_static("a friend"));
                Decision::PassWith(vec![who])
            }
            Some(_) | None => {
                let body = Bytes::from(format!("nobody at {} knows the key\n", request.peer.ip()));
                Decision::Answer { status: StatusCode::FORBIDDEN, body }
            }
        }
    }
}

pub(crate) fn builder() -> Builder {
    Builder::new().tcp_protocol("kept", |options| {
        let key = options.get("key").and_then(|key| key.as_str()).ok_or("[listener.options] lacks `key`, a string")?;
        // What answers is the page that shows the request; `Action::Proxy` would ask a server.
        let mut route = Route::new("all", Action::Demo);
        route.guards.hooks.push(Arc::new(Doorkeeper { key: key.to_owned() }));
        let site = Site::new(vec![(Rule::default(), route)]).map_err(|tie| tie.to_string())?;
        let (settings, site) = (Arc::new(Settings::new("kept")), Arc::new(Published::new(site)));
        Ok(move || Connections::new(settings.clone(), site.clone()))
    })
}

fn main() -> ExitCode {
    cli::main(&builder())
}
