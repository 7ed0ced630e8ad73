//! Names of tracks in bytes (section 2.4.1), texts and URIs.

use bytes::BytesMut;

use super::codec::{MAX_REASON, MAX_URI, Mistake, Reader, Stop, Unsayable, put_varint};
use super::model_names::{FullTrackName, MAX_FIELDS, MAX_NAME, NameError, Namespace, NamespaceBuilder, TrackName};

/// A length of a name or field that cannot be is refused before its bytes are awaited.
const TOO_LONG: Mistake = Mistake::Name(NameError::TooLong);

pub(super) fn read_namespace(reader: &mut Reader<'_>) -> Result<Namespace, Stop> {
    let count = reader.varint()?;
    if count > MAX_FIELDS as u64 {
        return Err(NameError::TooManyFields.into());
    }
    let mut builder = NamespaceBuilder::default();
    for _ in 0..count {
        builder.push(reader.bytes(MAX_NAME, TOO_LONG)?)?;
    }
    Ok(builder.finish())
}

pub(super) fn put_namespace(namespace: &Namespace, out: &mut BytesMut) {
    put_varint(namespace.len() as u64, out);
    for field in namespace.fields() {
        put_varint(field.len() as u64, out);
        out.extend_from_slice(field);
    }
}

pub(super) fn read_name(reader: &mut Reader<'_>) -> Result<TrackName, Stop> {
    Ok(TrackName::new(reader.bytes(MAX_NAME, TOO_LONG)?)?)
}

pub(super) fn put_name(name: &TrackName, out: &mut BytesMut) {
    put_varint(name.as_bytes().len() as u64, out);
    out.extend_from_slice(name.as_bytes());
}

pub(super) fn read_track(reader: &mut Reader<'_>) -> Result<FullTrackName, Stop> {
    let namespace = read_namespace(reader)?;
    Ok(FullTrackName::new(namespace, read_name(reader)?)?)
}

pub(super) fn put_track(track: &FullTrackName, out: &mut BytesMut) {
    put_namespace(track.namespace(), out);
    put_name(track.name(), out);
}

/// An explanation. It is for people: what is not text in it is replaced, not refused.
pub(super) fn read_reason(reader: &mut Reader<'_>) -> Result<String, Stop> {
    let bytes = reader.bytes(MAX_REASON, Mistake::ReasonTooLong)?;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

pub(super) fn put_reason(reason: &str, out: &mut BytesMut) -> Result<(), Unsayable> {
    put_text(reason, MAX_REASON, "a reason", out)
}

pub(super) fn read_uri(reader: &mut Reader<'_>) -> Result<String, Stop> {
    let bytes = reader.bytes(MAX_URI, Mistake::UriTooLong)?;
    Ok(std::str::from_utf8(bytes).map_err(|_| Mistake::UriNotText)?.to_owned())
}

pub(super) fn put_uri(uri: &str, out: &mut BytesMut) -> Result<(), Unsayable> {
    put_text(uri, MAX_URI, "a URI", out)
}

fn put_text(text: &str, max: usize, what: &'static str, out: &mut BytesMut) -> Result<(), Unsayable> {
    if text.len() > max {
        return Err(Unsayable::TooLong(what));
    }
    put_varint(text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
    Ok(())
}
