//! What a child wrote: the end of it, for a reason, or all of it, for a person. Talks to files only,
//! in bounded memory; content may be any bytes.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Width of the lines around a dump.
const COLUMNS: usize = 60;

/// The last `max_bytes` of a file. A line that is cut by that is left out, unless it is all there is.
///
/// # Errors
/// When the file can't be opened or read.
pub fn tail(path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
    tail_of(&mut File::open(path)?, max_bytes)
}

/// As [`tail`], of an open file, whose position it moves.
///
/// # Errors
/// When the file can't be read.
pub fn tail_of(file: &mut File, max_bytes: usize) -> io::Result<Vec<u8>> {
    let length = file.seek(SeekFrom::End(0))?;
    let wanted = u64::try_from(max_bytes).unwrap_or(u64::MAX);
    let start = length.saturating_sub(wanted);
    file.seek(SeekFrom::Start(start.saturating_sub(1)))?;
    // A child that writes on while we read must not make it longer.
    let mut bytes = Vec::new();
    file.take(length.min(wanted + 1)).read_to_end(&mut bytes)?;
    if start == 0 {
        return Ok(bytes);
    }
    // The byte before tells whether a line begins with the first wanted one.
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

/// Writes a file's content to `sink` between marked lines, with `name` as in `task (stderr)`:
///
/// ```text
/// --- start: task (stderr) -----------------------------------
/// …
/// --- end: task (stderr) -------------------------------------
/// ```
///
/// Content that doesn't end its last line gets that end, so that the mark stands on its own.
///
/// # Errors
/// When the file can't be read or the sink written.
pub fn dump(path: &Path, name: &str, sink: &mut impl Write) -> io::Result<()> {
    let mut content = LastByte {
        inner: BufReader::new(File::open(path)?),
        last: b'\n',
    };
    writeln!(sink, "{}", mark("start", name))?;
    io::copy(&mut content, sink)?;
    if content.last != b'\n' {
        writeln!(sink)?;
    }
    writeln!(sink, "{}", mark("end", name))?;
    sink.flush()
}

fn mark(which: &str, name: &str) -> String {
    format!("{:-<COLUMNS$}", format!("--- {which}: {name} "))
}

/// Remembers the last byte that was read through it.
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
    fn a_dump_marks_start_and_end_in_sixty_columns() {
        let mut sink = Vec::new();
        dump(file(b"a\xff\nb").path(), "task (stderr)", &mut sink).expect("dumped");
        let expected = [
            b"--- start: task (stderr) -----------------------------------\n".as_slice(),
            b"a\xff\nb\n",
            b"--- end: task (stderr) -------------------------------------\n",
        ];
        assert_eq!(sink, expected.concat());
        assert_eq!(expected[0].len(), COLUMNS + 1);
    }

    #[test]
    fn an_empty_dump_has_only_its_marks() {
        let mut sink = Vec::new();
        dump(file(b"").path(), "task (stdout)", &mut sink).expect("dumped");
        assert_eq!(sink.split(|byte| *byte == b'\n').count(), 3);
    }
}
