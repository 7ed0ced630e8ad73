//! Media over QUIC Transport (MoQT): named tracks of groups of objects, published, subscribed to and relayed
//! (draft-ietf-moq-transport-18 and -20).
//!
//! `model*` are the values both ends speak about, the same for every draft: names, locations, messages, codes. `codec*`
//! turns them into bytes of one draft and back, piece by piece as bytes arrive, and says what a mistake costs: a
//! request, a stream or the session. What drafts disagree about is one table, [`model::Profile`].

pub mod model;
pub mod model_codes;
pub mod model_message;
pub mod model_names;
pub mod model_params;
