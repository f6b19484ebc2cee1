//! Events and results too large for memory: from a reader into an infile, from an outfile into a writer. Only
//! some hundred kilobytes, and zstd's window, are in memory at a time.
//!
//! An event is read twice: once to check it and find its data, and once to write the data. Only the infile
//! goes to the disk, and nothing of an invalid event.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use super::files::{FileError, FileKind, InfileError, Outfile, OutfileError, type_beginning};
use super::frame::{
    AFTER_JSON, AFTER_TEXT, BEFORE_JSON, BEFORE_TEXT, DecodeError, LEVEL, data_of, unpacked_size,
};
use super::stream::{StreamFault, Unwritten, Utf8Text, write_unescaped};
use super::{escape, json};
use crate::fault::TaskError;

/// 32 MiB, the window of zstd's level 20. The Python side uses 2 MiB.
const WINDOW_LOG_MAX: u32 = 25;

/// The longest header of a frame that states the size of its content (RFC 8878, section 3.1.1.1).
const FRAME_HEADER_MAX: u64 = 18;

#[derive(Debug, Clone, Copy)]
pub struct NewInfile<'a> {
    /// The file to create.
    pub path: &'a Path,
    /// The suffix, lower-case and without leading dots.
    pub extension: &'a str,
    /// The free space on the disk in bytes, if known.
    pub free: Option<u64>,
}

/// Why an event did not become an infile.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The data suits no infile, or there is no room for it.
    #[error(transparent)]
    Infile(#[from] InfileError),
    /// The pilot's own copy of the event can't be read.
    #[error(transparent)]
    Body(FileError),
}

impl From<UnpackError> for TaskError {
    fn from(error: UnpackError) -> Self {
        match error {
            UnpackError::Decode(error) => error.into(),
            UnpackError::Infile(error) => error.into(),
            UnpackError::Body(error) => Self::Os(error.to_string()),
        }
    }
}

impl UnpackError {
    fn body(error: io::Error) -> Self {
        Self::Body(FileError::new("read an event's body")(error))
    }

    fn file(error: io::Error) -> Self {
        Self::Infile(FileError::new("write an infile")(error).into())
    }

    /// Why an unpacked text could not be read to its end.
    fn of(fault: StreamFault, limit: u64) -> Self {
        Self::Decode(match fault {
            StreamFault::TooLong => DecodeError::TooLarge { limit },
            StreamFault::NotUtf8 { at } => DecodeError::NotUtf8 { at },
            // Only I/O errors have a number; zstd's own don't.
            StreamFault::Unreadable(error) if error.raw_os_error().is_some() => {
                return Self::body(error);
            }
            StreamFault::Unreadable(error) => match error.to_string() {
                text if text.contains("too much memory") => DecodeError::Window {
                    window: 1 << WINDOW_LOG_MAX,
                },
                text => DecodeError::Zstd(text),
            },
        })
    }
}

/// Why a result was not packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error(transparent)]
    Outfile(#[from] OutfileError),
    /// The sink accepts no more bytes, or zstd failed.
    #[error("can't pack a result: {0}; see to the disk that holds `ewms-pilot-data`")]
    Sink(io::Error),
}

impl From<PackError> for TaskError {
    fn from(error: PackError) -> Self {
        match error {
            PackError::Outfile(error) => error.into(),
            PackError::Sink(_) => Self::Os(error.to_string()),
        }
    }
}

/// Unpacks a message body into a new infile, and returns the infile's size. Each call of `open` gives the
/// body from its beginning.
///
/// # Errors
/// Returns an [`UnpackError`]; no infile is left then.
pub fn unpack_frame<R: Read>(
    open: impl Fn() -> io::Result<R>,
    limit_bytes: u64,
    infile: NewInfile<'_>,
) -> Result<u64, UnpackError> {
    // A frame that states too large a size need not be unpacked.
    let mut head = Vec::new();
    let begun = open().and_then(|body| body.take(FRAME_HEADER_MAX).read_to_end(&mut head));
    begun.map_err(UnpackError::body)?;
    if unpacked_size(&head).is_some_and(|bytes| bytes > limit_bytes) {
        return Err(DecodeError::TooLarge { limit: limit_bytes }.into());
    }
    let unpacked = || {
        let mut decoder = zstd::Decoder::new(open().map_err(UnpackError::body)?)
            .map_err(|error| DecodeError::Zstd(error.to_string()))?;
        decoder
            .window_log_max(WINDOW_LOG_MAX)
            .map_err(|error| DecodeError::Zstd(error.to_string()))?;
        Ok::<_, UnpackError>(decoder)
    };
    let mut text = Utf8Text::new(unpacked()?, limit_bytes);
    let found = json::envelope_of(&mut text);
    text.outcome()
        .map_err(|fault| UnpackError::of(fault, limit_bytes))?;
    let data = data_of(found.map_err(DecodeError::Json)?)?;
    drop(text);
    write_value(unpacked()?, data, infile)
}

