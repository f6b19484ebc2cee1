//! ClassAd values: quoted byte for byte as HTCondor's own library does, and cut to the budget of one report.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::Destination;

/// The longest report in bytes: an attribute's name and its value, quoted.
///
/// HTCondor 23.9 writes 1,023 bytes of text into the job event log, but its reader takes no more than 1,023
/// bytes of the whole line, which begins with the job id and the time (both measured). Those take 38 bytes in
/// a young pool, and more with large job ids and finer times. A line that is cut there loses its closing
/// quote, and no ClassAd parser reads it any more. Values for the job ad keep to the same budget, because
/// HTCondor repeats them in the same log.
pub const REPORT_MAX: usize = 950;

/// Marks where text was left out.
const ELLIPSIS: &str = " [...] ";

#[derive(Debug, Clone, PartialEq)]
pub enum ChirpValue {
    /// Text. An excess over [`REPORT_MAX`] is cut from the middle, because an error's first words say what
    /// failed and its last line says why.
    Text(String),
    /// A number that may be zero.
    Int(i64),
    /// A number of tasks. Zero is never sent, because readers take a missing count for zero.
    Count(u64),
    /// Removes a value that an earlier run of the same job left in its ad. A line of the event log can't be
    /// undone.
    Undefined,
}

impl ChirpValue {
    /// The value as `destination` takes it in a report on `attribute`; `None` if it isn't to be sent.
    #[must_use]
    pub fn render(self, attribute: &str, destination: Destination) -> Option<String> {
        // Allows for either way of joining name and value, `NAME: value` and `NAME value`.
        let room = REPORT_MAX.saturating_sub(attribute.len() + ": ".len());
        let number = match self {
            Self::Count(0) => return None,
            Self::Undefined => {
                return (destination == Destination::JobAttr).then(|| "UNDEFINED".to_owned());
            }
            Self::Text(text) => return Some(quote_within(&readable(&text), room)),
            Self::Int(number) => number.to_string(),
            Self::Count(number) => number.to_string(),
        };
        Some(match destination {
            Destination::JobAttr => number,
            Destination::JobEventLog => quote(&number),
        })
    }
}

/// A ClassAd string literal of `text`, identical to the result of `classad.quote` of HTCondor's Python
/// package.
///
/// ```
/// assert_eq!(ewms_pilot::chirp::quote("say \"é\"\n"), r#""say \"\303\251\"\n""#);
/// ```
#[must_use]
pub fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    escape_onto(&mut quoted, text);
    quoted.push('"');
    quoted
}

/// As [`quote`], in at most `limit` bytes. Keeps the first third and the end, both in whole characters. Reads
/// no more of a long text than it keeps.
#[must_use]
pub fn quote_within(text: &str, limit: usize) -> String {
    let room = limit.saturating_sub(2);
    if prefix(text, room).len() == text.len() {
        return quote(text);
    }
    let room = room.saturating_sub(ELLIPSIS.len());
    let head = prefix(text, room / 3);
    let tail = suffix(text, room - escaped_len(head));
    let mut quoted = String::with_capacity(limit);
    quoted.push('"');
    escape_onto(&mut quoted, head);
    quoted.push_str(ELLIPSIS);
    escape_onto(&mut quoted, tail);
    quoted.push('"');
    quoted
}

/// Replaces NUL: ClassAd has an escape for it, but its own parser then refuses the whole string.
fn readable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

fn escape_onto(quoted: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'"' => quoted.push_str("\\\""),
            b'\\' => quoted.push_str("\\\\"),
            b'\n' => quoted.push_str("\\n"),
            b'\t' => quoted.push_str("\\t"),
            b'\r' => quoted.push_str("\\r"),
            0x07 => quoted.push_str("\\a"),
            0x08 => quoted.push_str("\\b"),
            0x0b => quoted.push_str("\\v"),
            0x0c => quoted.push_str("\\f"),
            b' '..=b'~' => quoted.push(char::from(byte)),
            _ => write!(quoted, "\\{byte:03o}").expect("writing to a String does not fail"),
        }
    }
}

/// How many bytes [`escape_onto`] adds for `text`.
fn escaped_len(text: &str) -> usize {
    text.bytes()
        .map(|byte| match byte {
            b'"' | b'\\' | b'\n' | b'\t' | b'\r' | 0x07 | 0x08 | 0x0b | 0x0c => 2,
            b' '..=b'~' => 1,
            _ => 4,
        })
        .sum()
}

/// The longest beginning of `text` that takes at most `room` bytes once escaped.
fn prefix(text: &str, room: usize) -> &str {
    &text[..fitting(text.chars(), room)]
}

/// The longest end of `text` that takes at most `room` bytes once escaped.
fn suffix(text: &str, room: usize) -> &str {
    &text[text.len() - fitting(text.chars().rev(), room)..]
}

