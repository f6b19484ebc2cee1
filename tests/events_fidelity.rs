//! A task that runs `cp` returns exactly what a producer sent: compared by a Python consumer, value by value,
//! and on the wire, byte by byte.

use std::fs;
use std::time::Duration;

use crate::support::rabbitmq::Queue;
use crate::support::scene::Scene;
use crate::support::{SOON, images};

const COPY: &str = "cp {{INFILE}} {{OUTFILE}}";

struct Copier {
    incoming: Queue,
    outgoing: Queue,
    scene: Scene,
}

/// A pilot whose tasks copy, infile and outfile having `extension`.
fn copier(label: &str, extension: &str) -> Copier {
    let (incoming, outgoing) = (Queue::unique(label), Queue::unique(label));
    let scene = Scene::task(images::busybox(), COPY)
        .rabbitmq(&incoming, &outgoing)
        .set("EWMS_PILOT_INFILE_EXT", extension)
        .set("EWMS_PILOT_OUTFILE_EXT", extension);
    Copier {
        incoming,
        outgoing,
        scene,
    }
}

/// A message as mqclient and the pilot both write it, around a value's text.
fn message(data: &str) -> String {
    format!(r#"{{"headers": {{}}, "data": {data}}}"#)
}

fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts
}

/// As `json.dumps` writes them, so that what Python reads and writes again is the same text.
fn python_values() -> Vec<String> {
    let mut values: Vec<String> = [
        "NaN",
        "[Infinity, -Infinity, NaN]",
        "-Infinity",
        "18446744073709551617",
        "-18446744073709551617",
        "[-0.0, 0.0, 5e-324, 1.7976931348623157e+308]",
        "[0.1, 0.30000000000000004, 1234567890.1234567, 9007199254740993]",
        r#"{"z": 1, "a": {"z": [], "b": {}, "a": null}, "m": true}"#,
        r#"{"": "", " ": [false, {"": [[]]}]}"#,
        r#"["lone \ud800 and \udfff", "\ud83d\ude00", "\u0000\u2028"]"#,
        r#"["caf\u00e9", "\r\n\t\"\\/"]"#,
        "[]",
        "{}",
        "null",
        "true",
        "false",
        "0",
    ]
    .map(str::to_owned)
    .into();
    values.push(format!("1{}", "0".repeat(400)));
    values.push(format!("{}7{}", "[".repeat(2_000), "]".repeat(2_000)));
    values
}

#[test]
fn every_value_that_python_can_send_comes_back_equal_to_python() {
    let copier = copier("python-values", ".json");
    let values = python_values();
    copier.incoming.produce(&values);
    copier.scene.run(SOON * 2).assert_code(0);
    let results = copier
        .outgoing
        .consume(values.len() + 1, Duration::from_secs(1));
    assert_eq!(sorted(results), sorted(values));
}

#[test]
fn the_text_of_a_value_is_not_touched() {
    let copier = copier("raw-values", ".json");
    let values = [
        // No double holds these; nobody asked for one.
        "1e999",
        "-1e-999",
        "[0.1000000000000000055511151231257827, 1E+2, 1.0e0, -0]",
        // Python keeps the last, others the first; a copy keeps both.
        r#"{"a": 1, "b": 2, "a": {"a": 3, "a": 4}}"#,
        r#"["\u00e9", "é", "\/", "\ud83d\ude00", "😀", "\uD800", "\ud800"]"#,
        r#"{"a":1,   "b" : [ 1,2 ]}"#,
        r#"{"data": 1, "headers": {"data": 2}}"#,
    ];
    copier.incoming.publish_texts(values.map(message));
    copier.scene.run(SOON).assert_code(0);
    let results = sorted(copier.outgoing.take_texts());
    assert_eq!(results, sorted(values.map(message).into()));
}

