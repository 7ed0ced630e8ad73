//! Who publishes what and who waits for it: names only, never objects.
//!
//! Namespaces that sessions publish, tracks that exist here, sessions that want to hear of namespaces or tracks below a
//! prefix, and subscriptions that are held until a publisher comes. What follows from a change is appended to a list of
//! [`Say`], which the directory's actor carries out. `T` is the way to a track.
//!
//! # Rules
//! A subscription goes to all publishers of a matching namespace, the same or a prefix, field by field; a track that is
//! already here is joined. A publisher that comes is asked for every track here that it matches. A PUBLISH goes to every
//! session that asked for tracks below a prefix of it, but not to its own publisher, and not to one whose subscription
//! was held for it. Publishing a track publishes no namespace. Reserved names (`.`) do not exist. A session with an origin
//! is asked for what nobody here publishes; when one comes, for every track that has no publisher left. As long as
//! somebody here watches namespaces or tracks, origins are watched as well: what they list is told like what is published
//! here, and a track that comes from one is offered.
//!
//! Two relays may be each other's origin. A session whose peer has said which relay it is ([`Directory::relay`]) is
//! neither told, offered nor given what is had from that relay alone, and what it asks for is not asked of that relay:
//! else each would keep alive what the other has from it. Longer rings are not recognised.
//!
//! # Bounds
//! [`Limits`], for each session and for all. What is beyond is refused with `EXCESSIVE_LOAD`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::{Duration, Instant};

use super::model_codes::RequestCode;
use super::model_names::{FullTrackName, Namespace};

/// A session of a relay; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// A request of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Asked {
    /// Whose.
    pub session: SessionId,
    /// Which.
    pub request: u64,
}

/// The bounds of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Namespaces one session may publish. Default 1,000.
    pub namespaces: usize,
    /// Tracks of one relay. Default 10,000.
    pub tracks: usize,
    /// Prefixes that one session may watch. Default 100.
    pub watches: usize,
    /// Subscriptions of one session that may be held. Default 100.
    pub held: usize,
    /// The longest that one is held. Default 30 s.
    pub hold: Duration,
    /// Publishers of one track. Default 4.
    pub publishers: usize,
    /// Namespaces that one origin may list. Default 10,000; what is beyond is not told to anybody here.
    pub listed: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let hold = Duration::from_secs(30);
        Self { namespaces: 1_000, tracks: 10_000, watches: 100, held: 100, hold, publishers: 4, listed: 10_000 }
    }
}

/// What somebody is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Say<T> {
    /// The track that was asked for.
    Found(Asked, T),
    /// The same, which was begun for it: all that comes of it is new.
    Begun(Asked, T),
    /// It is not to be had.
    NotFound(Asked, RequestCode),
    /// A namespace below a prefix is published, or not any more.
    Namespace {
        /// Who asked.
        to: Asked,
        /// The prefix.
        prefix: Namespace,
        /// The namespace, all of it.
        namespace: Namespace,
        /// Whether it is.
        is: bool,
    },
    /// A track below a prefix is published.
    Offer {
        /// Who asked.
        to: Asked,
        /// The track.
        track: T,
    },
    /// To a publisher: subscribe to this and feed that track. An origin may wait so long for a publisher of its own.
    Pull(SessionId, T, Duration),
    /// To a track: this publisher is gone.
    SourceGone(T, SessionId),
    /// To a session with an origin: watch it, or do so no more.
    Watch {
        /// Which.
        origin: SessionId,
        /// Tracks, or else namespaces.
        tracks: bool,
        /// Whether somebody here does.
        on: bool,
    },
}

struct Track<T> {
    track: T,
    /// Publishers it is fed by, or may be.
    sources: BTreeSet<SessionId>,
    /// Those that published the track itself.
    published: BTreeSet<SessionId>,
}

#[derive(Debug, Clone)]
struct Held {
    asked: Asked,
    until: Instant,
}

#[derive(Default)]
struct Session {
    namespaces: BTreeSet<Namespace>,
    watches: usize,
    held: usize,
}

/// Makes the way to a new track of this name at a session.
pub type Make<'a, T> = &'a mut dyn FnMut(&FullTrackName, SessionId) -> Option<T>;

