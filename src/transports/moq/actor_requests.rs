//! What a session does about each word: of its peer on request streams, and of its relay.

use std::collections::BTreeSet;
use std::time::Duration;

use super::actor_directory::ToDirectory;
use super::actor_ingest::Up;
use super::actor_publish::Sub;
use super::actor_relay::ToSession;
use super::actor_session::{Close, MoqSession};
use super::actor_track::ToTrack;
use super::actor_words::What;
use super::model::Side;
use super::model_codes::{DoneCode, RequestCode, ResetCode, SessionCode};
use super::model_message::{Message, NamespaceAdded, NamespaceDone, RequestOk, RequestUpdate, Subscribe};
use super::model_names::{FullTrackName, Namespace};
use super::model_params::Params;
use super::state_directory::Asked;
use super::state_rights::Act;
use crate::transports::quic::Session;

impl MoqSession {
    fn asked(&self, request: u64) -> Option<Asked> {
        self.joined.as_ref().map(|joined| Asked { session: joined.id, request })
    }

    /// Asks the directory; refuses the request if it has no room.
    fn ask(&mut self, number: u64, session: &mut dyn Session, what: impl FnOnce(Asked) -> ToDirectory) {
        let told = self.asked(number).is_some_and(|asked| self.tell_directory(what(asked)));
        if !told {
            self.refuse(number, RequestCode::ExcessiveLoad, session);
        }
    }

    fn what(&mut self, number: u64) -> Option<&mut What> {
        self.requests.get_mut(&number).map(|request| &mut request.what)
    }

    fn set(&mut self, number: u64, what: What) {
        if let Some(request) = self.requests.get_mut(&number) {
            request.what = what;
        }
    }

    /// A message on a request stream.
    pub(super) fn hear(&mut self, number: u64, message: Message, session: &mut dyn Session) -> Result<(), Close> {
        let Some(request) = self.requests.get_mut(&number) else { return Ok(()) };
        if let Some(id) = message.request_id()
            && !self.numbers.came(id)
        {
            return Err(Close { code: SessionCode::InvalidRequestId, reason: "invalid_request_id" });
        }
        if matches!(request.what, What::New) {
            let Some(kind) = message.opens() else { return Err(Close::violation("not_a_request")) };
            request.kind = Some(kind);
            request.id = message.request_id().unwrap_or(0);
            request.tokens = message.tokens().to_vec();
            let shown = !request.tokens.is_empty();
            if self.is_leaving() {
                self.refuse(number, RequestCode::GoingAway, session);
                return Ok(());
            }
            self.raise("moq_requests", message.name());
            let done = self.request(number, message, session);
            if shown {
                self.look_at_rights(session.now());
            }
            return done;
        }
        match message {
            Message::RequestUpdate(update) => self.update(number, &update, session),
            Message::SubscribeOk(ok) => self.subscribe_ok(number, *ok, session),
            Message::PublishDone(done) => self.publish_done(number, &done, session),
            Message::RequestOk(ok) => self.request_ok(number, &ok, session),
            Message::RequestError(error) => self.request_error(number, &error, session),
            Message::FetchOk(ok) => self.fetch_ok(number, *ok),
            // What a publisher says of its own side is seen in what it sends.
            Message::PublishStateNotify(_) if matches!(self.what(number), Some(What::Up(_))) => Ok(()),
            Message::Unsubscribe => {
                if matches!(self.what(number), Some(What::Sub(sub)) if sub.established) {
                    self.done(number, DoneCode::SubscriptionEnded, session);
                } else {
                    self.end_request(number, ResetCode::Cancelled, session);
                }
                Ok(())
            }
            Message::Namespace(NamespaceAdded { suffix }) if self.lists(number) => {
                self.listed(suffix, true);
                Ok(())
            }
            Message::NamespaceDone(NamespaceDone { suffix }) if self.lists(number) => {
                self.listed(suffix, false);
                Ok(())
            }
            Message::PublishBlocked(_) if matches!(self.what(number), Some(What::OfOrigin { tracks: true })) => {
                self.raise("moq_origin_refused", "publish_blocked");
                Ok(())
            }
            Message::PublishStateNotify(_)
            | Message::Setup(_)
            | Message::Goaway(_)
            | Message::Subscribe(_)
            | Message::Publish(_)
            | Message::Fetch(_)
            | Message::TrackStatus(_)
            | Message::PublishNamespace(_)
            | Message::SubscribeNamespace(_)
            | Message::Namespace(_)
            | Message::NamespaceDone(_)
            | Message::SubscribeTracks(_)
            | Message::PublishBlocked(_) => Err(Close::violation("unexpected_message")),
        }
    }

