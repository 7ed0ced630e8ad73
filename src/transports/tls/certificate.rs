//! A certificate with its chain and key: from PEM files, or made on the spot for tests and private networks.

use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use boring::asn1::{Asn1Integer, Asn1Time};
use boring::bn::{BigNum, MsbOption};
use boring::ec::{EcGroup, EcKey};
use boring::hash::MessageDigest;
use boring::nid::Nid;
use boring::pkey::{PKey, Private};
use boring::x509::extension::{BasicConstraints, ExtendedKeyUsage, SubjectAlternativeName};
use boring::x509::{X509, X509Builder, X509Name};

use super::{TlsError, reason};
use crate::memory::Secret;

/// How long a generated certificate is valid. It is made anew at each start, and clients that pin it learn so.
const GENERATED_DAYS: u32 = 90;
/// A generated certificate is valid from a day ago, for peers whose clock is late.
const EARLIER: i64 = 24 * 60 * 60;
/// Days until a date beyond what BoringSSL computes with.
const FAR: i64 = i32::MAX as i64;
/// Larger files are no certificates.
const LARGEST_FILE: u64 = 1 << 20;

/// A certificate, those that lead from it to an authority, and its private key, which match.
///
/// The key is never shown: `Debug` names subject names alone.
pub struct Certificate {
    pub(super) leaf: X509,
    pub(super) chain: Vec<X509>,
    pub(super) key: PKey<Private>,
    names: Vec<String>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("names", &self.names).finish_non_exhaustive()
    }
}

/// The same certificate with the same chain; the key follows, since it belongs to the certificate.
impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        let der = |one: &X509| one.to_der().ok();
        der(&self.leaf).is_some_and(|leaf| Some(leaf) == der(&other.leaf))
            && self.chain.iter().map(der).eq(other.chain.iter().map(der))
    }
}

impl Eq for Certificate {}

impl Certificate {
    /// Reads a chain (leaf first) and a private key, both PEM.
    ///
    /// # Errors
    /// A file that cannot be read or holds something else, or a key of another certificate; the error names the file.
    pub fn from_files(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let chain = certificates(cert)?;
        let text = Secret::from(read(key)?);
        let private = private_key(text.expose()).map_err(|reason| TlsError::Parse { file: key.into(), reason })?;
        Self::new(chain, private, cert, key)
    }

    /// As [`from_files`](Self::from_files), from text.
    ///
    /// # Errors
    /// As there, without names of files.
    pub fn from_pem(cert: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let nowhere = Path::new("");
        let chain = parse_certificates(cert).map_err(|reason| TlsError::Parse { file: nowhere.into(), reason })?;
        let private = private_key(key).map_err(|reason| TlsError::Parse { file: nowhere.into(), reason })?;
        Self::new(chain, private, nowhere, nowhere)
    }

    /// Makes a key (ECDSA on P-256) and a certificate signed with itself for these host names and addresses, valid for
    /// 90 days. Clients trust it only if they are given it as an authority.
    ///
    /// # Errors
    /// [`TlsError::Value`] without any name, or with one that no certificate can carry.
    pub fn generate(names: &[String]) -> Result<Self, TlsError> {
        let mut alternatives = SubjectAlternativeName::new();
        for name in names {
            if name.parse::<IpAddr>().is_ok() {
                alternatives.ip(name);
            } else if is_host_name(name) {
                alternatives.dns(name);
            } else {
                return Err(TlsError::Value(format!("{name:?} is neither a host name nor an address")));
            }
        }
        let first = names.first().ok_or_else(|| TlsError::Value("a certificate needs at least one name".into()))?;
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        let key = PKey::from_ec_key(EcKey::generate(&group)?)?;
        let mut subject = X509Name::builder()?;
        // RFC 5280, appendix A.1: a common name has at most 64 characters; clients read the alternative names anyway.
        subject.append_entry_by_nid(Nid::COMMONNAME, first.get(..64).unwrap_or(first))?;
        let subject = subject.build();
        let mut builder = X509Builder::new()?;
        builder.set_version(2)?;
        let mut serial = BigNum::new()?;
        serial.rand(127, MsbOption::MAYBE_ZERO, false)?;
        builder.set_serial_number(Asn1Integer::from_bn(&serial)?.as_ref())?;
        builder.set_subject_name(&subject)?;
        builder.set_issuer_name(&subject)?;
        builder.set_pubkey(&key)?;
        let now = Asn1Time::days_from_now(0)?;
        let since = Asn1Time::from_unix(seconds(&now)?.saturating_sub(EARLIER))?;
        builder.set_not_before(&since)?;
        builder.set_not_after(Asn1Time::days_from_now(GENERATED_DAYS)?.as_ref())?;
        // No authority, although clients are given it as the one to trust: some (webpki) refuse a server that is one.
        // And without a list of usages, since others (BoringSSL) look there whether it may have signed itself.
        builder.append_extension(BasicConstraints::new().critical().build()?.as_ref())?;
        let extended = ExtendedKeyUsage::new().server_auth().client_auth().build()?;
        builder.append_extension(extended.as_ref())?;
        let alternatives = alternatives.build(&builder.x509v3_context(None, None))?;
        builder.append_extension(&alternatives)?;
        builder.sign(&key, MessageDigest::sha256())?;
        let nowhere = Path::new("");
        Self::new(vec![builder.build()], key, nowhere, nowhere)
    }

