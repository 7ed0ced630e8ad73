//! The UAPI socket, asked by the real `wg` and by hand.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use portway::actors::{Control, Mail, Mesh, Place, Spec};
use portway::transports::wireguard::codec_uapi::{DeviceView, Edit, Errno, PeerView};
use portway::transports::wireguard::uapi::{Socket, Tunnel, Uapi, serve};
use portway::transports::wireguard::{PublicKey, SecretKey};

use crate::gateway::temp_dir;
use crate::probe::{SOON, eventually, mesh, stop, view};

/// A tunnel that is only its description.
struct Paper(RefCell<DeviceView>);

impl Tunnel for Paper {
    async fn view(&self) -> Option<DeviceView> {
        Some(self.0.borrow().clone())
    }

    async fn apply(&self, edit: Edit) -> Errno {
        let mut device = self.0.borrow_mut();
        if let Some(port) = edit.listen_port {
            if port == 1 {
                return Errno::PORT_IN_USE;
            }
            device.listen_port = port;
        }
        if edit.replace_peers {
            device.peers.clear();
        }
        for change in edit.peers {
            let known = device.peers.iter().any(|peer| peer.public_key == change.public_key);
            if change.remove {
                device.peers.retain(|peer| peer.public_key != change.public_key);
            } else if !known && !change.update_only {
                device.peers.push(PeerView {
                    public_key: change.public_key,
                    preshared_key: change.preshared_key.flatten(),
                    endpoint: change.endpoint,
                    last_handshake: Some(Duration::from_secs(1_700_000_000)),
                    received: 1_024,
                    sent: 2_048,
                    keepalive: change.keepalive.unwrap_or(0),
                    allowed_ips: change.add,
                });
            }
        }
        Errno::NONE
    }
}

struct Served {
    mesh: Mesh,
    folder: PathBuf,
    name: &'static str,
    mail: Mail<std::convert::Infallible>,
}

impl Served {
    fn start(folder: PathBuf, name: &'static str) -> Self {
        let mesh = mesh(1);
        let socket = Socket::bind(&folder, name).expect("a socket");
        let mail = mesh
            .drive::<Uapi, _>(Place::System, Spec::named(name), move |driver| {
                let device = DeviceView {
                    private_key: Some(SecretKey::new([7; 32])),
                    listen_port: 51_820,
                    ..DeviceView::default()
                };
                serve(socket, Paper(RefCell::new(device)), driver)
            })
            .expect("it starts");
        Self { mesh, folder, name, mail }
    }

    fn ask(&self, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.folder.join("paper0.sock")).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(request).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn refused(&self, reason: &str) -> u64 {
        view(&self.mesh).totals.get("wireguard_uapi_refused", self.name, reason)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        stop(&self.mesh);
    }
}

fn wg(arguments: &[&str]) -> (bool, String) {
    let out = Command::new("wg").args(arguments).output().expect("wg runs");
    (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
}

/// `wg` looks in one folder only, so this test has a name of its own there.
#[test]
fn wg_sees_and_changes_a_tunnel() {
    let name: &'static str = format!("pwua{}", std::process::id() % 100_000).leak();
    let served = Served::start(Path::new("/var/run/wireguard").to_owned(), name);
    let key = PublicKey([5; 32]).to_string();
    let (ok, text) = wg(&[
        "set",
        name,
        "listen-port",
        "51999",
        "peer",
        &key,
        "allowed-ips",
        "10.98.0.2/32,fd98::/64",
        "endpoint",
        "192.0.2.1:51820",
        "persistent-keepalive",
        "25",
    ]);
    assert!(ok, "{text}");
    let (ok, text) = wg(&["show", name, "dump"]);
    assert!(ok, "{text}");
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(lines[0][2..], ["51999", "off"]);
    assert_eq!(
        lines[1],
        [key.as_str(), "(none)", "192.0.2.1:51820", "10.98.0.2/32,fd98::/64", "1700000000", "1024", "2048", "25"]
    );
    let (ok, text) = wg(&["set", name, "listen-port", "1"]);
    assert!(!ok && text.contains("Address already in use"), "{text}");
    assert_eq!(served.refused("not_applied"), 1);
    let (ok, text) = wg(&["set", name, "peer", &key, "remove"]);
    assert!(ok, "{text}");
    assert!(!wg(&["show", name, "dump"]).1.contains(&key));
    served.mail.control(Control::Drain(crate::probe::now() + SOON));
    eventually("the socket is gone", || !Path::new("/var/run/wireguard").join(format!("{name}.sock")).exists());
}

#[test]
fn a_bad_request_costs_its_caller_alone() {
    let served = Served::start(temp_dir(), "paper0");
    let path = served.folder.join("paper0.sock");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut neighbour = UnixStream::connect(&path).unwrap();
    neighbour.set_read_timeout(Some(SOON)).unwrap();
    neighbour.write_all(b"get=1\n").unwrap();

    assert_eq!(served.ask(b"set=1\ncolour=red\n\n"), "errno=-22\n\n");
    assert_eq!(served.refused("invalid"), 1);
    assert_eq!(served.ask(b"hello\n\n"), "errno=-71\n\n");
    assert_eq!(served.refused("protocol"), 1);
    // More than one request in a call, the second one cut short.
    assert_eq!(served.ask(b"set=1\nlisten_port=5\n\nset=1\nlisten_port=6"), "errno=0\n\n");
    assert!(served.ask(b"get=1\n\n").contains("listen_port=5\n"));

    neighbour.write_all(b"\n").unwrap();
    let mut answer = [0; 12];
    neighbour.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"private_key=", "the neighbour is answered");
}

#[test]
fn a_request_without_an_end_is_cut_off() {
    let served = Served::start(temp_dir(), "paper0");
    let mut stream = UnixStream::connect(served.folder.join("paper0.sock")).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let block = vec![b'a'; 1 << 20];
    // The end of the writing is where it cuts off.
    for _ in 0..20 {
        if stream.write_all(&block).is_err() {
            break;
        }
    }
    let mut answer = String::new();
    let _reset = stream.read_to_string(&mut answer);
    eventually("it is counted", || served.refused("too_long") == 1);
    assert!(served.ask(b"get=1\n\n").ends_with("errno=0\n\n"));
}

#[test]
fn a_socket_that_is_served_is_not_taken_and_one_left_behind_is() {
    let folder = temp_dir();
    let first = Socket::bind(&folder, "twice").unwrap();
    assert_eq!(Socket::bind(&folder, "twice").unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    // As a process that was killed leaves it.
    drop(std::os::unix::net::UnixListener::bind(folder.join("left.sock")).unwrap());
    assert!(Socket::bind(&folder, "left").is_ok());
    std::fs::write(folder.join("file.sock"), "").unwrap();
    assert_eq!(Socket::bind(&folder, "file").unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    // A folder that somebody chose is not made.
    let none = folder.join("none");
    assert_eq!(Socket::bind(&none, "lost").unwrap_err().kind(), std::io::ErrorKind::NotFound);
    assert!(!none.exists());
    let path = first.path().to_owned();
    drop(first);
    assert!(!path.exists());
}
