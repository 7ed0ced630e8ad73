//! Bytes that must not be seen: keys, tokens, passwords.
//!
//! They are wiped when dropped, printed as `Secret(***)`, and compared in a time that does not depend on where they
//! differ. The length is not hidden. What is wiped is the memory they lie in: a copy made before they came here, or
//! made of what [`Secret::expose`] gives, is the business of who made it.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Secret bytes.
///
/// ```
/// use portway::memory::Secret;
///
/// let token = Secret::from("hunter2".to_owned());
/// assert_eq!(format!("{token:?}"), "Secret(***)");
/// assert!(token.is(b"hunter2") && !token.is(b"hunter3"));
/// ```
#[derive(Clone)]
pub struct Secret(
    // Never grown or shrunk: that would leave a copy behind.
    Zeroizing<Vec<u8>>,
);

impl Secret {
    /// The bytes, for who needs them.
    ///
    /// ```
    /// # use portway::memory::Secret;
    /// assert_eq!(Secret::from(vec![1, 2]).expose(), [1, 2]);
    /// ```
    #[must_use]
    pub fn expose(&self) -> &[u8] {
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
        std::str::from_utf8(&self.0).ok()
    }

    /// Whether these are the bytes, in a time that depends on the lengths alone.
    ///
    /// ```
    /// # use portway::memory::Secret;
    /// assert!(Secret::from(vec![1]).is(&[1]));
    /// ```
    #[must_use]
    pub fn is(&self, bytes: &[u8]) -> bool {
        self.0.ct_eq(bytes).into()
    }
}

impl From<Vec<u8>> for Secret {
    /// Takes the memory over: nothing is copied.
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl From<String> for Secret {
    /// Takes the memory over: nothing is copied.
    fn from(text: String) -> Self {
        text.into_bytes().into()
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.is(&other.0)
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
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
