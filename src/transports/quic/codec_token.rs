//! Retry tokens and stateless resets: bytes that only holders of this gateway's secret can make.
//!
//! A Retry token says which address asked, with which connection id, and until when it may come back; it is readable
//! and authenticated (HMAC-SHA-256 of BoringSSL), not secret: all in it was on the wire. Any arbiter verifies what any
//! other made, and with a configured secret so does the next process. Time and randomness are arguments.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use boring::hash::hmac_sha256;
use zeroize::Zeroizing;

use super::codec::{CID_LEN, Cid, MAX_CID_LEN};

/// Marks a token as one of ours; what begins otherwise is treated as no token.
const MARK: u8 = 0x52;
const MAC_LEN: usize = 16;
/// Mark, key number, expiry, address, port, length of the original id.
const FIXED: usize = 1 + 1 + 8 + 16 + 2 + 1;
/// The shortest and the longest stateless reset (RFC 9000, section 10.3): 5 bytes that look like a packet and the
/// token; not longer than needed to look like a short packet.
const RESET_MIN: usize = 21;
const RESET_MAX: usize = 43;

/// Bytes of a stateless reset that are random, at most.
pub const RESET_RANDOM: usize = RESET_MAX - MAC_LEN;

/// What comes out of the configured secret: the keys of Retry tokens and of stateless resets.
#[derive(Clone)]
pub struct Secrets {
    number: u8,
    retry: Zeroizing<[u8; 32]>,
    before: Option<(u8, Zeroizing<[u8; 32]>)>,
    reset: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").field("number", &self.number).finish_non_exhaustive()
    }
}

/// The library could not compute a hash; out of memory is the one known cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoHash;

impl fmt::Display for NoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the hash could not be computed")
    }
}

impl std::error::Error for NoHash {}

fn derive(secret: &[u8], label: &[u8]) -> Result<Zeroizing<[u8; 32]>, NoHash> {
    hmac_sha256(secret, label).map(Zeroizing::new).map_err(|_| NoHash)
}

impl Secrets {
    /// Derives the keys from a secret: random bytes, or a configured one that the next process has too.
    ///
    /// # Errors
    /// [`NoHash`].
    pub fn new(secret: &[u8]) -> Result<Self, NoHash> {
        Ok(Self {
            number: 0,
            retry: derive(secret, b"portway quic retry")?,
            before: None,
            reset: derive(secret, b"portway quic reset")?,
        })
    }

    /// The same with new keys for Retry tokens; those made with the keys before are still good. Resets keep theirs: a
    /// peer learnt its token when its connection began.
    ///
    /// # Errors
    /// [`NoHash`].
    pub fn rotated(&self, secret: &[u8]) -> Result<Self, NoHash> {
        Ok(Self {
            number: self.number.wrapping_add(1),
            retry: derive(secret, b"portway quic retry")?,
            before: Some((self.number, self.retry.clone())),
            reset: self.reset.clone(),
        })
    }

    /// The token with which a peer that has lost its connection's state learns that ours is lost too.
    ///
    /// # Errors
    /// [`NoHash`].
    pub fn reset_token(&self, id: &Cid) -> Result<u128, NoHash> {
        let mac = hmac_sha256(&*self.reset, id.bytes()).map_err(|_| NoHash)?;
        Ok(mac.iter().take(MAC_LEN).fold(0, |value, byte| (value << 8) | u128::from(*byte)))
    }

    fn key(&self, number: u8) -> Option<&[u8; 32]> {
        if number == self.number {
            return Some(&self.retry);
        }
        self.before.as_ref().filter(|(old, _)| *old == number).map(|(_, key)| &**key)
    }

    /// A token for a client that is to come back from `peer` with `retry` as its new destination until `expires`,
    /// counted since 1970.
    ///
    /// # Errors
    /// [`NoHash`].
    pub fn token(&self, peer: SocketAddr, original: &[u8], retry: &[u8], expires: Duration) -> Result<Vec<u8>, NoHash> {
        let mut token = Vec::with_capacity(FIXED + MAX_CID_LEN + CID_LEN + MAC_LEN);
        token.push(MARK);
        token.push(self.number);
        token.extend((expires.as_millis() as u64).to_be_bytes());
        token.extend(octets(peer.ip()));
        token.extend(peer.port().to_be_bytes());
        token.push(original.len() as u8);
        token.extend(original);
        token.extend(retry);
        let mac = hmac_sha256(&*self.retry, &token).map_err(|_| NoHash)?;
        token.extend(mac.iter().take(MAC_LEN));
        Ok(token)
    }