    /// The first message of a request of the peer.
    fn request(&mut self, number: u64, message: Message, session: &mut dyn Session) -> Result<(), Close> {
        match message {
            Message::Subscribe(message) => {
                let name = message.track.clone();
                if let Err(code) = self.may(Act::Subscribe, name.namespace(), &message.params.tokens) {
                    self.refuse(number, code, session);
                } else if !self.draft.profile().many_subscriptions && self.sends(&name) {
                    self.refuse(number, RequestCode::DuplicateSubscription, session);
                } else {
                    let hold = message.params.rendezvous_timeout.unwrap_or_default();
                    self.set(number, What::Sub(Box::new(Sub::asked(name.clone(), message.params))));
                    self.ask(number, session, |asked| ToDirectory::Find { asked, name, hold });
                }
            }
            Message::TrackStatus(message) => {
                let name = message.track.clone();
                if let Err(code) = self.may(Act::Subscribe, name.namespace(), &message.params.tokens) {
                    self.refuse(number, code, session);
                } else {
                    let sub = Box::new(Sub::asked(name.clone(), message.params));
                    self.set(number, What::Status { sub });
                    self.ask(number, session, |asked| ToDirectory::Find { asked, name, hold: Duration::ZERO });
                }
            }
            Message::Publish(message) => {
                if !self.aliases.put(message.track_alias, number) {
                    return Err(Close { code: SessionCode::DuplicateTrackAlias, reason: "duplicate_track_alias" });
                }
                let name = message.track.clone();
                let (allowed, twice) = match self.side {
                    Side::Server => {
                        (self.may(Act::Publish, name.namespace(), &message.params.tokens), self.receives(&name, false))
                    }
                    // An origin has no rights here; what it was asked for it may bring, unless that comes already.
                    Side::Client if self.watching(true).is_some() => (Ok(()), self.receives(&name, true)),
                    Side::Client => (Err(RequestCode::Uninterested), false),
                };
                self.set(number, What::Up(Box::new(Up::offered(*message))));
                if let Err(code) = allowed {
                    self.refuse(number, code, session);
                } else if twice {
                    self.refuse(number, RequestCode::DuplicateSubscription, session);
                } else {
                    self.ask(number, session, |asked| ToDirectory::Publish { asked, name });
                }
            }
            Message::PublishNamespace(message) => {
                if let Err(code) = self.may(Act::Publish, &message.namespace, &message.params.tokens) {
                    self.refuse(number, code, session);
                } else {
                    let namespace = message.namespace;
                    self.set(number, What::Namespace(namespace.clone()));
                    self.ask(number, session, |asked| ToDirectory::PublishNamespace { asked, namespace });
                }
            }
            Message::SubscribeNamespace(message) => {
                let prefix = message.prefix;
                if let Err(code) = self.may(Act::Subscribe, &prefix, &message.params.tokens) {
                    self.refuse(number, code, session);
                } else if !self.namespaces.fits(&prefix, number) {
                    self.refuse(number, RequestCode::PrefixOverlap, session);
                } else {
                    self.namespaces.put(number, prefix.clone());
                    let what = What::WatchNamespaces { prefix: prefix.clone(), told: BTreeSet::new() };
                    self.set(number, what);
                    self.ask(number, session, |asked| ToDirectory::WatchNamespaces { asked, prefix });
                }
            }
            Message::SubscribeTracks(message) => {
                let prefix = message.prefix;
                if let Err(code) = self.may(Act::Subscribe, &prefix, &message.params.tokens) {
                    self.refuse(number, code, session);
                } else if !self.tracks.fits(&prefix, number) {
                    self.refuse(number, RequestCode::PrefixOverlap, session);
                } else {
                    self.tracks.put(number, prefix.clone());
                    let forward = message.params.forward.unwrap_or(true);
                    self.set(number, What::WatchTracks { prefix: prefix.clone(), forward });
                    self.ask(number, session, |asked| ToDirectory::WatchTracks { asked, prefix });
                }
            }
            Message::Fetch(message) => {
                let name = self.name_of_fetch(&message);
                match name.map(|name| self.may(Act::Subscribe, name.namespace(), &message.params.tokens)) {
                    Some(Err(code)) => self.refuse(number, code, session),
                    Some(Ok(())) | None => self.fetch(number, *message, session),
                }
            }
            Message::Setup(_)
            | Message::Goaway(_)
            | Message::SubscribeOk(_)
            | Message::PublishDone(_)
            | Message::PublishStateNotify(_)
            | Message::FetchOk(_)
            | Message::Namespace(_)
            | Message::NamespaceDone(_)
            | Message::PublishBlocked(_)
            | Message::RequestUpdate(_)
            | Message::RequestOk(_)
            | Message::RequestError(_)
            | Message::Unsubscribe => return Err(Close::violation("not_a_request")),
        }
        Ok(())
    }

