//! Bytes that must not be seen: keys, tokens, passwords.
//!
//! They are wiped when dropped, printed as `Secret(***)`, and compared in a time that does not depend on where they
//! differ. The length is not hidden. What is wiped is the memory they lie in: a copy made before they came here, or
//! made of what [`Secret::expose`] gives, is the business of who made it.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// Secret bytes: a vector of them, or an array.
///
/// ```
/// use portway::memory::Secret;
///
/// let token = Secret::from("hunter2".to_owned());
/// assert_eq!(format!("{token:?}"), "Secret(***)");
/// assert!(token.is(b"hunter2") && !token.is(b"hunter3"));
/// let key = Secret::new([7; 32]);
/// assert_eq!(key.expose().len(), 32);
/// ```
#[derive(Clone)]
pub struct Secret<T: Zeroize = Vec<u8>>(
    // Never grown or shrunk: that would leave a copy behind.
    Zeroizing<T>,
);

impl<T: Zeroize + AsRef<[u8]>> Secret<T> {
    /// Takes the bytes. Of an array the caller's own copy is the caller's to wipe.
    ///
    /// ```
    /// # use portway::memory::Secret;
    /// assert!(Secret::new([1, 2]).is(&[1, 2]));
    /// ```
    pub fn new(bytes: T) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for who needs them.
    ///
    /// ```
    /// # use portway::memory::Secret;
    /// assert_eq!(Secret::from(vec![1, 2]).expose(), &[1, 2]);
    /// ```
    pub fn expose(&self) -> &T {
        &self.0
    }

    /// The bytes as text, if they are.
    ///
    /// ```
    /// # use portway::memory::Secret;
    /// assert_eq!(Secret::from(b"ab".to_vec()).expose_str(), Some("ab"));
    /// assert_eq!(Secret::from(vec![0xff]).expose_str(), None);
    /// ```
    #[must_use]
    pub fn expose_str(&self) -> Option<&str> {
        std::str::from_utf8(self.as_bytes()).ok()
    }

    /// Whether these are the bytes, in a time that depends on the lengths alone.
    ///
    /// ```
    /// # use portway::memory::Secret;
    /// assert!(Secret::from(vec![1]).is(&[1]));
    /// ```
    #[must_use]
    pub fn is(&self, bytes: &[u8]) -> bool {
        self.as_bytes().ct_eq(bytes).into()
    }

    fn as_bytes(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl From<Vec<u8>> for Secret {
    /// Takes the memory over: nothing is copied.
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(bytes)
    }
}

impl From<String> for Secret {
    /// Takes the memory over: nothing is copied.
    fn from(text: String) -> Self {
        text.into_bytes().into()
    }
}

impl<T: Zeroize + AsRef<[u8]>> PartialEq for Secret<T> {
    fn eq(&self, other: &Self) -> bool {
        self.is(other.as_bytes())
    }
}

impl<T: Zeroize + AsRef<[u8]>> Eq for Secret<T> {}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_equal_only_to_the_same_bytes_and_shows_none() {
        let secret = Secret::from("hunter2".to_owned());
        for other in ["hunter1", "hunter22", "hunter", ""] {
            assert!(!secret.is(other.as_bytes()) && secret != Secret::from(other.to_owned()));
        }
        assert_eq!(secret, secret.clone());
        assert_eq!(format!("{secret:?} {:#?}", Some(&secret)).matches("hunter").count(), 0);
        assert!(Secret::from(Vec::new()).is(b""));
    }

    #[test]
    fn it_takes_the_memory_over() {
        let text = String::from("hunter2");
        let at = text.as_ptr();
        assert_eq!(Secret::from(text).expose().as_ptr(), at);
    }
}
