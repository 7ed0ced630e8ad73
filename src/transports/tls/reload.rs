//! How settings are replaced on all arbiters or on none: prepared by everybody, then put to use by everybody.
//!
//! Connections that run keep what they began with. A new generation is built by each arbiter beside the one in use; if
//! one of them cannot, all drop theirs and the old one stays. Putting a prepared one to use cannot fail.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{ServerSettings, TlsError};
use crate::actors::{AskError, Mail, Reply};

/// What an actor that holds a context is told. It keeps its contexts in [`Generations`]. `S` is what they are built from:
/// certificates, and for QUIC what else new connections begin with.
#[derive(Debug)]
pub enum Reload<S = ServerSettings> {
    /// Build a context from these settings and keep it beside the one in use.
    Prepare {
        /// Which generation this is.
        generation: u64,
        /// What to build it from.
        settings: Arc<S>,
        /// Whether that worked.
        reply: Reply<Result<(), TlsError>>,
    },
    /// Use it from now on. An actor that was made anew since and has prepared nothing builds it now.
    Commit {
        /// Which generation this is.
        generation: u64,
        /// What it is built from.
        settings: Arc<S>,
    },
    /// Drop it.
    Abort(u64),
}

/// The context in use, and the one prepared.
#[derive(Debug)]
pub struct Generations<C> {
    number: u64,
    used: C,
    prepared: Option<(u64, C)>,
}

impl<C> Generations<C> {
    /// Begins with a context of this generation.
    pub const fn new(number: u64, used: C) -> Self {
        Self { number, used, prepared: None }
    }

    /// The context to use.
    pub const fn used(&mut self) -> &mut C {
        &mut self.used
    }

    /// The same, to look at.
    pub const fn in_use(&self) -> &C {
        &self.used
    }

    /// The generation in use.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Does what it is told; `build` makes a context. Answers whether the context in use is another one now.
    ///
    /// # Errors
    /// Only when a generation is put to use that was prepared by this actor's predecessor and cannot be built again;
    /// best the actor ends and is made anew.
    pub fn handle<S>(
        &mut self,
        told: Reload<S>,
        build: impl FnOnce(&Arc<S>) -> Result<C, TlsError>,
    ) -> Result<bool, TlsError> {
        match told {
            Reload::Prepare { generation, settings, reply } => {
                let built = build(&settings).map(|context| self.prepared = Some((generation, context)));
                // Whoever asked may have given up, and will abort.
                drop(reply.send(built));
                Ok(false)
            }
            Reload::Commit { generation, .. } if self.number >= generation => Ok(false),
            Reload::Commit { generation, settings } => {
                let prepared = self.prepared.take_if(|(prepared, _)| *prepared == generation);
                self.used = prepared.map_or_else(|| build(&settings), |(_, context)| Ok(context))?;
                self.number = generation;
                Ok(true)
            }
            Reload::Abort(generation) => {
                self.prepared.take_if(|(prepared, _)| *prepared == generation);
                Ok(false)
            }
        }
    }
}

/// Why a generation was dropped. The one before it is in use everywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReloadError {
    /// One could not build it.
    Refused(TlsError),
    /// One did not answer in time, or is gone.
    NoAnswer(AskError),
}

impl fmt::Display for ReloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => error.fmt(f),
            Self::NoAnswer(error) => write!(f, "an arbiter did not take the new certificates: {error}"),
        }
    }
}

impl std::error::Error for ReloadError {}

/// Replaces the settings of all `holders`, or of none. `wrap` makes their message of it.
///
/// Room for the last word is reserved before the first is said, so that nobody is left with half of it. All are asked
/// at once and each has `within` to answer. `publish` is called in between, when all have built the new generation: it
/// stores the settings from which actors that are made anew begin.
///
/// # Errors
/// See [`ReloadError`].
pub async fn reload<S, M: Send + 'static>(
    holders: &[Mail<M>],
    generation: u64,
    settings: &Arc<S>,
    within: Duration,
    wrap: impl Fn(Reload<S>) -> M,
    publish: impl FnOnce(),
) -> Result<(), ReloadError> {
    let mut answers = Vec::with_capacity(holders.len());
    let mut last_words = Vec::with_capacity(holders.len());
    let mut failed = None;
    for holder in holders {
        let (reply, answer) = Reply::new();
        let told = holder.try_permit(0).map_err(|refused| AskError::from(&refused)).and_then(|room| {
            last_words.push(room);
            let prepare = Reload::Prepare { generation, settings: settings.clone(), reply };
            holder.tell(wrap(prepare)).map_err(|refused| AskError::from(&refused))
        });
        match told {
            Ok(()) => answers.push(answer),
            Err(error) => failed = Some(ReloadError::NoAnswer(error)),
        }
    }
    for answer in answers {
        match answer.within(within).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => failed = Some(ReloadError::Refused(error)),
            Err(error) => failed = failed.or(Some(ReloadError::NoAnswer(error))),
        }
    }
    if failed.is_none() {
        publish();
    }
    for room in last_words {
        let word = match failed {
            Some(_) => Reload::Abort(generation),
            None => Reload::Commit { generation, settings: settings.clone() },
        };
        // Refused only by one that has ended, and needs no certificates any more.
        drop(room.tell(wrap(word)));
    }
    failed.map_or(Ok(()), Err)
}
