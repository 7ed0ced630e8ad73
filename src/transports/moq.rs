//! Media over QUIC Transport (MoQT): named tracks of groups of objects, published, subscribed to and relayed
//! (draft-ietf-moq-transport-18 and -20).
//!
//! `model*` are the values both ends speak about, the same for every draft: names, locations, messages, codes. `codec*`
//! turns them into bytes of one draft and back, piece by piece as bytes arrive, and says what a mistake costs: a
//! request, a stream or the session. What drafts disagree about is one table, [`model::Profile`].

mod actor_client;
mod actor_client_requests;
mod actor_client_streams;
mod actor_directory;
mod actor_errand;
mod actor_feed;
mod actor_fetch;
mod actor_ingest;
mod actor_listing;
mod actor_mirror;
mod actor_origin;
mod actor_publish;
mod actor_relay;
mod actor_requests;
mod actor_rights;
mod actor_session;
mod actor_site;
mod actor_track;
mod actor_wire;
mod actor_words;
mod client;
pub mod codec;
pub mod codec_datagram;
pub mod codec_fetch;
pub mod codec_message;
mod codec_name;
pub mod codec_params;
pub mod codec_property;
#[cfg(test)]
mod codec_samples;
mod codec_setup;
pub mod codec_stream;
pub mod codec_subgroup;
#[cfg(test)]
mod codec_vectors;
pub mod model;
pub mod model_codes;
pub mod model_message;
pub mod model_names;
pub mod model_params;
pub mod state_assembly;
pub mod state_cache;
pub mod state_delivery;
pub mod state_directory;
pub mod state_objects;
pub mod state_outgoing;
pub mod state_ready;
pub mod state_requests;
pub mod state_rights;
pub mod state_track;

pub use actor_origin::{Origin, OriginSettings};
pub use actor_relay::{Relay, RelaySettings, RelayView, TrackView, WhenSlow};
pub use actor_site::{Scope, Site};
pub use client::{
    BadUrl, Carrier, ClientError, ClientOptions, JoinError, MoqClient, Publication, Publisher, Subgroup,
    SubgroupWriter, Subscribing, Subscription,
};
