//! What an edge asks its origin about names: as long as somebody here watches namespaces or tracks, so does the session
//! with the origin, all of them. Namespaces go to the directory, which bounds them; tracks come as PUBLISH without
//! objects, until somebody here wants those.
//!
//! An origin that refuses lists nothing, which is counted (`moq_origin_refused`); the session with it goes on.

use super::actor_directory::ToDirectory;
use super::actor_session::MoqSession;
use super::actor_words::What;
use super::model_codes::ResetCode;
use super::model_message::{Message, SubscribeNamespace, SubscribeTracks};
use super::model_names::Namespace;
use super::model_params::Params;
use crate::transports::quic::Session;

impl MoqSession {
    /// Our request that watches tracks, or namespaces, of the origin.
    pub(super) fn watching(&self, of_tracks: bool) -> Option<u64> {
        let of = |what: &What| matches!(what, What::OfOrigin { tracks } if *tracks == of_tracks);
        self.requests.iter().find(|(_, request)| of(&request.what)).map(|(number, _)| *number)
    }

    /// Somebody here begins to watch, or nobody does any more.
    pub(super) fn watch_origin(&mut self, tracks: bool, on: bool, session: &mut dyn Session) {
        match (on, self.watching(tracks)) {
            (true, None) => {
                let prefix = Namespace::default();
                let opened = self.open_request(What::OfOrigin { tracks }, session, |request_id| {
                    if tracks {
                        let params = Params { forward: Some(false), ..Params::default() };
                        Message::SubscribeTracks(Box::new(SubscribeTracks { request_id, prefix, params }))
                    } else {
                        let params = Params::default();
                        Message::SubscribeNamespace(Box::new(SubscribeNamespace { request_id, prefix, params }))
                    }
                });
                if opened.is_err() {
                    self.raise("moq_origin_refused", "no_stream");
                }
            }
            (false, Some(number)) => self.end_request(number, ResetCode::Cancelled, session),
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// Whether a request is ours for namespaces.
    pub(super) fn lists(&self, number: u64) -> bool {
        let what = self.requests.get(&number).map(|request| &request.what);
        matches!(what, Some(What::OfOrigin { tracks: false }))
    }

    /// The origin names a namespace, of which nothing was left out as its prefix.
    pub(super) fn listed(&self, namespace: Namespace, is: bool) {
        if let Some(joined) = &self.joined {
            self.tell_directory(ToDirectory::Listed { origin: joined.id, namespace, is });
        }
    }

    pub(super) fn unlisted(&self) {
        if let Some(joined) = &self.joined {
            self.tell_directory(ToDirectory::Unlisted(joined.id));
        }
    }
}
