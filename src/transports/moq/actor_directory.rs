//! The actor of a relay's directory: one for all sessions, told only when names change. It starts the actors of tracks,
//! on the arbiter of the publisher they are first had from.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::actor_relay::{Relay, RelayView, ToSession, TrackRef, tell};
use super::actor_track::{ToTrack, TrackActor};
use super::model_codes::RequestCode;
use super::model_names::{FullTrackName, Namespace};
use super::state_directory::{Asked, Directory, Limits, Say, SessionId};
use crate::actors::{Exit, Fault, Mail, Protocol, Reply, Turn};
use crate::transports::quic::Door;

/// What a directory is told.
pub(super) enum ToDirectory {
    /// A session has begun, on this arbiter.
    Hello {
        session: SessionId,
        door: Door,
        arbiter: usize,
        /// It is with the relay's origin.
        origin: bool,
        /// What its peer is known by, if that is a relay.
        relay: Option<u64>,
    },
    /// It is gone.
    Gone(SessionId),
    /// It wants a track.
    Find {
        asked: Asked,
        name: FullTrackName,
        hold: Duration,
    },
    /// It does not any more.
    Forget {
        asked: Asked,
        name: FullTrackName,
    },
    /// It publishes a namespace, or does so no more.
    PublishNamespace {
        asked: Asked,
        namespace: Namespace,
    },
    WithdrawNamespace {
        session: SessionId,
        namespace: Namespace,
    },
    /// It publishes a track.
    Publish {
        asked: Asked,
        name: FullTrackName,
    },
    /// It feeds a track no more.
    Leave {
        session: SessionId,
        name: FullTrackName,
        /// With a last word, after which no more comes.
        over: bool,
    },
    /// It publishes a track that has ended: the name needs another.
    Late {
        asked: Asked,
        track: TrackRef,
    },
    /// It wants to hear of namespaces, or of tracks, below a prefix, or no more.
    WatchNamespaces {
        asked: Asked,
        prefix: Namespace,
    },
    WatchTracks {
        asked: Asked,
        prefix: Namespace,
    },
    Unwatch {
        asked: Asked,
        prefix: Namespace,
    },
    /// An origin lists a namespace, or does so no more; or lists nothing any more.
    Listed {
        origin: SessionId,
        namespace: Namespace,
        is: bool,
    },
    Unlisted(SessionId),
    /// A track has ended.
    Ended(TrackRef),
    /// What there is.
    View(Reply<(RelayView, Vec<TrackRef>)>),
    /// All sessions are to go elsewhere.
    Goaway(String),
    /// The relay's settings are others: also who may do what, or what is cached.
    Changed {
        rights: bool,
        cache: bool,
    },
    /// The relay is taken away.
    Retire(Duration),
}

struct Known {
    door: Door,
    arbiter: usize,
}

/// See the top of the file.
pub(super) struct DirectoryActor {
    relay: Weak<Relay>,
    names: Directory<TrackRef>,
    sessions: BTreeMap<SessionId, Known>,
    /// The relay is taken away: who comes has so long.
    retired: Option<Duration>,
}

impl DirectoryActor {
    pub(super) const fn new(relay: Weak<Relay>, limits: Limits) -> Self {
        Self { relay, names: Directory::new(limits), sessions: BTreeMap::new(), retired: None }
    }

    /// What a change comes to.
    fn change<R>(
        &mut self,
        change: impl FnOnce(
            &mut Directory<TrackRef>,
            &mut dyn FnMut(&FullTrackName, SessionId) -> Option<TrackRef>,
            &mut Vec<Say<TrackRef>>,
        ) -> R,
    ) -> R {
        let mut out = Vec::new();
        let (relay, sessions) = (self.relay.upgrade(), &self.sessions);
        let mut make = |name: &FullTrackName, at: SessionId| {
            let (relay, known) = (relay.clone()?, sessions.get(&at)?);
            start_track(&relay, name, known.arbiter)
        };
        let done = change(&mut self.names, &mut make, &mut out);
        self.say(out);
        done
    }

