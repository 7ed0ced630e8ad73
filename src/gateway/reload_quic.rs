//! The part of a reload that concerns QUIC: certificates, the ways to servers, and listeners.
//!
//! A QUIC listener that keeps its name and address is changed in place: new certificates and protocols reach all
//! arbiters or none, new routes hold for connections from then on. Its limits and `[listener.quic]` hold until a
//! restart, since its sockets belong to the connections they carry.

use std::future::Future;
use std::sync::Arc;

use super::certificates::Certificates;
use super::config::{Config, Listener, Protocol, Quic};
use super::quic::{self, Around, QuicListener};
use super::reload::Reloaded;
#[cfg(feature = "http")]
use super::sites_quic;
use super::upstreams::Upstreams;
use super::{Gateway, ListenerStatus, OverQuic, StartError};
use crate::actors::Control;
use crate::transports::tls::{ServerSettings, TlsError};

impl Gateway {
    /// The certificates and ways to servers of a new configuration.
    pub(super) fn renewed_over_quic(&self, new: &Config) -> Result<OverQuic, StartError> {
        let over = self.status.over_quic.lock();
        let certificates = Certificates::load(&new.certificates, Some(&over.certificates))?;
        let links = over.links.renewed(&self.mesh, &new.upstreams, &certificates)?;
        Ok(OverQuic { certificates, links })
    }

    /// Starts QUIC listeners that are new, and changes in place those that are not; adds them to those that run. If one
    /// fails, those that were started end again, and those that were changed are changed back.
    #[expect(clippy::too_many_arguments, reason = "the old and the new of everything")]
    pub(super) fn start_quic(
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
        let mut reloads: Vec<(QuicListener, Arc<ServerSettings>)> = Vec::new();
        let mut routes: Vec<(QuicListener, &Listener, &Quic)> = Vec::new();
        let mut fallible = || -> Result<(), StartError> {
            for listener in &new.listeners {
                #[cfg(feature = "http")]
                if let Protocol::Http(http) = &listener.protocol {
                    let before = old.iter().find(|status| *status.name == *listener.name);
                    let Some(status) = started.iter_mut().find(|status| *status.name == *listener.name) else {
                        continue;
                    };
                    reloads.extend(sites_quic::renew(listener, http, &around, status, before)?);
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
                let tls = quic::tls_of(listener, quic, &over.certificates)?;
                let Protocol::Quic(before) = &was.protocol else { continue };
                if (&before.settings, &was.limits) != (&quic.settings, &listener.limits)
                    && !done.restart.contains(&"listener.quic")
                {
                    done.restart.push("listener.quic");
                }
                let changes_tls = server.would_change(&tls);
                if changes_tls {
                    reloads.push((server.clone(), Arc::new(tls)));
                }
                // Also where none changed: they hold the ways to servers, which may be others now.
                routes.push((server, listener, quic));
                let touched = changes_tls || before.routes != quic.routes;
                let names = if touched { &mut done.changed } else { &mut done.kept };
                names.push(listener.name.clone());
                started.push(status.clone());
            }
            Ok(())
        };
        let result = fallible().and_then(|()| all_or_none(reloads));
        match result {
            Ok(()) => {
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
fn all_or_none(reloads: Vec<(QuicListener, Arc<ServerSettings>)>) -> Result<(), StartError> {
    if reloads.is_empty() {
        return Ok(());
    }
    blocking(async move {
        let mut before: Vec<(QuicListener, Arc<ServerSettings>)> = Vec::new();
        for (listener, tls) in reloads {
            let name = tls.listener.to_string();
            match listener.reload(tls).await {
                Ok(old) => before.push((listener, old)),
                Err(error) => {
                    for (listener, old) in before {
                        // They were in use a moment ago; an arbiter that does not answer has kept either.
                        if let Err(error) = listener.reload(old).await {
                            tracing::error!(%error, "an arbiter did not take back the old certificates");
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