/// The length in bytes of the longest run of `characters` that fits into `room` once escaped.
fn fitting(characters: impl Iterator<Item = char>, room: usize) -> usize {
    let mut used = 0;
    characters
        .take_while(|character| {
            used += escaped_len(character.encode_utf8(&mut [0; 4]));
            used <= room
        })
        .map(char::len_utf8)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The results of `classad.quote` of htcondor 24.12.24.
    const FROM_HTCONDOR: [(&str, &str); 26] = [
        ("", r#""""#),
        ("plain", r#""plain""#),
        ("a b", r#""a b""#),
        (r#"say "hi""#, r#""say \"hi\"""#),
        (r"back\slash", r#""back\\slash""#),
        (r"trail\", r#""trail\\""#),
        (r#"\""#, r#""\\\"""#),
        ("a\nb", r#""a\nb""#),
        ("a\tb", r#""a\tb""#),
        ("a\rb", r#""a\rb""#),
        ("a\0b", r#""a\000b""#),
        ("\u{1}", r#""\001""#),
        ("\u{7}\u{8}\u{b}\u{c}", r#""\a\b\v\f""#),
        ("\u{1b}[31m", r#""\033[31m""#),
        ("\u{1f}", r#""\037""#),
        ("\u{7f}", r#""\177""#),
        ("é", r#""\303\251""#),
        ("漢字", r#""\346\274\242\345\255\227""#),
        ("🦀", r#""\360\237\246\200""#),
        ("a\u{80}b", r#""a\302\200b""#),
        ("\u{a0}", r#""\302\240""#),
        ("'single'", r#""'single'""#),
        ("/slash/", r#""/slash/""#),
        ("\u{1}2", r#""\0012""#),
        ("?", r#""?""#),
        ("$(X) {} [] ;", r#""$(X) {} [] ;""#),
    ];

    #[test]
    fn quotes_as_htcondor_does() {
        for (text, quoted) in FROM_HTCONDOR {
            assert_eq!(quote(text), quoted, "{text:?}");
        }
    }

    #[test]
    fn the_length_of_an_escape_is_known_for_every_character() {
        for character in ('\0'..='\u{3000}').chain(['\u{ffff}', '🦀', char::MAX]) {
            let text = character.to_string();
            assert_eq!(escaped_len(&text) + 2, quote(&text).len(), "{character:?}");
        }
    }

    #[test]
    fn a_text_that_just_fits_is_whole_and_one_byte_more_is_cut() {
        let text = "x".repeat(98);
        assert_eq!(quote_within(&text, 100), quote(&text));
        let cut = quote_within(&format!("{text}y"), 100);
        assert!(cut.contains(ELLIPSIS) && cut.ends_with("y\""), "{cut}");
        assert_eq!(cut.len(), 100);
    }

    #[test]
    fn a_cut_keeps_what_failed_and_why() {
        let frames = "  File \"a.py\", line 1, in f\n    g()\n".repeat(200);
        let error = format!("task failed (exit code 1): Traceback\n{frames}ValueError: no photons");
        let cut = quote_within(&error, REPORT_MAX);
        assert!(
            cut.starts_with("\"task failed (exit code 1): Traceback\\n"),
            "{cut}"
        );
        assert!(cut.ends_with("\\nValueError: no photons\""), "{cut}");
        assert!(cut.len() <= REPORT_MAX);
    }

    #[test]
    fn escapes_count_and_no_character_is_split() {
        for part in ["\"", "\\", "\n", "\u{1}", "é", "漢", "🦀", "a🦀\\"] {
            let text = part.repeat(2_000);
            for limit in 40..140 {
                let cut = quote_within(&text, limit);
                assert!(cut.len() <= limit, "{part:?} {limit} {cut}");
                let kept = cut[1..cut.len() - 1].replace(ELLIPSIS, "");
                let whole: Vec<_> = part.chars().map(|c| quote(&c.to_string())).collect();
                let mut rest = kept.as_str();
                while !rest.is_empty() {
                    let next = whole
                        .iter()
                        .find_map(|q| rest.strip_prefix(&q[1..q.len() - 1]));
                    rest = next.unwrap_or_else(|| panic!("{part:?} {limit}: split at {rest}"));
                }
            }
        }
    }

    #[test]
    fn a_report_of_any_text_keeps_within_the_budget() {
        for text in ["x".repeat(50_000), "🦀".repeat(50_000), "\0".repeat(50_000)] {
            let attribute = "HTChirpEWMSPilotErrorTraceback";
            let value = ChirpValue::Text(text)
                .render(attribute, Destination::JobEventLog)
                .unwrap();
            let report = format!("{attribute}: {value}").len();
            assert!((REPORT_MAX - 24..=REPORT_MAX).contains(&report), "{report}");
        }
    }

    #[test]
    fn numbers_are_bare_in_the_job_ad_and_quoted_in_the_event_log() {
        for (value, in_ad) in [
            (ChirpValue::Int(0), "0"),
            (ChirpValue::Int(-5), "-5"),
            (ChirpValue::Count(7), "7"),
        ] {
            let ad = value.clone().render("A", Destination::JobAttr);
            assert_eq!(ad.as_deref(), Some(in_ad));
            assert_eq!(
                value.render("A", Destination::JobEventLog),
                Some(quote(in_ad))
            );
        }
    }

    #[test]
    fn a_count_of_zero_is_not_sent() {
        for destination in [Destination::JobAttr, Destination::JobEventLog] {
            assert_eq!(
                ChirpValue::Count(0).render("TasksSuccess", destination),
                None
            );
        }
    }

    #[test]
    fn nul_is_replaced_because_no_classad_parser_reads_it() {
        let value = ChirpValue::Text("a\0b".to_owned());
        assert_eq!(
            value.render("A", Destination::JobAttr),
            Some(quote("a\u{fffd}b"))
        );
    }
}
