//! Media over QUIC Transport (MoQT): named tracks of groups of objects, published, subscribed to and relayed
//! (draft-ietf-moq-transport-18 and -20).
//!
//! `model*` are the values both ends speak about, the same for every draft: names, locations, messages, codes. `codec*`
//! turns them into bytes of one draft and back, piece by piece as bytes arrive, and says what a mistake costs: a
//! request, a stream or the session. What drafts disagree about is one table, [`model::Profile`].

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
