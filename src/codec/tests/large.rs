//! The claims about the codec for bodies too large for memory: it gives the same bytes as the way through
//! memory, wherever the pieces end.

use std::cell::Cell;
use std::fs;
use std::io::{self, Read, Write};

use tempfile::TempDir;

use super::super::json::{document, document_of, envelope, envelope_of};
use super::super::stream::Utf8Text;
use super::{LIMIT, Random, frame, golden, unhex};
use crate::codec::*;
use crate::fault::{FaultClass, TaskError};

/// Reads one to three bytes at a time.
struct Dribble<'a>(&'a [u8]);

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = (1 + self.0.len() % 3).min(self.0.len()).min(buffer.len());
        let (piece, rest) = self.0.split_at(length);
        buffer[..length].copy_from_slice(piece);
        self.0 = rest;
        Ok(length)
    }
}

/// The infile made of an event, or the error, as services read it.
type Outcome = Result<Vec<u8>, String>;

fn through_memory(payload: Result<Payload, DecodeError>, extension: &str) -> Outcome {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("infile");
    let payload = payload.map_err(|error| TaskError::from(error).repr())?;
    write_infile(&payload, extension, &path).map_err(|error| TaskError::from(error).repr())?;
    Ok(fs::read(&path).unwrap())
}

fn through_files(
    extension: &str,
    unpack: impl FnOnce(NewInfile<'_>) -> Result<u64, UnpackError>,
) -> Outcome {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("infile");
    let free = None;
    let infile = NewInfile {
        path: &path,
        extension,
        free,
    };
    match unpack(infile) {
        Ok(bytes) => {
            let written = fs::read(&path).unwrap();
            assert_eq!(bytes, written.len() as u64);
            Ok(written)
        }
        Err(error) => {
            assert!(!path.exists(), "{error}");
            Err(TaskError::from(error).repr())
        }
    }
}

fn unpacked(body: &[u8], extension: &str) -> Outcome {
    through_files(extension, |infile| {
        unpack_frame(|| Ok(Dribble(body)), LIMIT, infile)
    })
}

fn packed(content: &[u8], extension: &str) -> Result<Vec<u8>, PackError> {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("outfile");
    fs::write(&path, content).unwrap();
    let outfile = open_outfile(&path, extension, LIMIT).unwrap().unwrap();
    let mut body = Vec::new();
    pack_outfile(outfile, &mut body).map(|()| body)
}

#[test]
fn an_event_of_any_size_gives_the_infile_that_it_gives_through_memory() {
    let bodies = [
        golden::OBJECT,
        golden::NUMBERS,
        golden::SURROGATES,
        golden::TEXT,
        golden::LONE,
        golden::BIG,
    ];
    let mut bodies: Vec<Vec<u8>> = bodies.into_iter().map(unhex).collect();
    for message in [
        r#"{"data": 1}"#,
        r#"{"headers": {}, "Data": 1}"#,
        "{}",
        "[1]",
        r#" {"data": 1, "x": {"data": 2}, "\u0064ata" : [3 ] ,"headers":null} "#,
        r#"{"\u0068\u0065\u0061\u0064\u0065\u0072\u0073": 1, "\u0064\u0061\u0074\u0061": "\u00e9"}"#,
        r#"{"headers": {}, "data": "\ud83d\ude00\\\"\n\u0000é"}"#,
        r#"{"headers": {}, "data": "\ud83d"}"#,
        r#"{"headers": {}, "data": ""}"#,
        r#"{"headers": {}, "data": -12345678901234567890}"#,
        r#"{"headers": {}, "data": -Infinity}"#,
        r#"{"headers": {}, "data": 1e5}"#,
        r#"{"headers": {}, "data": true, "data" : null}"#,
        "{\"headers\": {}, \"data\": \"a\nb\"}",
        "{\"headers\": {}, \"data\": \"open",
    ] {
        bodies.push(frame(message));
    }
    let mut damaged = frame(r#"{"headers": {}, "data": 1}"#);
    damaged.pop();
    bodies.push(damaged);
    bodies.push(zstd::bulk::compress(b"{\"headers\": \"\xff\", \"data\": 1}", 3).unwrap());
    bodies.push(zstd::bulk::compress(b"{\"headers\": {}, \"data\": 1}\xc3", 3).unwrap());
    for body in bodies {
        for extension in ["json", "in"] {
            let expected = through_memory(decode_frame(&body, LIMIT), extension);
            let found = unpacked(&body, extension);
            // zstd words the same damage differently when it works on pieces.
            match (&found, &expected) {
                (Err(found), Err(expected)) if expected.contains("no zstd frame") => {
                    assert!(found.contains("no zstd frame"), "{found}");
                }
                _ => assert_eq!(found, expected),
            }
        }
    }
}

#[test]
fn a_file_of_any_size_gives_the_infile_that_it_gives_through_memory() {
    for (kind, content) in [
        (FileKind::Text, &b"\"a\"\n\xc3\xa9"[..]),
        (FileKind::Text, b""),
        (FileKind::Text, b"ab\xff"),
        (FileKind::Text, b"ab\xc3"),
        (FileKind::Json, b" \"caf\\u00e9\"\n"),
        (FileKind::Json, b"\n[1, NaN]\n"),
        (FileKind::Json, b"\"\\ud800\""),
        (FileKind::Json, b"nope"),
    ] {
        for extension in ["json", "in"] {
            let expected = through_memory(decode_file(kind, content.to_vec()), extension);
            let found = through_files(extension, |infile| {
                unpack_file(|| Ok(Dribble(content)), kind, LIMIT, infile)
            });
            assert_eq!(found, expected, "{content:?}");
        }
    }
}

#[test]
fn an_outfile_of_any_size_is_packed_as_through_memory_and_states_its_size() {
    let long = "é\u{1}\"x".repeat(100_000);
    let json = format!("[\"\\ud800\", NaN, \"{}\"]\n", "é".repeat(100_000));
    for (content, extension) in [
        (&b""[..], "out"),
        (b"a\r\n\"b\"\\\0", "out"),
        (long.as_bytes(), "out"),
        (b" {\"b\": NaN,\n \"a\": 1e999} ", "json"),
        (json.as_bytes(), "json"),
    ] {
        let text = String::from_utf8(content.to_vec()).unwrap();
        let payload = match FileKind::of_extension(extension) {
            FileKind::Text => Payload::Text(text),
            FileKind::Json => Payload::Json(text.into_bytes()),
        };
        let expected = zstd::decode_all(&encode_frame(payload).unwrap()[..]).unwrap();
        let body = packed(content, extension).unwrap();
        assert_eq!(unpacked_size(&body), Some(expected.len() as u64));
        assert_eq!(zstd::decode_all(&body[..]).unwrap(), expected);
    }
}

#[test]
fn an_outfile_that_can_not_be_sent_is_refused_as_through_memory() {
    for (content, extension) in [
        (&b"ab\xff"[..], "out"),
        (b"ab\xff", "json"),
        (b"[1, \"\xff", "json"),
        (b"{'a': 1}", "json"),
        (b"", "json"),
        (b"[1] 2", "json"),
    ] {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("outfile");
        fs::write(&path, content).unwrap();
        let open = || open_outfile(&path, extension, LIMIT).unwrap().unwrap();
        let expected = TaskError::from(open().read().unwrap_err());
        let checked = TaskError::from(check_outfile(open()).unwrap_err());
        let found = TaskError::from(packed(content, extension).unwrap_err());
        assert_eq!(found.repr(), expected.repr());
        assert_eq!(checked.repr(), expected.repr());
    }
}

/// A disk that is full after so many bytes.
struct Full(u64);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.checked_sub(bytes.len() as u64) {
            Some(left) => self.0 = left,
            None => return Err(io::Error::from_raw_os_error(28)),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn packing_ends_when_what_it_writes_to_takes_no_more() {
    let mut random = Random(3);
    let noise: String = (0..900_000)
        .map(|_| char::from(b'a' + u8::try_from(random.below(26)).unwrap()))
        .collect();
    for (content, extension) in [(noise.clone(), "out"), (format!("\"{noise}\""), "json")] {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("outfile");
        fs::write(&path, content).unwrap();
        let outfile = open_outfile(&path, extension, LIMIT).unwrap().unwrap();
        let error = pack_outfile(outfile, Full(100_000)).unwrap_err();
        assert!(matches!(error, PackError::Sink(_)), "{error:?}");
        assert_eq!(TaskError::from(error).class(), FaultClass::Ep);
    }
}

#[test]
fn what_does_not_fit_on_the_disk_is_not_begun_and_not_the_events_fault() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("infile");
    let body = frame(r#"{"headers": {}, "data": [1, 2, 3]}"#);
    let unpack = |free| {
        let infile = NewInfile {
            path: &path,
            extension: "json",
            free: Some(free),
        };
        unpack_frame(|| Ok(&body[..]), LIMIT, infile)
    };
    let error = unpack(8).unwrap_err();
    assert!(error.to_string().contains("`9` bytes"), "{error}");
    assert_eq!(TaskError::from(error).class(), FaultClass::Ep);
    assert!(!path.exists());
    assert_eq!(unpack(9).unwrap(), 9);
}

#[test]
fn a_bomb_ends_at_the_limit_and_leaves_no_infile() {
    let message = [
        b"{\"headers\": {}, \"data\": \"".to_vec(),
        vec![b' '; 50 << 20],
        b"\"}".to_vec(),
    ]
    .concat();
    let body = zstd::bulk::compress(&message, 3).unwrap();
    let read = Cell::new(0);
    let refusal = through_files("in", |infile| {
        read.set(read.get() + 1);
        unpack_frame(|| Ok(&body[..]), LIMIT, infile)
    });
    assert!(refusal.unwrap_err().contains("more than `1048576` bytes"));
    assert_eq!(read.get(), 1);
}

#[test]
fn a_window_that_takes_too_much_memory_is_named() {
    let message = format!("{{\"headers\": {{}}, \"data\": \"{}\"}}", "x".repeat(1000));
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(message.as_bytes()).unwrap();
    let body = encoder.finish().unwrap();
    let refusal = unpacked(&body, "in").unwrap_err();
    assert!(
        refusal.contains("EventDecodeError")
            && refusal.contains("a window of more than `33554432`"),
        "{refusal}"
    );
}

/// Texts in pieces get the same verdict as in one piece, and the same ranges.
#[test]
fn random_texts_in_pieces_are_judged_as_in_one() {
    const PIECES: &[&str] = &[
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        "\"é\"",
        "\"\\n\"",
        "\"",
        "-1.5e3",
        "NaN",
        "-Infinity",
        "true",
        " ",
        "\"headers\":",
        "\"data\":",
        "\"\\u0064ata\":",
        "2",
        "\\",
        "\\ud83d\\ude00",
    ];
    let mut random = Random(11);
    let mut taken = 0;
    for _ in 0..30_000 {
        let mut text: String = (0..=random.below(7))
            .map(|_| PIECES[random.below(PIECES.len())])
            .collect();
        if random.below(2) == 0 {
            text = format!("{{\"headers\": 1, \"data\":{text}}}");
        }
        let in_pieces = || Utf8Text::new(Dribble(text.as_bytes()), u64::MAX);
        assert_eq!(document_of(&mut in_pieces()), document(&text), "{text}");
        assert_eq!(envelope_of(&mut in_pieces()), envelope(&text), "{text}");
        taken += u32::from(envelope(&text).is_ok());
    }
    assert!(taken > 500, "{taken}");
}
