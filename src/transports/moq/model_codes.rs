//! Why sessions, requests, subscriptions and streams end: four spaces of numbers (section 15.10).
//!
//! A number that is not known is kept as it came and means the same as an internal error; it never ends a session
//! (section 14). A code that a draft does not have is sent there as an internal error.

use std::fmt;

use super::model::Draft;

/// Makes one space of codes: the enum, its numbers and its words.
macro_rules! codes {
    (
        $(#[$about:meta])*
        $name:ident, internal $internal:literal;
        $( $(#[$doc:meta])* $variant:ident = $number:literal, $reason:literal $(, $bound:ident $number_of_draft:literal)? ; )*
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $( $(#[$doc])* $variant, )*
            /// A number that no draft spoken here defines; to be treated as an internal error.
            Unknown(u64),
        }

        impl $name {
            /// The number that this draft writes.
            #[must_use]
            pub const fn number(self, draft: Draft) -> u64 {
                match self {
                    $( Self::$variant => if codes!(@in draft $(, $bound $number_of_draft)?) { $number } else { $internal }, )*
                    Self::Unknown(number) => number,
                }
            }

            /// What a number means in this draft.
            #[must_use]
            pub const fn from_number(number: u64, draft: Draft) -> Self {
                match number {
                    $( $number if codes!(@in draft $(, $bound $number_of_draft)?) => Self::$variant, )*
                    _ => Self::Unknown(number),
                }
            }

            /// The word that counters and logs use.
            #[must_use]
            pub const fn reason(self) -> &'static str {
                match self {
                    $( Self::$variant => $reason, )*
                    Self::Unknown(_) => "unknown",
                }
            }

            /// All that have a name.
            pub const ALL: &'static [Self] = &[$( Self::$variant, )*];
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    Self::Unknown(number) => write!(f, "unknown code {number:#x}"),
                    known => f.write_str(known.reason()),
                }
            }
        }
    };
    // In every draft.
    (@in $draft:ident) => { $draft.number() > 0 };
    (@in $draft:ident, since $first:literal) => { $draft.number() >= $first };
    (@in $draft:ident, until $last:literal) => { $draft.number() <= $last };
}

codes! {
    /// Why a session is ended (sections 3.5 and 15.10.1).
    SessionCode, internal 0x1;
    /// Nothing is wrong.
    NoError = 0x0, "no_error";
    /// A mistake of this end.
    InternalError = 0x1, "internal_error";
    /// The client may not have a session.
    Unauthorized = 0x2, "unauthorized";
    /// A rule was broken that has no code of its own.
    ProtocolViolation = 0x3, "protocol_violation";
    /// A request's number that was used before or has the wrong parity.
    InvalidRequestId = 0x4, "invalid_request_id";
    /// One alias for two tracks.
    DuplicateTrackAlias = 0x5, "duplicate_track_alias";
    /// An option, parameter or property whose value is not laid out as its type says.
    KeyValueFormattingError = 0x6, "key_value_formatting_error";
    /// A path where there must be none, or that is not served.
    InvalidPath = 0x8, "invalid_path";
    /// A path that is none.
    MalformedPath = 0x9, "malformed_path";
    /// The peer stayed too long after GOAWAY.
    GoawayTimeout = 0x10, "goaway_timeout";
    /// The peer did not answer in time.
    ControlMessageTimeout = 0x11, "control_message_timeout";
    /// The peer did not go on with a stream in time.
    DataStreamTimeout = 0x12, "data_stream_timeout";
    /// More tokens registered than there is room for.
    AuthTokenCacheOverflow = 0x13, "auth_token_cache_overflow";
    /// An alias registered twice.
    DuplicateAuthTokenAlias = 0x14, "duplicate_auth_token_alias";
    /// No draft in common.
    VersionNegotiationFailed = 0x15, "version_negotiation_failed";
    /// A token that cannot be read.
    MalformedAuthToken = 0x16, "malformed_auth_token";
    /// No token under this alias.
    UnknownAuthTokenAlias = 0x17, "unknown_auth_token_alias";
    /// A token that is not valid any more.
    ExpiredAuthToken = 0x18, "expired_auth_token";
    /// An authority where there must be none, or that is not served.
    InvalidAuthority = 0x19, "invalid_authority";
    /// An authority that is none.
    MalformedAuthority = 0x1a, "malformed_authority";
    /// More updates of a request on the way than were allowed.
    TooManyRequestUpdates = 0x1b, "too_many_request_updates", since 19;
}

codes! {
    /// Why a request was refused: REQUEST_ERROR (sections 10.6 and 15.10.2).
    RequestCode, internal 0x0;
    /// A mistake of this end, or one without a code of its own.
    InternalError = 0x0, "internal_error";
    /// The peer may not do this.
    Unauthorized = 0x1, "unauthorized";
    /// It took too long, say until a publisher came.
    Timeout = 0x2, "timeout";
    /// Requests of this kind are not taken.
    NotSupported = 0x3, "not_supported";
    /// A token that is well laid out but makes no sense.
    MalformedAuthToken = 0x4, "malformed_auth_token";
    /// A token that is not valid any more.
    ExpiredAuthToken = 0x5, "expired_auth_token";
    /// A GOAWAY was sent or received.
    GoingAway = 0x6, "going_away";
    /// Too much to do.
    ExcessiveLoad = 0x9, "excessive_load";
    /// There is no such track or namespace.
    DoesNotExist = 0x10, "does_not_exist";
    /// The range cannot be had.
    InvalidRange = 0x11, "invalid_range";
    /// The track contradicts itself.
    MalformedTrack = 0x12, "malformed_track";
    /// The session has this subscription already.
    DuplicateSubscription = 0x19, "duplicate_subscription", until 18;
    /// Nobody wants this track or namespace.
    Uninterested = 0x20, "uninterested";
    /// The prefix overlaps another of the same kind in this session.
    PrefixOverlap = 0x30, "prefix_overlap";
    /// The prefix matches more than will be listed.
    NamespaceTooLarge = 0x31, "namespace_too_large";
    /// A fetch joins a request that is no established subscription.
    InvalidJoiningRequestId = 0x32, "invalid_joining_request_id", until 19;
    /// The track has a property that must be understood and is not.
    UnsupportedExtension = 0x33, "unsupported_extension";
    /// To be had elsewhere: the message carries a [`Redirect`](super::model_message::Redirect).
    Redirect = 0x34, "redirect";
    /// The filters of too many subscribers do not go together.
    ConflictingFilters = 0x35, "conflicting_filters", since 19;
    /// A filter that cannot be.
    InvalidFilter = 0x36, "invalid_filter", since 19;
}

codes! {
    /// Why a subscription ended: PUBLISH_DONE (sections 10.11 and 15.10.3).
    DoneCode, internal 0x0;
    /// A mistake of the publisher, or one without a code of its own.
    InternalError = 0x0, "internal_error";
    /// The subscriber may not have the track any more.
    Unauthorized = 0x1, "unauthorized";
    /// The track has ended.
    TrackEnded = 0x2, "track_ended";
    /// The range that was asked for has ended.
    SubscriptionEnded = 0x3, "subscription_ended", until 19;
    /// A GOAWAY was sent or received.
    GoingAway = 0x4, "going_away";
    /// The subscriber takes objects more slowly than they come.
    TooFarBehind = 0x5, "too_far_behind";
    /// The time named in SUBSCRIBE_OK is over.
    Expired = 0x6, "expired";
    /// REQUEST_UPDATE failed.
    UpdateFailed = 0x8, "update_failed";
    /// Too much to do.
    ExcessiveLoad = 0x9, "excessive_load";
    /// The track contradicts itself.
    MalformedTrack = 0x12, "malformed_track";
}

codes! {
    /// Why a stream is reset or its sender told to stop (sections 3.3.3 and 15.10.4).
    ResetCode, internal 0x0;
    /// A mistake of this end, or one without a code of its own.
    InternalError = 0x0, "internal_error";
    /// Not wanted any more.
    Cancelled = 0x1, "cancelled";
    /// Too late for its delivery timeout.
    DeliveryTimeout = 0x2, "delivery_timeout";
    /// The session is being closed.
    SessionClosed = 0x3, "session_closed";
    /// A GOAWAY was sent or received.
    GoingAway = 0x4, "going_away";
    /// The subscriber takes objects more slowly than they come.
    TooFarBehind = 0x5, "too_far_behind";
    /// Whether the next object of a fetch exists cannot be found out.
    UnknownObjectStatus = 0x6, "unknown_object_status";
    /// The token of the request is not valid any more.
    ExpiredAuthToken = 0x7, "expired_auth_token";
    /// Too much to do.
    ExcessiveLoad = 0x9, "excessive_load";
    /// The track contradicts itself.
    MalformedTrack = 0x12, "malformed_track";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_both_ways_in_each_draft_that_has_them() {
        for draft in Draft::ALL.iter().copied() {
            for code in SessionCode::ALL {
                let back = SessionCode::from_number(code.number(draft), draft);
                assert!(back == *code || back == SessionCode::InternalError, "{code:?} in {draft}");
            }
            for code in RequestCode::ALL {
                let back = RequestCode::from_number(code.number(draft), draft);
                assert!(back == *code || back == RequestCode::InternalError, "{code:?} in {draft}");
            }
        }
        assert_eq!(RequestCode::from_number(0x10, Draft::D18), RequestCode::DoesNotExist);
        assert_eq!(DoneCode::from_number(0x5, Draft::D20), DoneCode::TooFarBehind);
        assert_eq!(ResetCode::from_number(0x12, Draft::D18), ResetCode::MalformedTrack);
    }

    #[test]
    fn a_code_that_a_draft_lacks_is_an_internal_error_there() {
        assert_eq!(RequestCode::DuplicateSubscription.number(Draft::D18), 0x19);
        assert_eq!(RequestCode::DuplicateSubscription.number(Draft::D20), 0x0);
        assert_eq!(RequestCode::InvalidFilter.number(Draft::D18), 0x0);
        assert_eq!(SessionCode::TooManyRequestUpdates.number(Draft::D18), 0x1);
        assert_eq!(DoneCode::SubscriptionEnded.number(Draft::D20), 0x0);
    }

    #[test]
    fn a_number_that_nobody_knows_is_kept() {
        let grease = 0x7f * 3 + 0x9d;
        assert_eq!(RequestCode::from_number(grease, Draft::D20), RequestCode::Unknown(grease));
        assert_eq!(RequestCode::Unknown(grease).number(Draft::D18), grease);
        assert_eq!(RequestCode::from_number(0x36, Draft::D18), RequestCode::Unknown(0x36));
    }
}
