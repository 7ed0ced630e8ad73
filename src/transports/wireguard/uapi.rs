//! The socket by which `wg` sees and changes a tunnel: `/var/run/wireguard/NAME.sock`, for its owner alone.
//!
//! One future on an arbiter for rare work. It serves at most [`CALLERS`] at a time, the others wait to be accepted; a
//! caller who takes longer than [`PATIENCE`] for a request is cut off. What a request means is decided by whoever
//! implements [`Tunnel`].

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net as blocking;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustix::fs::Mode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use zeroize::Zeroizing;

use super::codec_uapi::{self, DeviceView, Edit, Errno, MAX_REQUEST, Request};
use crate::actors::{Driver, Fault, Kind, clock};

/// Where `wg` looks.
pub const FOLDER: &str = "/var/run/wireguard";

/// Callers served at a time.
pub const CALLERS: usize = 16;

/// How long one request and its answer may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The kind of this actor.
#[derive(Debug, Clone, Copy)]
pub struct Uapi;

impl Kind for Uapi {
    const KIND: &'static str = "wireguard_uapi";
}

/// A tunnel that can be seen and changed.
pub trait Tunnel: 'static {
    /// Everything about it; `None` if it does not answer.
    fn view(&self) -> impl Future<Output = Option<DeviceView>>;

    /// Applies a change, whole or not at all.
    fn apply(&self, edit: Edit) -> impl Future<Output = Errno>;
}

/// The bound socket. Dropping it removes the file.
#[derive(Debug)]
pub struct Socket {
    listener: blocking::UnixListener,
    path: PathBuf,
    /// Of the interface: the scope of its counters.
    name: Arc<str>,
}

impl Socket {
    /// Binds `folder/name.sock`. The folder is made if it is [`FOLDER`], which other programs do as well; another one
    /// has to be there. What a process that is gone has left behind is replaced; a socket that somebody serves is not.
    ///
    /// # Errors
    /// What the system says; `AddrInUse` when somebody answers there already, or the path is something else.
    pub fn bind(folder: &Path, name: &str) -> io::Result<Self> {
        if folder == Path::new(FOLDER) && !folder.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
        }
        let path = folder.join(format!("{name}.sock"));
        if let Ok(found) = fs::symlink_metadata(&path) {
            if !found.file_type().is_socket() || blocking::UnixStream::connect(&path).is_ok() {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            fs::remove_file(&path)?;
        }
        // Bound under a name nobody looks for until nobody else may open it: changing the mask of the process would
        // reach files that other threads make now.
        let hidden = folder.join(format!(".{name}.{}", std::process::id()));
        let _left_behind = fs::remove_file(&hidden);
        let listener = blocking::UnixListener::bind(&hidden)?;
        let ready = rustix::fs::chmod(&hidden, Mode::RUSR | Mode::WUSR)
            .map_err(io::Error::from)
            .and_then(|()| fs::rename(&hidden, &path))
            .and_then(|()| listener.set_nonblocking(true));
        if let Err(error) = ready {
            let _not_there = fs::remove_file(&hidden);
            return Err(error);
        }
        Ok(Self { listener, path, name: Arc::from(name) })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _gone_already = fs::remove_file(&self.path);
    }
}