    fn tell(&self, session: SessionId, what: ToSession) {
        if let Some(known) = self.sessions.get(&session) {
            tell(&known.door, what);
        }
    }

    fn say(&self, out: Vec<Say<TrackRef>>) {
        for say in out {
            match say {
                Say::Found(Asked { session, request }, track) => {
                    self.tell(session, ToSession::Found { request, track, begun: false });
                }
                Say::Begun(Asked { session, request }, track) => {
                    self.tell(session, ToSession::Found { request, track, begun: true });
                }
                Say::NotFound(Asked { session, request }, code) => {
                    self.tell(session, ToSession::NotFound { request, code });
                }
                Say::Namespace { to: Asked { session, request }, prefix, namespace, is } => {
                    self.tell(session, ToSession::Namespace { request, prefix, namespace, is });
                }
                Say::Offer { to: Asked { session, request }, track } => {
                    self.tell(session, ToSession::Offer { request, track });
                }
                Say::Pull(source, track, hold) => {
                    self.source(&track, source, None);
                    self.tell(source, ToSession::Pull(track, hold));
                }
                Say::Watch { origin, tracks, on } => self.tell(origin, ToSession::Watch { tracks, on }),
                Say::SourceGone(track, source) => drop(track.mail.tell(ToTrack::Gone(source, None))),
            }
        }
    }

    /// A session publishes a track, which answers it: only a track that lives takes a source.
    fn publish(&mut self, asked: Asked, name: &FullTrackName) {
        let Asked { session, request } = asked;
        let mut out = Vec::new();
        match self.change(|names, make, _| names.publish(session, name, make, &mut out)) {
            Ok(track) => self.source(&track, session, Some(request)),
            Err(code) => self.tell(session, ToSession::Granted { request, refused: Some(code) }),
        }
        self.say(out);
    }

    /// Passes on that the relay's settings are others.
    fn changed(&mut self, rights: bool, cache: bool) {
        let Some(relay) = self.relay.upgrade() else { return };
        self.names.set_limits(relay.settings().directory);
        if cache {
            for (_, track) in self.names.tracks() {
                // One that has no room now keeps its bounds until the next change.
                drop(track.mail.tell(ToTrack::Changed));
            }
        }
        if rights {
            self.sessions.values().for_each(|known| tell(&known.door, ToSession::Rights));
        }
    }

    fn source(&self, track: &TrackRef, source: SessionId, offers: Option<u64>) {
        let Some(known) = self.sessions.get(&source) else { return };
        if track.mail.tell(ToTrack::Source { source, door: known.door.clone(), offers }).is_err()
            && let Some(request) = offers
        {
            tell(&known.door, ToSession::Granted { request, refused: Some(RequestCode::ExcessiveLoad) });
        }
    }
}

fn start_track(relay: &Arc<Relay>, name: &FullTrackName, arbiter: usize) -> Option<TrackRef> {
    let (id, owner, of) = (relay.number(), relay.clone(), name.clone());
    let mail: Mail<ToTrack> = relay.spawn_on(arbiter, "track", move || TrackActor::new(owner, id, of))?;
    Some(TrackRef { id, name: name.clone(), mail })
}

impl Protocol for DirectoryActor {
    type Msg = ToDirectory;
    const KIND: &'static str = "moq-directory";

