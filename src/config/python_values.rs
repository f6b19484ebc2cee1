//! Reads values as Python's `bool` words, `int()`, `float()` and list literals do: the service that
//! submits pilots writes them for a Python program. Each function takes text and returns the value, or
//! `None` if Python would refuse it.

use std::iter::Peekable;
use std::str::Chars;

use tracing::level_filters::LevelFilter;

/// White space as Python's `str.strip` and `str.split` see it: Unicode's, and the four ASCII
/// separators.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// A truth value in words, in any case. White space around them is an error, as in Python.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.to_lowercase().as_str() {
        "y" | "yes" | "t" | "true" | "on" | "1" => Some(true),
        "n" | "no" | "f" | "false" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// An integer as Python's `int()` takes it in ASCII digits: spaces around, a sign, single `_` between digits.
/// `None`, too, for numbers beyond 128 bits; no variable allows one.
pub(super) fn integer(text: &str) -> Option<i128> {
    let text = text.trim_matches(is_space);
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !digits
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'_')
    {
        return None;
    }
    without_separators(text)?.parse().ok()
}

/// A number as Python's `float()` takes it, `inf` and `nan` included.
pub(super) fn float(text: &str) -> Option<f64> {
    without_separators(text.trim_matches(is_space))?
        .parse()
        .ok()
}

/// A number of bytes such as `1_000`, `1.5G` or `512 MiB`; units are powers of 1024.
pub(super) fn size(text: &str) -> Option<u64> {
    let text = text.trim_matches(is_space);
    let number_ends = text
        .find(|letter: char| !(letter.is_ascii_digit() || "._".contains(letter)))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(number_ends);
    let shift = match unit.trim_start_matches(is_space).to_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return None,
    };
    if let Some(whole) = integer(number) {
        return u64::try_from(whole).ok()?.checked_mul(1 << shift);
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "checked to be in range; a fraction of a unit is no exact number of bytes anyway"
    )]
    float(number)
        .map(|number| number * (1_u64 << shift) as f64)
        .filter(|bytes| (0.0..1e18).contains(bytes))
        .map(|bytes| bytes as u64)
}

