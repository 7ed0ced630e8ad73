//! Keys as files and people write them: 32 bytes in base64, as `wg genkey` prints them.
//!
//! A public key may be shown; a secret one has no text form but [`SecretKey::to_base64`], is wiped when it is dropped and
//! is compared in constant time.

use std::fmt;

use zeroize::Zeroizing;

use crate::memory::Secret;

/// Bytes of a key.
pub const KEY: usize = 32;

/// Characters of a key in base64.
const TEXT: usize = 44;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The public key of a peer: who it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; KEY]);

impl PublicKey {
    /// Reads 44 characters of base64.
    #[must_use]
    pub fn from_base64(text: &str) -> Option<Self> {
        decode(text).map(|bytes| Self(*bytes))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A private or preshared key.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey(Secret<[u8; KEY]>);

impl SecretKey {
    /// Takes the bytes of a key; the caller's copy is the caller's to wipe.
    #[must_use]
    pub fn new(bytes: [u8; KEY]) -> Self {
        Self(Secret::new(bytes))
    }

    /// Reads 44 characters of base64.
    #[must_use]
    pub fn from_base64(text: &str) -> Option<Self> {
        decode(text).map(|bytes| Self::new(*bytes))
    }

    /// The text form, wiped when it is dropped.
    #[must_use]
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(encode(self.bytes()))
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; KEY] {
        self.0.expose()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

fn encode(key: &[u8; KEY]) -> String {
    let mut text = String::with_capacity(TEXT);
    for chunk in key.chunks(3) {
        let mut bits = 0u32;
        for n in 0..3 {
            bits = bits << 8 | u32::from(chunk.get(n).copied().unwrap_or(0));
        }
        for n in 0..4 {
            let digit = (bits >> (18 - 6 * n)) & 63;
            let letter = ALPHABET.get(digit as usize).copied().unwrap_or(b'=');
            text.push(if n > chunk.len() { '=' } else { char::from(letter) });
        }
    }
    text
}

/// Only the one way to write a key: 43 letters and `=`, no stray bits.
fn decode(text: &str) -> Option<Zeroizing<[u8; KEY]>> {
    let letters = text.as_bytes().strip_suffix(b"=").filter(|letters| letters.len() == TEXT - 1)?;
    let mut key = Zeroizing::new([0; KEY]);
    let (mut bits, mut count, mut at) = (0u32, 0, 0);
    for letter in letters {
        let digit = ALPHABET.iter().position(|known| known == letter)?;
        bits = bits << 6 | digit as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            *key.get_mut(at)? = ((bits >> count) & 0xff) as u8;
            at += 1;
        }
    }
    (bits & ((1 << count) - 1) == 0 && at == KEY).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_wg_writes_and_nothing_else() {
        let text = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
        let key = SecretKey::from_base64(text).unwrap();
        assert_eq!(*key.to_base64(), text);
        assert_eq!(PublicKey::from_base64(text).unwrap().to_string(), text);
        let good = text;
        for bad in [
            "",
            "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk",
            "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBml=",
            "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fB==",
            "yAnz5TF-lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=",
            &format!("{good} "),
            &format!("{good}{good}"),
        ] {
            assert!(PublicKey::from_base64(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn no_secret_in_debug_text() {
        let key = SecretKey::new([0xa5; 32]);
        assert_eq!(format!("{key:?}"), "***");
        assert_ne!(key, SecretKey::new([0xa4; 32]));
        assert_eq!(key, SecretKey::new([0xa5; 32]));
    }

    proptest! {
        #[test]
        fn text_and_bytes_are_the_same(bytes: [u8; 32]) {
            let text = PublicKey(bytes).to_string();
            prop_assert_eq!(PublicKey::from_base64(&text), Some(PublicKey(bytes)));
        }

        #[test]
        fn arbitrary_text_does_no_harm(text in ".{0,60}") {
            let _any = PublicKey::from_base64(&text);
        }
    }
}
