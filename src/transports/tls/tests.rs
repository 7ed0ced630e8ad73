//! TLS as peers see it: who is shown which certificate, who gets in, which ticket opens; and the files that are refused.

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use boring::ssl::{HandshakeError, Ssl, SslContext, SslStream};

use super::*;
use crate::actors::{Fault, Mesh, MeshConfig, Place, Protocol, Spec, Turn};

fn own(names: &[&str]) -> Arc<Certificate> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    Arc::new(Certificate::generate(&names).expect("made"))
}

/// A folder of this test that is gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("portway-tls-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn write(&self, name: &str, text: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn key_pem(certificate: &Certificate) -> Vec<u8> {
    certificate.key.private_key_to_pem_pkcs8().expect("written")
}

/// What a handshake ended in, on both sides.
struct Met {
    client: Result<SslStream<UnixStream>, String>,
    server: Result<SslStream<UnixStream>, String>,
}

fn text(error: &HandshakeError<UnixStream>) -> String {
    match error {
        HandshakeError::SetupFailure(stack) => stack.to_string(),
        HandshakeError::Failure(mid) | HandshakeError::WouldBlock(mid) => mid.error().to_string(),
    }
}

/// A handshake of two contexts, and one message each way so that tickets and late alerts arrive.
fn meet(server: &SslContext, client: &SslContext, sni: Option<&str>) -> Met {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    for end in [&ours, &theirs] {
        end.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
    }
    let server = Ssl::new(server).expect("a connection");
    let server = std::thread::spawn(move || {
        let mut stream = server.accept(theirs).map_err(|error| text(&error))?;
        stream.write_all(b"!").map_err(|error| error.to_string())?;
        stream.read_exact(&mut [0; 1]).map_err(|error| error.to_string())?;
        Ok(stream)
    });
    let mut ssl = Ssl::new(client).expect("a connection");
    if let Some(name) = sni {
        ssl.set_hostname(name).expect("a name");
    }
    let client = ssl.connect(ours).map_err(|error| text(&error)).and_then(|mut stream| {
        stream.read_exact(&mut [0; 1]).map_err(|error| error.to_string())?;
        stream.write_all(b"!").map_err(|error| error.to_string())?;
        Ok(stream)
    });
    // A client that gave up closes its end, so the server does not wait.
    Met { client, server: server.join().expect("no panic") }
}

fn context(settings: &ServerSettings) -> SslContext {
    settings.builder().expect("built").build()
}

/// A client that trusts exactly this certificate and expects this name.
fn trusting(certificate: &Arc<Certificate>, name: &str) -> ClientSettings {
    ClientSettings { roots: Roots::Only(certificate.clone()), ..ClientSettings::new(PeerName::new(name)) }
}

fn shown(met: &Met) -> Vec<u8> {
    let stream = met.client.as_ref().expect("connected");
    let certificate = stream.ssl().peer_certificate().expect("shown");
    certificate.digest(boring::hash::MessageDigest::sha256()).expect("hashed").to_vec()
}

#[test]
fn a_generated_certificate_serves_its_names_and_addresses() {
    let certificate = own(&["localhost", "127.0.0.1", "::1"]);
    assert_eq!(certificate.names().collect::<Vec<_>>(), ["localhost", "127.0.0.1", "::1"]);
    assert!((88..=90).contains(&certificate.days_left()), "{}", certificate.days_left());
    let server = context(&ServerSettings::new("a", vec![certificate.clone()]));
    for name in ["localhost", "127.0.0.1", "::1"] {
        let client = trusting(&certificate, name);
        let met = meet(&server, &client.builder().expect("built").build(), client.name.sni());
        assert_eq!(shown(&met), certificate.fingerprint().expect("hashed"), "{name}");
    }
}

/// Verification is on without anybody asking for it: the wrong name, the wrong address, the wrong authority.
#[test]
fn a_client_refuses_a_server_it_did_not_ask_for() {
    let certificate = own(&["localhost", "127.0.0.1"]);
    let server = context(&ServerSettings::new("a", vec![certificate.clone()]));
    let other = own(&["localhost"]);
    for client in [
        trusting(&certificate, "example.org"),
        trusting(&certificate, "127.0.0.2"),
        trusting(&other, "localhost"),
        ClientSettings::new(PeerName::new("localhost")),
    ] {
        let met = meet(&server, &client.builder().expect("built").build(), None);
        let error = met.client.err().unwrap_or_else(|| panic!("{client:?} was let in"));
        assert!(error.to_lowercase().contains("certificate"), "{error}");
    }
}

