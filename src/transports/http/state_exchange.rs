//! What one exchange decides: whether it may be tried again, and what its client is told when it cannot be done.
//!
//! Of no version of HTTP and of no library: it is told what became of an attempt and says what comes next. A request is
//! repeated if it never reached a server, or if it has no body and its method may be repeated (RFC 9110, section 9.2.2).
//! A [`RetryBudget`] bounds what repeating adds when servers fail everywhere.

use http::{Method, StatusCode};

/// What became of an attempt that gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// No server can take it now: all are down or have as much as they may.
    NoServer,
    /// No connection to the server came about.
    NotConnected,
    /// TLS with the server did not come about: its certificate, its name, or what it speaks.
    Handshake,
    /// The connection was closed before anything of the request was sent.
    NotSent,
    /// A connection that was kept from an earlier request ended instead of giving an answer. Its server may have closed
    /// it before it saw the request.
    Stale,
    /// The server closed the connection, or said something that is no answer.
    Broken,
    /// The head of the answer frames its body in more than one way, or in one that is not known.
    Framing,
    /// The server switched protocols, and nobody had asked it to.
    Switched,
    /// The server answered a request for a WebSocket as if it had been none.
    NoSwitch,
    /// The server did not answer in time.
    TooSlow,
    /// The client's body was not what it said, or did not come.
    BadBody,
    /// The client's body came too slowly.
    SlowBody,
    /// The client's body is larger than is allowed.
    LargeBody,
}

impl Failure {
    /// The word that counters use.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoServer => "no_server",
            Self::NotConnected => "not_connected",
            Self::Handshake => "handshake",
            Self::NotSent => "not_sent",
            Self::Stale => "stale",
            Self::Broken => "broken",
            Self::Framing => "answer_framing",
            Self::Switched => "unasked_switch",
            Self::NoSwitch => "no_switch",
            Self::TooSlow => "response_timeout",
            Self::BadBody => "bad_body",
            Self::SlowBody => "body_timeout",
            Self::LargeBody => "body_too_large",
        }
    }

    /// What the client is told.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::NoServer => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotConnected
            | Self::Handshake
            | Self::NotSent
            | Self::Stale
            | Self::Broken
            | Self::Framing
            | Self::Switched
            | Self::NoSwitch => StatusCode::BAD_GATEWAY,
            Self::TooSlow => StatusCode::GATEWAY_TIMEOUT,
            Self::BadBody => StatusCode::BAD_REQUEST,
            Self::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Self::LargeBody => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }

    /// Whether it speaks against the server.
    #[must_use]
    pub const fn blames_server(self) -> bool {
        matches!(
            self,
            Self::NotConnected
                | Self::Handshake
                | Self::Broken
                | Self::Framing
                | Self::Switched
                | Self::NoSwitch
                | Self::TooSlow
        )
    }
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another attempt, at another server if there is one.
    Again,
    /// The same attempt once more, at the same server, on a connection of its own.
    Anew,
    /// This answer.
    Answer(StatusCode),
}

/// How many attempts a request gets, and which.
#[derive(Debug, Clone, Copy)]
pub struct Attempts {
    /// Those left.
    left: u32,
    /// Whether the request may be sent twice.
    repeatable: bool,
    /// A kept connection failed, and no other one is used.
    anew: bool,
}

impl Attempts {
    /// For a request with this many repetitions allowed.
    #[must_use]
    pub fn new(retries: u32, method: &Method, has_body: bool) -> Self {
        let idempotent = method.is_idempotent() && *method != Method::CONNECT;
        Self { left: retries, repeatable: idempotent && !has_body, anew: false }
    }

    /// Whether a kept connection may be used.
    #[must_use]
    pub const fn may_use_kept(&self) -> bool {
        !self.anew
    }

