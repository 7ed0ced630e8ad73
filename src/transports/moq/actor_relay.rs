//! One relay: what its sessions, tracks, mirrors and directory have in common, and what they tell each other.
//!
//! Names travel, objects do not: a session learns from the directory where a track is, has it mirrored on its own
//! arbiter, and reads there. A relay serves one scope: two relays of one listener know nothing of each other.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::actor_directory::{DirectoryActor, ToDirectory};
use super::actor_track::ToTrack;
use super::model::Location;
use super::model_codes::RequestCode;
use super::model_names::{FullTrackName, Namespace};
use super::state_cache;
use super::state_directory::{self, SessionId};
use super::state_rights::Rights;
use crate::actors::{Control, Mail, Mesh, Permit, Place, Protocol, SpawnError, Spec};
use crate::memory::{Budget, Lease, Snapshot, Version};
use crate::transports::quic::Door;

/// What waits in the mailbox of a track or mirror, at most.
const INBOX: (usize, usize) = (4_096, 8 << 20);
/// Tracks shown of a relay: each is asked.
const SHOWN: usize = 1_000;
/// The same for the directory, which is told a few words by each session.
const DIRECTORY: (usize, usize) = (1 << 20, 64 << 20);

/// What to do about a subscriber that takes objects more slowly than they come, once the cache lets go of what it has
/// not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenSlow {
    /// It skips what is gone: streams that were begun are reset with `TOO_FAR_BEHIND`.
    #[default]
    Skip,
    /// Its subscription ends with `TOO_FAR_BEHIND`.
    End,
}

/// How a relay behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelaySettings {
    /// What is kept of each track, on each arbiter that has to do with it.
    pub cache: state_cache::Limits,
    /// The bounds of the directory.
    pub directory: state_directory::Limits,
    /// How long a track without publishers waits for one, and one without subscribers is still fed. Default 5 s.
    pub linger: Duration,
    /// Requests that one session may have open in each direction. Default 1,000.
    pub requests: usize,
    /// What to do about slow subscribers.
    pub when_slow: WhenSlow,
    /// How long the peer has for its SETUP. Default 10 s.
    pub setup: Duration,
    /// Who may do what.
    pub rights: Rights,
}

impl Default for RelaySettings {
    fn default() -> Self {
        Self {
            cache: state_cache::Limits::default(),
            directory: state_directory::Limits::default(),
            linger: Duration::from_secs(5),
            requests: 1_000,
            when_slow: WhenSlow::default(),
            setup: Duration::from_secs(10),
            rights: Rights::default(),
        }
    }
}

/// The way to a track.
#[derive(Debug, Clone)]
pub(super) struct TrackRef {
    /// Never used twice in a relay.
    pub(super) id: u64,
    pub(super) name: FullTrackName,
    pub(super) mail: Mail<ToTrack>,
}

impl PartialEq for TrackRef {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

/// What a session is told by others of its relay.
#[derive(Debug)]
pub(super) enum ToSession {
    /// The track it asked for, and whether it was begun for it.
    Found { request: u64, track: TrackRef, begun: bool },
    /// It is not to be had.
    NotFound { request: u64, code: RequestCode },
    /// What it asked of the directory is granted, or not.
    Granted { request: u64, refused: Option<RequestCode> },
    /// The track that it publishes, which has taken it as a source.
    Published { request: u64, track: TrackRef },
    /// A namespace below a prefix is published, or not any more.
    Namespace { request: u64, prefix: Namespace, namespace: Namespace, is: bool },
    /// A track below a prefix is published.
    Offer { request: u64, track: TrackRef },
    /// Subscribe to this, and feed it; an origin may wait so long for a publisher.
    Pull(TrackRef, Duration),
    /// Watch the origin's tracks, or its namespaces, or do so no more.
    Watch { tracks: bool, on: bool },
    /// Objects of this track are wanted, or not any more.
    Forward { track: u64, forward: bool },
    /// This track is not to be fed any more.
    Drop { track: u64, malformed: bool },
    /// Fetch this of your peer, for somebody else.
    Fetch(Box<super::actor_errand::Errand>),
    /// What came of an errand.
    Fetched(super::actor_errand::Fetched),
    /// The session that this errand was given by wants no more of it, or can take more.
    ErrandMore { errand: u64, bytes: usize },
    /// No more of it is wanted.
    ErrandOver { errand: u64 },
    /// The relay ends: say so and go elsewhere.
    Goaway(String),
    /// The relay is taken away: say so, and be gone within this time.
    Retired(Duration),
    /// Who may do what is another matter from now on.
    Rights,
}

/// Tells a session something. One whose mailbox has no room takes less than it asked for: its connection ends.
pub(super) fn tell(door: &Door, what: ToSession) {
    if !door.tell(Box::new(what)) {
        door.end();
    }
}

/// A track as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackView {
    /// Its name.
    pub name: FullTrackName,
    /// Sessions that feed it.
    pub publishers: usize,
    /// Arbiters with subscribers.
    pub arbiters: usize,
    /// Its largest object.
    pub largest: Option<Location>,
    /// Groups at hand.
    pub cached_groups: usize,
    /// Bytes at hand.
    pub cached_bytes: usize,
    /// Whether a publisher has accepted.
    pub live: bool,
    /// Whether somebody wants objects.
    pub forward: bool,
    /// Mirrors that have not caught up.
    pub behind: usize,
}

/// A relay as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RelayView {
    /// Sessions.
    pub sessions: usize,
    /// Namespaces published, and by how many sessions.
    pub namespaces: Vec<(Namespace, usize)>,
    /// Tracks.
    pub tracks: Vec<TrackView>,
    /// Subscriptions that wait for a publisher.
    pub held: usize,
}

