//! The options of SETUP (section 10.3): pairs of key and value, of which those that nobody knows are passed over.

use bytes::BytesMut;

use super::codec::{Mistake, Reader, Stop, Unsayable};
use super::codec_params::{put_token, read_token};
use super::codec_property::{Pairs, Value, put_pairs};
use super::model::Draft;
use super::model_message::Setup;
use super::model_params::{MAX_TOKENS, Token};

/// Numbers of options (section 15.4); the same in all drafts.
mod option {
    pub(super) const PATH: u64 = 0x01;
    pub(super) const AUTHORIZATION_TOKEN: u64 = 0x03;
    pub(super) const MAX_AUTH_TOKEN_CACHE_SIZE: u64 = 0x04;
    pub(super) const AUTHORITY: u64 = 0x05;
    pub(super) const MAX_FILTER_RANGES: u64 = 0x06;
    pub(super) const MOQT_IMPLEMENTATION: u64 = 0x07;
    pub(super) const MAX_REQUEST_UPDATES: u64 = 0x08;
    /// Our own, for which the draft has no room: "pwrl".
    pub(super) const RELAY: u64 = 0x7077_726c;
}

/// The longest name of an implementation that is kept; what is longer is cut off.
const MAX_IMPLEMENTATION: usize = 256;

/// Reads the body of SETUP, all of it.
pub(super) fn read_setup(body: &[u8], draft: Draft) -> Result<Setup, Mistake> {
    let mut setup = Setup::default();
    let mut pairs = Pairs::new(body);
    let later = draft.profile().range_filters;
    loop {
        let (kind, value) = match pairs.next() {
            Ok(Some(pair)) => pair,
            Ok(None) => return Ok(setup),
            Err(stop) => return Err(stop.at_end()),
        };
        match (kind, value) {
            (option::PATH, Value::Bytes(bytes)) => {
                once(kind, setup.path.is_some())?;
                setup.path =
                    Some(text(bytes, Mistake::MalformedPath, |text| text.is_empty() || text.starts_with(['/', '?']))?);
            }
            (option::AUTHORITY, Value::Bytes(bytes)) => {
                once(kind, setup.authority.is_some())?;
                setup.authority =
                    Some(text(bytes, Mistake::MalformedAuthority, |text| !text.contains(['/', '?', '#']))?);
            }
            (option::AUTHORIZATION_TOKEN, Value::Bytes(bytes)) => {
                if setup.tokens.len() == MAX_TOKENS {
                    return Err(Mistake::TooManyTokens);
                }
                setup.tokens.push(early_token(bytes)?);
            }
            (option::MOQT_IMPLEMENTATION, Value::Bytes(bytes)) => {
                once(kind, setup.implementation.is_some())?;
                let start = bytes.get(..MAX_IMPLEMENTATION).unwrap_or(bytes);
                setup.implementation = Some(String::from_utf8_lossy(start).into_owned());
            }
            (option::MAX_AUTH_TOKEN_CACHE_SIZE, Value::Number(number)) => {
                once(kind, setup.max_auth_token_cache_size.is_some())?;
                setup.max_auth_token_cache_size = Some(number);
            }
            (option::MAX_FILTER_RANGES, Value::Number(number)) if later => {
                once(kind, setup.max_filter_ranges.is_some())?;
                setup.max_filter_ranges = Some(number);
            }
            (option::MAX_REQUEST_UPDATES, Value::Number(number)) if later => {
                once(kind, setup.max_request_updates.is_some())?;
                setup.max_request_updates = Some(number);
            }
            (option::RELAY, Value::Number(number)) => {
                once(kind, setup.relay.is_some())?;
                setup.relay = Some(number);
            }
            // Section 10.3: whatever it is, and however often.
            _ => {}
        }
    }
}

/// Writes the body of SETUP.
pub(super) fn put_setup(setup: &Setup, draft: Draft, out: &mut BytesMut) -> Result<(), Unsayable> {
    let mut tokens = Vec::with_capacity(setup.tokens.len());
    for token in &setup.tokens {
        let mut bytes = BytesMut::new();
        put_token(token, &mut bytes)?;
        tokens.push(bytes);
    }
    let mut pairs = Vec::new();
    pairs.extend(setup.path.as_ref().map(|path| (option::PATH, Value::Bytes(path.as_bytes()))));
    pairs.extend(tokens.iter().map(|token| (option::AUTHORIZATION_TOKEN, Value::Bytes(token))));
    pairs.extend(setup.max_auth_token_cache_size.map(|size| (option::MAX_AUTH_TOKEN_CACHE_SIZE, Value::Number(size))));
    pairs.extend(setup.authority.as_ref().map(|name| (option::AUTHORITY, Value::Bytes(name.as_bytes()))));
    if draft.profile().range_filters {
        pairs.extend(setup.max_filter_ranges.map(|count| (option::MAX_FILTER_RANGES, Value::Number(count))));
    }
    let implementation = setup.implementation.as_ref();
    pairs.extend(implementation.map(|name| (option::MOQT_IMPLEMENTATION, Value::Bytes(name.as_bytes()))));
    if draft.profile().range_filters {
        pairs.extend(setup.max_request_updates.map(|count| (option::MAX_REQUEST_UPDATES, Value::Number(count))));
    }
    pairs.extend(setup.relay.map(|number| (option::RELAY, Value::Number(number))));
    put_pairs(&pairs, out);
    Ok(())
}

const fn once(kind: u64, there: bool) -> Result<(), Mistake> {
    if there { Err(Mistake::Duplicate(kind)) } else { Ok(()) }
}

/// Text that a URI may have in it (RFC 3986: visible ASCII), of a certain shape.
fn text(bytes: &[u8], mistake: Mistake, shape: impl Fn(&str) -> bool) -> Result<String, Mistake> {
    let text = std::str::from_utf8(bytes).map_err(|_| mistake)?;
    if text.bytes().all(|byte| byte.is_ascii_graphic()) && shape(text) { Ok(text.to_owned()) } else { Err(mistake) }
}

/// A token that names none before it, since there is none (section 10.2.1).
fn early_token(bytes: &[u8]) -> Result<Token, Mistake> {
    let token = read_token(&mut Reader::new(bytes)).map_err(|stop| match stop {
        Stop::More(_) | Stop::Wrong(_) => Mistake::MalformedToken,
    })?;
    match token {
        Token::Delete { .. } | Token::UseAlias { .. } => Err(Mistake::EarlyTokenAlias),
        Token::Register { .. } | Token::UseValue { .. } => Ok(token),
    }
}
