//! A text that is read in pieces through a buffer of fixed size, and checked to be UTF-8 as it comes.

use std::io::{self, Read, Write};
use std::str::from_utf8;

use super::json::{ESCAPE_BYTES_MAX, JsonInput, LoneSurrogate, unescape};

const CHUNK: usize = 64 * 1024;

/// Why a text could not be read to its end.
#[derive(Debug)]
pub(super) enum StreamFault {
    /// The source can't be read.
    Unreadable(io::Error),
    /// The text is longer than allowed.
    TooLong,
    /// The text is not UTF-8 from this byte on.
    NotUtf8 { at: usize },
}

pub(super) struct Utf8Text<R> {
    source: R,
    buffer: Box<[u8]>,
    /// The window: bytes that are checked and not taken yet.
    window: std::ops::Range<usize>,
    /// The end of the bytes read. Between the window and it are the first bytes of a character.
    end: usize,
    read: u64,
    limit: u64,
    fault: Option<StreamFault>,
    ended: bool,
}

impl<R: Read> Utf8Text<R> {
    /// A text of at most `limit` bytes.
    pub(super) fn new(source: R, limit: u64) -> Self {
        Self {
            source,
            buffer: vec![0; CHUNK].into_boxed_slice(),
            window: 0..0,
            end: 0,
            read: 0,
            limit,
            fault: None,
            ended: false,
        }
    }

    /// The number of bytes read, or the reason for a premature end. To be called when there are no more
    /// bytes.
    pub(super) fn outcome(&mut self) -> Result<u64, StreamFault> {
        match self.fault.take() {
            Some(fault) => Err(fault),
            None => Ok(self.read),
        }
    }

    /// Passes the whole text to `take`, piece by piece.
    pub(super) fn each(&mut self, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        while self.more() {
            take(&self.buffer[self.window.clone()])?;
            self.window.start = self.window.end;
        }
        Ok(())
    }

    /// Reads once, appending to the buffer.
    fn read(&mut self) {
        self.buffer.copy_within(self.window.start..self.end, 0);
        self.end -= self.window.start;
        self.window = 0..self.window.len();
        let read = loop {
            match self.source.read(&mut self.buffer[self.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        match read {
            Ok(0) => {
                self.ended = true;
                if self.end > self.window.end {
                    self.not_utf8();
                }
            }
            Ok(bytes) => {
                self.end += bytes;
                self.read += bytes as u64;
                if self.read > self.limit {
                    self.fault = Some(StreamFault::TooLong);
                } else {
                    self.check();
                }
            }
            Err(error) => self.fault = Some(StreamFault::Unreadable(error)),
        }
    }

    fn check(&mut self) {
        match from_utf8(&self.buffer[self.window.end..self.end]) {
            Ok(_) => self.window.end = self.end,
            Err(error) => {
                self.window.end += error.valid_up_to();
                if error.error_len().is_some() {
                    self.not_utf8();
                }
            }
        }
    }

    fn not_utf8(&mut self) {
        let unchecked = (self.end - self.window.end) as u64;
        let at = usize::try_from(self.read - unchecked).unwrap_or(usize::MAX);
        self.fault = Some(StreamFault::NotUtf8 { at });
    }
}

impl<R: Read> JsonInput for Utf8Text<R> {
    fn window(&self) -> &[u8] {
        &self.buffer[self.window.clone()]
    }

    fn take(&mut self, bytes: usize) {
        self.window.start += bytes;
    }

    fn more(&mut self) -> bool {
        let before = self.window.len();
        while self.window.len() == before && !self.ended && self.fault.is_none() {
            self.read();
        }
        self.fault.is_none() && self.window.len() > before
    }
}

/// Why a string was not written.
#[derive(Debug)]
pub(super) enum Unwritten {
    Lone(LoneSurrogate),
    /// The file can't be written.
    File(io::Error),
}

/// Writes the content of a JSON string, and returns its length. `literal` is the string without its quotes,
/// already checked.
pub(super) fn write_unescaped(
    literal: &mut impl JsonInput,
    sink: &mut impl Write,
) -> Result<u64, Unwritten> {
    let mut written = 0;
    loop {
        let window = literal.window();
        let plain = memchr::memchr(b'\\', window).unwrap_or(window.len());
        sink.write_all(&window[..plain]).map_err(Unwritten::File)?;
        literal.take(plain);
        written += plain as u64;
        while literal.window().len() < ESCAPE_BYTES_MAX && literal.more() {}
        match literal.window() {
            [] => return Ok(written),
            [b'\\', ..] => {}
            _ => continue,
        }
        let (character, length) = unescape(literal.window()).map_err(Unwritten::Lone)?;
        let mut utf8 = [0; 4];
        let utf8 = character.encode_utf8(&mut utf8).as_bytes();
        sink.write_all(utf8).map_err(Unwritten::File)?;
        literal.take(length);
        written += utf8.len() as u64;
    }
}