/// One relay. Dropping the last holder ends its directory, and with it its tracks.
pub struct Relay {
    pub(super) mesh: Mesh,
    /// The scope of its counters.
    pub(super) name: Arc<str>,
    settings: Snapshot<RelaySettings>,
    /// What caches count against.
    pub(super) budget: Option<Budget>,
    directory: std::sync::OnceLock<Mail<ToDirectory>>,
    next: AtomicU64,
    /// Tells it from all other relays.
    identity: Option<u64>,
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Relay {
    /// Starts one. `name` is the scope of its counters.
    ///
    /// # Errors
    /// See [`Mesh::spawn`].
    pub fn start(mesh: &Mesh, name: &Arc<str>, settings: RelaySettings) -> Result<Arc<Self>, SpawnError> {
        Self::start_within(mesh, name, settings, None)
    }

    /// The same, whose caches count against a memory budget: from 70 % of it on they shrink instead of growing, so that
    /// nobody is refused for their sake.
    ///
    /// # Errors
    /// See [`Mesh::spawn`].
    pub fn start_within(
        mesh: &Mesh,
        name: &Arc<str>,
        settings: RelaySettings,
        budget: Option<Budget>,
    ) -> Result<Arc<Self>, SpawnError> {
        let limits = settings.directory;
        let relay = Arc::new(Self {
            mesh: mesh.clone(),
            name: name.clone(),
            settings: Snapshot::new(settings),
            budget,
            directory: std::sync::OnceLock::new(),
            next: AtomicU64::new(1),
            identity: identity(),
        });
        // It holds the relay weakly: it is the relay that ends it.
        let weak = Arc::downgrade(&relay);
        let spec = Spec::named(format!("{name}-directory")).inbox(DIRECTORY.0, DIRECTORY.1);
        let mail = mesh.spawn(Place::LeastLoaded, spec, move || DirectoryActor::new(weak, limits))?;
        let _first = relay.directory.set(mail);
        Ok(relay)
    }

    /// How it behaves now. To be dropped soon.
    pub(super) fn settings(&self) -> Version<RelaySettings> {
        self.settings.read()
    }

    /// Behaves by these settings from now on. Sessions, namespaces and tracks go on: bounds hold for what comes after,
    /// caches give up what is beyond theirs, and what sessions have by a token that grants it no more ends. False if the
    /// directory has no room to hear of it; then all but caches, bounds of names and running requests follows.
    #[must_use]
    pub fn change(&self, settings: RelaySettings) -> bool {
        let (rights, cache) = {
            let before = self.settings.read();
            if *before == settings {
                return true;
            }
            (before.rights != settings.rights, before.cache != settings.cache)
        };
        self.settings.publish(settings);
        self.tell_directory(ToDirectory::Changed { rights, cache })
    }

    /// Takes it away: its sessions, and those that still come, are told to go and are closed after this time. False if the
    /// directory has no room.
    #[must_use]
    pub fn retire(&self, within: Duration) -> bool {
        self.tell_directory(ToDirectory::Retire(within))
    }

    /// What a cache counts by; nothing yet.
    pub(super) fn lease(&self) -> Option<Lease> {
        self.budget.as_ref().map(Budget::nothing)
    }

    /// A number that is never used twice.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// What it is known by to relays. `None`: there was no randomness.
    pub(super) const fn identity(&self) -> Option<u64> {
        self.identity
    }

    /// A session's.
    pub(super) fn session(&self) -> SessionId {
        SessionId(self.number())
    }

    /// False if it has no room, or has ended.
    pub(super) fn tell_directory(&self, what: ToDirectory) -> bool {
        self.directory.get().is_some_and(|mail| mail.tell(what).is_ok())
    }

    /// Room for the news that a session is gone, which is never refused then.
    pub(super) fn reserve(&self) -> Option<Permit<ToDirectory>> {
        self.directory.get()?.try_permit(0).ok()
    }

    /// Starts an actor of the relay on an arbiter. Not a child of anyone: it ends after the connections in a drain.
    pub(super) fn spawn_on<P: Protocol>(
        &self,
        arbiter: usize,
        what: &str,
        make: impl FnOnce() -> P + Send + 'static,
    ) -> Option<Mail<P::Msg>> {
        let spec = Spec::named(format!("{}-{what}", self.name)).inbox(INBOX.0, INBOX.1);
        self.mesh.spawn(Place::On(arbiter), spec, make).ok()
    }

    /// Tells all sessions to go elsewhere; an empty URI is here again. False if the directory has no room.
    #[must_use]
    pub fn goaway(&self, uri: &str) -> bool {
        self.tell_directory(ToDirectory::Goaway(uri.to_owned()))
    }

    /// What it has at present; at most 1,000 of its tracks.
    pub async fn view(&self, within: Duration) -> RelayView {
        let Some(directory) = self.directory.get() else { return RelayView::default() };
        let Ok((mut view, tracks)) = directory.ask(ToDirectory::View, within).await else {
            return RelayView::default();
        };
        for track in tracks.into_iter().take(SHOWN) {
            view.tracks.extend(track.mail.ask(ToTrack::View, within).await);
        }
        view
    }
}

fn identity() -> Option<u64> {
    let mut random = [0; 8];
    boring::rand::rand_bytes(&mut random).ok()?;
    Some(u64::from_be_bytes(random) >> 2)
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(directory) = self.directory.get() {
            directory.control(Control::Stop);
        }
    }
}