/// See the top of the file.
pub struct Directory<T> {
    limits: Limits,
    sessions: BTreeMap<SessionId, Session>,
    namespaces: BTreeMap<Namespace, BTreeSet<SessionId>>,
    tracks: BTreeMap<FullTrackName, Track<T>>,
    watches: BTreeMap<(Namespace, Asked), ()>,
    track_watches: BTreeMap<(Namespace, Asked), ()>,
    held: BTreeMap<FullTrackName, Vec<Held>>,
    /// With what each lists.
    origins: BTreeMap<SessionId, BTreeSet<Namespace>>,
    /// Sessions whose peer is a relay, and which.
    relays: BTreeMap<SessionId, u64>,
}

/// By whom a namespace is published: sessions here, and these origins.
type Sources = (bool, Vec<SessionId>);

impl<T> std::fmt::Debug for Directory<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directory").field("tracks", &self.tracks.len()).finish_non_exhaustive()
    }
}

impl<T: Clone + PartialEq> Directory<T> {
    /// An empty one.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            sessions: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            tracks: BTreeMap::new(),
            watches: BTreeMap::new(),
            track_watches: BTreeMap::new(),
            held: BTreeMap::new(),
            origins: BTreeMap::new(),
            relays: BTreeMap::new(),
        }
    }

    /// Other bounds, for what comes from now on: what is beyond them stays.
    pub const fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Namespaces, tracks, and subscriptions that are held.
    #[must_use]
    pub fn counts(&self) -> [usize; 3] {
        [self.namespaces.len(), self.tracks.len(), self.held.values().map(Vec::len).sum()]
    }

    /// The namespaces published, with how many publish each.
    pub fn namespaces(&self) -> impl Iterator<Item = (&Namespace, usize)> {
        self.namespaces.iter().map(|(namespace, by)| (namespace, by.len()))
    }

    /// The tracks.
    pub fn tracks(&self) -> impl Iterator<Item = (&FullTrackName, &T)> {
        self.tracks.iter().map(|(name, track)| (name, &track.track))
    }

    /// The peer of a session is this relay. To be said before anything else of that session.
    pub fn relay(&mut self, session: SessionId, relay: u64) {
        self.relays.insert(session, relay);
    }

    /// A session with an origin has begun.
    pub fn origin(&mut self, session: SessionId, make: Make<'_, T>, out: &mut Vec<Say<T>>) {
        let before = [false, true].map(|tracks| self.watched(tracks));
        self.origins.insert(session, BTreeSet::new());
        self.watch_origins(&before, out);
        let alone: Vec<FullTrackName> =
            self.tracks.iter().filter(|(_, entry)| entry.sources.is_empty()).map(|(name, _)| name.clone()).collect();
        for name in alone {
            // Its publisher may be away from there as well, for as long as one is awaited.
            self.pull(&name, session, self.limits.hold, out);
        }
        self.serve_held(&Namespace::default(), make, out);
    }

    /// A session publishes a namespace.
    ///
    /// # Errors
    /// Why not.
    pub fn publish_namespace(
        &mut self,
        session: SessionId,
        namespace: &Namespace,
        make: Make<'_, T>,
        out: &mut Vec<Say<T>>,
    ) -> Result<(), RequestCode> {
        if namespace.is_reserved() {
            return Err(RequestCode::DoesNotExist);
        }
        let known = self.sessions.entry(session).or_default();
        if known.namespaces.len() >= self.limits.namespaces && !known.namespaces.contains(namespace) {
            return Err(RequestCode::ExcessiveLoad);
        }
        known.namespaces.insert(namespace.clone());
        let before = self.sources(namespace);
        self.namespaces.entry(namespace.clone()).or_default().insert(session);
        self.tell_watches(namespace, &before, out);
        let below: Vec<FullTrackName> = self.tracks_below(namespace).map(|(name, _)| name.clone()).collect();
        for name in below {
            self.pull(&name, session, Duration::ZERO, out);
        }
        self.serve_held(namespace, make, out);
        Ok(())
    }

    /// It does so no more. What it feeds goes on.
    pub fn withdraw_namespace(&mut self, session: SessionId, namespace: &Namespace, out: &mut Vec<Say<T>>) {
        if let Some(known) = self.sessions.get_mut(&session) {
            known.namespaces.remove(namespace);
        }
        let before = self.sources(namespace);
        let Some(publishers) = self.namespaces.get_mut(namespace) else { return };
        if publishers.remove(&session) && publishers.is_empty() {
            self.namespaces.remove(namespace);
            self.tell_watches(namespace, &before, out);
        }
    }

    /// An origin lists a namespace, or does so no more. False if it lists too many.
    pub fn listed(&mut self, origin: SessionId, namespace: &Namespace, is: bool, out: &mut Vec<Say<T>>) -> bool {
        let before = self.sources(namespace);
        let Some(list) = self.origins.get_mut(&origin) else { return true };
        if !is {
            list.remove(namespace);
        } else if list.len() >= self.limits.listed && !list.contains(namespace) {
            return false;
        } else {
            list.insert(namespace.clone());
        }
        self.tell_watches(namespace, &before, out);
        true
    }

    /// An origin lists nothing any more.
    pub fn unlisted(&mut self, origin: SessionId, out: &mut Vec<Say<T>>) {
        let Some(list) = self.origins.get_mut(&origin) else { return };
        for namespace in std::mem::take(list) {
            let (here, mut others) = self.sources(&namespace);
            others.push(origin);
            self.tell_watches(&namespace, &(here, others), out);
        }
    }

    /// A session publishes a track. Answers the way to it.
    ///
    /// # Errors
    /// Why not.
    pub fn publish(
        &mut self,
        session: SessionId,
        name: &FullTrackName,
        make: Make<'_, T>,
        out: &mut Vec<Say<T>>,
    ) -> Result<T, RequestCode> {
        if name.namespace().is_reserved() {
            return Err(RequestCode::DoesNotExist);
        }
        let new = !self.tracks.contains_key(name);
        let track = self.track(name, session, make)?;
        let Some(entry) = self.tracks.get_mut(name) else { return Err(RequestCode::InternalError) };
        if entry.sources.len() >= self.limits.publishers && !entry.sources.contains(&session) {
            return Err(RequestCode::ExcessiveLoad);
        }
        entry.sources.insert(session);
        let first = entry.published.is_empty();
        entry.published.insert(session);
        if first || new {
            let held = self.held.get(name).map_or(&[][..], Vec::as_slice);
            for to in self.watches_of(&self.track_watches, name.namespace()) {
                if !self.is_same(to.session, session) && held.iter().all(|held| held.asked.session != to.session) {
                    out.push(Say::Offer { to, track: track.clone() });
                }
            }
        }
        self.give_held(name, &Ok(track.clone()), out);
        Ok(track)
    }

    /// A session feeds a track no more. With its last publisher's last word a track is over (`over`): whoever publishes
    /// the name next begins another one, however late the track itself is to say that it has ended.
    pub fn leave(&mut self, session: SessionId, name: &FullTrackName, over: bool) {
        let Some(entry) = self.tracks.get_mut(name) else { return };
        let fed = entry.sources.remove(&session);
        entry.published.remove(&session);
        if over && fed && entry.sources.is_empty() {
            self.tracks.remove(name);
        }
    }

    /// A track has ended.
    pub fn ended(&mut self, name: &FullTrackName, track: &T) {
        if self.tracks.get(name).is_some_and(|entry| entry.track == *track) {
            self.tracks.remove(name);
        }
    }

    /// A session wants a track, and waits for a publisher if need be.
    pub fn find(
        &mut self,
        asked: Asked,
        name: &FullTrackName,
        hold: Duration,
        now: Instant,
        make: Make<'_, T>,
        out: &mut Vec<Say<T>>,
    ) {
        if name.namespace().is_reserved() {
            return out.push(Say::NotFound(asked, RequestCode::DoesNotExist));
        }
        match self.tracks.get(name) {
            Some(entry) if self.may_have(entry, asked.session) => {
                return out.push(Say::Found(asked, entry.track.clone()));
            }
            // It comes from there.
            Some(_) => {}
            None => match self.begin(name, hold, &[asked.session], make, out) {
                Ok(Some(track)) => return out.push(Say::Begun(asked, track)),
                Ok(None) => {}
                Err(code) => return out.push(Say::NotFound(asked, code)),
            },
        }
        let hold = hold.min(self.limits.hold);
        if hold.is_zero() {
            return out.push(Say::NotFound(asked, RequestCode::DoesNotExist));
        }
        let session = self.sessions.entry(asked.session).or_default();
        if session.held >= self.limits.held {
            return out.push(Say::NotFound(asked, RequestCode::ExcessiveLoad));
        }
        session.held += 1;
        let until = now.checked_add(hold).unwrap_or(now);
        self.held.entry(name.clone()).or_default().push(Held { asked, until });
    }

    /// It does not want it any more.
    pub fn forget(&mut self, asked: Asked, name: &FullTrackName) {
        let Some(held) = self.held.get_mut(name) else { return };
        let before = held.len();
        held.retain(|held| held.asked != asked);
        let went = before - held.len();
        if held.is_empty() {
            self.held.remove(name);
        }
        (0..went).for_each(|_| self.release(asked.session));
    }

    /// Those that were held long enough.
    pub fn expire(&mut self, now: Instant, out: &mut Vec<Say<T>>) {
        let mut late = Vec::new();
        self.held.retain(|_, held| {
            late.extend(held.extract_if(.., |held| held.until <= now).map(|held| held.asked));
            !held.is_empty()
        });
        for asked in late {
            self.release(asked.session);
            out.push(Say::NotFound(asked, RequestCode::Timeout));
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.held.values().flatten().map(|held| held.until).min()
    }

    /// A session wants to hear of namespaces below a prefix.
    ///
    /// # Errors
    /// Why not.
    pub fn watch_namespaces(
        &mut self,
        asked: Asked,
        prefix: &Namespace,
        out: &mut Vec<Say<T>>,
    ) -> Result<(), RequestCode> {
        self.watch(asked.session)?;
        let before = [false, true].map(|tracks| self.watched(tracks));
        self.watches.insert((prefix.clone(), asked), ());
        let others = self.origins.iter().filter(|(origin, _)| !self.is_same(**origin, asked.session));
        let listed = others.flat_map(|(_, list)| below(list, prefix));
        let there: BTreeSet<&Namespace> = self.below(prefix).map(|(namespace, _)| namespace).chain(listed).collect();
        for namespace in there {
            let (prefix, namespace) = (prefix.clone(), namespace.clone());
            out.push(Say::Namespace { to: asked, prefix, namespace, is: true });
        }
        self.watch_origins(&before, out);
        Ok(())
    }

    /// A session wants to be offered tracks below a prefix.
    ///
    /// # Errors
    /// Why not.
    pub fn watch_tracks(&mut self, asked: Asked, prefix: &Namespace, out: &mut Vec<Say<T>>) -> Result<(), RequestCode> {
        self.watch(asked.session)?;
        let before = [false, true].map(|tracks| self.watched(tracks));
        self.track_watches.insert((prefix.clone(), asked), ());
        for (_, entry) in self.tracks_below(prefix) {
            let far = entry.sources.iter().any(|source| self.origins.contains_key(source));
            let known = entry.published.contains(&asked.session) || !self.may_have(entry, asked.session);
            if (far || !entry.published.is_empty()) && !known {
                out.push(Say::Offer { to: asked, track: entry.track.clone() });
            }
        }
        self.watch_origins(&before, out);
        Ok(())
    }

    /// It wants to hear of them no more.
    pub fn unwatch(&mut self, asked: Asked, prefix: &Namespace, out: &mut Vec<Say<T>>) {
        let key = (prefix.clone(), asked);
        let before = [false, true].map(|tracks| self.watched(tracks));
        let went = self.watches.remove(&key).is_some() | self.track_watches.remove(&key).is_some();
        if let Some(session) = self.sessions.get_mut(&asked.session).filter(|_| went) {
            session.watches = session.watches.saturating_sub(1);
        }
        self.watch_origins(&before, out);
    }

    /// A session is gone, with all that was its.
    pub fn gone(&mut self, session: SessionId, out: &mut Vec<Say<T>>) {
        let known = self.sessions.remove(&session).unwrap_or_default();
        self.unlisted(session, out);
        self.origins.remove(&session);
        for namespace in &known.namespaces {
            self.withdraw_namespace(session, namespace, out);
        }
        let before = [false, true].map(|tracks| self.watched(tracks));
        self.watches.retain(|(_, asked), ()| asked.session != session);
        self.track_watches.retain(|(_, asked), ()| asked.session != session);
        self.watch_origins(&before, out);
        self.relays.remove(&session);
        self.held.retain(|_, held| {
            held.retain(|held| held.asked.session != session);
            !held.is_empty()
        });
        for entry in self.tracks.values_mut() {
            if entry.sources.remove(&session) {
                entry.published.remove(&session);
                out.push(Say::SourceGone(entry.track.clone(), session));
            }
        }
    }

    fn watch(&mut self, session: SessionId) -> Result<(), RequestCode> {
        let known = self.sessions.entry(session).or_default();
        if known.watches >= self.limits.watches {
            return Err(RequestCode::ExcessiveLoad);
        }
        known.watches += 1;
        Ok(())
    }

    fn release(&mut self, session: SessionId) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.held = session.held.saturating_sub(1);
        }
    }

    /// Those that publish a namespace, or a prefix of it.
    fn publishers(&self, namespace: &Namespace) -> BTreeSet<SessionId> {
        let prefixes = (0..=namespace.len()).map(|count| namespace.first(count));
        prefixes.filter_map(|prefix| self.namespaces.get(&prefix)).flatten().copied().collect()
    }

    /// Begins a track for these sessions if somebody publishes it.
    fn begin(
        &mut self,
        name: &FullTrackName,
        hold: Duration,
        by: &[SessionId],
        make: Make<'_, T>,
        out: &mut Vec<Say<T>>,
    ) -> Result<Option<T>, RequestCode> {
        let mut publishers = self.publishers(name.namespace());
        let far = publishers.is_empty();
        if far {
            let other = |origin: &&SessionId| by.iter().any(|session| !self.is_same(*session, **origin));
            publishers.extend(self.origins.keys().find(other));
        }
        let Some(at) = publishers.first() else { return Ok(None) };
        let track = self.track(name, *at, make)?;
        if far {
            let at = *at;
            let watches = self.watches_of(&self.track_watches, name.namespace()).into_iter();
            let others = watches.filter(|to| !self.is_same(to.session, at));
            out.extend(others.map(|to| Say::Offer { to, track: track.clone() }));
        }
        for publisher in publishers {
            self.pull(name, publisher, hold.min(self.limits.hold), out);
        }
        Ok(Some(track))
    }

    /// The track of this name, made at a session if there is none.
    fn track(&mut self, name: &FullTrackName, at: SessionId, make: Make<'_, T>) -> Result<T, RequestCode> {
        if let Some(entry) = self.tracks.get(name) {
            return Ok(entry.track.clone());
        }
        if self.tracks.len() >= self.limits.tracks {
            return Err(RequestCode::ExcessiveLoad);
        }
        let track = make(name, at).ok_or(RequestCode::InternalError)?;
        let entry = Track { track: track.clone(), sources: BTreeSet::new(), published: BTreeSet::new() };
        self.tracks.insert(name.clone(), entry);
        Ok(track)
    }

    fn pull(&mut self, name: &FullTrackName, publisher: SessionId, hold: Duration, out: &mut Vec<Say<T>>) {
        let Some(entry) = self.tracks.get_mut(name) else { return };
        if entry.sources.len() < self.limits.publishers && entry.sources.insert(publisher) {
            out.push(Say::Pull(publisher, entry.track.clone(), hold));
        }
    }

    /// Serves subscriptions that were held for tracks below a namespace.
    fn serve_held(&mut self, namespace: &Namespace, make: Make<'_, T>, out: &mut Vec<Say<T>>) {
        let names: Vec<FullTrackName> =
            self.held.keys().filter(|name| name.namespace().starts_with(namespace)).cloned().collect();
        for name in names {
            let by: Vec<SessionId> =
                self.held.get(&name).into_iter().flatten().map(|held| held.asked.session).collect();
            match self.begin(&name, self.limits.hold, &by, make, out) {
                Ok(Some(track)) => self.give_held(&name, &Ok(track), out),
                Ok(None) => {}
                Err(code) => self.give_held(&name, &Err(code), out),
            }
        }
    }

    /// Answers subscriptions that were held for a track, but for those by which it comes.
    fn give_held(&mut self, name: &FullTrackName, answer: &Result<T, RequestCode>, out: &mut Vec<Say<T>>) {
        let mut kept = Vec::new();
        for held in self.held.remove(name).unwrap_or_default() {
            if self.tracks.get(name).is_some_and(|entry| !self.may_have(entry, held.asked.session)) {
                kept.push(held);
                continue;
            }
            self.release(held.asked.session);
            out.push(match answer {
                Ok(track) => Say::Begun(held.asked, track.clone()),
                Err(code) => Say::NotFound(held.asked, *code),
            });
        }
        if !kept.is_empty() {
            self.held.insert(name.clone(), kept);
        }
    }

    /// Whether two sessions lead to the same relay, or are one.
    fn is_same(&self, one: SessionId, other: SessionId) -> bool {
        one == other || self.relays.get(&one).is_some_and(|relay| self.relays.get(&other) == Some(relay))
    }

    /// Whether a session may be given a track: not if it comes from its own peer alone.
    fn may_have(&self, entry: &Track<T>, session: SessionId) -> bool {
        let from = |source: &SessionId| self.origins.contains_key(source) && self.is_same(*source, session);
        entry.sources.is_empty() || !entry.sources.iter().all(from)
    }

    /// The namespaces that begin with a prefix: neighbours, since their bytes do.
    fn below<'a>(&'a self, prefix: &'a Namespace) -> impl Iterator<Item = (&'a Namespace, &'a BTreeSet<SessionId>)> {
        let from = (Bound::Included(prefix.clone()), Bound::Unbounded);
        self.namespaces.range(from).take_while(move |(namespace, _)| namespace.starts_with(prefix))
    }

    fn tracks_below<'a>(&'a self, prefix: &'a Namespace) -> impl Iterator<Item = (&'a FullTrackName, &'a Track<T>)> {
        self.tracks.iter().filter(move |(name, _)| name.namespace().starts_with(prefix))
    }

    /// Who publishes a namespace.
    fn sources(&self, namespace: &Namespace) -> Sources {
        let origins = self.origins.iter().filter(|(_, list)| list.contains(namespace));
        (self.namespaces.contains_key(namespace), origins.map(|(origin, _)| *origin).collect())
    }

    /// Whether a session is told of what has these sources.
    fn hears_of(&self, session: SessionId, (here, origins): &Sources) -> bool {
        *here || origins.iter().any(|origin| !self.is_same(*origin, session))
    }

    /// The origins at which tracks, or namespaces, are watched for somebody here who is not that origin itself.
    fn watched(&self, tracks: bool) -> BTreeSet<SessionId> {
        let watches = if tracks { &self.track_watches } else { &self.watches };
        let wanted = |origin: &SessionId| watches.keys().any(|(_, asked)| !self.is_same(asked.session, *origin));
        self.origins.keys().copied().filter(wanted).collect()
    }

    /// Tells origins what has changed since they were watched like this: namespaces, and tracks.
    fn watch_origins(&self, before: &[BTreeSet<SessionId>; 2], out: &mut Vec<Say<T>>) {
        for (tracks, before) in [false, true].into_iter().zip(before) {
            let now = self.watched(tracks);
            out.extend(now.difference(before).map(|origin| Say::Watch { origin: *origin, tracks, on: true }));
            out.extend(before.difference(&now).map(|origin| Say::Watch { origin: *origin, tracks, on: false }));
        }
    }

    fn watches_of(&self, watches: &BTreeMap<(Namespace, Asked), ()>, namespace: &Namespace) -> Vec<Asked> {
        let least = Asked { session: SessionId(0), request: 0 };
        let mut found = Vec::new();
        for count in 0..=namespace.len() {
            let prefix = namespace.first(count);
            let of_prefix = watches.range((prefix.clone(), least)..).take_while(|((of, _), ())| *of == prefix);
            found.extend(of_prefix.map(|((_, asked), ())| *asked));
        }
        found
    }

    /// Tells those who watch a namespace that had these sources before what is new to them.
    fn tell_watches(&self, namespace: &Namespace, before: &Sources, out: &mut Vec<Say<T>>) {
        let now = self.sources(namespace);
        if *before == now {
            return;
        }
        let least = Asked { session: SessionId(0), request: 0 };
        for count in 0..=namespace.len() {
            let prefix = namespace.first(count);
            let of_prefix = self.watches.range((prefix.clone(), least)..).take_while(|((of, _), ())| *of == prefix);
            for ((prefix, to), ()) in of_prefix {
                let is = self.hears_of(to.session, &now);
                if is != self.hears_of(to.session, before) {
                    let (prefix, namespace) = (prefix.clone(), namespace.clone());
                    out.push(Say::Namespace { to: *to, prefix, namespace, is });
                }
            }
        }
    }
}

/// Those of a list that begin with a prefix.
fn below<'a>(list: &'a BTreeSet<Namespace>, prefix: &'a Namespace) -> impl Iterator<Item = &'a Namespace> {
    let from = (Bound::Included(prefix.clone()), Bound::Unbounded);
    list.range(from).take_while(move |namespace| namespace.starts_with(prefix))
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
