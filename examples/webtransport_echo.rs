//! A page that talks to an echo over WebTransport: `cargo run --example webtransport_echo`, then open the address it
//! prints in a browser.
//!
//! No authority has signed the certificate. Browsers take it by its hash, which the page knows, because its key is of
//! P-256 and it is valid for ten days.

#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use std::error::Error;
use std::fs;
use std::path::Path;

use boring::asn1::Asn1Time;
use boring::ec::{EcGroup, EcKey};
use boring::hash::MessageDigest;
use boring::nid::Nid;
use boring::pkey::PKey;
use boring::sha::sha256;
use boring::x509::extension::SubjectAlternativeName;
use boring::x509::{X509, X509NameBuilder};
use portway::gateway::{Builder, check};

const PORT: u16 = 8443;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("webtransport-echo-{}", std::process::id()));
    let site = folder.join("site");
    fs::create_dir_all(&site)?;
    let hash = certificate(&folder)?;
    let page = include_str!("webtransport_echo.html");
    let page = page.replace("HASH", &hash.map(|byte| byte.to_string()).join(", ")).replace("PORT", &PORT.to_string());
    fs::write(site.join("index.html"), page)?;
    let text = format!(
        r#"
version = 1
[[certificate]]
name = "short"
cert = "{folder}/cert.pem"
key = "{folder}/key.pem"
[[listener]]                          # the page: a browser trusts plain HTTP from its own machine
name = "page"
listen = "127.0.0.1:8080"
protocol = "http"
[[listener.route]]
service = "static"
root = "{folder}/site"
[[listener]]                          # the sessions
name = "sessions"
listen = "127.0.0.1:{PORT}"
protocol = "http"
certificate = "short"
[[listener.route]]
path = "/echo"
webtransport = true
service = "echo"
"#,
        folder = folder.display()
    );
    let config =
        check::parse("webtransport_echo", &text, &check::Known::default()).map_err(|report| report.render(false))?;
    let gateway = Builder::new().start(config)?;
    println!("open http://127.0.0.1:8080/ and press Enter here to end");
    std::io::stdin().read_line(&mut String::new())?;
    gateway.stop();
    fs::remove_dir_all(folder)?;
    Ok(())
}

/// Writes a certificate and its key, and gives the hash of the certificate.
fn certificate(folder: &Path) -> Result<[u8; 32], Box<dyn Error>> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    let key = PKey::from_ec_key(EcKey::generate(&group)?)?;
    let mut name = X509NameBuilder::new()?;
    name.append_entry_by_text("CN", "localhost")?;
    let name = name.build();
    let mut builder = X509::builder()?;
    builder.set_version(2)?;
    builder.set_subject_name(&name)?;
    builder.set_issuer_name(&name)?;
    builder.set_pubkey(&key)?;
    let (from, until) = (Asn1Time::days_from_now(0)?, Asn1Time::days_from_now(10)?);
    builder.set_not_before(&from)?;
    builder.set_not_after(&until)?;
    let names =
        SubjectAlternativeName::new().dns("localhost").ip("127.0.0.1").build(&builder.x509v3_context(None, None))?;
    builder.append_extension(&names)?;
    builder.sign(&key, MessageDigest::sha256())?;
    let certificate = builder.build();
    fs::write(folder.join("cert.pem"), certificate.to_pem()?)?;
    fs::write(folder.join("key.pem"), key.private_key_to_pem_pkcs8()?)?;
    Ok(sha256(&certificate.to_der()?))
}