    /// Reads a token that came with an Initial from `peer` to `dcid`; answers the connection id that the client's very
    /// first Initial had.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn verify<'a>(
        &self,
        token: &'a [u8],
        peer: SocketAddr,
        dcid: &[u8],
        now: Duration,
    ) -> Result<&'a [u8], TokenError> {
        let (&[mark, number], _) = token.split_first_chunk().ok_or(TokenError::Unknown)?;
        if mark != MARK {
            return Err(TokenError::Unknown);
        }
        let (body, mac) = token.split_last_chunk::<MAC_LEN>().ok_or(TokenError::Forged)?;
        let key = self.key(number).ok_or(TokenError::Forged)?;
        let expected = hmac_sha256(key, body).map_err(|_| TokenError::Forged)?;
        let genuine = expected.get(..MAC_LEN).is_some_and(|expected| boring::memcmp::eq(expected, mac));
        if !genuine {
            return Err(TokenError::Forged);
        }
        let (expires, rest) = body.get(2..).and_then(<[u8]>::split_first_chunk).ok_or(TokenError::Forged)?;
        let (address, rest) = rest.split_first_chunk().ok_or(TokenError::Forged)?;
        let (port, rest) = rest.split_first_chunk().ok_or(TokenError::Forged)?;
        let (length, rest) = rest.split_first().ok_or(TokenError::Forged)?;
        let (original, retry) = rest.split_at_checked(usize::from(*length)).ok_or(TokenError::Forged)?;
        if *address != octets(peer.ip()) || u16::from_be_bytes(*port) != peer.port() || retry != dcid {
            return Err(TokenError::Foreign);
        }
        if now.as_millis() as u64 > u64::from_be_bytes(*expires) {
            return Err(TokenError::Expired);
        }
        Ok(original)
    }
}

/// Why a token does not validate an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// None of ours: as if there were none.
    Unknown,
    /// It claims to be ours and is not, or was made with a key that is gone.
    Forged,
    /// Made for another address or another connection.
    Foreign,
    /// Too old.
    Expired,
}

impl TokenError {
    /// The word that counters use.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Forged => "forged",
            Self::Foreign => "foreign",
            Self::Expired => "expired",
        }
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A stateless reset in answer to a datagram of `trigger` bytes (RFC 9000, section 10.3): shorter than it, so that two
/// ends that have both lost their state do not go on forever. `None` when it would be too short to look like a packet.
#[must_use]
pub fn reset(trigger: usize, token: u128, random: [u8; RESET_RANDOM]) -> Option<Vec<u8>> {
    let length = trigger.saturating_sub(1).min(RESET_MAX);
    if length < RESET_MIN {
        return None;
    }
    let mut packet: Vec<u8> = random.into_iter().take(length - MAC_LEN).collect();
    // A short header with the fixed bit.
    if let Some(first) = packet.first_mut() {
        *first = (*first & 0x3f) | 0x40;
    }
    packet.extend(token.to_be_bytes());
    Some(packet)
}

