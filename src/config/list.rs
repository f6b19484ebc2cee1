//! Reads a list: words between white space, as the Python pilot wants them, or the literal
//! `['A', "B"]`, which is how the submitting service really writes one. Pure.

use std::iter::Peekable;
use std::str::Chars;

use super::python_values::is_space;

/// The list's members; nothing when text that starts like a literal isn't one of strings.
pub(super) fn list(text: &str) -> Option<Vec<String>> {
    let trimmed = text.trim_matches(is_space);
    match trimmed.strip_prefix('[') {
        Some(rest) => literal(rest.strip_suffix(']')?),
        None => Some(
            trimmed
                .split(is_space)
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect(),
        ),
    }
}

/// What stands between the brackets of a JSON or Python list of strings. Like Python, it allows a
/// comma behind the last member.
fn literal(text: &str) -> Option<Vec<String>> {
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

/// A string up to its closing quote, with the escapes that JSON and Python share.
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
                _ => return None,
            }),
            c => value.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            r"['\x41']",
            "['A'] B",
        ] {
            assert_eq!(list(text), None, "{text:?}");
        }
    }
}
