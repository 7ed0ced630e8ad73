//! Who may begin a handshake: `mac1`, the limit on handshakes, cookies under load, and who it is.
//!
//! boringtun's limiter counts all sources together and each has a cookie secret of its own, so one that is shared by all
//! lets a single flooder put everybody under cookies, and two in a row count twice. Here are 64 of them, picked by a keyed
//! hash of the source: a flood from one address taxes one in 64 of the others, and a source always meets the same secret.
//! The limiter inside each session is unlimited. Only [`Guard::reset`] lets a second's worth pass again: call it once a
//! second whatever happens.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;

use super::codec_keys::{PublicKey, SecretKey};
use super::codec_message::COOKIE;
use super::engine::EngineError;

const SHARDS: usize = 64;

/// What becomes of a handshake message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may be looked into.
    Pass,
    /// We are under load: the buffer holds the cookie reply, 64 bytes, that goes back.
    Cookie,
    /// It is not meant for us.
    Refused(EngineError),
}

/// Judges handshake messages for one private key.
pub struct Guard {
    secret: x25519::StaticSecret,
    public: x25519::PublicKey,
    shards: Vec<RateLimiter>,
    hasher: RandomState,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("public", &PublicKey(self.public.to_bytes())).finish_non_exhaustive()
    }
}

impl Guard {
    /// Lets about `per_second` handshakes pass in a second before it asks for cookies, spread over the shards, at least
    /// one each.
    #[must_use]
    pub fn new(secret: &SecretKey, per_second: u64) -> Self {
        let secret = x25519::StaticSecret::from(*secret.bytes());
        let public = x25519::PublicKey::from(&secret);
        let each = per_second.div_ceil(SHARDS as u64).max(1);
        let shards = (0..SHARDS).map(|_| RateLimiter::new(&public, each)).collect();
        Self { secret, public, shards, hasher: RandomState::new() }
    }

    /// Looks at `mac1`, and at `mac2` when the source's shard is over its limit. `out` takes a cookie reply.
    pub fn judge(&self, from: IpAddr, datagram: &[u8], out: &mut [u8; COOKIE]) -> Verdict {
        let at = usize::try_from(self.hasher.hash_one(from) % SHARDS as u64).unwrap_or(0);
        let Some(shard) = self.shards.get(at) else { return Verdict::Refused(EngineError::Bug) };
        match shard.verify_packet(Some(from), datagram, out) {
            Ok(_) => Verdict::Pass,
            Err(TunnResult::WriteToNetwork(_)) => Verdict::Cookie,
            Err(TunnResult::Err(WireGuardError::InvalidMac)) => Verdict::Refused(EngineError::Mac),
            Err(TunnResult::Err(_)) => Verdict::Refused(EngineError::Malformed),
            Err(TunnResult::Done | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..)) => {
                Verdict::Refused(EngineError::Bug)
            }
        }
    }

    /// Who sent this initiation: costs two multiplications on the curve.
    #[must_use]
    pub fn initiator(&self, datagram: &[u8]) -> Option<PublicKey> {
        let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(datagram) else { return None };
        let half = parse_handshake_anon(&self.secret, &self.public, &initiation).ok()?;
        Some(PublicKey(half.peer_static_public))
    }

    /// Lets another second's worth pass. Called more often than once a second it does nothing.
    pub fn reset(&self) {
        self.shards.iter().for_each(RateLimiter::reset_count);
    }
}