/// The seconds of a whole number with a unit of time, as a person writes it: `90s`, `5m`, `5 min`, `2h`, `1d`.
pub fn time(text: &str) -> Option<u64> {
    let text = text.trim_matches(is_space);
    let number_ends = text.find(|letter: char| !letter.is_ascii_digit())?;
    let (number, unit) = text.split_at(number_ends);
    let factor = match unit.trim_start_matches(is_space).to_lowercase().as_str() {
        "s" | "sec" | "secs" | "second" | "seconds" => 1,
        "m" | "min" | "mins" | "minute" | "minutes" => 60,
        "h" | "hour" | "hours" => 3_600,
        "d" | "day" | "days" => 86_400,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// A Python level name, in any case. `CRITICAL` has no equal here and becomes `ERROR`.
pub(super) fn level(text: &str) -> Option<LevelFilter> {
    match text.to_uppercase().as_str() {
        "CRITICAL" | "FATAL" | "ERROR" => Some(LevelFilter::ERROR),
        "WARNING" | "WARN" => Some(LevelFilter::WARN),
        "INFO" => Some(LevelFilter::INFO),
        "DEBUG" => Some(LevelFilter::DEBUG),
        "NOTSET" => Some(LevelFilter::TRACE),
        _ => None,
    }
}

/// Drops `_` where it stands between two digits; `None` when one stands elsewhere.
fn without_separators(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let digit = |at: Option<usize>| {
        at.and_then(|at| bytes.get(at))
            .is_some_and(u8::is_ascii_digit)
    };
    let legal = bytes
        .iter()
        .enumerate()
        .filter(|&(_, &byte)| byte == b'_')
        .all(|(at, _)| digit(at.checked_sub(1)) && digit(at.checked_add(1)));
    legal.then(|| text.replace('_', ""))
}

/// The members of a list: words between white space, as in the Python pilot, or a literal. `None` when text
/// that starts like a literal isn't one of strings.
pub(super) fn list(text: &str) -> Option<Vec<String>> {
    list_or(text, |words| {
        words
            .split(is_space)
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect()
    })
}

/// The members of a list: those of a literal, or else the pieces into which `split` cuts the text. `None`
/// when text that starts like a literal isn't one of strings.
pub(super) fn list_or(text: &str, split: impl FnOnce(&str) -> Vec<String>) -> Option<Vec<String>> {
    if starts_like_literal(text) {
        literal(text)
    } else {
        Some(split(text))
    }
}

pub(super) fn starts_like_literal(text: &str) -> bool {
    let opened = text.trim_start_matches(is_space);
    opened.starts_with('[') || opened.starts_with('(')
}

/// The strings of a list literal of JSON or Python, as the workflow service writes arrays: `["A"]`, `['A']`.
/// A tuple counts as well. `None` for anything else.
pub(super) fn literal(text: &str) -> Option<Vec<String>> {
    let trimmed = text.trim_matches(is_space);
    if let Ok(members) = serde_json::from_str(trimmed) {
        return Some(members);
    }
    let of_list = trimmed
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let of_tuple = || trimmed.strip_prefix('(')?.strip_suffix(')');
    members(of_list.or_else(of_tuple)?)
}

/// The members between the brackets of a Python list of strings. As in Python, a comma may follow the last one.
fn members(text: &str) -> Option<Vec<String>> {
    let mut members = Vec::new();
    let mut rest = text.chars().peekable();
    loop {
        skip_space(&mut rest);
        let Some(quote) = rest.next() else {
            return Some(members);
        };
        if quote != '\'' && quote != '"' {
            return None;
        }
        members.push(string(&mut rest, quote)?);
        skip_space(&mut rest);
        match rest.next() {
            None => return Some(members),
            Some(',') => {}
            Some(_) => return None,
        }
    }
}

fn skip_space(rest: &mut Peekable<Chars<'_>>) {
    while rest.next_if(|&c| is_space(c)).is_some() {}
}

/// A string up to its closing quote, with the escapes that Python writes. Python writes printable characters
/// of any script as they are.
fn string(rest: &mut Peekable<Chars<'_>>, quote: char) -> Option<String> {
    let mut value = String::new();
    loop {
        match rest.next()? {
            c if c == quote => return Some(value),
            '\\' => value.push(match rest.next()? {
                c @ ('\\' | '\'' | '"' | '/') => c,
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                'x' => code_point(rest, 2)?,
                'u' => code_point(rest, 4)?,
                'U' => code_point(rest, 8)?,
                _ => return None,
            }),
            c => value.push(c),
        }
    }
}

fn code_point(rest: &mut Peekable<Chars<'_>>, digits: usize) -> Option<char> {
    let digits: String = rest.take(digits).collect();
    char::from_u32(u32::from_str_radix(&digits, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bool_words_count_in_any_case() {
        for word in ["y", "YES", "t", "True", "oN", "1"] {
            assert_eq!(boolean(word), Some(true), "{word}");
        }
        for word in ["n", "No", "F", "FALSE", "off", "0"] {
            assert_eq!(boolean(word), Some(false), "{word}");
        }
    }

    #[test]
    fn other_bool_words_are_errors() {
        for word in ["", " ", "2", "yes ", " true", "None", "ja", "01"] {
            assert_eq!(boolean(word), None, "{word:?}");
        }
    }

    #[test]
    fn integers_are_what_python_reads() {
        for (text, value) in [
            ("5", 5),
            (" 5 ", 5),
            ("\t5\n", 5),
            ("\u{a0}5\x1f", 5),
            ("1_000", 1000),
            ("+5", 5),
            ("-5", -5),
            ("007", 7),
            ("0_0", 0),
            ("-0", 0),
        ] {
            assert_eq!(integer(text), Some(value), "{text:?}");
        }
    }

    #[test]
    fn what_python_does_not_read_as_integer_is_an_error() {
        for text in [
            "", " ", "None", "1.0", "1e3", "0x10", "1__0", "_1", "1_", "+_1", "+ 5", "--5", "+",
            "1 0", "5s", "inf",
        ] {
            assert_eq!(integer(text), None, "{text:?}");
        }
        assert_eq!(integer(&"9".repeat(60)), None);
    }

    #[test]
    fn floats_are_what_python_reads() {
        for (text, value) in [
            ("60", 60.0),
            ("1e2", 100.0),
            (" 1_0.5 ", 10.5),
            ("1.", 1.0),
            (".5", 0.5),
            ("+2E-1", 0.2),
            ("1_0e1_0", 1e11),
        ] {
            assert_eq!(float(text), Some(value), "{text:?}");
        }
        assert_eq!(float("-Infinity"), Some(f64::NEG_INFINITY));
        assert!(float("NaN").is_some_and(f64::is_nan));
    }

    #[test]
    fn what_python_does_not_read_as_float_is_an_error() {
        for text in [
            "", ".", "e5", "1__0", "1_.5", "1._5", "1_e5", "0x1p3", "1,5", "10s", "None",
        ] {
            assert_eq!(float(text), None, "{text:?}");
        }
    }

    #[test]
    fn sizes_have_binary_units_and_may_have_fractions() {
        for (text, bytes) in [
            ("0", 0),
            ("1_000", 1000),
            (" 4G ", 4 << 30),
            ("512 MiB", 512 << 20),
            ("1.5k", 1536),
            ("2T", 2 << 40),
            ("7B", 7),
        ] {
            assert_eq!(size(text), Some(bytes), "{text:?}");
        }
        for text in ["", "G", "-1", "1X", "1e3", "4 G B", "99999999999T", "nan"] {
            assert_eq!(size(text), None, "{text:?}");
        }
    }

    #[test]
    fn python_level_names_have_a_level() {
        assert_eq!(level("critical"), Some(LevelFilter::ERROR));
        assert_eq!(level("FATAL"), Some(LevelFilter::ERROR));
        assert_eq!(level("Error"), Some(LevelFilter::ERROR));
        assert_eq!(level("WARN"), Some(LevelFilter::WARN));
        assert_eq!(level("WARNING"), Some(LevelFilter::WARN));
        assert_eq!(level("info"), Some(LevelFilter::INFO));
        assert_eq!(level("DEBUG"), Some(LevelFilter::DEBUG));
        assert_eq!(level("NOTSET"), Some(LevelFilter::TRACE));
        assert_eq!(level("LOUD"), None);
        assert_eq!(level(""), None);
    }

    fn members(text: &str) -> Vec<String> {
        list(text).unwrap_or_else(|| panic!("{text:?} is a list"))
    }

    #[test]
    fn words_are_split_at_any_white_space() {
        assert_eq!(members(" A\tB \n C "), ["A", "B", "C"]);
        assert_eq!(members("A,B"), ["A,B"]);
    }

    #[test]
    fn nothing_is_an_empty_list() {
        for text in ["", "  ", "[]", " [ ] "] {
            assert!(members(text).is_empty(), "{text:?}");
        }
    }

    #[test]
    fn python_and_json_literals_are_lists() {
        assert_eq!(members("['A', 'B']"), ["A", "B"]);
        assert_eq!(members(r#"["A","B"]"#), ["A", "B"]);
        assert_eq!(members(r#" ['it\'s', "a, ]b", ] "#), ["it's", "a, ]b"]);
        assert_eq!(members(r"['\x41\u00e9', 'é\n\\']"), ["Aé", "é\n\\"]);
        assert_eq!(members(r#"["\u00e9\ud83d\ude00\/"]"#), ["é😀/"]);
        assert_eq!(members("('A',)"), ["A"]);
    }

    #[test]
    fn broken_literals_are_errors() {
        for text in [
            "[",
            "[A]",
            "['A'",
            "['A' 'B']",
            "['A',,]",
            "[,]",
            "[1]",
            "['A]",
            r"['\q']",
            r"['\x4']",
            "('A'",
            "['A')",
            "['A'] B",
        ] {
            assert_eq!(list(text), None, "{text:?}");
        }
    }
}
