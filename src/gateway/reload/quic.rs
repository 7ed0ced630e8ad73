//! The part of a reload that concerns QUIC: certificates, the ways to servers, and listeners.
//!
//! A QUIC listener that keeps its name and address is changed in place: new certificates, protocols, limits and
//! `[listener.quic]` reach all arbiters or none, and hold for connections from then on. What its sockets were set up
//! with holds until a restart, since they belong to the connections they carry.

use std::future::Future;
use std::sync::Arc;

use super::Reloaded;
use crate::actors::Control;
use crate::gateway::certificates::Certificates;
use crate::gateway::config::{Config, Listener, Protocol, Quic};
use crate::gateway::quic::{self, Around, QuicListener};
#[cfg(feature = "http")]
use crate::gateway::sites;
use crate::gateway::upstreams::Upstreams;
use crate::gateway::{Gateway, ListenerStatus, OverQuic, StartError};
use crate::transports::quic::ServerSettings;
use crate::transports::tls::TlsError;

impl Gateway {
    /// The certificates and ways to servers of a new configuration.
    pub(crate) fn renewed_over_quic(&self, new: &Config) -> Result<OverQuic, StartError> {
        let over = self.status.over_quic.lock();
        let certificates = Certificates::load(&new.certificates, Some(&over.certificates))?;
        let links = over.links.renewed(&self.mesh, &new.upstreams, &certificates)?;
        Ok(OverQuic { certificates, links })
    }

    /// Starts QUIC listeners that are new, and changes in place those that are not; adds them to those that run. If one
    /// fails, those that were started end again, and those that were changed are changed back.
    #[expect(clippy::too_many_arguments, reason = "the old and the new of everything")]
    pub(crate) fn start_quic(
        &self,
        running: &Config,
        new: &Config,
        old: &[Arc<ListenerStatus>],
        upstreams: &Upstreams,
        over: &OverQuic,
        done: &mut Reloaded,
        mut started: Vec<Arc<ListenerStatus>>,
    ) -> Result<Vec<Arc<ListenerStatus>>, StartError> {
        let around =
            Around { mesh: &self.mesh, certificates: &over.certificates, upstreams, budget: &self.status.budget };
        let mut reloads: Vec<(QuicListener, ServerSettings)> = Vec::new();
        let mut routes: Vec<(QuicListener, &Listener, &Quic)> = Vec::new();
        let mut doors: Vec<(QuicListener, &Listener)> = Vec::new();
        let mut fallible = || -> Result<(), StartError> {
            for listener in &new.listeners {
                #[cfg(feature = "http")]
                if let Protocol::Http(http) = &listener.protocol {
                    let before = old.iter().find(|status| *status.name == *listener.name);
                    let Some(status) = started.iter_mut().find(|status| *status.name == *listener.name) else {
                        continue;
                    };
                    reloads.extend(sites::quic::renew(listener, http, &around, status, before)?);
                    doors.extend(status.quic.clone().map(|quic| (quic, listener)));
                    continue;
                }
                let Protocol::Quic(quic) = &listener.protocol else { continue };
                let was = running.listeners.iter().find(|was| was.name == listener.name);
                let status = old.iter().find(|status| *status.name == *listener.name && status.accepting());
                let in_place = match (status, was) {
                    (Some(status), Some(was)) if was.listen == listener.listen => {
                        status.quic.clone().map(|running| (status, running, was))
                    }
                    _ => None,
                };
                let Some((status, server, was)) = in_place else {
                    let names = if was.is_some() { &mut done.changed } else { &mut done.added };
                    names.push(listener.name.clone());
                    started.push(Arc::new(quic::started(listener, quic, &around, Arc::default())?));
                    continue;
                };
                let settings = quic::settings_of(listener, quic, &around)?;
                let Protocol::Quic(before) = &was.protocol else { continue };
                for key in server.needs_restart(&settings) {
                    if !done.restart.contains(&key) {
                        done.restart.push(key);
                    }
                }
                let changes = server.would_change(&settings);
                if changes {
                    reloads.push((server.clone(), settings));
                }
                // Also where none changed: they hold the ways to servers, which may be others now.
                routes.push((server, listener, quic));
                let same = before.routes == quic.routes && before.moq == quic.moq && was.limits == listener.limits;
                let touched = changes || !same;
                let names = if touched { &mut done.changed } else { &mut done.kept };
                names.push(listener.name.clone());
                started.push(status.clone());
            }
            Ok(())
        };
        let result = fallible().and_then(|()| all_or_none(reloads));
        match result {
            Ok(()) => {
                doors.into_iter().for_each(|(quic, listener)| quic.set_limits(listener));
                routes.into_iter().for_each(|(server, listener, quic)| server.set_routes(listener, quic, upstreams));
                Ok(started)
            }
            Err(error) => {
                for status in started {
                    if old.iter().any(|old| Arc::ptr_eq(old, &status)) {
                        continue;
                    }
                    status.acceptor.control(Control::Stop);
                    // One that was taken over goes on where it was.
                    let shared =
                        |quic: &QuicListener| old.iter().filter_map(|s| s.quic.as_ref()).any(|old| old.is(quic));
                    if let Some(quic) = status.quic.as_ref().filter(|quic| !shared(quic)) {
                        quic.server.stop();
                    }
                }
                Err(error)
            }
        }
    }
}

/// Gives each listener its new settings, or all their old ones.
fn all_or_none(reloads: Vec<(QuicListener, ServerSettings)>) -> Result<(), StartError> {
    if reloads.is_empty() {
        return Ok(());
    }
    blocking(async move {
        let mut before: Vec<(QuicListener, ServerSettings)> = Vec::new();
        for (listener, settings) in reloads {
            let name = settings.name.to_string();
            match listener.renew(settings).await {
                Ok(old) => before.push((listener, old)),
                Err(error) => {
                    for (listener, old) in before {
                        // They were in use a moment ago; an arbiter that does not answer has kept either.
                        if let Err(error) = listener.renew(old).await {
                            tracing::error!(%error, "an arbiter did not take back the old settings");
                        }
                    }
                    return Err(StartError::TlsReload { listener: name, error });
                }
            }
        }
        Ok(())
    })
}

/// Waits for what arbiters answer. On a thread of its own, since the caller's may run an event loop already.
fn blocking<T: Send>(work: impl Future<Output = Result<T, StartError>> + Send) -> Result<T, StartError> {
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            let runtime = runtime.map_err(|error| StartError::Tls {
                of: "an event loop to wait in".to_owned(),
                error: TlsError::Library(error.to_string()),
            })?;
            runtime.block_on(work)
        });
        waiting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
