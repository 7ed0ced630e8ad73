//! Media over QUIC in a build without it: nothing.

/// No relays.
#[derive(Debug, Clone, Default)]
pub(super) struct Relays;
