//! The claims about the JSON checker: it accepts exactly what Python's `json.loads` accepts. The expected
//! verdicts are those of Python 3.11.

use super::super::json::{decode_string, document};
use super::Random;

const PYTHON_TAKES: &[&str] = &[
    "0",
    "-0",
    "-0.0e-00",
    "1E+999",
    "123456789012345678901234567890",
    "NaN",
    "Infinity",
    "-Infinity",
    "null",
    " \t\r\n[ ] ",
    "{ }",
    "[1 , [ ],{}]",
    r#"{"" : 1,"":2}"#,
    r#""\ud800 \uDFFF \u0000""#,
    r#""\"\\\/\b\f\n\r\t""#,
    "\"\u{7f}é\u{2028}\u{1f600}\"",
    "[NaN,{\"a\":Infinity}]",
];

const PYTHON_REJECTS: &[&str] = &[
    "",
    " ",
    "\u{feff}1",
    "01",
    "-",
    "+1",
    ".5",
    "1.",
    "1e",
    "1e+",
    "0x10",
    "1_000",
    "-NaN",
    "+Infinity",
    "nan",
    "Nan",
    "inf",
    "Null",
    "nul",
    "True",
    "1 2",
    "[1,]",
    "[,1]",
    "[1 2]",
    "[",
    "]",
    "[}",
    "{]",
    "{\"a\"}",
    "{\"a\":}",
    "{\"a\":1,}",
    "{a:1}",
    "{'a':1}",
    "{1:2}",
    "\"",
    "\"\\",
    "\"\\\"",
    "\"a\nb\"",
    "\"\t\"",
    "\"\0\"",
    r#""\x41""#,
    r#""\u12""#,
    r#""\u12g4""#,
    r#""\u+123""#,
    r#""\'""#,
    "\u{a0}1",
    "\u{b}1",
    "1\u{c}",
    "1//x",
    "/**/1",
];

#[test]
fn what_python_takes_is_taken() {
    for text in PYTHON_TAKES {
        let value = document(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert_eq!(&text[value], text.trim_ascii());
    }
}

#[test]
fn what_python_rejects_is_rejected() {
    for text in PYTHON_REJECTS {
        assert!(document(text).is_err(), "{text:?}");
    }
}

#[test]
fn an_error_says_what_was_expected_and_where() {
    for (text, expected) in [
        ("[1, 2", "expected `,` or `]` at byte 5"),
        ("{\"a\": tru}", "expected a value at byte 6"),
        ("{} {}", "expected nothing more at byte 3"),
    ] {
        assert_eq!(document(text).unwrap_err().to_string(), expected);
    }
}

#[test]
fn strings_decode_as_python_decodes_them() {
    let decode = |literal: &str| decode_string(literal.to_owned());
    for (literal, content) in [
        (r#""""#, ""),
        (r#""\u0041\ud83d\ude00é\/""#, "A\u{1f600}é/"),
        (r#""\\u0041""#, "\\u0041"),
        (r#""\"\b\f\n\r\t""#, "\"\u{8}\u{c}\n\r\t"),
        (r#""\ud7ff\ue000\uFFFF""#, "\u{d7ff}\u{e000}\u{ffff}"),
    ] {
        assert_eq!(decode(literal).as_deref(), Ok(content), "{literal}");
    }
    for lone in [
        r#""\ud800""#,
        r#""\udc00\ud800""#,
        r#""\ud800x\udc00""#,
        r#""\ud800\n""#,
        r#""\ud800\u0041""#,
        r#""\ud800\ud800\udc00""#,
    ] {
        assert!(decode(lone).is_err(), "{lone}");
    }
}

/// An independent judge: `serde_json` rejects only Python's extensions and lone surrogates, and the pieces
/// below form neither.
#[test]
fn random_texts_are_judged_as_serde_json_judges_them() {
    const PIECES: &[&str] = &[
        "[", "]", "{", "}", ",", ":", "\"a\"", "\"\\n\"", "\"", "1", "-", "0", ".", "e", "true",
        "null", " ", "\"k\":", "2",
    ];
    let mut random = Random(7);
    let mut taken = 0;
    for _ in 0..200_000 {
        let text: String = (0..=random.below(7))
            .map(|_| PIECES[random.below(PIECES.len())])
            .collect();
        let expected = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        assert_eq!(document(&text).is_ok(), expected, "{text}");
        taken += u32::from(expected);
    }
    assert!(taken > 5_000, "{taken}");
}