    fn on(&mut self, m: ToDirectory, turn: &mut Turn<'_, ToDirectory>) -> Result<(), Fault> {
        let now = turn.now();
        match m {
            ToDirectory::Hello { session, door, arbiter, origin, relay } => {
                if let Some(within) = self.retired {
                    tell(&door, ToSession::Retired(within));
                }
                self.sessions.insert(session, Known { door, arbiter });
                if let Some(relay) = relay {
                    self.names.relay(session, relay);
                }
                if origin {
                    self.change(|names, make, out| names.origin(session, make, out));
                }
            }
            ToDirectory::Gone(session) => {
                self.sessions.remove(&session);
                self.change(|names, _, out| names.gone(session, out));
            }
            ToDirectory::Find { asked, name, hold } => {
                self.change(|names, make, out| names.find(asked, &name, hold, now, make, out));
            }
            ToDirectory::Forget { asked, name } => self.names.forget(asked, &name),
            ToDirectory::PublishNamespace { asked, namespace } => {
                let session = asked.session;
                let mut out = Vec::new();
                let done = self.change(|names, make, _| names.publish_namespace(session, &namespace, make, &mut out));
                // Its answer comes before what follows from it.
                self.tell(session, ToSession::Granted { request: asked.request, refused: done.err() });
                self.say(out);
            }
            ToDirectory::WithdrawNamespace { session, namespace } => {
                self.change(|names, _, out| names.withdraw_namespace(session, &namespace, out));
            }
            ToDirectory::Publish { asked, name } => self.publish(asked, &name),
            ToDirectory::Late { asked, track } => {
                self.names.ended(&track.name, &track);
                self.publish(asked, &track.name);
            }
            ToDirectory::Leave { session, name, over } => self.names.leave(session, &name, over),
            ToDirectory::WatchNamespaces { asked, prefix } => {
                let mut out = Vec::new();
                let done = self.names.watch_namespaces(asked, &prefix, &mut out);
                self.tell(asked.session, ToSession::Granted { request: asked.request, refused: done.err() });
                self.say(out);
            }
            ToDirectory::WatchTracks { asked, prefix } => {
                let mut out = Vec::new();
                let done = self.names.watch_tracks(asked, &prefix, &mut out);
                self.tell(asked.session, ToSession::Granted { request: asked.request, refused: done.err() });
                self.say(out);
            }
            ToDirectory::Unwatch { asked, prefix } => {
                self.change(|names, _, out| names.unwatch(asked, &prefix, out));
            }
            ToDirectory::Listed { origin, namespace, is } => {
                let kept = self.change(|names, _, out| names.listed(origin, &namespace, is, out));
                if let Some(relay) = self.relay.upgrade().filter(|_| !kept) {
                    turn.counter("moq_namespaces_unlisted", &relay.name, "").add(1);
                }
            }
            ToDirectory::Unlisted(origin) => self.change(|names, _, out| names.unlisted(origin, out)),
            ToDirectory::Ended(track) => {
                let name = track.name.clone();
                self.names.ended(&name, &track);
            }
            ToDirectory::View(reply) => {
                let [_, _, held] = self.names.counts();
                let namespaces = self.names.namespaces().map(|(namespace, by)| (namespace.clone(), by)).collect();
                let tracks = self.names.tracks().map(|(_, track)| track.clone()).collect();
                let view = RelayView { sessions: self.sessions.len(), namespaces, tracks: Vec::new(), held };
                drop(reply.send((view, tracks)));
            }
            ToDirectory::Goaway(uri) => {
                self.sessions.values().for_each(|known| tell(&known.door, ToSession::Goaway(uri.clone())));
            }
            ToDirectory::Changed { rights, cache } => self.changed(rights, cache),
            ToDirectory::Retire(within) => {
                self.retired = Some(within);
                self.sessions.values().for_each(|known| tell(&known.door, ToSession::Retired(within)));
            }
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.names.deadline()
    }

    fn on_deadline(&mut self, turn: &mut Turn<'_, ToDirectory>) -> Result<(), Fault> {
        let now = turn.now();
        self.change(|names, _, out| names.expire(now, out));
        Ok(())
    }

    fn closed(&mut self, _: &Exit) {
        for (_, track) in self.names.tracks() {
            drop(track.mail.tell(ToTrack::Stop));
        }
    }
}
