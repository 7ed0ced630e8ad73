//! Session tickets that every arbiter can open: one ring of keys for all contexts.
//!
//! BoringSSL would make a key per context, and a client that comes back would resume only if it met the same arbiter.
//! The callback of BoringSSL's bindings is an unsafe function; it is set here and nowhere else.
#![allow(unsafe_code, reason = "SslContextBuilder::set_ticket_key_callback is unsafe; the proof is at the call")]

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use boring::hash::MessageDigest;
use boring::hmac::HmacCtxRef;
use boring::rand::rand_bytes;
use boring::ssl::{SslContextBuilder, TicketKeyCallbackResult};
use boring::symm::{Cipher, CipherCtxRef};
use zeroize::Zeroizing;

use super::TlsError;
use super::state::Ring;

/// The ring of ticket keys. Share one among all listeners and arbiters; [`rotate`](Self::rotate) it a few times a day.
///
/// A ticket is bound to its listener by the session id context that `ServerSettings` sets, so one ring may serve all.
pub struct Tickets {
    ring: ArcSwap<Ring<Key>>,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl Tickets {
    /// A ring with one new key.
    ///
    /// # Errors
    /// Only if the system has no random numbers.
    pub fn new() -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self { ring: ArcSwap::from_pointee(Ring::new(Key::new()?)) }))
    }

    /// Puts a new key in front. Tickets of the key before it still open, those of the one before that do not.
    ///
    /// # Errors
    /// Only if the system has no random numbers; the ring stays as it is then.
    pub fn rotate(&self) -> Result<(), TlsError> {
        let turned = self.ring.load().turned(Key::new()?);
        self.ring.store(Arc::new(turned));
        Ok(())
    }

    /// Makes a context seal and open its tickets with this ring.
    pub(super) fn install(self: &Arc<Self>, builder: &mut SslContextBuilder) {
        let tickets = self.clone();
        // SAFETY: the callback must set up the name, the vector, the cipher and the HMAC as SSL_CTX_set_tlsext_ticket_key_cb
        // documents. When sealing, `Key::seal` fills the name and the vector and gives cipher and HMAC their keys, or
        // the answer is an error and BoringSSL uses none of them. When opening, the key is the one the name names, or
        // the answer is `Noop` and BoringSSL ignores the ticket. Lengths are those of the types; nothing can panic.
        unsafe {
            builder.set_ticket_key_callback(move |_, name, iv, cipher, hmac, sealing| {
                let ring = tickets.ring.load();
                if sealing {
                    return ring.seals().seal(name, iv, cipher, hmac);
                }
                match ring.opens(|key| key.name == *name) {
                    Some(opens) => opens.key.open(iv, cipher, hmac, opens.renew),
                    None => TicketKeyCallbackResult::Noop,
                }
            });
        }
    }
}

/// One key: AES-256-CBC and HMAC with SHA-256 (RFC 5077, section 4), wiped when dropped.
#[derive(Clone)]
struct Key {
    name: [u8; 16],
    cipher: Zeroizing<[u8; 32]>,
    hmac: Zeroizing<[u8; 32]>,
}

impl Key {
    fn new() -> Result<Self, TlsError> {
        let mut key = Self { name: [0; 16], cipher: Zeroizing::new([0; 32]), hmac: Zeroizing::new([0; 32]) };
        rand_bytes(&mut key.name)?;
        rand_bytes(&mut *key.cipher)?;
        rand_bytes(&mut *key.hmac)?;
        Ok(key)
    }

    fn seal(
        &self,
        name: &mut [u8; 16],
        iv: &mut [u8; 16],
        cipher: &mut CipherCtxRef,
        hmac: &mut HmacCtxRef,
    ) -> TicketKeyCallbackResult {
        *name = self.name;
        let ready = rand_bytes(iv)
            .and_then(|()| cipher.init_encrypt(&Cipher::aes_256_cbc(), &*self.cipher, iv))
            .and_then(|()| hmac.init(&*self.hmac, &MessageDigest::sha256()));
        if ready.is_ok() { TicketKeyCallbackResult::Success } else { TicketKeyCallbackResult::Error }
    }

    fn open(
        &self,
        iv: &[u8; 16],
        cipher: &mut CipherCtxRef,
        hmac: &mut HmacCtxRef,
        renew: bool,
    ) -> TicketKeyCallbackResult {
        let ready = cipher
            .init_decrypt(&Cipher::aes_256_cbc(), &*self.cipher, iv)
            .and_then(|()| hmac.init(&*self.hmac, &MessageDigest::sha256()));
        match (ready, renew) {
            (Err(_), _) => TicketKeyCallbackResult::Error,
            (Ok(()), true) => TicketKeyCallbackResult::DecryptSuccessRenew,
            (Ok(()), false) => TicketKeyCallbackResult::Success,
        }
    }
}
