//! What the service manager is told, in systemd's notify protocol (sd_notify(3)). Nothing, where there is none.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::actors::{Mesh, clock};

/// Everything accepts.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being read again; [`ready`] follows.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the service manager was not told of the reload"),
    }
}

/// The gateway drains and then ends.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Reports in at half the time the service manager allows, as long as every arbiter answers. Runs until dropped; for
/// ever idle where there is no watchdog.
pub(super) async fn report_in(mesh: &Mesh) {
    let Some(allowed) = sd_notify::watchdog_enabled().filter(|allowed| !allowed.is_zero()) else {
        return std::future::pending().await;
    };
    let pause = (allowed / 2).max(Duration::from_millis(1));
    loop {
        if mesh.answers(pause).await {
            tell(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("an arbiter does not answer: the watchdog is not told that all is well");
        }
        clock::sleep(pause).await;
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager was not told");
    }
}
