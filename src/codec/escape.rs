//! JSON string escapes: finds the bytes that a JSON string can't hold as they are, and escapes a text in
//! place. Results of hundreds of megabytes pass through here, so a text without such bytes is only scanned,
//! 64 bytes at a time, and not copied.

use std::io::{self, Write};

/// The bytes scanned together: enough for the compiler to use the widest registers.
const BLOCK: usize = 64;
const DIGITS: &[u8; 16] = b"0123456789abcdef";

fn is_special(byte: u8) -> bool {
    byte == b'"' || byte == b'\\' || byte < b' '
}

/// The offset of the first quote, backslash or control character.
pub(super) fn first_special(text: &[u8]) -> Option<usize> {
    let blocks = text.chunks(BLOCK);
    let plain = blocks
        // Folds over the whole block, so that the loop has no branches.
        .take_while(|block| {
            !block
                .iter()
                .fold(false, |any, byte| any | is_special(*byte))
        })
        .map(<[u8]>::len)
        .sum::<usize>();
    let special = text[plain..].iter().position(|byte| is_special(*byte))?;
    Some(plain + special)
}

/// The number of bytes that escaping adds.
pub(super) fn surplus(mut text: &[u8]) -> usize {
    let mut surplus = 0;
    while let Some(at) = first_special(text) {
        surplus += escaped(text[at]).as_ref().len() - 1;
        text = &text[at + 1..];
    }
    surplus
}

/// The two or six bytes of an escape, and their number.
struct Escape([u8; 6], usize);

impl AsRef<[u8]> for Escape {
    fn as_ref(&self) -> &[u8] {
        &self.0[..self.1]
    }
}

fn escaped(byte: u8) -> Escape {
    let short = |letter| Escape([b'\\', letter, 0, 0, 0, 0], 2);
    match byte {
        b'"' | b'\\' => short(byte),
        0x08 => short(b'b'),
        0x09 => short(b't'),
        0x0a => short(b'n'),
        0x0c => short(b'f'),
        0x0d => short(b'r'),
        _ => {
            let digit = |half: u8| DIGITS[usize::from(half)];
            Escape(
                [b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 15)],
                6,
            )
        }
    }
}

/// Puts `before` and `after` around a text, which is not changed.
pub(super) fn wrap(text: Vec<u8>, before: &[u8], after: &[u8]) -> Vec<u8> {
    wrapped(text, 0, before, after)
}

/// Puts `before` and `after` around a text, and escapes it for a JSON string.
pub(super) fn wrap_escaped(text: Vec<u8>, before: &[u8], after: &[u8]) -> Vec<u8> {
    let surplus = surplus(&text);
    wrapped(text, surplus, before, after)
}

/// Writes a text escaped for a JSON string, without the quotes.
pub(super) fn write_escaped(mut text: &[u8], sink: &mut impl Write) -> io::Result<()> {
    while let Some(special) = first_special(text) {
        sink.write_all(&text[..special])?;
        sink.write_all(escaped(text[special]).as_ref())?;
        text = &text[special + 1..];
    }
    sink.write_all(text)
}

/// Works from the end to the beginning, so that no second buffer is needed: the bytes written are always
/// behind the bytes still to be read.
fn wrapped(mut text: Vec<u8>, mut surplus: usize, before: &[u8], after: &[u8]) -> Vec<u8> {
    let mut read = text.len();
    let mut write = before.len() + read + surplus;
    text.reserve_exact(write + after.len() - read);
    text.resize(write, 0);
    text.extend_from_slice(after);
    while surplus > 0 {
        // Always found while there is a surplus.
        let special = text[..read].iter().rposition(|byte| is_special(*byte));
        let plain = special.map_or(0, |at| at + 1);
        write -= read - plain;
        text.copy_within(plain..read, write);
        let Some(special) = special else { break };
        let escape = escaped(text[special]);
        let escape = escape.as_ref();
        write -= escape.len();
        text[write..write + escape.len()].copy_from_slice(escape);
        surplus -= escape.len() - 1;
        read = special;
    }
    text.copy_within(..read, before.len());
    text[..before.len()].copy_from_slice(before);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_is_escaped_as_serde_json_does_at_any_place() {
        for character in (0..0x250).filter_map(char::from_u32) {
            for length in [0, 1, 62, 63, 64, 65, 200] {
                let plain = "é".repeat(length);
                for text in [
                    format!("{plain}{character}"),
                    format!("{character}{plain}"),
                    format!("{character}{plain}{character}{character}{plain}"),
                ] {
                    let expected = serde_json::to_string(&text).expect("it is text");
                    let mut written = Vec::new();
                    write_escaped(text.as_bytes(), &mut written).expect("in memory");
                    assert_eq!(written, expected.as_bytes()[1..expected.len() - 1]);
                    assert_eq!(written.len(), text.len() + surplus(text.as_bytes()));
                    let wrapped = wrap_escaped(text.into_bytes(), b"\"", b"\"");
                    assert_eq!(String::from_utf8(wrapped).expect("it was"), expected);
                }
            }
        }
    }

    #[test]
    fn the_first_special_is_found_wherever_it_is() {
        for length in 0..200 {
            let mut text = vec![b'x'; length];
            assert_eq!(first_special(&text), None);
            for at in 0..length {
                text[at] = b'\n';
                assert_eq!(first_special(&text), Some(at));
                text[at] = b'x';
            }
        }
    }

    #[test]
    fn what_is_only_wrapped_is_not_escaped() {
        assert_eq!(wrap(b"[\"\n\"]".to_vec(), b"<<", b">"), b"<<[\"\n\"]>");
        assert_eq!(wrap(Vec::new(), b"<", b""), b"<");
    }
}