/// Binds `folder/name.sock` and serves it until the actor is asked to finish. While another still serves it (the
/// interface before, after a reload) that is tried again for five seconds; without a socket the interface goes on.
///
/// # Errors
/// The socket cannot be used on this thread.
pub async fn run<T: Tunnel>(folder: PathBuf, name: Arc<str>, tunnel: T, driver: Driver) -> Result<(), Fault> {
    let mut tries = 0;
    let socket = loop {
        match Socket::bind(&folder, &name) {
            Ok(socket) => break socket,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < 50 => {
                tries += 1;
                clock::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => {
                driver.raise("wireguard_uapi_refused", &name, "no_socket");
                let path = folder.join(format!("{name}.sock"));
                let path = path.display();
                if error.kind() == io::ErrorKind::AddrInUse {
                    tracing::warn!(interface = %name, %path, "wg is not served: somebody else has this path");
                } else if error.kind() == io::ErrorKind::PermissionDenied && folder == Path::new(FOLDER) {
                    // Without root that is how it is.
                    tracing::info!(interface = %name, %path, %error, "wg is not served");
                } else {
                    tracing::warn!(interface = %name, %path, %error, "wg is not served");
                }
                return Ok(());
            }
        }
    };
    serve(socket, tunnel, driver).await
}

/// Serves the socket until the actor is asked to finish.
///
/// # Errors
/// The socket cannot be used on this thread.
pub async fn serve<T: Tunnel>(socket: Socket, tunnel: T, driver: Driver) -> Result<(), Fault> {
    let local = |error: io::Error| Fault::local("uapi_socket", error.to_string());
    let listener = socket.listener.try_clone().and_then(UnixListener::from_std).map_err(local)?;
    let mut callers = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = driver.quiesced() => return Ok(()),
            Some(()) = callers.next() => {}
            accepted = listener.accept(), if callers.len() < CALLERS => match accepted {
                Ok((stream, _)) => callers.push(call(stream, &tunnel, &driver, &socket.name)),
                Err(error) => {
                    tracing::warn!(%error, path = %socket.path.display(), "could not accept");
                    clock::sleep(Duration::from_millis(500)).await;
                }
            },
        }
    }
}

/// Serves one caller's requests.
async fn call<T: Tunnel>(mut stream: UnixStream, tunnel: &T, driver: &Driver, name: &str) {
    let mut bytes = Zeroizing::new(Vec::new());
    loop {
        let answered = clock::within(PATIENCE, async {
            let Some(length) = whole_request(&mut stream, &mut bytes).await? else { return Ok(false) };
            let request = if length > MAX_REQUEST {
                Err(Errno::TOO_LONG)
            } else {
                codec_uapi::read(bytes.get(..length).unwrap_or_default())
            };
            let answer = match request {
                Err(errno) => refused(errno, driver, name),
                Ok(Request::Get) => match tunnel.view().await {
                    Some(device) => codec_uapi::view(&device),
                    None => refused(Errno::BUSY, driver, name),
                },
                Ok(Request::Set(edit)) => match tunnel.apply(edit).await {
                    Errno::NONE => codec_uapi::outcome(Errno::NONE).into(),
                    errno => refused(errno, driver, name),
                },
            };
            stream.write_all(answer.as_bytes()).await?;
            let used = length.min(bytes.len());
            bytes.drain(..used);
            Ok::<bool, io::Error>(length <= MAX_REQUEST)
        })
        .await;
        match answered {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return,
            Ok(Err(error)) => return tracing::debug!(%error, "a caller went away"),
            Err(clock::Elapsed) => return driver.raise("wireguard_uapi_refused", name, "slow"),
        }
    }
}

fn refused(errno: Errno, driver: &Driver, name: &str) -> Zeroizing<String> {
    let reason = match errno {
        Errno::PROTOCOL => "protocol",
        Errno::INVALID => "invalid",
        Errno::TOO_LONG => "too_long",
        Errno::BUSY => "busy",
        _ => "not_applied",
    };
    driver.raise("wireguard_uapi_refused", name, reason);
    codec_uapi::outcome(errno).into()
}

/// Reads until there is a whole request; its length, more than [`MAX_REQUEST`] if it is too long, `None` at the end.
async fn whole_request(stream: &mut UnixStream, bytes: &mut Zeroizing<Vec<u8>>) -> io::Result<Option<usize>> {
    let mut searched = 0usize;
    loop {
        if let Some(length) = codec_uapi::request_length(bytes.get(searched..).unwrap_or_default()) {
            return Ok(Some(searched + length));
        }
        if bytes.len() > MAX_REQUEST {
            return Ok(Some(bytes.len()));
        }
        searched = bytes.len().saturating_sub(1);
        if bytes.len() == bytes.capacity() {
            // By hand: what growing leaves behind would hold keys.
            let mut larger = Zeroizing::new(Vec::with_capacity((bytes.capacity() * 2).max(4_096)));
            larger.extend_from_slice(bytes);
            *bytes = larger;
        }
        if stream.read_buf(&mut **bytes).await? == 0 {
            return Ok(None);
        }
    }
}
