//! Message body ⇄ payload: one zstd frame around `{"headers": …, "data": …}`, exactly as Python's
//! `oms-mqclient` writes and reads it. Uses [`super::json`] and the crate's faults.

use std::io::{self, Read, Write};
use std::str::Utf8Error;

use super::Payload;
use super::json::{self, LoneSurrogate, SyntaxError};
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
    let mut text = decompress(body, limit_bytes)?;
    let checked = str::from_utf8(&text).map_err(DecodeError::NotUtf8)?;
    let found = json::envelope(checked)?;
    // `headers` may carry tracing links, which are nobody's here; a message without is not one.
    found.headers.ok_or(DecodeError::MissingKey("headers"))?;
    let data = found.data.ok_or(DecodeError::MissingKey("data"))?;
    text.truncate(data.end);
    text.drain(..data.start);
    Ok(from_json_value(text)?)
}

/// A payload from the checked text of one JSON value without white space around it.
pub(super) fn from_json_value(text: Vec<u8>) -> Result<Payload, LoneSurrogate> {
    if text.first() == Some(&b'"') {
        json::decode_string(text).map(Payload::Text)
    } else {
        Ok(Payload::Json(text))
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
pub fn encode_frame(payload: &Payload) -> Result<Vec<u8>, EncodeError> {
    let mut size = ByteCount(0);
    write_message(payload, &mut size)?;
    // Not one buffer for the JSON text and another for the frame: the text goes through a small one.
    let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL)?;
    encoder.include_contentsize(true)?;
    encoder.set_pledged_src_size(Some(size.0))?;
    let mut buffered = io::BufWriter::with_capacity(64 * 1024, encoder);
    write_message(payload, &mut buffered)?;
    let encoder = buffered
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    Ok(encoder.finish()?)
}

fn write_message(payload: &Payload, mut to: impl Write) -> io::Result<()> {
    to.write_all(b"{\"headers\": {}, \"data\": ")?;
    match payload {
        Payload::Text(text) => serde_json::to_writer(&mut to, text)?,
        Payload::Json(value) => to.write_all(value)?,
    }
    to.write_all(b"}")
}

struct ByteCount(u64);

impl Write for ByteCount {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