#[test]
fn names_choose_the_certificate() {
    let certificates = [own(&["default.test"]), own(&["*.example.org"]), own(&["www.example.org"])];
    let server = context(&ServerSettings::new("a", certificates.to_vec()));
    for (name, number) in [("default.test", 0), ("mail.example.org", 1), ("www.example.org", 2)] {
        let client = trusting(&certificates[number], name);
        let met = meet(&server, &client.builder().expect("built").build(), client.name.sni());
        assert_eq!(shown(&met), certificates[number].fingerprint().expect("hashed"), "{name}");
    }
    let client = trusting(&certificates[0], "default.test");
    let met = meet(&server, &client.builder().expect("built").build(), None);
    assert_eq!(shown(&met), certificates[0].fingerprint().expect("hashed"), "no name");
}

#[test]
fn the_servers_protocol_is_spoken_and_a_stranger_is_refused() {
    let certificate = own(&["localhost"]);
    let protocols = |names: &[&str]| names.iter().map(|name| name.as_bytes().to_vec()).collect::<Vec<_>>();
    let server =
        ServerSettings { protocols: protocols(&["new", "old"]), ..ServerSettings::new("a", vec![certificate.clone()]) };
    let server = context(&server);
    for (offered, spoken) in
        [(&["old", "new"][..], Some("new")), (&["old"], Some("old")), (&["other"], None), (&[], Some(""))]
    {
        let client = ClientSettings { protocols: protocols(offered), ..trusting(&certificate, "localhost") };
        let met = meet(&server, &client.builder().expect("built").build(), None);
        match (met.client, spoken) {
            (Ok(stream), Some(spoken)) => {
                assert_eq!(stream.ssl().selected_alpn_protocol().unwrap_or_default(), spoken.as_bytes());
            }
            (Err(error), None) => assert!(error.contains("NO_APPLICATION_PROTOCOL"), "{error}"),
            (client, _) => panic!("{offered:?}: {:?}", client.map(|_| "connected")),
        }
    }
}

#[test]
fn a_client_without_a_certificate_stays_outside() {
    let folder = Folder::new("mutual");
    let (server_own, client_own, stranger) = (own(&["localhost"]), own(&["client"]), own(&["client"]));
    let authority = folder.write("clients.pem", &client_own.to_pem().expect("written"));
    let settings = ServerSettings {
        clients: Some(ClientCertificates::signed_by(authority).expect("read")),
        ..ServerSettings::new("a", vec![server_own.clone()])
    };
    let server = context(&settings);
    for (certificate, welcome) in [(Some(client_own), true), (None, false), (Some(stranger), false)] {
        let client = ClientSettings { certificate, ..trusting(&server_own, "localhost") };
        let met = meet(&server, &client.builder().expect("built").build(), None);
        assert_eq!((met.server.is_ok(), met.client.is_ok()), (welcome, welcome), "{client:?}");
    }
}

#[test]
fn the_first_curve_is_agreed_on_and_an_unknown_one_is_refused() {
    let certificate = own(&["localhost"]);
    let client = trusting(&certificate, "localhost").builder().expect("built").build();
    let hybrid = Curves::new(vec!["X25519MLKEM768".into(), "X25519".into()]).expect("known");
    for (curves, agreed) in [(Curves::default(), "X25519"), (hybrid, "X25519MLKEM768")] {
        let settings = ServerSettings { curves, ..ServerSettings::new("a", vec![certificate.clone()]) };
        let met = meet(&context(&settings), &client, None);
        assert_eq!(met.client.expect("connected").ssl().curve_name(), Some(agreed));
    }
    for unknown in [vec!["X448".to_owned()], vec![]] {
        assert!(matches!(Curves::new(unknown), Err(TlsError::Value(_))));
    }
}

