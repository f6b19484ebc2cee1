//! Checks JSON as Python reads it, without parsing it into values: where a value starts and ends, and the
//! content of a string. Works on UTF-8 text in memory, or on the pieces of [`super::stream`].
//!
//! `serde_json` rejects `NaN`, `Infinity` and strings with lone surrogates, all of which Python writes and
//! reads, and its `Value` changes huge integers. Here a value is never taken apart, so it can't change. A
//! level of nesting costs a bit on the heap and no stack, so an event of a million brackets needs no special
//! care.

use std::ops::Range;

use super::escape::first_special;

/// More than the length of either relevant key, even with every letter escaped and the quotes.
const KEY_BYTES_MAX: usize = 64;
/// The deepest nesting; Python gives up at a thousand levels. Each level takes a bit, so 8 MiB.
const DEPTH_MAX: usize = 64 * 1024 * 1024;

/// The place where a text stops being JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} at byte {at}")]
pub struct SyntaxError {
    /// The syntax that would have been right there.
    pub expected: &'static str,
    /// Offset from the start of the text.
    pub at: usize,
}

/// A JSON string that is not valid Unicode, because it holds half of a surrogate pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LoneSurrogate;

/// The ranges of the two values of a message in its text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) headers: Option<Range<usize>>,
    pub(super) data: Option<Range<usize>>,
}

/// A text that a scanner passes through once, from beginning to end.
pub(super) trait JsonInput {
    /// The bytes that are read and not taken yet.
    fn window(&self) -> &[u8];
    /// Takes `bytes` bytes from the front of the window.
    fn take(&mut self, bytes: usize);
    /// Extends the window. `false` at the end of the text.
    fn more(&mut self) -> bool;
}

/// The whole text at once.
impl JsonInput for &[u8] {
    fn window(&self) -> &[u8] {
        self
    }

    fn take(&mut self, bytes: usize) {
        *self = &self[bytes..];
    }

    fn more(&mut self) -> bool {
        false
    }
}

/// Checks that a text is one JSON value with nothing but white space around it. Returns the value's range.
pub(super) fn document(text: &str) -> Result<Range<usize>, SyntaxError> {
    document_of(&mut text.as_bytes())
}

/// As [`document`], for a text in pieces, which is read to its end.
pub(super) fn document_of(input: &mut impl JsonInput) -> Result<Range<usize>, SyntaxError> {
    let mut scanner = Scanner { input, at: 0 };
    let value = scanner.value()?;
    scanner.end()?;
    Ok(value)
}

/// Finds `headers` and `data` in the text of a message. If a key is repeated, the last one counts, as in
/// Python.
pub(super) fn envelope(text: &str) -> Result<Envelope, SyntaxError> {
    envelope_of(&mut text.as_bytes())
}

/// As [`envelope`], for a text in pieces, which is read to its end.
pub(super) fn envelope_of(input: &mut impl JsonInput) -> Result<Envelope, SyntaxError> {
    let mut found = Envelope {
        headers: None,
        data: None,
    };
    let mut scanner = Scanner { input, at: 0 };
    scanner.skip_white_space();
    scanner.take(b'{', "`{`")?;
    scanner.skip_white_space();
    if !scanner.take_if(b'}') {
        loop {
            scanner.skip_white_space();
            // Longer keys are irrelevant.
            let beginning = scanner.ahead(KEY_BYTES_MAX).to_vec();
            let key = scanner.key()?;
            let value = scanner.value()?;
            let key = beginning.get(..key.len()).map(<[u8]>::to_vec);
            match key.and_then(|key| decode_string(String::from_utf8(key).ok()?).ok()) {
                Some(key) if key == "headers" => found.headers = Some(value),
                Some(key) if key == "data" => found.data = Some(value),
                _ => {}
            }
            scanner.skip_white_space();
            if scanner.take_if(b'}') {
                break;
            }
            scanner.take(b',', "`,` or `}`")?;
        }
    }
    scanner.end()?;
    Ok(found)
}