    /// An attempt has failed. `whole`: nothing of the request's body is gone.
    pub fn failed(&mut self, failure: Failure, whole: bool, budget: &mut RetryBudget) -> Next {
        let safe = match failure {
            Failure::NotConnected | Failure::Handshake | Failure::NotSent => whole,
            Failure::Broken | Failure::Stale => whole && self.repeatable,
            // A server that is slow is not helped by more, and a client that errs would err again.
            Failure::NoServer
            | Failure::Framing
            | Failure::Switched
            | Failure::NoSwitch
            | Failure::TooSlow
            | Failure::BadBody
            | Failure::SlowBody
            | Failure::LargeBody => false,
        };
        // A kept connection that its server closed meanwhile is no failure of a server. It happens once: what is sent
        // anew never goes over such a connection.
        if safe && matches!(failure, Failure::NotSent | Failure::Stale) && !self.anew {
            self.anew = true;
            return Next::Anew;
        }
        if safe && self.left > 0 && budget.take() {
            self.left -= 1;
            return Next::Again;
        }
        Next::Answer(failure.status())
    }
}

/// Allows repetitions as a share of all requests: one for five, and ten at once.
#[derive(Debug, Clone, Copy)]
pub struct RetryBudget {
    fifths: u32,
}

const FULL: u32 = 50;
const COST: u32 = 5;

impl Default for RetryBudget {
    fn default() -> Self {
        Self { fifths: FULL }
    }
}

impl RetryBudget {
    /// A request has come.
    pub fn request(&mut self) {
        self.fifths = (self.fifths + 1).min(FULL);
    }

    fn take(&mut self) -> bool {
        let left = self.fifths.checked_sub(COST);
        self.fifths = left.unwrap_or(self.fifths);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: Next = Next::Answer(StatusCode::BAD_GATEWAY);

    #[test]
    fn only_what_is_safe_is_repeated() {
        let budget = &mut RetryBudget::default();
        let mut get = Attempts::new(2, &Method::GET, false);
        assert_eq!(get.failed(Failure::Broken, true, budget), Next::Again);
        assert_eq!(get.failed(Failure::NotConnected, true, budget), Next::Again);
        assert_eq!(get.failed(Failure::NotConnected, true, budget), GATEWAY, "twice is enough");
        let mut post = Attempts::new(2, &Method::POST, true);
        assert_eq!(post.failed(Failure::NotConnected, true, budget), Next::Again);
        assert_eq!(post.failed(Failure::Broken, true, budget), GATEWAY);
        let mut put = Attempts::new(2, &Method::PUT, true);
        assert_eq!(put.failed(Failure::Broken, true, budget), GATEWAY, "its body is gone");
        assert_eq!(put.failed(Failure::NotConnected, false, budget), GATEWAY);
        let mut slow = Attempts::new(2, &Method::GET, false);
        assert_eq!(slow.failed(Failure::TooSlow, true, budget), Next::Answer(StatusCode::GATEWAY_TIMEOUT));
    }

    #[test]
    fn a_kept_connection_that_has_ended_costs_one_more_try_and_no_attempt() {
        let budget = &mut RetryBudget { fifths: 0 };
        let mut get = Attempts::new(0, &Method::GET, false);
        assert!(get.may_use_kept());
        assert_eq!(get.failed(Failure::Stale, true, budget), Next::Anew);
        assert!(!get.may_use_kept());
        assert_eq!(get.failed(Failure::NotSent, true, budget), GATEWAY, "once");
        let mut post = Attempts::new(0, &Method::POST, true);
        assert_eq!(post.failed(Failure::NotSent, true, budget), Next::Anew, "nothing of it was sent");
        let mut post = Attempts::new(2, &Method::POST, true);
        assert_eq!(post.failed(Failure::Stale, false, budget), GATEWAY, "it may have been carried out");
        assert_eq!(post.failed(Failure::Stale, true, budget), GATEWAY);
    }

    #[test]
    fn the_budget_is_a_share_of_requests() {
        let mut budget = RetryBudget::default();
        let mut again = 0;
        for _ in 0..1_000 {
            budget.request();
            let next = Attempts::new(1, &Method::GET, false).failed(Failure::Broken, true, &mut budget);
            again += u32::from(next == Next::Again);
        }
        assert!((200..=212).contains(&again), "{again}");
    }
}