/// Copies an event that is a file of its own into a new infile, and returns the infile's size.
///
/// # Errors
/// Returns the errors of [`unpack_frame`].
pub fn unpack_file<R: Read>(
    open: impl Fn() -> io::Result<R>,
    kind: FileKind,
    limit_bytes: u64,
    infile: NewInfile<'_>,
) -> Result<u64, UnpackError> {
    let again = || open().map_err(UnpackError::body);
    let mut text = Utf8Text::new(again()?, limit_bytes);
    let value = match kind {
        FileKind::Json => Some(json::document_of(&mut text)),
        FileKind::Text => {
            text.each(|_checked| Ok(())).map_err(UnpackError::body)?;
            None
        }
    };
    let bytes = text
        .outcome()
        .map_err(|fault| UnpackError::of(fault, limit_bytes))?;
    match value {
        Some(value) => write_value(again()?, value.map_err(DecodeError::Json)?, infile),
        None => create(infile, bytes, |file| {
            io::copy(&mut again()?, file).map_err(UnpackError::file)
        }),
    }
}

/// Writes the JSON value at `place` in a checked text.
fn write_value(
    mut text: impl Read,
    place: std::ops::Range<usize>,
    infile: NewInfile<'_>,
) -> Result<u64, UnpackError> {
    let before = place.start as u64;
    io::copy(&mut text.by_ref().take(before), &mut io::sink()).map_err(UnpackError::body)?;
    let (mut first, bytes) = ([0], place.len() as u64);
    text.read_exact(&mut first).map_err(UnpackError::body)?;
    if first == *b"\"" {
        let mut literal = Utf8Text::new(text.take(bytes - 2), u64::MAX);
        // The content is never longer than the literal without its quotes.
        return create(infile, bytes - 2, |file| {
            let written = write_unescaped(&mut literal, file);
            literal
                .outcome()
                .map_err(|fault| UnpackError::of(fault, u64::MAX))?;
            written.map_err(|unwritten| match unwritten {
                Unwritten::Lone(lone) => DecodeError::from(lone).into(),
                Unwritten::File(error) => UnpackError::file(error),
            })
        });
    }
    let rest = text.take(bytes - 1);
    if FileKind::of_extension(infile.extension) != FileKind::Json {
        let python_type = type_beginning(first[0], rest).map_err(UnpackError::body)?;
        return Err(InfileError::NeedsJson { python_type }.into());
    }
    create(infile, bytes, |file| {
        io::copy(&mut first.chain(rest), file).map_err(UnpackError::file)
    })
}

/// Creates the infile, of about `bytes` bytes. No file is left if that fails.
fn create(
    infile: NewInfile<'_>,
    bytes: u64,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<u64, UnpackError>,
) -> Result<u64, UnpackError> {
    if infile.free.is_some_and(|free| free < bytes) {
        return Err(InfileError::NoRoom { bytes }.into());
    }
    let file = File::create_new(infile.path)
        .map_err(|error| InfileError::from(FileError::new("create an infile")(error)))?;
    let mut file = BufWriter::with_capacity(256 * 1024, file);
    let written = write(&mut file)
        .and_then(|written| file.flush().map(|()| written).map_err(UnpackError::file));
    if written.is_err() {
        // Discards the buffered bytes. A leftover is removed with the task's directory.
        let (_file, _buffered) = file.into_parts();
        let _leftover = fs::remove_file(infile.path);
    }
    written
}

