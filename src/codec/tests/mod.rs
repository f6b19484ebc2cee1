//! The claims about the codec. The frames in [`golden`] were written by Python; the integration tests check
//! with a real consumer that Python reads this codec's frames.

mod files;
mod golden;
mod json;
mod large;

use std::fmt::Write as _;
use std::io::Write as _;

use super::*;

const LIMIT: u64 = 1 << 20;

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn frame(text: &str) -> Vec<u8> {
    zstd::bulk::compress(text.as_bytes(), 3).unwrap()
}

fn json(value: &str) -> Payload {
    Payload::Json(value.as_bytes().to_vec())
}

fn text(content: &str) -> Payload {
    Payload::Text(content.to_owned())
}

/// A small seeded generator (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % bound
    }
}

#[test]
fn frames_of_python_give_the_text_that_python_wrote() {
    for (hex, expected) in [
        (
            golden::OBJECT,
            json(r#"{"z": 1, "a": {"b": []}, "A": null}"#),
        ),
        (
            golden::NUMBERS,
            json(
                "[NaN, Infinity, -Infinity, 18446744073709551616, -1180591620717411303424, \
                 0.30000000000000004, 1e+308, 5e-324, -0.0, 1e-07]",
            ),
        ),
        (
            golden::SURROGATES,
            json(r#"["\ud800", "\udfff\ud800", "\ud83d\ude00"]"#),
        ),
        (
            golden::TEXT,
            text("line\n\"quoted\" \\ \u{e9} \u{1f600} \0\u{7f} NaN"),
        ),
        (golden::BIG, text(&"x".repeat(200_000))),
    ] {
        assert_eq!(decode_frame(&unhex(hex), LIMIT).unwrap(), expected);
    }
}

#[test]
fn a_string_with_half_a_surrogate_pair_is_that_events_error() {
    let error = decode_frame(&unhex(golden::LONE), LIMIT).unwrap_err();
    assert!(matches!(error, DecodeError::LoneSurrogate), "{error:?}");
}

#[test]
fn payloads_survive_a_round_trip_verbatim() {
    for payload in [
        text(""),
        text("\0\u{1f}\"\\/\u{7f}é\u{2028}\u{1f600}\r\n\t\u{8}\u{c}"),
        json("null"),
        json("[NaN,-Infinity , \"\\ud800\", 1E999]"),
        json("{\"b\": 1, \"a\": 2, \"b\": 123456789012345678901234567890.10}"),
    ] {
        let body = encode_frame(payload.clone()).unwrap();
        assert_eq!(decode_frame(&body, LIMIT).unwrap(), payload);
    }
}

/// A JSON string that a task wrote as JSON is a string for its receiver.
#[test]
fn a_string_from_a_json_outfile_arrives_as_text() {
    let body = encode_frame(json(" \"caf\\u00e9\"\n")).unwrap();
    assert_eq!(decode_frame(&body, LIMIT).unwrap(), text("café"));
}

#[test]
fn frames_are_what_python_writes_and_state_their_size() {
    let body = encode_frame(text("a\"b")).unwrap();
    let content = br#"{"headers": {}, "data": "a\"b"}"#;
    assert_eq!(zstd::decode_all(&body[..]).unwrap(), content);
    for length in [0, 1, 131_072, 3_000_000] {
        let body = encode_frame(text(&"y".repeat(length))).unwrap();
        let envelope = r#"{"headers": {}, "data": ""}"#.len();
        assert_eq!(
            zstd::decompressed_size(&body),
            Some((length + envelope) as u64)
        );
        assert!(body.len() < 1_000, "level 3 compresses this well");
    }
}

#[test]
fn both_keys_are_needed_and_the_last_of_equal_ones_counts() {
    let decode = |text: &str| decode_frame(&frame(text), LIMIT);
    assert!(matches!(
        decode(r#"{"data": 1}"#),
        Err(DecodeError::MissingKey("headers"))
    ));
    assert!(matches!(
        decode(r#"{"headers": {}, "Data": 1}"#),
        Err(DecodeError::MissingKey("data"))
    ));
    assert!(matches!(decode("{}"), Err(DecodeError::MissingKey(_))));
    assert!(matches!(decode("[1]"), Err(DecodeError::Json(_))));
    let twice = r#" {"data": 1, "x": {"data": 2}, "\u0064ata" : [3 ] ,"headers":null} "#;
    assert_eq!(decode(twice).unwrap(), json("[3 ]"));
}

#[test]
fn bombs_end_at_the_limit_whether_they_state_their_size_or_not() {
    let zeros = vec![0; 50 << 20];
    let stated = zstd::bulk::compress(&zeros, 3).unwrap();
    assert!(stated.len() < 5_000);
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.write_all(&zeros).unwrap();
    let unstated = encoder.finish().unwrap();
    assert_eq!(zstd::decompressed_size(&unstated), None);
    for body in [stated, unstated] {
        let error = decode_frame(&body, LIMIT).unwrap_err();
        assert!(
            matches!(error, DecodeError::TooLarge { limit: LIMIT }),
            "{error:?}"
        );
    }
}

#[test]
fn an_event_of_exactly_the_limit_is_taken() {
    let message = r#"{"headers": {}, "data": "12345"}"#;
    let limit = message.len() as u64;
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.write_all(message.as_bytes()).unwrap();
    for body in [frame(message), encoder.finish().unwrap()] {
        assert_eq!(decode_frame(&body, limit).unwrap(), text("12345"));
        assert!(matches!(
            decode_frame(&body, limit - 1),
            Err(DecodeError::TooLarge { .. })
        ));
    }
}

#[test]
fn a_million_levels_of_nesting_are_just_data() {
    const LEVELS: usize = 1_000_000;
    let nested = format!(
        "{}1{}",
        "[{\"a\":".repeat(LEVELS / 2),
        "}]".repeat(LEVELS / 2)
    );
    let body = encode_frame(json(&nested)).unwrap();
    assert_eq!(decode_frame(&body, 16 << 20).unwrap(), json(&nested));
    let unclosed = format!(r#"{{"headers": {{}}, "data": {}"#, "[".repeat(LEVELS));
    assert!(matches!(
        decode_frame(&frame(&unclosed), 16 << 20),
        Err(DecodeError::Json(_))
    ));
}

#[test]
fn broken_bodies_are_errors_that_say_what_is_broken() {
    let mut damaged = frame(r#"{"headers": {}, "data": 1}"#);
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    let truncated = &unhex(golden::NUMBERS)[..60];
    let concatenated = [frame("{}"), b"garbage".to_vec()].concat();
    for body in [
        &b""[..],
        b"{\"headers\": {}, \"data\": 1}",
        truncated,
        &concatenated,
    ] {
        let error = decode_frame(body, LIMIT).unwrap_err();
        assert!(!error.to_string().is_empty(), "{error:?}");
        assert!(
            matches!(error, DecodeError::Zstd(_) | DecodeError::Json(_)),
            "{body:?}: {error:?}"
        );
    }
    let not_utf8 = zstd::bulk::compress(b"{\"headers\": \"\xff\", \"data\": 1}", 3).unwrap();
    let error = decode_frame(&not_utf8, LIMIT).unwrap_err();
    assert!(
        error.to_string().contains("not UTF-8 from byte 13"),
        "{error}"
    );
}

#[test]
fn random_and_mutated_bodies_never_panic() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let seeds: Vec<Vec<u8>> = [golden::OBJECT, golden::NUMBERS, golden::TEXT]
        .into_iter()
        .map(unhex)
        .collect();
    let (mut good, mut bad) = (0, 0);
    for _ in 0..20_000 {
        let mut body = seeds[random.below(seeds.len())].clone();
        for _ in 0..random.below(4) {
            let at = random.below(body.len());
            body[at] = u8::try_from(random.below(256)).unwrap();
        }
        body.truncate(body.len() - random.below(2) * random.below(body.len()));
        match decode_frame(&body, LIMIT) {
            Ok(_) => good += 1,
            Err(_) => bad += 1,
        }
    }
    assert!(good > 1_000 && bad > 1_000, "{good} good, {bad} bad");
}

#[test]
fn random_strings_survive_a_round_trip() {
    let mut random = Random(42);
    for _ in 0..2_000 {
        let content: String = (0..random.below(40))
            .filter_map(|_| {
                let bound = [0x30, 0x80, 0x800, 0x11_0000][random.below(4)];
                char::from_u32(u32::try_from(random.below(bound)).unwrap())
            })
            .collect();
        let mut escaped = String::new();
        for unit in content.encode_utf16() {
            write!(escaped, "\\u{unit:04x}").unwrap();
        }
        let message = format!(r#"{{"headers": {{}}, "data": "{escaped}"}}"#);
        assert_eq!(
            decode_frame(&frame(&message), LIMIT).unwrap(),
            text(&content)
        );
        let body = encode_frame(text(&content)).unwrap();
        assert_eq!(decode_frame(&body, LIMIT).unwrap(), text(&content));
    }
}