    /// Whether the peer subscribes to a track here already, or was offered it.
    pub(super) fn sends(&self, name: &FullTrackName) -> bool {
        self.requests.values().any(|request| matches!(&request.what, What::Sub(sub) if sub.name == *name))
            || self.offers.values().any(|offer| offer.name == *name)
    }

    /// Whether the peer publishes a track here by itself already, or because it was asked to.
    fn receives(&self, name: &FullTrackName, asked: bool) -> bool {
        self.requests.values().any(|request| {
            (asked || !request.ours) && matches!(&request.what, What::Up(up) if up.name == *name && !up.is_done())
        })
    }

    /// A word about a request that holds already.
    fn update(&mut self, number: u64, update: &RequestUpdate, session: &mut dyn Session) -> Result<(), Close> {
        let Some(request) = self.requests.get_mut(&number) else { return Ok(()) };
        let kind = match &mut request.what {
            What::Sub(_) => return self.update_sub(number, &update.params, session),
            What::Fetch(serving) => {
                serving.set_priority(update.params.priority);
                self.ready.mark(number);
                None
            }
            What::WatchNamespaces { prefix, .. } | What::WatchTracks { prefix, .. } => {
                Some(prefix.clone()).zip(update.params.prefix.clone())
            }
            What::Up(_) | What::Namespace(_) => None,
            // It crossed our last word.
            What::Over => return Ok(()),
            What::New | What::Status { .. } | What::Errand(_) | What::OfOrigin { .. } => {
                return Err(Close::violation("unexpected_message"));
            }
        };
        if let Some((old, new)) = kind {
            return self.other_prefix(number, &old, new, session);
        }
        self.say(number, &Message::RequestOk(Box::default()), session);
        Ok(())
    }

    fn other_prefix(
        &mut self,
        number: u64,
        old: &Namespace,
        new: Namespace,
        session: &mut dyn Session,
    ) -> Result<(), Close> {
        let of_tracks = matches!(self.what(number), Some(What::WatchTracks { .. }));
        let prefixes = if of_tracks { &mut self.tracks } else { &mut self.namespaces };
        let fits = prefixes.fits(&new, number);
        let tokens = self.requests.get(&number).map(|request| request.tokens.clone()).unwrap_or_default();
        let allowed = self.may(Act::Subscribe, &new, &tokens);
        if let Err(code) = if fits { allowed } else { Err(RequestCode::PrefixOverlap) } {
            self.refuse(number, code, session);
            return Ok(());
        }
        let prefixes = if of_tracks { &mut self.tracks } else { &mut self.namespaces };
        prefixes.put(number, new.clone());
        match self.what(number) {
            Some(What::WatchTracks { prefix, .. }) => *prefix = new.clone(),
            Some(What::WatchNamespaces { prefix, told }) => {
                *prefix = new.clone();
                told.clear();
            }
            _ => {}
        }
        if let Some(asked) = self.asked(number) {
            self.tell_directory(ToDirectory::Unwatch { asked, prefix: old.clone() });
        }
        self.ask(number, session, |asked| {
            if of_tracks {
                ToDirectory::WatchTracks { asked, prefix: new }
            } else {
                ToDirectory::WatchNamespaces { asked, prefix: new }
            }
        });
        Ok(())
    }