/// The content of a JSON string, unescaped in place: a body of hundreds of megabytes is not copied.
///
/// `literal` is the string with its quotes, as found by [`document`] or [`envelope`].
pub(super) fn decode_string(mut literal: String) -> Result<String, LoneSurrogate> {
    if memchr::memchr(b'\\', literal.as_bytes()).is_none() {
        literal.pop();
        literal.remove(0);
        return Ok(literal);
    }
    let mut literal = literal.into_bytes();
    let closing_quote = literal.len() - 1;
    let (mut read, mut write) = (1, 0);
    while read < closing_quote {
        let rest = &literal[read..closing_quote];
        let plain = memchr::memchr(b'\\', rest).unwrap_or(rest.len());
        literal.copy_within(read..read + plain, write);
        read += plain;
        write += plain;
        if read == closing_quote {
            break;
        }
        let (character, length) = unescape(&literal[read..closing_quote])?;
        // An escape is never shorter than its UTF-8, so `write` stays behind `read`.
        write += character.encode_utf8(&mut literal[write..]).len();
        read += length;
    }
    literal.truncate(write);
    Ok(String::from_utf8(literal).expect("valid UTF-8 with ASCII escapes replaced by characters"))
}

/// The longest escape, which is a pair of surrogates.
pub(super) const ESCAPE_BYTES_MAX: usize = 12;

/// The character of the escape at the start of `text`, and the escape's length.
pub(super) fn unescape(text: &[u8]) -> Result<(char, usize), LoneSurrogate> {
    let character = match text[1] {
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => return unescape_unicode(text),
        other => char::from(other),
    };
    Ok((character, 2))
}

fn unescape_unicode(text: &[u8]) -> Result<(char, usize), LoneSurrogate> {
    let first = code_unit(text).ok_or(LoneSurrogate)?;
    if let Some(character) = char::from_u32(u32::from(first)) {
        return Ok((character, 6));
    }
    let second = code_unit(&text[6..]).ok_or(LoneSurrogate)?;
    match char::decode_utf16([first, second]).next() {
        Some(Ok(character)) => Ok((character, 12)),
        _ => Err(LoneSurrogate),
    }
}

/// The number of a `\u` escape, four hexadecimal digits, at the start of `text`.
fn code_unit(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(b"\\u")?.get(..4)?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

struct Scanner<'a, I> {
    input: &'a mut I,
    at: usize,
}