#[test]
fn strings_keep_every_character() {
    let copier = copier("strings", ".pkl.b64");
    let values = [
        r#""""#,
        r#"" \r\n\n\r spaces and line ends \r\n""#,
        r#""\ufeffbyte order mark""#,
        r#""\u0000 \u001f \u007f \u2028 \"quoted\" \\""#,
        r#""caf\u00e9 \ud83d\ude00""#,
        r#""{\"not\": parsed""#,
        r#""NaN""#,
    ];
    copier.incoming.produce(values);
    copier.scene.run(SOON).assert_code(0);
    let results = copier
        .outgoing
        .consume(values.len() + 1, Duration::from_secs(1));
    assert_eq!(sorted(results), sorted(values.map(str::to_owned).into()));
}

#[test]
fn a_string_is_its_own_infile_byte_for_byte() {
    let copier = copier("infile", ".txt");
    copier
        .incoming
        .produce([r#""\ufeffa\r\nb\u00e9\ud83d\ude00""#]);
    let scene = copier
        .scene
        .set("EWMS_PILOT_TASK_ARGS", "cp {{INFILE}} {{DATA_HUB}}/infile");
    scene.run(SOON).assert_code(0);
    let infile = fs::read(scene.hub("infile")).expect("the task left it");
    assert_eq!(
        String::from_utf8(infile).expect("it is UTF-8"),
        "\u{feff}a\r\nbé😀"
    );
}

#[test]
fn a_string_of_eight_mebibytes_comes_back() {
    let copier = copier("eight-mebibytes", ".txt");
    let value = format!("\"{}\"", "0123456789abcdef".repeat(8 * 1024 * 1024 / 16));
    copier.incoming.produce([&value]);
    copier.scene.run(SOON).assert_code(0);
    let results = copier.outgoing.consume(1, Duration::from_secs(1));
    assert!(results.as_slice() == [value], "{} results", results.len());
}

/// Text that no compressor makes much smaller than three quarters: six random bits a character.
fn incompressible(bytes: usize) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-";
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // The highest six bits are below 64.
        char::from(alphabet[usize::try_from(state >> 58).expect("it is small")])
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// What the broker takes at most as one message.
const LIMIT: usize = 16 * 1024 * 1024;

#[test]
fn a_body_just_under_the_brokers_limit_comes_back() {
    let copier = copier("just-under", ".txt");
    let text = incompressible(LIMIT * 131 / 100);
    let body = message(&format!("\"{text}\""));
    // The same compressor as on the other side.
    let size = zstd::bulk::compress(body.as_bytes(), 3)
        .expect("it compresses")
        .len();
    assert!((LIMIT * 98 / 100..LIMIT).contains(&size), "{size}");
    copier.incoming.publish_texts([&body]);
    // So large an event takes a while to arrive on a busy machine.
    let scene = copier
        .scene
        .set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "30");
    scene.run(SOON * 2).assert_code(0);
    assert!(copier.outgoing.take_texts() == [body]);
    assert_eq!(copier.incoming.total(), 0);
}

#[test]
fn a_result_over_the_brokers_limit_fails_its_event_which_stays_and_says_both_sizes() {
    let copier = copier("over", ".txt");
    copier.incoming.produce(["\"\""]);
    // 24 MB of base64 pack to a little more than the 18 MB that they are made of.
    let script = r#"sh -c "head -c 18000000 /dev/urandom | base64 > {{OUTFILE}}""#;
    let outcome = copier
        .scene
        .set("EWMS_PILOT_TASK_ARGS", script)
        .run(SOON * 2);
    outcome.assert_code(1);
    let line = outcome.last_line();
    let start =
        "RuntimeError: 1 TASK(S) FAILED: PublishError('the result is too large for the broker: `";
    let rest = line.strip_prefix(start).unwrap_or_else(|| panic!("{line}"));
    let (size, rest) = rest.split_once('`').expect("it is quoted");
    let size: usize = size.parse().expect("it is a number");
    assert!((LIMIT + 1..20_000_000).contains(&size), "{line}");
    assert!(rest.contains(&format!("`{LIMIT}`")), "{line}");
    // No event leaves its queue unasked.
    assert_eq!((copier.incoming.total(), copier.outgoing.depth()), (1, 0));
}