    /// A word of the relay.
    pub(super) fn hear_relay(&mut self, what: ToSession, session: &mut dyn Session) -> Result<(), Close> {
        match what {
            ToSession::Found { request, track, begun } => self.found(request, track, begun, session),
            ToSession::NotFound { request, code } => self.refuse(request, code, session),
            ToSession::Granted { request, refused: Some(code) } => self.refuse(request, code, session),
            ToSession::Granted { request, refused: None } => {
                self.say(request, &Message::RequestOk(Box::default()), session);
            }
            ToSession::Published { request, track } => self.published(request, track, session),
            ToSession::Namespace { request, prefix, namespace, is } => {
                self.namespace(request, &prefix, &namespace, is, session);
            }
            ToSession::Offer { request, track } => self.offer(request, track, session),
            ToSession::Pull(track, hold) => self.pull(track, hold, session),
            ToSession::Watch { tracks, on } => self.watch_origin(tracks, on, session),
            ToSession::Forward { track, forward } => self.forward(track, forward, session),
            ToSession::Drop { track, malformed } => self.drop_track(track, malformed, session),
            ToSession::Fetch(errand) => self.errand(*errand, session),
            ToSession::Fetched(fetched) => self.fetched(fetched, session),
            ToSession::ErrandMore { errand, bytes } => self.errand_more(errand, bytes, session)?,
            ToSession::ErrandOver { errand } => self.errand_over(errand, session),
            // Heard by the session itself.
            ToSession::Goaway(_) | ToSession::Retired(_) | ToSession::Rights => {}
        }
        Ok(())
    }

    fn namespace(&mut self, number: u64, of: &Namespace, namespace: &Namespace, is: bool, session: &mut dyn Session) {
        let Some(What::WatchNamespaces { prefix, told }) = self.what(number) else { return };
        // Of a prefix that was replaced meanwhile.
        let Some(suffix) = namespace.strip_prefix(prefix).filter(|_| prefix == of) else { return };
        let message = if is && told.insert(namespace.clone()) {
            Message::Namespace(NamespaceAdded { suffix })
        } else if !is && told.remove(namespace) {
            Message::NamespaceDone(NamespaceDone { suffix })
        } else {
            return;
        };
        self.say(number, &message, session);
    }

    fn request_ok(&mut self, number: u64, ok: &RequestOk, session: &mut dyn Session) -> Result<(), Close> {
        let Some(request) = self.requests.get_mut(&number) else { return Ok(()) };
        match &mut request.what {
            What::Sub(sub) if sub.offered && !sub.accepted => {
                sub.accepted = true;
                let params = ok.params.clone();
                self.accepted(number, &params, session);
                Ok(())
            }
            // An answer to an update.
            What::Up(up) if up.updates > 0 => {
                up.updates -= 1;
                if let (Some(track), Some(largest)) = (&up.track, ok.params.largest) {
                    let (source, properties) = (self.joined.as_ref().map(|joined| joined.id), Default::default());
                    if let Some(source) = source {
                        drop(track.mail.tell(ToTrack::Live { source, largest: Some(largest), properties }));
                    }
                }
                Ok(())
            }
            What::Over | What::OfOrigin { .. } => Ok(()),
            What::New
            | What::Sub(_)
            | What::Up(_)
            | What::Namespace(_)
            | What::WatchNamespaces { .. }
            | What::WatchTracks { .. }
            | What::Status { .. }
            | What::Fetch(_)
            | What::Errand(_) => Err(Close::violation("unexpected_message")),
        }
    }