#[test]
fn secrets_are_logged_on_request_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new("keylog");
    let file = folder.0.join("keys");
    let certificate = own(&["localhost"]);
    let settings = ServerSettings {
        keylog: Some(Arc::new(KeyLog::open(&file).expect("opened"))),
        ..ServerSettings::new("a", vec![certificate.clone()])
    };
    let client = trusting(&certificate, "localhost").builder().expect("built").build();
    meet(&context(&settings), &client, None).client.expect("connected");
    let text = std::fs::read_to_string(&file).expect("read");
    assert!(text.lines().any(|line| line.starts_with("SERVER_TRAFFIC_SECRET_0 ")), "{text}");
    assert_eq!(std::fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
}

#[test]
fn files_that_are_no_certificate_are_refused_by_name() {
    let folder = Folder::new("files");
    let (one, other) = (own(&["localhost"]), own(&["localhost"]));
    let cert = folder.write("good.pem", &one.to_pem().expect("written"));
    let key = folder.write("good.key", &key_pem(&one));
    Certificate::from_files(&cert, &key).expect("a pair");

    let foreign = folder.write("foreign.key", &key_pem(&other));
    assert_eq!(
        Certificate::from_files(&cert, &foreign).expect_err("mismatch"),
        TlsError::Mismatch { cert: cert.clone(), key: foreign }
    );
    let garbage =
        folder.write("garbage", b"-----BEGIN CERTIFICATE-----\nbm90IGEgY2VydA==\n-----END CERTIFICATE-----\n");
    let text = folder.write("text", b"hello");
    let cut = folder.write("cut.pem", &one.to_pem().expect("written")[..200]);
    let bad_key = folder.write("bad.key", b"-----BEGIN PRIVATE KEY-----\nbm90IGEga2V5\n-----END PRIVATE KEY-----\n");
    let sealed = folder.write(
        "sealed.key",
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIBvTBXBgkqhkiG9w0BBQ0wSjApBgkqhkiG9w0BBQwwHAQI\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let absent = folder.0.join("absent.pem");
    for (cert, key, culprit, word) in [
        (&garbage, &key, &garbage, "not a certificate"),
        (&text, &key, &text, "no certificate in it"),
        (&cut, &key, &cut, "not a certificate"),
        (&cert, &text, &text, "no private key in it"),
        (&cert, &bad_key, &bad_key, "not a private key"),
        (&cert, &sealed, &sealed, "encrypted"),
        (&absent, &key, &absent, "cannot read"),
        (&folder.0, &key, &folder.0, "not a file"),
    ] {
        let error = Certificate::from_files(cert, key).expect_err("refused").to_string();
        assert!(error.contains(&culprit.display().to_string()) && error.contains(word), "{error}");
    }
    let error = ClientCertificates::signed_by(text.clone()).expect_err("refused").to_string();
    assert!(error.contains("no certificate in it"), "{error}");
    let client = ClientSettings { roots: Roots::File(text), ..ClientSettings::new(PeerName::new("x")) };
    assert!(client.builder().err().expect("refused").to_string().contains("no certificate in it"));
}

#[test]
fn a_chain_and_its_key_come_from_one_file_too() {
    let one = own(&["localhost"]);
    let mut both = one.to_pem().expect("written");
    both.extend(own(&["issuer"]).to_pem().expect("written"));
    both.extend(key_pem(&one));
    let read = Certificate::from_pem(&both, &both).expect("a pair");
    assert_eq!(read.chain.len(), 1);
    assert_eq!(read.names().collect::<Vec<_>>(), ["localhost"]);
}

#[test]
fn names_that_no_certificate_carries_are_refused() {
    for names in [&[][..], &[""], &["a b"], &["a..b"], &["*"], &["a/b"], &["x", "ü.de"]] {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        assert!(matches!(Certificate::generate(&names), Err(TlsError::Value(_))), "{names:?}");
    }
    let long = "a".repeat(63) + "." + &"b".repeat(63) + ".test";
    let certificate = Certificate::generate(&["*.example.org".into(), long.clone()]).expect("made");
    assert_eq!(certificate.names().collect::<Vec<_>>(), ["*.example.org", &long]);
}

#[test]
fn settings_that_tls_cannot_carry_are_refused() {
    let settings = ServerSettings::new("a", vec![]);
    assert!(matches!(settings.builder().err(), Some(TlsError::Value(_))));
    let settings =
        ServerSettings { protocols: vec![vec![b'x'; 256]], ..ServerSettings::new("a", vec![own(&["localhost"])]) };
    assert!(matches!(settings.builder().err(), Some(TlsError::Value(_))));
    let client = ClientSettings { protocols: vec![vec![]], ..ClientSettings::new(PeerName::new("x")) };
    assert!(matches!(client.builder().err(), Some(TlsError::Value(_))));
}

/// Holds a context as an endpoint does; the context is the name of the listener in the settings it was built from.
struct Holder {
    contexts: Generations<String>,
    refuses: bool,
}

enum Told {
    Reload(Reload),
    Used(crate::actors::Reply<(u64, String)>),
}

impl Protocol for Holder {
    type Msg = Told;
    const KIND: &'static str = "holder";

    fn on(&mut self, told: Told, _: &mut Turn<'_, Told>) -> Result<(), Fault> {
        match told {
            Told::Reload(told) => {
                let refuses = self.refuses;
                self.contexts
                    .handle(told, |settings| {
                        if refuses { Err(TlsError::Value("no".into())) } else { Ok(settings.listener.to_string()) }
                    })
                    .map_err(|error| Fault::local("tls", error.to_string()))?;
            }
            Told::Used(reply) => {
                let used = (self.contexts.number(), self.contexts.used().clone());
                drop(reply.send(used));
            }
        }
        Ok(())
    }
}

#[test]
fn a_generation_is_used_by_all_or_by_none() {
    let mesh =
        Mesh::start(MeshConfig { arbiters: std::num::NonZeroUsize::new(3), ..MeshConfig::default() }).expect("a mesh");
    let holder = |arbiter: usize, refuses: bool| {
        mesh.spawn(Place::On(arbiter), Spec::default(), move || Holder {
            contexts: Generations::new(1, "first".into()),
            refuses,
        })
        .expect("started")
    };
    let mut holders: Vec<_> = (0..3).map(|arbiter| holder(arbiter, false)).collect();
    let settings = |name: &str| Arc::new(ServerSettings::new(name, vec![own(&["localhost"])]));
    let used = |holders: &[crate::actors::Mail<Told>]| -> Vec<(u64, String)> {
        holders.iter().map(|h| h.ask_blocking(Told::Used, Duration::from_secs(10)).expect("an answer")).collect()
    };
    let run = |holders: &[crate::actors::Mail<Told>], generation, name: &str| {
        let published = Cell::new(false);
        let settings = settings(name);
        let within = Duration::from_secs(10);
        let work = reload(holders, generation, &settings, within, Told::Reload, || published.set(true));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let result = runtime.block_on(work);
        assert_eq!(published.get(), result.is_ok());
        result
    };
    run(&holders, 2, "second").expect("all agree");
    assert_eq!(used(&holders), vec![(2, "second".to_owned()); 3]);

    holders.push(holder(1, true));
    assert_eq!(run(&holders, 3, "third"), Err(ReloadError::Refused(TlsError::Value("no".into()))));
    assert_eq!(used(&holders[..3]), vec![(2, "second".to_owned()); 3], "rolled back everywhere");

    let gone = holders.pop().expect("the refuser");
    gone.control(crate::actors::Control::Stop);
    while !gone.is_closed() {
        std::thread::yield_now();
    }
    holders.push(gone);
    assert!(matches!(run(&holders, 4, "fourth"), Err(ReloadError::NoAnswer(_))));
    assert_eq!(used(&holders[..3]), vec![(2, "second".to_owned()); 3]);
    holders.pop();
    run(&holders, 5, "fifth").expect("all agree again");
    assert_eq!(used(&holders), vec![(5, "fifth".to_owned()); 3]);
    mesh.stop().expect("stopped");
}

/// A holder made anew after it had prepared begins with the old settings and must still follow.
#[test]
fn a_holder_made_anew_builds_what_it_is_told_to_use() {
    let settings = Arc::new(ServerSettings::new("second", vec![own(&["localhost"])]));
    let build = |settings: &Arc<ServerSettings>| Ok(settings.listener.to_string());
    let mut contexts = Generations::new(1, "first".to_owned());
    let commit = |generation| Reload::Commit { generation, settings: settings.clone() };
    assert_eq!(contexts.handle(commit(2), build), Ok(true));
    assert_eq!((contexts.number(), contexts.used().as_str()), (2, "second"));
    // Told again, or told late: nothing changes.
    assert_eq!(contexts.handle(commit(2), |_| panic!("not built again")), Ok(false));
    assert_eq!(contexts.handle(Reload::<ServerSettings>::Abort(2), |_| panic!("not built again")), Ok(false));
    assert_eq!(contexts.number(), 2);
}

/// The traps of quiche that the top of `tls` warns of, and what our contexts do under it.
#[cfg(feature = "quic")]
mod over_quiche {
    use super::*;

    const WITHIN: usize = 20;

    /// As for TCP, with a protocol: QUIC demands one (RFC 9001, section 8.1).
    fn listening(certificate: &Arc<Certificate>) -> ServerSettings {
        let protocols = protocols(&["x"]);
        ServerSettings { protocols, ..ServerSettings::new("q", vec![certificate.clone()]) }
    }

    fn trusting(certificate: &Arc<Certificate>, name: &str) -> ClientSettings {
        ClientSettings { protocols: protocols(&["x"]), ..super::trusting(certificate, name) }
    }

    fn server(settings: &ServerSettings) -> quiche::Config {
        quiche::Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, settings.builder().expect("built"))
            .expect("a configuration")
    }

    fn client(settings: &ClientSettings) -> quiche::Config {
        quiche::Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, settings.builder().expect("built"))
            .expect("a configuration")
    }

    /// Both ends after their handshake, however it went.
    fn meet(
        server: &mut quiche::Config,
        client: &mut quiche::Config,
        sni: Option<&str>,
        session: Option<&[u8]>,
    ) -> (quiche::Connection, quiche::Connection) {
        let (here, there) = ("127.0.0.1:1".parse().expect("an address"), "127.0.0.1:2".parse().expect("an address"));
        let id = |n: u8| quiche::ConnectionId::from_vec(vec![n; 16]);
        let mut client = quiche::connect(sni, &id(1), here, there, client).expect("a client");
        if let Some(session) = session {
            client.set_session(session).expect("a session");
        }
        let mut server = quiche::accept(&id(2), None, there, here, server).expect("a server");
        let mut packet = vec![0; 1_500];
        for _ in 0..WITHIN {
            while let Ok((length, _)) = client.send(&mut packet) {
                _ = server.recv(&mut packet[..length], quiche::RecvInfo { from: here, to: there });
            }
            while let Ok((length, _)) = server.send(&mut packet) {
                _ = client.recv(&mut packet[..length], quiche::RecvInfo { from: there, to: here });
            }
        }
        (client, server)
    }

    fn protocols(names: &[&str]) -> Vec<Vec<u8>> {
        names.iter().map(|name| name.as_bytes().to_vec()).collect()
    }

    #[test]
    fn our_context_prefers_the_servers_protocol_and_quiches_setter_would_not() {
        let certificate = own(&["localhost"]);
        let settings =
            ServerSettings { protocols: protocols(&["a", "b"]), ..ServerSettings::new("q", vec![certificate.clone()]) };
        let offering = |names: &[&str]| {
            client(&ClientSettings { protocols: protocols(names), ..trusting(&certificate, "localhost") })
        };
        let mut ours = server(&settings);
        let (one, _) = meet(&mut ours, &mut offering(&["b", "a"]), Some("localhost"), None);
        assert_eq!((one.is_established(), one.application_proto()), (true, &b"a"[..]));
        // "no_application_protocol" (RFC 7301) as a QUIC error (RFC 9001, section 4.8).
        let (one, two) = meet(&mut ours, &mut offering(&["c"]), Some("localhost"), None);
        assert!(!one.is_established() && !two.is_established());
        assert_eq!(two.local_error().expect("refused").error_code, 0x100 + 120);

        let mut trapped = server(&settings);
        trapped.set_application_protos(&[b"a", b"b"]).expect("set");
        let (one, _) = meet(&mut trapped, &mut offering(&["b", "a"]), Some("localhost"), None);
        assert_eq!(one.application_proto(), b"b", "the trap is gone: quiche prefers the server's order now");
    }

    #[test]
    fn client_certificates_stay_mandatory_and_quiches_setter_would_make_them_optional() {
        let folder = Folder::new("quiche-mutual");
        let (certificate, welcome) = (own(&["localhost"]), own(&["client"]));
        let authority = folder.write("clients.pem", &welcome.to_pem().expect("written"));
        let settings = ServerSettings {
            clients: Some(ClientCertificates::signed_by(authority).expect("read")),
            ..listening(&certificate)
        };
        let bare = trusting(&certificate, "localhost");
        let with = ClientSettings { certificate: Some(welcome), ..bare.clone() };
        let mut ours = server(&settings);
        assert!(meet(&mut ours, &mut client(&with), Some("localhost"), None).1.is_established());
        let (_, refused) = meet(&mut ours, &mut client(&bare), Some("localhost"), None);
        assert!(!refused.is_established());
        // certificate_required (RFC 8446, section 6.2).
        assert_eq!(refused.local_error().expect("refused").error_code, 0x100 + 116);

        let mut trapped = server(&settings);
        trapped.verify_peer(true);
        let (_, let_in) = meet(&mut trapped, &mut client(&bare), Some("localhost"), None);
        assert!(let_in.is_established(), "the trap is gone: quiche keeps certificates mandatory now");
    }

    /// quiche checks no name unless it sends one, and an address is never sent.
    #[test]
    fn an_address_is_verified_although_it_is_not_sent() {
        let certificate = own(&["127.0.0.1"]);
        let mut ours = server(&listening(&certificate));
        for (name, good) in [("127.0.0.1", true), ("127.0.0.2", false)] {
            let settings = trusting(&certificate, name);
            assert_eq!(settings.name.sni(), None);
            let (one, _) = meet(&mut ours, &mut client(&settings), None, None);
            assert_eq!(one.is_established(), good, "{name}");
        }
    }

    /// Whether a client with this ticket got in, whether by the ticket, and the ticket it has afterwards.
    fn come_back(
        server: &mut quiche::Config,
        client: &mut quiche::Config,
        ticket: Option<&[u8]>,
    ) -> (bool, bool, Option<Vec<u8>>) {
        let (one, two) = meet(server, client, Some("localhost"), ticket);
        assert_eq!(one.is_resumed(), two.is_resumed());
        (two.is_established(), two.is_resumed(), one.session().map(<[u8]>::to_vec))
    }

    #[test]
    fn a_ticket_opens_on_every_arbiter_and_through_one_turn_of_the_ring() {
        let certificate = own(&["localhost"]);
        let tickets = Tickets::new().expect("random numbers");
        let settings = ServerSettings { tickets: Some(tickets.clone()), ..listening(&certificate) };
        // Two arbiters: two contexts of one ring.
        let (mut first, mut second) = (server(&settings), server(&settings));
        let mut theirs = client(&trusting(&certificate, "localhost"));
        let (_, resumed, ticket) = come_back(&mut first, &mut theirs, None);
        assert!(!resumed);
        let (_, resumed, _) = come_back(&mut second, &mut theirs, ticket.as_deref());
        assert!(resumed);
        tickets.rotate().expect("random numbers");
        let (_, resumed, renewed) = come_back(&mut first, &mut theirs, ticket.as_deref());
        assert!(resumed, "the key before still opens");
        tickets.rotate().expect("random numbers");
        let (established, resumed, _) = come_back(&mut first, &mut theirs, ticket.as_deref());
        assert!(established && !resumed, "two turns are too many");
        assert!(come_back(&mut second, &mut theirs, renewed.as_deref()).1);
    }

    #[test]
    fn without_a_ring_there_are_no_tickets() {
        let certificate = own(&["localhost"]);
        let mut ours = server(&listening(&certificate));
        let ticket = come_back(&mut ours, &mut client(&trusting(&certificate, "localhost")), None).2;
        assert_eq!(ticket, None);
    }

    /// A resumed handshake shows no certificate, so a ticket from a listener that asks for none must not open one that
    /// does.
    #[test]
    fn a_ticket_of_another_listener_does_not_stand_in_for_a_certificate() {
        let folder = Folder::new("context");
        let certificate = own(&["localhost"]);
        let tickets = Some(Tickets::new().expect("random numbers"));
        let open = ServerSettings { tickets, ..listening(&certificate) };
        let authority = folder.write("clients.pem", &own(&["client"]).to_pem().expect("written"));
        let clients = Some(ClientCertificates::signed_by(authority).expect("read"));
        let mut theirs = client(&trusting(&certificate, "localhost"));
        let ticket = come_back(&mut server(&open), &mut theirs, None).2.expect("a ticket");
        assert!(come_back(&mut server(&open), &mut theirs, Some(&ticket)).1);
        // The same name and the same keys: a reload that began to ask for certificates.
        let closed = ServerSettings { clients, ..open.clone() };
        assert!(!come_back(&mut server(&closed), &mut theirs, Some(&ticket)).0);
        let elsewhere = ServerSettings { listener: "elsewhere".into(), ..open };
        let (established, resumed, _) = come_back(&mut server(&elsewhere), &mut theirs, Some(&ticket));
        assert!(established && !resumed);
    }

    /// 0-RTT is off: the ticket offers none, whatever the client is ready for.
    #[test]
    fn early_data_is_refused() {
        let certificate = own(&["localhost"]);
        let tickets = Some(Tickets::new().expect("random numbers"));
        let mut ours = server(&ServerSettings { tickets, ..listening(&certificate) });
        let mut eager = client(&trusting(&certificate, "localhost"));
        eager.enable_early_data();
        let ticket = come_back(&mut ours, &mut eager, None).2.expect("a ticket");
        let (one, two) = meet(&mut ours, &mut eager, Some("localhost"), Some(&ticket));
        assert!(one.is_resumed() && two.is_resumed());
        // ssl_early_data_unsupported_for_session of BoringSSL: the ticket itself allows none.
        assert_eq!(one.early_data_reason(), 7);
    }

    /// Connections that began under an old generation end under it.
    #[test]
    fn a_context_replaced_in_the_midst_of_a_handshake_serves_it_to_the_end() {
        let (old, new) = (own(&["localhost"]), own(&["localhost"]));
        let (here, there) = ("127.0.0.1:1".parse().expect("an address"), "127.0.0.1:2".parse().expect("an address"));
        let mut contexts = Generations::new(1, server(&listening(&old)));
        let mut theirs = client(&trusting(&old, "localhost"));
        let id = |n: u8| quiche::ConnectionId::from_vec(vec![n; 16]);
        let mut one = quiche::connect(Some("localhost"), &id(1), here, there, &mut theirs).expect("a client");
        let mut two = quiche::accept(&id(2), None, there, here, contexts.used()).expect("a server");
        let mut packet = vec![0; 1_500];
        let (length, _) = one.send(&mut packet).expect("a first packet");
        two.recv(&mut packet[..length], quiche::RecvInfo { from: here, to: there }).expect("taken");
        let settings = Arc::new(listening(&new));
        let changed = contexts.handle(Reload::Commit { generation: 2, settings }, |settings| Ok(server(settings)));
        assert_eq!(changed, Ok(true));
        for _ in 0..WITHIN {
            while let Ok((length, _)) = two.send(&mut packet) {
                _ = one.recv(&mut packet[..length], quiche::RecvInfo { from: there, to: here });
            }
            while let Ok((length, _)) = one.send(&mut packet) {
                _ = two.recv(&mut packet[..length], quiche::RecvInfo { from: here, to: there });
            }
        }
        assert!(one.is_established() && two.is_established());
        assert!(!meet(contexts.used(), &mut theirs, Some("localhost"), None).0.is_established());
        let mut theirs = client(&trusting(&new, "localhost"));
        assert!(meet(contexts.used(), &mut theirs, Some("localhost"), None).0.is_established());
    }
}

/// Not a secret by accident: neither keys nor rings show what they hold.
#[test]
fn debug_shows_no_keys() {
    let certificate = own(&["localhost"]);
    let settings = ServerSettings {
        tickets: Some(Tickets::new().expect("random numbers")),
        ..ServerSettings::new("a", vec![certificate])
    };
    let shown = format!("{settings:?}");
    assert!(shown.contains("localhost") && !shown.contains("PKey") && !shown.contains("cipher"), "{shown}");
    assert!(!Path::new("").exists());
}
