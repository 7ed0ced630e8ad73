//! `portway keygen wireguard`: a private key, its public key, and a preshared key.
//!
//! To standard output, or as files that only their owner may read and that never replace one that is there.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::transports::wireguard::{SecretKey, public_key};

/// Keys of a new interface.
pub(super) struct Keys {
    private: SecretKey,
    preshared: SecretKey,
}

impl Keys {
    /// From the system's random numbers; blocks only while a machine that has just started has none.
    pub(super) fn generate() -> io::Result<Self> {
        Ok(Self { private: random_key()?, preshared: SecretKey::new(*random()?) })
    }

    /// The keys as lines for a configuration file.
    pub(super) fn text(&self) -> Zeroizing<String> {
        let (private, preshared) = (self.private.to_base64(), self.preshared.to_base64());
        let public = public_key(&self.private);
        Zeroizing::new(format!(
            "private_key = \"{}\"\npublic_key = \"{public}\"\npreshared_key = \"{}\"\n",
            *private, *preshared
        ))
    }

    /// Writes `name.key` and `name.psk`; what to say about it.
    pub(super) fn write(&self, name: &Path) -> io::Result<String> {
        let (key, psk) = (with_end(name, "key"), with_end(name, "psk"));
        write(&key, &self.private)?;
        if let Err(error) = write(&psk, &self.preshared) {
            // Half of them would be in the way of the next call.
            let _not_ours_to_keep = std::fs::remove_file(&key);
            return Err(error);
        }
        let public = public_key(&self.private);
        Ok(format!(
            "{}: the private key, its public key is {public}\n{}: a preshared key\n",
            key.display(),
            psk.display()
        ))
    }
}

/// A private key.
pub(super) fn random_key() -> io::Result<SecretKey> {
    let mut private = random()?;
    // X25519 (RFC 7748, section 5) clears and sets these bits before it uses a key; `wg genkey` prints them so.
    let [first, .., last] = &mut *private;
    *first &= 248;
    *last = *last & 127 | 64;
    Ok(SecretKey::new(*private))
}

fn random() -> io::Result<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = bytes.get_mut(filled..).unwrap_or_default();
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

fn with_end(name: &Path, end: &str) -> PathBuf {
    let mut name = name.as_os_str().to_owned();
    name.push(".");
    name.push(end);
    name.into()
}

fn write(path: &Path, key: &SecretKey) -> io::Result<()> {
    let said = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(said)?;
    let text = Zeroizing::new(format!("{}\n", *key.to_base64()));
    file.write_all(text.as_bytes()).map_err(said)
}