    fn new(chain: Vec<X509>, key: PKey<Private>, cert: &Path, key_file: &Path) -> Result<Self, TlsError> {
        let mut chain = chain.into_iter();
        let leaf = chain.next().ok_or_else(|| TlsError::Parse { file: cert.into(), reason: NO_CERTIFICATE.into() })?;
        let public = leaf.public_key().map_err(|stack| TlsError::Parse {
            file: cert.into(),
            reason: format!("the certificate's public key is of no known kind: {}", reason(&stack)),
        })?;
        if !public.public_eq(&key) {
            return Err(TlsError::Mismatch { cert: cert.into(), key: key_file.into() });
        }
        let names = names(&leaf);
        Ok(Self { leaf, chain: chain.collect(), key, names })
    }

    /// The host names and addresses it is for.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Whole days until it expires, by the wall clock: negative once it has.
    #[must_use]
    pub fn days_left(&self) -> i64 {
        let left = || Asn1Time::days_from_now(0)?.diff(self.leaf.not_after());
        left().map_or(FAR, |left| i64::from(left.days) - i64::from(left.secs < 0))
    }

    /// The certificate (without its chain and key) as PEM: for clients that shall trust it.
    ///
    /// # Errors
    /// Only if memory is short.
    pub fn to_pem(&self) -> Result<Vec<u8>, TlsError> {
        Ok(self.leaf.to_pem()?)
    }

    /// SHA-256 of the certificate, as tools print it.
    ///
    /// # Errors
    /// Only if memory is short.
    pub fn fingerprint(&self) -> Result<Vec<u8>, TlsError> {
        Ok(self.leaf.digest(MessageDigest::sha256())?.to_vec())
    }
}

const NO_CERTIFICATE: &str = "no certificate in it (PEM, `-----BEGIN CERTIFICATE-----`)";

/// Reads all certificates of a PEM file; there is at least one.
pub(super) fn certificates(file: &Path) -> Result<Vec<X509>, TlsError> {
    parse_certificates(&read(file)?).map_err(|reason| TlsError::Parse { file: file.into(), reason })
}

fn parse_certificates(text: &[u8]) -> Result<Vec<X509>, String> {
    let found = X509::stack_from_pem(text).map_err(|stack| format!("not a certificate: {}", reason(&stack)))?;
    if found.is_empty() { Err(NO_CERTIFICATE.into()) } else { Ok(found) }
}

fn private_key(text: &[u8]) -> Result<PKey<Private>, String> {
    if text.windows(9).any(|window| window == b"ENCRYPTED") {
        return Err("the private key is encrypted; give it without a passphrase".into());
    }
    PKey::private_key_from_pem(text).map_err(|stack| match reason(&stack).as_str() {
        "no start line" => "no private key in it (PEM, `-----BEGIN PRIVATE KEY-----`)".into(),
        other => format!("not a private key: {other}"),
    })
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |reason: String| TlsError::Read { file: file.into(), reason };
    let meta = fs::metadata(file).map_err(|error| {
        unreadable(match error.kind() == std::io::ErrorKind::NotFound {
            true => "no such file".into(),
            false => error.to_string(),
        })
    })?;
    if !meta.is_file() || meta.len() > LARGEST_FILE {
        return Err(unreadable("not a file of at most 1 MiB".into()));
    }
    fs::read(file).map_err(|error| unreadable(error.to_string()))
}

fn names(leaf: &X509) -> Vec<String> {
    let mut names = Vec::new();
    for name in leaf.subject_alt_names().iter().flatten() {
        if let Some(dns) = name.dnsname() {
            names.push(dns.to_owned());
        } else if let Some(bytes) = name.ipaddress() {
            let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
            let v6 = <[u8; 16]>::try_from(bytes).map(IpAddr::from);
            names.extend(v4.or(v6).map(|ip| ip.to_string()));
        }
    }
    names
}

/// Letters, digits, hyphens and underscores in labels of 1 to 63, at most 253 in all; the first label may be `*`.
fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let rest = name.strip_prefix("*.").unwrap_or(name);
    name.len() <= 253 && rest.split('.').all(label)
}

/// Seconds since 1970 of a time that BoringSSL made.
fn seconds(time: &Asn1Time) -> Result<i64, TlsError> {
    let since = Asn1Time::from_unix(0)?.diff(time)?;
    Ok(i64::from(since.days) * 24 * 60 * 60 + i64::from(since.secs))
}
