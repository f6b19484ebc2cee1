//! The log as JSON, one object a line: the lines of containers' output, which come between log lines, as
//! objects too.

use std::io::{self, Write};

use serde::Serialize;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// The longest line of one object, in bytes; a longer one becomes several.
const LINE: usize = 64 * 1024;

/// The `target` of a container's output.
const TARGET: &str = "container_output";

#[derive(Serialize)]
struct OutputLine<'a> {
    timestamp: String,
    level: &'static str,
    message: &'a str,
    target: &'static str,
}

/// Passes what is written on, each line as an object. The last line need not end in a line end: call
/// [`JsonLines::finish`].
pub(super) struct JsonLines<'a> {
    sink: &'a mut dyn Write,
    line: Vec<u8>,
}

impl<'a> JsonLines<'a> {
    pub(super) fn new(sink: &'a mut dyn Write) -> Self {
        Self {
            sink,
            line: Vec::new(),
        }
    }

    /// Writes what is left.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.line.is_empty() {
            return Ok(());
        }
        self.pass_on()
    }

    fn pass_on(&mut self) -> io::Result<()> {
        let message = String::from_utf8_lossy(&self.line);
        let object = OutputLine {
            timestamp: now(),
            level: "INFO",
            message: message.trim_end_matches(['\n', '\r']),
            target: TARGET,
        };
        let mut text = serde_json::to_vec(&object)?;
        text.push(b'\n');
        self.line.clear();
        self.sink.write_all(&text)
    }
}

impl Write for JsonLines<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            for part in piece.chunks(LINE) {
                self.line.extend_from_slice(part);
                if self.line.ends_with(b"\n") || self.line.len() >= LINE {
                    self.pass_on()?;
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// The time as in the log's own lines.
fn now() -> String {
    let mut text = String::new();
    // Writing into memory can't fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_output_becomes_an_object() {
        let mut sink = Vec::new();
        let mut lines = JsonLines::new(&mut sink);
        for piece in ["on", "e \"quoted\"\r\n\nthr", "ee \u{1b}[0m"] {
            lines.write_all(piece.as_bytes()).expect("memory");
        }
        lines.write_all(b"\xff").expect("memory");
        lines.finish().expect("memory");
        let text = String::from_utf8(sink).expect("JSON is UTF-8");
        let messages: Vec<String> = text
            .lines()
            .map(|line| {
                let object: serde_json::Value = serde_json::from_str(line).expect("an object");
                assert_eq!(object["target"], TARGET);
                object["message"].as_str().expect("a text").to_owned()
            })
            .collect();
        assert_eq!(messages, ["one \"quoted\"", "", "three \u{1b}[0m\u{fffd}"]);
    }
}
