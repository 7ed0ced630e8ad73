//! What can be changed over HTTP, and the line in the log that says who did it.

use std::fmt;
use std::net::SocketAddr;

use hyper::{Response, StatusCode};

use super::super::Status;
use super::events::Answer;
use super::{sample, text};
use crate::actors::{Control, Mesh, NotDone, blocking, clock};

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Reload,
    Close(u64),
    Drain(u64),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reload => f.write_str("reload"),
            Self::Close(id) => write!(f, "close actor {id}"),
            Self::Drain(id) => write!(f, "drain actor {id}"),
        }
    }
}

/// The change that a path stands for.
pub(super) fn of(path: &str) -> Option<Action> {
    if path == "/api/reload" {
        return Some(Action::Reload);
    }
    let (id, what) = path.strip_prefix("/api/actors/")?.split_once('/')?;
    let id = id.parse().ok()?;
    match what {
        "close" => Some(Action::Close(id)),
        "drain" => Some(Action::Drain(id)),
        _ => None,
    }
}

/// Does it. Whoever is here was let in.
pub(super) async fn done(action: Action, mesh: &Mesh, status: &Status, peer: SocketAddr) -> Response<Answer> {
    let (code, words) = match action {
        Action::Reload => reload(status).await,
        Action::Close(id) => session(mesh, id, Control::Stop).await,
        Action::Drain(id) => {
            let by = clock::later(clock::now(), status.drain_time());
            session(mesh, id, Control::Drain(by)).await
        }
    };
    let fine = code == StatusCode::OK;
    tracing::info!(target: "audit", %peer, %action, fine, result = words.trim_end(), "audit: done");
    if action != Action::Reload {
        status.watched.note(if fine { "info" } else { "warn" }, format!("{action} by {peer}: {}", words.trim_end()));
    }
    text(code, words)
}

async fn reload(status: &Status) -> (StatusCode, String) {
    let Some(reloader) = status.reloader.keep().as_ref().clone() else {
        return (StatusCode::NOT_IMPLEMENTED, "this program does not run by a file\n".to_owned());
    };
    match blocking(move || reloader()).await {
        Ok((true, words)) => (StatusCode::OK, format!("{words}\n")),
        Ok((false, words)) => (StatusCode::CONFLICT, format!("{words}\n")),
        Err(NotDone::Full) => (StatusCode::SERVICE_UNAVAILABLE, "too many reloads at once\n".to_owned()),
        Err(NotDone::Lost) => (StatusCode::INTERNAL_SERVER_ERROR, "the reload was lost\n".to_owned()),
    }
}

async fn session(mesh: &Mesh, id: u64, control: Control) -> (StatusCode, String) {
    match mesh.actor(id).await.map(|actor| actor.kind) {
        None => (StatusCode::NOT_FOUND, "there is no such actor, or not any more\n".to_owned()),
        Some(kind) if !sample::is_session(kind) => {
            (StatusCode::CONFLICT, format!("`{kind}` serves no single peer: only sessions are ended from here\n"))
        }
        Some(kind) => match mesh.control(id, control, sample::is_session).await {
            Some(_) => (StatusCode::OK, format!("{kind} was told\n")),
            None => (StatusCode::NOT_FOUND, "it has ended by itself\n".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stand_for_changes() {
        assert_eq!(of("/api/reload"), Some(Action::Reload));
        assert_eq!(of("/api/actors/7/close"), Some(Action::Close(7)));
        assert_eq!(of("/api/actors/7/drain"), Some(Action::Drain(7)));
        for none in
            ["/", "/api/reload/", "/api/actors/7", "/api/actors/x/close", "/api/actors/7/stop", "/api/actors/-1/close"]
        {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
