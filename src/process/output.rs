//! Reads a child's output from a file: its end, to find an error's reason, or all of it, to show it. Takes
//! bounded memory, and any bytes.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Width of the lines around a dump.
const COLUMNS: usize = 80;

/// The last `max_bytes` of a file. A first line that would be cut is left out, unless it is the only one.
///
/// # Errors
/// When the file can't be opened or read.
pub fn tail(path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
    tail_of(&mut File::open(path)?, max_bytes)
}

/// As [`tail`], for an open file, whose position it moves.
///
/// # Errors
/// When the file can't be read.
pub fn tail_of(file: &mut File, max_bytes: usize) -> io::Result<Vec<u8>> {
    let length = file.seek(SeekFrom::End(0))?;
    let wanted = u64::try_from(max_bytes).unwrap_or(u64::MAX);
    let start = length.saturating_sub(wanted);
    file.seek(SeekFrom::Start(start.saturating_sub(1)))?;
    // A child that still writes must not make the result longer.
    let mut bytes = Vec::new();
    file.take(length.min(wanted + 1)).read_to_end(&mut bytes)?;
    if start == 0 {
        return Ok(bytes);
    }
    // The byte before the wanted ones tells whether they begin with a whole line.
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end_of_cut_line) if end_of_cut_line + 1 < bytes.len() => {
            bytes.drain(..=end_of_cut_line);
        }
        _ => {
            bytes.remove(0);
        }
    }
    Ok(bytes)
}

/// How much of a file is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShownOutput {
    Whole,
    /// Of a long file the first and the last 32 KiB, in whole lines if possible, and between them the path of
    /// the file.
    Ends,
}

const END_BYTES: usize = 32 * 1024;

/// Writes the content of an open file, which may have been removed since, to `sink` between marked lines,
/// with a `name` such as `task 7d… (stderr)`:
///
/// ```text
/// --- start: task 7d… (stderr) ---------------------------------------------------
/// …
/// --- end: task 7d… (stderr) -----------------------------------------------------
/// ```
///
/// Adds a missing line end at the end of the content, so that the mark gets its own line.
///
/// # Errors
/// When the file can't be read or the sink written.
pub fn dump(
    (mut file, path): (File, &Path),
    name: &str,
    shown: ShownOutput,
    sink: &mut dyn Write,
) -> io::Result<()> {
    let bytes = file.metadata()?.len();
    writeln!(sink, "{}", mark("start", name))?;
    if shown == ShownOutput::Ends && bytes > 2 * END_BYTES as u64 {
        let mut head = Vec::new();
        (&file).take(END_BYTES as u64).read_to_end(&mut head)?;
        if let Some(end) = memchr::memrchr(b'\n', &head) {
            head.truncate(end + 1);
        }
        let tail = tail_of(&mut file, END_BYTES)?;
        write_lines(&mut &head[..], sink)?;
        let left_out = bytes.saturating_sub((head.len() + tail.len()) as u64);
        let path = path.display();
        writeln!(
            sink,
            "--- {left_out} bytes left out here; all of it: {path} ---"
        )?;
        write_lines(&mut &tail[..], sink)?;
    } else {
        write_lines(&mut BufReader::new(file), sink)?;
    }
    writeln!(sink, "{}", mark("end", name))?;
    sink.flush()
}

fn write_lines(content: &mut impl Read, sink: &mut dyn Write) -> io::Result<()> {
    let mut content = LastByte {
        inner: content,
        last: b'\n',
    };
    io::copy(&mut content, sink)?;
    if content.last != b'\n' {
        writeln!(sink)?;
    }
    Ok(())
}

fn mark(which: &str, name: &str) -> String {
    format!("{:-<COLUMNS$}", format!("--- {which}: {name} "))
}

/// Remembers the last byte read through it.
struct LastByte<R> {
    inner: R,
    last: u8,
}

impl<R: Read> Read for LastByte<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        if let Some(last) = buffer[..length].last() {
            self.last = *last;
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(content).expect("written");
        file
    }

    fn open(file: &tempfile::NamedTempFile) -> File {
        File::open(file.path()).expect("opened")
    }

    fn tail_of_content(content: &[u8], max_bytes: usize) -> Vec<u8> {
        tail(file(content).path(), max_bytes).expect("read")
    }

    #[test]
    fn a_short_file_is_its_own_tail() {
        assert_eq!(tail_of_content(b"one\ntwo", 100), b"one\ntwo");
        assert_eq!(tail_of_content(b"one\ntwo", 7), b"one\ntwo");
        assert_eq!(tail_of_content(b"", 7), b"");
    }

    #[test]
    fn a_cut_line_is_left_out() {
        assert_eq!(tail_of_content(b"one\ntwo\nthree\n", 8), b"three\n");
        assert_eq!(tail_of_content(b"one\ntwo\nthree\n", 7), b"three\n");
        assert_eq!(tail_of_content(b"one\ntwo\nthree\n", 6), b"three\n");
    }

    #[test]
    fn a_line_longer_than_the_tail_keeps_its_end() {
        assert_eq!(tail_of_content(b"0123456789", 4), b"6789");
        assert_eq!(tail_of_content(b"0123456789\n", 4), b"789\n");
    }

    #[test]
    fn a_dump_marks_start_and_end_in_eighty_columns() {
        let mut sink = Vec::new();
        let content = file(b"a\xff\nb");
        dump(
            (open(&content), content.path()),
            "task 7d (stderr)",
            ShownOutput::Ends,
            &mut sink,
        )
        .expect("dumped");
        let expected = [
            b"--- start: task 7d (stderr) ----------------------------------------------------\n"
                .as_slice(),
            b"a\xff\nb\n",
            b"--- end: task 7d (stderr) ------------------------------------------------------\n",
        ];
        assert_eq!(sink, expected.concat());
        assert_eq!(expected[0].len(), COLUMNS + 1);
    }

    #[test]
    fn of_a_long_file_both_ends_are_shown_in_whole_lines_and_where_it_is() {
        for (line, newline) in [("0123456\n", "\n"), ("01234567", "")] {
            let content = file(line.repeat(100_000).as_bytes());
            let (mut ends, mut whole) = (Vec::new(), Vec::new());
            dump(
                (open(&content), content.path()),
                "x",
                ShownOutput::Ends,
                &mut ends,
            )
            .expect("dumped");
            dump(
                (open(&content), content.path()),
                "x",
                ShownOutput::Whole,
                &mut whole,
            )
            .expect("dumped");
            assert!(
                whole.len() > 800_000 && ends.len() < 70_000,
                "{}",
                ends.len()
            );
            let ends = String::from_utf8(ends).expect("text");
            let end = line.repeat(4096);
            let note = format!(
                "{end}{}--- 734464 bytes left out here; all of it: {} ---\n{end}",
                if newline.is_empty() { "\n" } else { "" },
                content.path().display()
            );
            assert!(ends.contains(&note), "{ends}");
        }
        let short = file(&vec![b'x'; 2 * END_BYTES]);
        let mut sink = Vec::new();
        dump(
            (open(&short), short.path()),
            "x",
            ShownOutput::Ends,
            &mut sink,
        )
        .expect("dumped");
        assert!(
            sink.windows(2 * END_BYTES)
                .any(|shown| shown == vec![b'x'; 2 * END_BYTES])
        );
    }
}
