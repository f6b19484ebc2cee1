//! Message body ⇄ payload: one zstd frame around `{"headers": …, "data": …}`, exactly as Python's
//! `oms-mqclient` writes and reads it.

use std::io::{self, Read};
use std::ops::Range;

use super::json::{self, Envelope, LoneSurrogate, SyntaxError};
use super::{Payload, escape};
use crate::fault::TaskError;

/// The level of the Python side, which chose zstd for its speed.
pub(super) const LEVEL: i32 = 3;
/// The text before and after the data of a message, if that is a string or another JSON value.
pub(super) const BEFORE_TEXT: &[u8] = b"{\"headers\": {}, \"data\": \"";
pub(super) const AFTER_TEXT: &[u8] = b"\"}";
pub(super) const BEFORE_JSON: &[u8] = b"{\"headers\": {}, \"data\": ";
pub(super) const AFTER_JSON: &[u8] = b"}";

/// Why an event can't be read. All of these are the event's own fault; none depends on the machine.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The event is longer than allowed when decompressed.
    #[error("event has more than `{limit}` bytes when decompressed; split it into smaller ones")]
    TooLarge { limit: u64 },
    /// The body is not compressed, or damaged.
    #[error("message body is no zstd frame ({0}); send events with oms-mqclient")]
    Zstd(String),
    /// Unpacking the body takes a larger zstd window than the pilot allows.
    #[error(
        "message body was compressed with a window of more than `{window}` bytes; compress events \
         with zstd's level 20 or a lower one"
    )]
    Window {
        /// The largest window allowed, in bytes.
        window: u64,
    },
    #[error("event is not UTF-8 from byte {at} on; encode its text as UTF-8")]
    NotUtf8 {
        /// Offset of the first byte that is not UTF-8.
        at: usize,
    },
    #[error("event is not JSON: {0}")]
    Json(#[from] SyntaxError),
    /// The message lacks one of its two parts.
    #[error("message lacks the key `{0}`; send events with oms-mqclient")]
    MissingKey(&'static str),
    /// The data is a string that no file can hold.
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

/// A result could not be compressed. The only known cause is a lack of memory.
#[derive(Debug, thiserror::Error)]
#[error("can't compress the result: {0}")]
pub struct EncodeError(#[from] io::Error);

impl From<EncodeError> for TaskError {
    fn from(error: EncodeError) -> Self {
        Self::Os(error.to_string())
    }
}

/// Reads a message body. Any bytes give a payload or an error, in little more than `limit_bytes` of memory.
///
/// # Errors
/// Returns any [`DecodeError`]. All of them are the event's own fault.
pub fn decode_frame(body: &[u8], limit_bytes: u64) -> Result<Payload, DecodeError> {
    let text = decompress(body, limit_bytes)?;
    let mut text = String::from_utf8(text)?;
    let data = data_of(json::envelope(&text)?)?;
    text.truncate(data.end);
    text.drain(..data.start);
    Ok(from_json_value(text)?)
}

impl From<std::string::FromUtf8Error> for DecodeError {
    fn from(error: std::string::FromUtf8Error) -> Self {
        let at = error.utf8_error().valid_up_to();
        Self::NotUtf8 { at }
    }
}

/// The range of the data in a message.
pub(super) fn data_of(found: Envelope) -> Result<Range<usize>, DecodeError> {
    // `headers` may carry tracing links, which the pilot ignores, but a message must have the key.
    found.headers.ok_or(DecodeError::MissingKey("headers"))?;
    found.data.ok_or(DecodeError::MissingKey("data"))
}

/// The length of a message body when it is unpacked, if the body states it. Not verified.
#[must_use]
pub fn unpacked_size(body: &[u8]) -> Option<u64> {
    zstd::decompressed_size(body)
}

impl Payload {
    /// The length of the message before it is compressed, in bytes.
    #[must_use]
    pub fn message_bytes(&self) -> usize {
        match self {
            Self::Text(text) => {
                let around = BEFORE_TEXT.len() + AFTER_TEXT.len();
                around + text.len() + escape::surplus(text.as_bytes())
            }
            Self::Json(value) => BEFORE_JSON.len() + value.len() + AFTER_JSON.len(),
        }
    }
}

/// The payload of one checked JSON value without white space around it.
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
        // Unpacked into one buffer of the right size; a stream would need a second one.
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

/// Encodes a message body. The frame states the size of its content; without that, Python's reader fails
/// above 131,072 bytes.
///
/// # Errors
/// Returns an [`EncodeError`] when zstd fails.
pub fn encode_frame(payload: Payload) -> Result<Vec<u8>, EncodeError> {
    // Compressed in one piece, in the payload's own buffer: for a stream, zstd would keep buffers of
    // megabytes.
    let message = match payload {
        Payload::Text(text) => escape::wrap_escaped(text.into_bytes(), BEFORE_TEXT, AFTER_TEXT),
        Payload::Json(value) => escape::wrap(value, BEFORE_JSON, AFTER_JSON),
    };
    let mut frame = zstd::bulk::compress(&message, LEVEL)?;
    // The frame may wait for long, and its buffer was sized for incompressible content.
    frame.shrink_to_fit();
    Ok(frame)
}
