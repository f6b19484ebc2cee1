//! Hands each record of the files to a visitor, in the files' order, and counts the lines that are none.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::thread;

use super::input::{self, LinePiece};
use super::numbers::InputNumbers;
use super::record_line::{self, LineKind, ReadLine, RecordLine};

/// The most unreadable lines that are named.
const NAMED: usize = 5;
/// The most blocks between the two threads, of half a MiB or so each.
const BLOCKS: usize = 4;

/// A record and the line that it was read from.
#[derive(Debug)]
pub(super) struct ScannedRecord<'a> {
    pub(super) kind: LineKind,
    pub(super) line: Box<RecordLine<'a>>,
    pub(super) text: &'a [u8],
}

/// Calls `visit` with every record, until it breaks.
///
/// # Errors
/// Fails if no thread can be started for reading. Files that can't be read are problems of `numbers`.
pub(super) fn scan(
    files: &[PathBuf],
    numbers: &mut InputNumbers,
    mut visit: impl FnMut(ScannedRecord<'_>) -> ControlFlow<()>,
) -> io::Result<()> {
    thread::scope(|scope| {
        let (to, from) = sync_channel(BLOCKS);
        thread::Builder::new()
            .name("reader".to_owned())
            .spawn_scoped(scope, move || input::feed(files, &to))?;
        let mut place = (Path::new(""), 0);
        for piece in from {
            match piece {
                LinePiece::File(index) => place = (&files[index], 0),
                LinePiece::Lines(block) => {
                    if lines(&block, numbers, &mut place, &mut visit).is_break() {
                        break;
                    }
                }
                LinePiece::Overlong => {
                    place.1 += 1;
                    unreadable(numbers, place, "too long for a record");
                }
                LinePiece::Broken(error) => numbers
                    .problems
                    .push(format!("{}: {error}", place.0.display())),
            }
        }
        Ok(())
    })
}

fn lines(
    block: &[u8],
    numbers: &mut InputNumbers,
    place: &mut (&Path, u64),
    visit: &mut impl FnMut(ScannedRecord<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut rest = block;
    while !rest.is_empty() {
        let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
        place.1 += 1;
        line(&rest[..end], numbers, *place, visit)?;
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    ControlFlow::Continue(())
}

fn line(
    text: &[u8],
    numbers: &mut InputNumbers,
    place: (&Path, u64),
    visit: &mut impl FnMut(ScannedRecord<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    if text.trim_ascii().is_empty() {
        return ControlFlow::Continue(());
    }
    match record_line::read(text) {
        ReadLine::Record(kind, line) => return visit(ScannedRecord { kind, line, text }),
        ReadLine::UnknownKind => numbers.unknown_records += 1,
        ReadLine::Newer => numbers.newer_records += 1,
        ReadLine::Unreadable(why) => unreadable(numbers, place, &why),
    }
    ControlFlow::Continue(())
}

fn unreadable(numbers: &mut InputNumbers, (path, line): (&Path, u64), why: &str) {
    numbers.unreadable_lines += 1;
    if numbers.first_unreadable.len() < NAMED {
        numbers
            .first_unreadable
            .push(format!("{}:{line} ({why})", path.display()));
    }
}