    fn request_error(
        &mut self,
        number: u64,
        error: &super::model_message::RequestError,
        session: &mut dyn Session,
    ) -> Result<(), Close> {
        let Some(request) = self.requests.get_mut(&number) else { return Ok(()) };
        if !request.ours
            && !matches!(&request.what, What::Up(up) if up.updates > 0)
            && !matches!(request.what, What::Over)
        {
            return Err(Close::violation("unexpected_message"));
        }
        // It may be had elsewhere, where nobody goes from here: a redirect is of one hop.
        let code = if error.code == RequestCode::Redirect { RequestCode::NotSupported } else { error.code };
        match &mut request.what {
            What::Up(up) => up.refused = Some(code),
            What::Errand(errand) => {
                let errand = *errand;
                self.errand_refused(errand, code);
            }
            What::OfOrigin { .. } => self.raise("moq_origin_refused", error.code.reason()),
            What::New
            | What::Sub(_)
            | What::Namespace(_)
            | What::WatchNamespaces { .. }
            | What::WatchTracks { .. }
            | What::Status { .. }
            | What::Fetch(_)
            | What::Over => {}
        }
        self.is_over(number, session);
        Ok(())
    }

    /// The directory need not look for a track any more.
    pub(super) fn forget_find(&self, number: u64, name: &FullTrackName) {
        if let Some(asked) = self.asked(number) {
            self.tell_directory(ToDirectory::Forget { asked, name: name.clone() });
        }
    }

    /// The directory is asked for the track of a fetch.
    pub(super) fn find_for_fetch(&mut self, number: u64, name: FullTrackName, session: &mut dyn Session) {
        self.ask(number, session, |asked| ToDirectory::Find { asked, name, hold: Duration::ZERO });
    }

    /// A publisher is asked for a track.
    fn pull(&mut self, track: super::actor_relay::TrackRef, hold: Duration, session: &mut dyn Session) {
        let Some(source) = self.joined.as_ref().map(|joined| joined.id) else { return };
        let (name, refused) = (track.name.clone(), track.clone());
        let up = Up::wanted(track);
        // Unfiltered: whoever subscribes here may want what the publisher still has.
        let hold = Some(hold).filter(|hold| self.side == Side::Client && !hold.is_zero());
        let params = Params { forward: Some(true), rendezvous_timeout: hold, ..Params::default() };
        let opened = self.open_request(What::Up(Box::new(up)), session, |request_id| {
            Message::Subscribe(Box::new(Subscribe { request_id, track: name, params }))
        });
        if opened.is_err() {
            drop(refused.mail.tell(ToTrack::Refused(source, RequestCode::ExcessiveLoad)));
        }
    }

    /// What a request held is let go of.
    pub(super) fn let_go(&mut self, number: u64, what: What, session: Option<&mut dyn Session>) {
        self.ready.remove(number);
        self.wake.remove(&number);
        match what {
            What::New | What::Over => {}
            What::Sub(sub) | What::Status { sub } => {
                if sub.track.is_none()
                    && let Some(asked) = self.asked(number)
                {
                    self.tell_directory(ToDirectory::Forget { asked, name: sub.name.clone() });
                }
                if let Some(session) = session {
                    self.reset_streams(number, ResetCode::Cancelled, session);
                }
            }
            What::Up(up) => self.up_is_over(number, *up, session),
            What::Namespace(namespace) => {
                if let Some(asked) = self.asked(number) {
                    self.tell_directory(ToDirectory::WithdrawNamespace { session: asked.session, namespace });
                }
            }
            What::WatchNamespaces { prefix, .. } => {
                self.namespaces.remove(number);
                if let Some(asked) = self.asked(number) {
                    self.tell_directory(ToDirectory::Unwatch { asked, prefix });
                }
            }
            What::WatchTracks { prefix, .. } => {
                self.tracks.remove(number);
                if let Some(asked) = self.asked(number) {
                    self.tell_directory(ToDirectory::Unwatch { asked, prefix });
                }
            }
            What::Fetch(serving) => self.serving_is_over(number, *serving, session),
            What::Errand(errand) => self.errand_is_over(errand),
            What::OfOrigin { tracks: false } => self.unlisted(),
            What::OfOrigin { tracks: true } => {}
        }
    }
}
