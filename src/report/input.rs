//! Finds the record files and reads their lines in blocks: plain, gzip or zstd, told apart by their first
//! bytes. Reading runs on a thread of its own, so that unpacking and parsing use two cores.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;

/// The endings of the files that a directory is searched for.
const ENDINGS: [&str; 3] = [".jsonl", ".jsonl.gz", ".jsonl.zst"];
/// The bytes of one read.
const CHUNK: usize = 512 * 1024;
/// The longest line, in bytes. A record has at most two texts of 4 KiB, so a longer line is none.
const LONGEST_LINE: usize = 256 * 1024;

/// Files to read, each once, and paths that couldn't be searched.
#[derive(Debug, Default)]
pub(super) struct InputFiles {
    pub(super) files: Vec<PathBuf>,
    pub(super) problems: Vec<String>,
}

/// Paths that lead to no file.
#[derive(Debug, thiserror::Error)]
#[error("no such file or directory: {}; give record files, directories or globs", list(.0))]
pub struct MissingInput(Vec<PathBuf>);

fn list(paths: &[PathBuf]) -> String {
    let quoted: Vec<_> = paths
        .iter()
        .map(|path| format!("`{}`", path.display()))
        .collect();
    quoted.join(", ")
}

/// Finds the files below directories and by globs.
pub(super) fn find(paths: &[PathBuf]) -> Result<InputFiles, MissingInput> {
    let mut found = InputFiles::default();
    let mut seen = BTreeSet::new();
    let mut missing = Vec::new();
    for path in paths {
        if path.exists() {
            collect(path, &mut seen, &mut found);
            continue;
        }
        let matches: Vec<PathBuf> = (path.to_str())
            .and_then(|pattern| glob::glob(pattern).ok())
            .map(|matches| matches.flatten().collect())
            .unwrap_or_default();
        if matches.is_empty() {
            missing.push(path.clone());
        }
        for path in matches {
            collect(&path, &mut seen, &mut found);
        }
    }
    if missing.is_empty() {
        Ok(found)
    } else {
        Err(MissingInput(missing))
    }
}

fn collect(path: &Path, seen: &mut BTreeSet<PathBuf>, found: &mut InputFiles) {
    if path.is_dir() {
        search(path, seen, found);
    } else {
        keep(path.to_owned(), seen, found);
    }
}

fn search(directory: &Path, seen: &mut BTreeSet<PathBuf>, found: &mut InputFiles) {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            found
                .problems
                .push(format!("{}: {error}", directory.display()));
            return;
        }
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            // A link may lead back up.
            if !path.is_symlink() {
                search(&path, seen, found);
            }
        } else if has_an_ending(&path) {
            keep(path, seen, found);
        }
    }
}

fn has_an_ending(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// Drops repeated paths to the same file.
fn keep(path: PathBuf, seen: &mut BTreeSet<PathBuf>, found: &mut InputFiles) {
    if seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
        found.files.push(path);
    }
}

/// A message of the reading thread; they come in the order of the files.
#[derive(Debug)]
pub(super) enum LinePiece {
    /// The next file, by its index, begins.
    File(usize),
    /// Whole lines; the last of a file may lack its line break.
    Lines(Vec<u8>),
    /// A line that is too long to be a record.
    Overlong,
    /// The rest of the file can't be read.
    Broken(io::Error),
}

/// Reads all files. Ends early when the receiver is gone.
pub(super) fn feed(files: &[PathBuf], to: &SyncSender<LinePiece>) {
    for (index, path) in files.iter().enumerate() {
        if to.send(LinePiece::File(index)).is_err() {
            return;
        }
        let read = open(path).and_then(|mut source| read_lines(&mut *source, to));
        if let Err(error) = read
            && to.send(LinePiece::Broken(error)).is_err()
        {
            return;
        }
    }
}

fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    let mut file = File::open(path)?;
    let mut start = Vec::new();
    Read::by_ref(&mut file).take(4).read_to_end(&mut start)?;
    let gzip = start.starts_with(&[0x1f, 0x8b]);
    let zstd = start == [0x28, 0xb5, 0x2f, 0xfd];
    let whole = BufReader::with_capacity(CHUNK, io::Cursor::new(start).chain(file));
    Ok(if gzip {
        Box::new(flate2::bufread::MultiGzDecoder::new(whole))
    } else if zstd {
        Box::new(zstd::stream::read::Decoder::with_buffer(whole)?)
    } else {
        Box::new(whole)
    })
}

