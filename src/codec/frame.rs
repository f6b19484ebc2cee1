//! Message body ⇄ payload: one zstd frame around `{"headers": …, "data": …}`, exactly as Python's
//! `oms-mqclient` writes and reads it. Uses [`super::json`], [`super::escape`] and the crate's faults.

use std::io::{self, Read};
use std::str::Utf8Error;

use super::json::{self, LoneSurrogate, SyntaxError};
use super::{Payload, escape};
use crate::fault::TaskError;

/// Python's side uses this level, and its speed is why zstd was chosen there.
const LEVEL: i32 = 3;

/// Why an event can't be read. The event's own fault: nothing here depends on the machine.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Decompressed, it would take more memory than is allowed.
    #[error("event has more than `{limit}` bytes when decompressed; split it into smaller ones")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// It is not compressed, or it is damaged.
    #[error("message body is no zstd frame ({0}); send events with oms-mqclient")]
    Zstd(String),
    /// Its text is not UTF-8.
    #[error("event is not UTF-8 from byte {} on; encode its text as UTF-8", .0.valid_up_to())]
    NotUtf8(Utf8Error),
    /// Its text is not JSON.
    #[error("event is not JSON: {0}")]
    Json(#[from] SyntaxError),
    /// The message lacks one of its two parts.
    #[error("message lacks the key `{0}`; send events with oms-mqclient")]
    MissingKey(&'static str),
    /// Its data is a string that no file can hold.
    #[error(
        "event is a string with a lone surrogate, which no text file can hold; send valid Unicode"
    )]
    LoneSurrogate,
}

impl From<LoneSurrogate> for DecodeError {
    fn from(_: LoneSurrogate) -> Self {
        Self::LoneSurrogate
    }
}

impl From<DecodeError> for TaskError {
    fn from(error: DecodeError) -> Self {
        Self::EventDecode(error.to_string())
    }
}

/// A result could not be compressed; only a lack of memory is known to cause it.
#[derive(Debug, thiserror::Error)]
#[error("can't compress the result: {0}")]
pub struct EncodeError(#[from] io::Error);

impl From<EncodeError> for TaskError {
    fn from(error: EncodeError) -> Self {
        Self::Os(error.to_string())
    }
}

/// Reads a message body. Any bytes give a payload or an error, in at most `limit_bytes` of memory
/// and a little more.
///
/// # Errors
/// Every [`DecodeError`]; they are all the event's own.
pub fn decode_frame(body: &[u8], limit_bytes: u64) -> Result<Payload, DecodeError> {
    let text = decompress(body, limit_bytes)?;
    let mut text =
        String::from_utf8(text).map_err(|error| DecodeError::NotUtf8(error.utf8_error()))?;
    let found = json::envelope(&text)?;
    // `headers` may carry tracing links, which are nobody's here; a message without is not one.
    found.headers.ok_or(DecodeError::MissingKey("headers"))?;
    let data = found.data.ok_or(DecodeError::MissingKey("data"))?;
    text.truncate(data.end);
    text.drain(..data.start);
    Ok(from_json_value(text)?)
}

/// A payload from the checked text of one JSON value without white space around it.
pub(super) fn from_json_value(text: String) -> Result<Payload, LoneSurrogate> {
    if text.starts_with('"') {
        json::decode_string(text).map(Payload::Text)
    } else {
        Ok(Payload::Json(text.into_bytes()))
    }
}

fn decompress(body: &[u8], limit: u64) -> Result<Vec<u8>, DecodeError> {
    let damaged = |error: io::Error| DecodeError::Zstd(error.to_string());
    if let Some(size) = zstd::decompressed_size(body) {
        // Straight into a buffer of the right size; a stream would need a second one.
        if size > limit {
            return Err(DecodeError::TooLarge { limit });
        }
        return zstd::bulk::decompress(body, to_usize(size)).map_err(damaged);
    }
    let mut text = Vec::new();
    zstd::Decoder::with_buffer(body)
        .and_then(|decoder| decoder.take(limit.saturating_add(1)).read_to_end(&mut text))
        .map_err(damaged)?;
    if text.len() > to_usize(limit) {
        return Err(DecodeError::TooLarge { limit });
    }
    Ok(text)
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Writes a message body. The frame states its content's size, without which Python's reader fails
/// above 131,072 bytes.
///
/// # Errors
/// [`EncodeError`] when zstd gives up.
pub fn encode_frame(payload: Payload) -> Result<Vec<u8>, EncodeError> {
    // In one piece, where the payload lies: of a stream zstd would keep buffers of megabytes.
    let message = match payload {
        Payload::Text(text) => {
            escape::wrap_escaped(text.into_bytes(), b"{\"headers\": {}, \"data\": \"", b"\"}")
        }
        Payload::Json(value) => escape::wrap(value, b"{\"headers\": {}, \"data\": ", b"}"),
    };
    let mut frame = zstd::bulk::compress(&message, LEVEL)?;
    // It may have to wait, and was made for what can't be compressed at all.
    frame.shrink_to_fit();
    Ok(frame)
}