/// Packs a task's outfile into the same frame as [`encode_frame`](super::encode_frame) makes of its content.
///
/// # Errors
/// Returns a [`PackError`]. A `sink` that accepts no more bytes ends the packing at once.
pub fn pack_outfile(outfile: Outfile, sink: impl Write) -> Result<(), PackError> {
    let Outfile {
        mut file,
        bytes,
        kind,
        ..
    } = outfile;
    // The file may not be at its start.
    rewind(&mut file)?;
    let (before, surplus, after) = match kind {
        FileKind::Json => (BEFORE_JSON, 0, AFTER_JSON),
        FileKind::Text => (BEFORE_TEXT, surplus(&mut file, bytes)?, AFTER_TEXT),
    };
    let size = (before.len() + after.len()) as u64 + bytes + surplus;
    let mut encoder = zstd::Encoder::new(sink, LEVEL).map_err(PackError::Sink)?;
    encoder
        .set_pledged_src_size(Some(size))
        .and_then(|()| encoder.write_all(before))
        .map_err(PackError::Sink)?;
    match kind {
        FileKind::Json => check_json(&mut file, bytes, &mut encoder)?,
        FileKind::Text => {
            let mut text = Utf8Text::new(&mut file, bytes);
            text.each(|piece| escape::write_escaped(piece, &mut encoder))
                .map_err(PackError::Sink)?;
            all_read(&mut text, bytes)?;
        }
    }
    encoder
        .write_all(after)
        .and_then(|()| encoder.finish())
        .map_err(PackError::Sink)?;
    Ok(())
}

/// Checks that a task's outfile holds what its name says. Returns the file, to be read from its beginning.
///
/// # Errors
/// Returns an [`OutfileError`]. All but `File` are the task's fault.
pub fn check_outfile(outfile: Outfile) -> Result<(FileKind, File), OutfileError> {
    let Outfile {
        mut file,
        bytes,
        kind,
        ..
    } = outfile;
    rewind(&mut file)?;
    match kind {
        FileKind::Text => {
            surplus(&mut file, bytes)?;
        }
        FileKind::Json => match check_json(&mut file, bytes, &mut io::sink()) {
            Ok(()) => {}
            Err(PackError::Outfile(error)) => return Err(error),
            Err(PackError::Sink(error)) => return Err(cannot_read(error)),
        },
    }
    Ok((kind, file))
}

fn cannot_read(error: io::Error) -> OutfileError {
    FileError::new("read an outfile")(error).into()
}

/// The number of bytes that escaping adds to a text. Leaves the file at its beginning.
fn surplus(file: &mut File, bytes: u64) -> Result<u64, OutfileError> {
    let mut surplus = 0;
    let mut text = Utf8Text::new(&mut *file, bytes);
    text.each(|piece| {
        surplus += escape::surplus(piece) as u64;
        Ok(())
    })
    .map_err(cannot_read)?;
    all_read(&mut text, bytes)?;
    rewind(file)?;
    Ok(surplus)
}

/// Copies a file that must hold one JSON value.
fn check_json(file: &mut File, bytes: u64, sink: &mut impl Write) -> Result<(), PackError> {
    let mut failed = None;
    let copied = Copied {
        from: &mut *file,
        to: sink,
        failed: &mut failed,
    };
    let mut text = Utf8Text::new(copied, bytes);
    let checked = json::document_of(&mut text);
    let read = all_read(&mut text, bytes);
    drop(text);
    if let Some(error) = failed {
        return Err(PackError::Sink(error));
    }
    match read {
        // An invalid text was not read to its end.
        Ok(()) | Err(OutfileError::Changed) => checked.map_err(OutfileError::from)?,
        Err(error) => return Err(error.into()),
    };
    Ok(read?)
}

fn rewind(file: &mut File) -> Result<(), OutfileError> {
    io::Seek::rewind(file).map_err(cannot_read)
}

fn all_read<R: Read>(text: &mut Utf8Text<R>, bytes: u64) -> Result<(), OutfileError> {
    match text.outcome() {
        Ok(read) if read == bytes => Ok(()),
        Ok(_) | Err(StreamFault::TooLong) => Err(OutfileError::Changed),
        Err(StreamFault::NotUtf8 { at }) => Err(OutfileError::NotUtf8 { at }),
        Err(StreamFault::Unreadable(error)) => Err(cannot_read(error)),
    }
}

/// Reads `from`, and writes every byte read to `to`.
struct Copied<'a, R, W> {
    from: R,
    to: &'a mut W,
    /// The error of a failed write.
    failed: &'a mut Option<io::Error>,
}

impl<R: Read, W: Write> Read for Copied<'_, R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        if let Err(error) = self.to.write_all(&buffer[..read]) {
            *self.failed = Some(error);
            return Err(io::Error::other("what it is written to takes no more"));
        }
        Ok(read)
    }
}
