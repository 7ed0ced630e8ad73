//! What QUIC says of each connection, written to a file of its own in the qlog format, on request.
//!
//! A connection collects its log and hands it in pieces to one actor on the System's thread, which writes: no arbiter
//! waits for a disk. Files, their size and what is on its way to them are bounded; a log that meets a bound, a full
//! mailbox or an error ends there, counted under `quic_qlog_lost` by reason, and the connection goes on.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::actor_engine::Quic;
use super::session::Role;
use super::settings::Transport;
use crate::actors::clock;
use crate::actors::{Driver, Fault, Mail, Mesh, Permit, Place, Protocol, SpawnError, Spec, Turn};

/// Bytes of one piece.
const PIECE: usize = 32 << 10;
/// Bytes and pieces on their way to files.
const INBOX: (usize, usize) = (16_384, 16 << 20);
const LOST: &str = "quic_qlog_lost";

/// Where connections are logged, and how much of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qlog {
    /// The folder, which must exist. Files are made for their owner alone.
    pub folder: PathBuf,
    /// Bytes of one file; the log of a connection that says more ends there. Default 4 MiB.
    pub bytes: u64,
    /// Connections that are logged, counted from the start; those after them are not. Default 256.
    pub files: u64,
}

impl Qlog {
    /// With the defaults: 1 GiB in all.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), bytes: 4 << 20, files: 256 }
    }
}

/// The way to the files, for endpoints.
#[derive(Clone)]
pub(super) struct Log {
    mail: Mail<ToLog>,
    settings: Arc<Qlog>,
    scope: Arc<str>,
    made: Arc<AtomicU64>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Log {
    /// What these settings ask for.
    pub(super) fn of(mesh: &Mesh, scope: &Arc<str>, transport: &Transport) -> Result<Option<Self>, SpawnError> {
        let Some(settings) = transport.qlog.clone() else { return Ok(None) };
        let (own, folder) = (scope.clone(), settings.folder.clone());
        let make = move || Writer { scope: own, folder, files: HashMap::new(), draining: false };
        let mail = mesh.spawn(Place::System, Spec::named(scope.clone()).inbox(INBOX.0, INBOX.1), make)?;
        Ok(Some(Self { mail, settings: Arc::new(settings), scope: scope.clone(), made: Arc::default() }))
    }

    /// Whether both ask for the same.
    pub(super) fn same(one: &Transport, other: &Transport) -> bool {
        one.qlog == other.qlog
    }

    /// Has a new connection logged.
    pub(super) fn attach(&self, quic: &mut Quic, role: Role) {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let lost = |reason| Driver::default().raise(LOST, &self.scope, reason);
        if number >= self.settings.files {
            lost("files");
            return;
        }
        let role = match role {
            Role::Server => "server",
            Role::Client => "client",
        };
        let name =
            format!("{}-{}-{number}-{role}.sqlog", clock::since_1970().as_millis(), self.scope.replace('/', "_"));
        let Ok(close) = self.mail.try_permit(0) else { return lost("full") };
        if self.mail.tell(ToLog::Open(number, name)).is_err() {
            return lost("full");
        }
        let sink = Sink {
            mail: self.mail.clone(),
            scope: self.scope.clone(),
            number,
            left: self.settings.bytes,
            cut: false,
            piece: Vec::new(),
            close: Some(close),
        };
        quic.set_qlog(Box::new(sink), "portway".to_owned(), self.scope.to_string());
    }

    /// Whether the two are one.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.made, &other.made)
    }

    /// Ends the writer when the last log is closed, and by then in any case.
    pub(super) fn end(&self, by: Instant) {
        self.mail.control(crate::actors::Control::Drain(by));
    }
}

/// Where quiche writes the log of one connection.
struct Sink {
    mail: Mail<ToLog>,
    scope: Arc<str>,
    number: u64,
    /// Bytes it may still say.
    left: u64,
    /// It has ended before its connection.
    cut: bool,
    piece: Vec<u8>,
    close: Option<Permit<ToLog>>,
}

impl Sink {
    fn hand_over(&mut self) {
        if self.piece.is_empty() {
            return;
        }
        if self.mail.tell(ToLog::Write(self.number, std::mem::take(&mut self.piece))).is_err() {
            self.cut("full");
        }
    }

    fn cut(&mut self, reason: &'static str) {
        self.cut = true;
        Driver::default().raise(LOST, &self.scope, reason);
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.cut {
            return Ok(bytes.len());
        }
        let length = bytes.len() as u64;
        if length > self.left {
            self.hand_over();
            self.cut("size");
            return Ok(bytes.len());
        }
        self.left -= length;
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.hand_over();
        }
        Ok(bytes.len())
    }

    /// Nothing to do: what is collected is handed over in pieces, and at the end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.hand_over();
        if let Some(close) = self.close.take() {
            // Refused only by a writer that has ended.
            drop(close.tell(ToLog::Close(self.number)));
        }
    }
}

/// What the writer is told.
enum ToLog {
    Open(u64, String),
    Write(u64, Vec<u8>),
    Close(u64),
}

/// The actor that writes.
struct Writer {
    scope: Arc<str>,
    folder: PathBuf,
    /// Nothing for those that could not be opened or written.
    files: HashMap<u64, Option<File>>,
    draining: bool,
}

impl Writer {
    fn open(&self, name: &str, turn: &Turn<'_, ToLog>) -> Option<File> {
        let path = self.folder.join(name);
        match fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path) {
            Ok(file) => {
                turn.counter("quic_qlog_files", &self.scope, "").add(1);
                Some(file)
            }
            Err(error) => {
                turn.counter(LOST, &self.scope, "open").add(1);
                tracing::warn!(file = %path.display(), %error, "a connection is not logged");
                None
            }
        }
    }
}

impl Protocol for Writer {
    type Msg = ToLog;
    const KIND: &'static str = "quic_qlog";

    fn size(m: &ToLog) -> usize {
        if let ToLog::Write(_, bytes) = m { bytes.len() } else { 0 }
    }

    fn on(&mut self, m: ToLog, turn: &mut Turn<'_, ToLog>) -> Result<(), Fault> {
        match m {
            ToLog::Open(number, name) => {
                let file = self.open(&name, turn);
                self.files.insert(number, file);
            }
            ToLog::Write(number, bytes) => {
                let Some(place) = self.files.get_mut(&number) else { return Ok(()) };
                if let Some(Err(error)) = place.as_mut().map(|file| file.write_all(&bytes)) {
                    *place = None;
                    turn.counter(LOST, &self.scope, "write").add(1);
                    tracing::warn!(folder = %self.folder.display(), %error, "the log of a connection ends here");
                }
            }
            ToLog::Close(number) => {
                self.files.remove(&number);
            }
        }
        if self.draining && self.files.is_empty() {
            turn.stop_when_empty();
        }
        Ok(())
    }

    fn drain(&mut self, _: Instant, turn: &mut Turn<'_, ToLog>) {
        self.draining = true;
        if self.files.is_empty() {
            turn.stop_when_empty();
        }
    }
}