impl<I: JsonInput> Scanner<'_, I> {
    fn error(&self, expected: &'static str) -> SyntaxError {
        SyntaxError {
            expected,
            at: self.at,
        }
    }

    /// The next `bytes` bytes, or fewer at the end; they are not taken.
    fn ahead(&mut self, bytes: usize) -> &[u8] {
        while self.input.window().len() < bytes && self.input.more() {}
        let window = self.input.window();
        &window[..bytes.min(window.len())]
    }

    fn peek(&mut self) -> Option<u8> {
        self.ahead(1).first().copied()
    }

    fn advance(&mut self, bytes: usize) {
        self.input.take(bytes);
        self.at += bytes;
    }

    fn take_if(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        if found {
            self.advance(1);
        }
        found
    }

    fn take(&mut self, byte: u8, expected: &'static str) -> Result<(), SyntaxError> {
        if self.take_if(byte) {
            Ok(())
        } else {
            Err(self.error(expected))
        }
    }

    fn skip_white_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.advance(1);
        }
    }

    fn end(&mut self) -> Result<(), SyntaxError> {
        self.skip_white_space();
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.error("nothing more")),
        }
    }

    /// Scans one value of any kind, after any white space.
    fn value(&mut self) -> Result<Range<usize>, SyntaxError> {
        self.skip_white_space();
        let start = self.at;
        let mut open = Nesting::default();
        loop {
            self.skip_white_space();
            if self.take_if(b'[') {
                self.skip_white_space();
                if !self.take_if(b']') {
                    self.open(&mut open, JsonContainer::Array)?;
                    continue;
                }
            } else if self.take_if(b'{') {
                self.skip_white_space();
                if !self.take_if(b'}') {
                    self.key()?;
                    self.open(&mut open, JsonContainer::Object)?;
                    continue;
                }
            } else {
                self.scalar()?;
            }
            if self.close(&mut open)? {
                return Ok(start..self.at);
            }
        }
    }

    fn open(&self, open: &mut Nesting, container: JsonContainer) -> Result<(), SyntaxError> {
        if open.depth == DEPTH_MAX {
            return Err(self.error("no deeper nesting"));
        }
        open.push(container);
        Ok(())
    }

    /// After a value: closes the containers that end here. Returns whether the outermost value is complete;
    /// if not, another value must follow.
    fn close(&mut self, open: &mut Nesting) -> Result<bool, SyntaxError> {
        while let Some(container) = open.last() {
            self.skip_white_space();
            match (self.peek(), container) {
                (Some(b','), JsonContainer::Array) => {
                    self.advance(1);
                    return Ok(false);
                }
                (Some(b','), JsonContainer::Object) => {
                    self.advance(1);
                    self.key()?;
                    return Ok(false);
                }
                (Some(b']'), JsonContainer::Array) | (Some(b'}'), JsonContainer::Object) => {
                    self.advance(1);
                    open.pop();
                }
                (_, JsonContainer::Array) => return Err(self.error("`,` or `]`")),
                (_, JsonContainer::Object) => return Err(self.error("`,` or `}`")),
            }
        }
        Ok(true)
    }

    /// Scans an object's key and the colon after it. Returns the range of the key's string.
    fn key(&mut self) -> Result<Range<usize>, SyntaxError> {
        self.skip_white_space();
        let start = self.at;
        self.take(b'"', "a key in double quotes")?;
        self.string_after_quote()?;
        let key = start..self.at;
        self.skip_white_space();
        self.take(b':', "`:`")?;
        Ok(key)
    }

    fn scalar(&mut self) -> Result<(), SyntaxError> {
        match self.peek() {
            Some(b'"') => {
                self.advance(1);
                self.string_after_quote()
            }
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ if self.word("null") || self.word("true") || self.word("false") => Ok(()),
            _ if self.word("NaN") || self.word("Infinity") => Ok(()),
            _ => Err(self.error("a value")),
        }
    }

    fn word(&mut self, word: &str) -> bool {
        let found = self.ahead(word.len()) == word.as_bytes();
        self.advance(if found { word.len() } else { 0 });
        found
    }

    fn string_after_quote(&mut self) -> Result<(), SyntaxError> {
        loop {
            let window = self.input.window();
            let plain = first_special(window).unwrap_or(window.len());
            self.advance(plain);
            match self.peek() {
                Some(b'"') => {
                    self.advance(1);
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                Some(..b' ') => {
                    return Err(self.error("no bare control character in a string"));
                }
                // More of the text was read.
                Some(_) => {}
                None => return Err(self.error("the string's closing quote")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), SyntaxError> {
        let text = self.ahead(6);
        let length = match text.get(1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') => match text.get(2..6) {
                Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => 6,
                _ => return Err(self.error("four hexadecimal digits after `\\u`")),
            },
            _ => return Err(self.error("an escape that JSON knows")),
        };
        self.advance(length);
        Ok(())
    }

    fn number(&mut self) -> Result<(), SyntaxError> {
        if self.take_if(b'-') && self.word("Infinity") {
            return Ok(());
        }
        if !self.take_if(b'0') {
            self.digits()?;
        }
        if self.take_if(b'.') {
            self.digits()?;
        }
        if self.take_if(b'e') || self.take_if(b'E') {
            let _sign = self.take_if(b'+') || self.take_if(b'-');
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), SyntaxError> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.advance(1);
        }
        if self.at == start {
            return Err(self.error("a digit"));
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum JsonContainer {
    Array,
    Object,
}

/// The open containers, one bit each: 512 MB of brackets take 64 MB.
#[derive(Debug, Default)]
struct Nesting {
    words: Vec<u64>,
    depth: usize,
}

impl Nesting {
    fn push(&mut self, container: JsonContainer) {
        let (word, bit) = (self.depth / 64, self.depth % 64);
        if word == self.words.len() {
            self.words.push(0);
        }
        self.words[word] &= !(1 << bit);
        self.words[word] |= u64::from(container == JsonContainer::Object) << bit;
        self.depth += 1;
    }

    fn pop(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    fn last(&self) -> Option<JsonContainer> {
        let top = self.depth.checked_sub(1)?;
        if self.words[top / 64] >> (top % 64) & 1 == 1 {
            Some(JsonContainer::Object)
        } else {
            Some(JsonContainer::Array)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_has_an_end_before_memory_has() {
        let scanner = Scanner {
            input: &mut &b""[..],
            at: 7,
        };
        let mut open = Nesting {
            words: vec![0; DEPTH_MAX / 64],
            depth: DEPTH_MAX - 1,
        };
        assert_eq!(scanner.open(&mut open, JsonContainer::Object), Ok(()));
        assert_eq!(open.last(), Some(JsonContainer::Object));
        let refused = scanner.open(&mut open, JsonContainer::Array).unwrap_err();
        assert_eq!(refused.to_string(), "expected no deeper nesting at byte 7");
    }
}
