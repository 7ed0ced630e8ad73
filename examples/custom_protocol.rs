//! cargo run --example custom_protocol -- run -c examples/configs/custom_protocol.toml
//!
//! A protocol of your own in the gateway binary, in one file: lines in, the same lines out in capitals. It gets the
//! gateway's command line, configuration check, caps, drain, metrics and admin listener. Try it: `nc 127.0.0.1 7100`.

use std::io;
use std::process::ExitCode;

use portway::actors::{Fault, Place, Progress, Protocol, SpawnError, Spec, Turn};
use portway::gateway::{Builder, cli};
use portway::transports::kit::admission::Ticket;
use portway::transports::tcp::{Accepted, Never, OnAccept};
use tokio::net::TcpStream;

/// The actor of one connection. It polls its own socket.
struct Shouter {
    stream: io::Result<TcpStream>,
    prefix: String,
    line: Vec<u8>,
    out: Vec<u8>,
    ticket: Ticket,
}

const LONGEST_LINE: usize = 1_000;

impl Shouter {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        for byte in bytes {
            self.line.push(byte.to_ascii_uppercase());
            if *byte == b'\n' {
                self.out.extend_from_slice(self.prefix.as_bytes());
                self.out.append(&mut self.line);
                self.ticket.complete();
            } else if self.line.len() > LONGEST_LINE {
                return Err(Fault::peer("line_too_long", ""));
            }
        }
        Ok(())
    }
}

fn lost(error: &io::Error) -> Fault {
    Fault::peer("stream", error.to_string())
}

impl Protocol for Shouter {
    type Msg = Never;
    const KIND: &'static str = "shout";

    fn on(&mut self, m: Never, _: &mut Turn<'_, Never>) -> Result<(), Fault> {
        match m {}
    }

    fn io(&mut self, turn: &mut Turn<'_, Never>) -> Result<Progress, Fault> {
        // Back-pressure: what the peer has not taken yet keeps us from reading more.
        for _ in 0..16 {
            if !self.out.is_empty() {
                return Ok(Progress::Idle);
            }
            let stream = self.stream.as_ref().map_err(lost)?;
            if stream.poll_read_ready(&mut turn.cx()).is_pending() {
                return Ok(Progress::Idle);
            }
            let mut buffer = [0; 4_096];
            match stream.try_read(&mut buffer) {
                Ok(0) => {
                    turn.stop();
                    return Ok(Progress::Idle);
                }
                Ok(count) => self.take(&buffer[..count])?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(lost(&error)),
            }
        }
        Ok(Progress::More)
    }

    fn flush(&mut self, turn: &mut Turn<'_, Never>) -> Result<Progress, Fault> {
        let stream = self.stream.as_ref().map_err(lost)?;
        let had_some = !self.out.is_empty();
        while !self.out.is_empty() {
            if stream.poll_write_ready(&mut turn.cx()).is_pending() {
                return Ok(Progress::Idle);
            }
            match stream.try_write(&self.out) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(lost(&error)),
            }
        }
        if had_some {
            // `io` stopped reading while there was something to write, and no readiness will wake it again.
            turn.again();
        }
        Ok(Progress::Idle)
    }
}

struct Shout {
    prefix: String,
}

impl OnAccept for Shout {
    fn accepted(&mut self, accepted: Accepted, turn: &Turn<'_, Never>) -> Result<(), SpawnError> {
        let Accepted { stream, ticket, .. } = accepted;
        let prefix = self.prefix.clone();
        let make =
            move || Shouter { stream: TcpStream::from_std(stream), prefix, line: Vec::new(), out: Vec::new(), ticket };
        turn.spawn(Place::LeastLoaded, Spec::default(), make).map(drop)
    }
}

pub(crate) fn builder() -> Builder {
    Builder::new().tcp_protocol("shout", |options| {
        if let Some(key) = options.keys().find(|key| *key != "prefix") {
            return Err(format!("[listener.options] knows `prefix`, not `{key}`"));
        }
        let prefix = match options.get("prefix") {
            None => String::new(),
            Some(value) => value.as_str().ok_or("`prefix` must be a string")?.to_owned(),
        };
        Ok(move || Shout { prefix: prefix.clone() })
    })
}

fn main() -> ExitCode {
    cli::main(&builder())
}