/// The token of a datagram if it is a stateless reset: any that looks like a short packet and is long enough may be.
#[must_use]
pub fn reset_token_of(datagram: &[u8]) -> Option<u128> {
    let looks_short = datagram.first().is_some_and(|first| first & 0xc0 == 0x40);
    let (_, token) = datagram.split_last_chunk::<MAC_LEN>()?;
    (looks_short && datagram.len() >= RESET_MIN).then(|| u128::from_be_bytes(*token))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIFE: Duration = Duration::from_secs(30);
    const NOW: Duration = Duration::from_secs(1_000_000);

    fn secrets() -> Secrets {
        Secrets::new(&[7; 32]).unwrap()
    }

    fn peer() -> SocketAddr {
        "192.0.2.1:4433".parse().unwrap()
    }

    fn cid() -> Cid {
        Cid::new([9; 16], 1, 4, 0)
    }

    #[test]
    fn a_token_comes_back_from_its_address_in_its_time() {
        let made = secrets();
        let token = made.token(peer(), &[1; 20], cid().bytes(), NOW + LIFE).unwrap();
        // Another arbiter, or the next process with the same secret.
        let other = secrets();
        assert_eq!(other.verify(&token, peer(), cid().bytes(), NOW), Ok(&[1; 20][..]));
        assert_eq!(other.verify(&token, peer(), cid().bytes(), NOW + LIFE), Ok(&[1; 20][..]));
        let late = NOW + LIFE + Duration::from_millis(1);
        assert_eq!(other.verify(&token, peer(), cid().bytes(), late), Err(TokenError::Expired));
        for foreign in ["192.0.2.2:4433", "192.0.2.1:4434", "[2001:db8::1]:4433"] {
            assert_eq!(
                other.verify(&token, foreign.parse().unwrap(), cid().bytes(), NOW),
                Err(TokenError::Foreign),
                "{foreign}"
            );
        }
        assert_eq!(other.verify(&token, peer(), &[9; 16], NOW), Err(TokenError::Foreign));
        let stranger = Secrets::new(&[8; 32]).unwrap();
        assert_eq!(stranger.verify(&token, peer(), cid().bytes(), NOW), Err(TokenError::Forged));
        assert_eq!(other.verify(&[], peer(), cid().bytes(), NOW), Err(TokenError::Unknown));
        assert_eq!(other.verify(b"new token", peer(), cid().bytes(), NOW), Err(TokenError::Unknown));
    }

    #[test]
    fn a_mapped_address_is_the_address() {
        let token = secrets().token("[::ffff:192.0.2.1]:4433".parse().unwrap(), &[1; 8], cid().bytes(), NOW).unwrap();
        assert_eq!(secrets().verify(&token, peer(), cid().bytes(), NOW), Ok(&[1; 8][..]));
    }

    #[test]
    fn every_changed_byte_is_a_forgery() {
        let token = secrets().token(peer(), &[1; 8], cid().bytes(), NOW + LIFE).unwrap();
        for place in 1..token.len() {
            let mut forged = token.clone();
            forged[place] ^= 1;
            assert_eq!(secrets().verify(&forged, peer(), cid().bytes(), NOW), Err(TokenError::Forged), "byte {place}");
        }
    }

    #[test]
    fn keys_rotate_once_before_tokens_die() {
        let first = secrets();
        let token = first.token(peer(), &[1; 8], cid().bytes(), NOW).unwrap();
        let second = first.rotated(&[1; 32]).unwrap();
        assert!(second.verify(&token, peer(), cid().bytes(), NOW).is_ok());
        let third = second.rotated(&[2; 32]).unwrap();
        assert_eq!(third.verify(&token, peer(), cid().bytes(), NOW), Err(TokenError::Forged));
        assert_eq!(third.reset_token(&cid()), first.reset_token(&cid()), "peers know the old reset tokens");
    }

    #[test]
    fn a_reset_is_shorter_than_what_caused_it() {
        let token = secrets().reset_token(&cid()).unwrap();
        assert_eq!(reset(21, token, [0xff; RESET_RANDOM]), None);
        for trigger in [22, 30, 43, 44, 1_200] {
            let packet = reset(trigger, token, [0xff; RESET_RANDOM]).unwrap();
            assert!(packet.len() < trigger && packet.len() >= RESET_MIN && packet.len() <= RESET_MAX);
            assert_eq!(packet[0] & 0xc0, 0x40);
            assert_eq!(reset_token_of(&packet), Some(token));
            assert_eq!(reset_token_of(&packet[packet.len() - 20..]), None, "too short");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_no_token(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), mark: bool) {
            if mark && let Some(first) = bytes.first_mut() {
                *first = MARK;
            }
            prop_assert!(secrets().verify(&bytes, peer(), cid().bytes(), NOW).is_err());
        }
    }
}
