//! Python's `repr` of a string: services compare the pilot's last line with the Python pilot's.

use std::fmt::Write;

/// Python's `repr` of a `str`: quoted, with all unprintable characters escaped.
///
/// Which characters are printable depends on the Unicode version. Rust's is newer than most Pythons', so a
/// recent character may be escaped there but not here.
#[must_use]
pub fn python_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut repr = String::with_capacity(text.len() + 2);
    repr.push(quote);
    for character in text.chars() {
        push_escaped(&mut repr, character, quote);
    }
    repr.push(quote);
    repr
}

fn push_escaped(repr: &mut String, character: char, quote: char) {
    match character {
        '\n' => repr.push_str("\\n"),
        '\r' => repr.push_str("\\r"),
        '\t' => repr.push_str("\\t"),
        '\\' => repr.push_str("\\\\"),
        _ if character == quote => repr.extend(['\\', character]),
        _ if is_printable(character) => repr.push(character),
        _ => {
            // Writing into a string can't fail.
            let _ = match u32::from(character) {
                code @ ..0x100 => write!(repr, "\\x{code:02x}"),
                code @ ..0x1_0000 => write!(repr, "\\u{code:04x}"),
                code => write!(repr, "\\U{code:08x}"),
            };
        }
    }
}

/// Python's `str.isprintable`: everything but the categories C* and Z*, except for the space.
fn is_printable(character: char) -> bool {
    if character.is_ascii() {
        return (' '..='~').contains(&character);
    }
    // The standard library escapes exactly the same categories, and combining characters only at the start of
    // a string.
    let text: String = ['a', character].iter().collect();
    text.escape_debug().nth(1) == Some(character)
}
