//! QUIC on quiche: one endpoint actor for each arbiter, one actor for each connection.

mod codec;
mod codec_token;
mod state_admission;
mod state_credit;
mod state_datagrams;
mod state_pacer;
mod state_reaper;
mod state_streams;