fn read_lines(source: &mut dyn Read, to: &SyncSender<LinePiece>) -> io::Result<()> {
    let mut unfinished = Vec::new();
    let mut skipping = false;
    loop {
        let mut block = std::mem::take(&mut unfinished);
        let before = block.len();
        let result = Read::take(&mut *source, CHUNK as u64).read_to_end(&mut block);
        let at_end = block.len() == before || result.is_err();
        if skipping {
            let end = memchr::memchr(b'\n', &block);
            block.drain(..end.map_or(block.len(), |at| at + 1));
            skipping = end.is_none();
        }
        if !at_end {
            unfinished = block.split_off(memchr::memrchr(b'\n', &block).map_or(0, |at| at + 1));
        }
        if !block.is_empty() && to.send(LinePiece::Lines(block)).is_err() {
            return Ok(());
        }
        result?;
        if at_end {
            return Ok(());
        }
        if unfinished.len() > LONGEST_LINE {
            unfinished.clear();
            skipping = true;
            if to.send(LinePiece::Overlong).is_err() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    /// The lines of a file with this content; `overlong` and `broken` stand for those pieces.
    fn pieces(content: &[u8]) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), content).expect("it can be written");
        let (to, from) = sync_channel(100);
        feed(&[file.path().to_owned()], &to);
        drop(to);
        from.iter()
            .skip(1)
            .flat_map(|piece| match piece {
                LinePiece::Lines(text) => String::from_utf8_lossy(&text)
                    .lines()
                    .map(str::to_owned)
                    .collect(),
                LinePiece::Overlong => vec!["overlong".to_owned()],
                LinePiece::Broken(_) => vec!["broken".to_owned()],
                LinePiece::File(_) => vec!["another file".to_owned()],
            })
            .collect()
    }

    #[test]
    fn lines_survive_the_borders_of_blocks_and_a_missing_last_line_break() {
        let lines: Vec<String> = (0..40_000)
            .map(|n| format!("{{\"number\": {n:050}}}"))
            .collect();
        let text = lines.join("\n");
        assert!(text.len() > 4 * CHUNK);
        assert_eq!(pieces(text.as_bytes()), lines);
    }

    #[test]
    fn a_line_that_is_too_long_costs_no_other_line() {
        let long = "x".repeat(3 * CHUNK);
        let text = format!("before\n{long}\nafter\n");
        assert_eq!(pieces(text.as_bytes()), ["before", "overlong", "after"]);
    }

    #[test]
    fn gzip_and_zstd_are_told_by_their_first_bytes_and_may_have_several_parts() {
        use std::io::Write;
        let gzip = |text: &[u8]| {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(text).expect("memory takes it");
            encoder.finish().expect("memory takes it")
        };
        let zstd = |text: &[u8]| zstd::encode_all(text, 1).expect("memory takes it");
        for pack in [&gzip as &dyn Fn(&[u8]) -> Vec<u8>, &zstd] {
            let both = [pack(b"a\nb\n"), pack(b"c\n")].concat();
            assert_eq!(pieces(&both), ["a", "b", "c"]);
        }
    }

    #[test]
    fn of_a_torn_archive_the_lines_before_the_tear_are_read() {
        let text = "one line\n".repeat(1000);
        let whole = zstd::encode_all(text.as_bytes(), 1).expect("memory takes it");
        let torn = [whole.clone(), whole[..whole.len() - 5].to_vec()].concat();
        let read = pieces(&torn);
        assert!(read.len() > 1000, "{}", read.len());
        assert_eq!(read.last().map(String::as_str), Some("broken"));
    }

    #[test]
    fn directories_are_searched_for_records_and_a_file_is_read_once() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir_all(at("job.1/deep")).expect("it can be made");
        for name in [
            "a.jsonl",
            "job.1/b.jsonl.gz",
            "job.1/deep/c.jsonl.zst",
            "job.1/out.log",
        ] {
            std::fs::write(at(name), "").expect("it can be written");
        }
        std::os::unix::fs::symlink("..", at("job.1/up")).expect("it can be made");
        let paths = [at(""), at("a.jsonl"), at("*/b.jsonl*"), at("job.1/out.log")];
        let found = find(&paths).expect("all are there");
        assert_eq!(
            found.files,
            [
                "a.jsonl",
                "job.1/b.jsonl.gz",
                "job.1/deep/c.jsonl.zst",
                "job.1/out.log"
            ]
            .map(at)
        );
        let missing = find(&[at("*.json"), at("a.jsonl"), at("none")]).expect_err("two are not");
        assert_eq!(missing.0, [at("*.json"), at("none")]);
    }
}
