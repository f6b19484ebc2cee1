//! Writes an event into its infile and turns an outfile into a result: in memory if small, through files if
//! large. Blocks, except for [`MemoryBudget`].

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::disk_space;
use crate::broker::{Body, BodyStore, Content, Encoding, FileFormat, LARGE_BYTES, MessageLimit};
use crate::codec::{self, FileKind, NewInfile, Outfile, PackError};
use crate::fault::TaskError;

/// Up to this size, in bytes, events and results need no permit: any number may be worked on.
const SMALL_BYTES: u64 = 256 * 1024;
/// The memory for all larger ones together, in bytes. The largest need most of it, for zstd's decompression
/// window.
const ROOM_BYTES: u32 = 32 * 1024 * 1024;
/// zstd's own memory for compression, in bytes.
const ZSTD_BYTES: u64 = 4 * 1024 * 1024;

/// Memory for packing and unpacking. Tasks that find none left wait for others to finish.
#[derive(Debug, Clone)]
pub struct MemoryBudget(Arc<Semaphore>);

impl MemoryBudget {
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(ROOM_BYTES as usize)))
    }

    pub(super) async fn for_event(&self, event: &Content) -> Option<OwnedSemaphorePermit> {
        let bytes = match event {
            Content::Frame(body) => unpacked(body).unwrap_or(u64::MAX),
            // No decompression here.
            Content::File(_, body) => body.len().min(LARGE_BYTES as u64),
        };
        self.take(bytes, bytes.saturating_mul(2)).await
    }

    pub(super) async fn for_result(&self, outfile: &Outfile) -> Option<OwnedSemaphorePermit> {
        let bytes = outfile.bytes();
        // Three copies: the plain one, the quoted one and the packed one.
        let needed = bytes.saturating_mul(3).saturating_add(ZSTD_BYTES);
        self.take(bytes, needed).await
    }

    async fn take(&self, bytes: u64, needed: u64) -> Option<OwnedSemaphorePermit> {
        if bytes <= SMALL_BYTES {
            return None;
        }
        let room = u32::try_from(needed).unwrap_or(ROOM_BYTES).min(ROOM_BYTES);
        // The semaphore is never closed.
        Arc::clone(&self.0).acquire_many_owned(room).await.ok()
    }
}

impl Default for MemoryBudget {
    fn default() -> Self {
        Self::new()
    }
}

/// The size of a frame's content, if that is known to fit into memory.
fn unpacked(body: &Body) -> Option<u64> {
    let bytes = codec::unpacked_size(body.in_memory()?)?;
    (bytes <= LARGE_BYTES as u64).then_some(bytes)
}

/// Writes an event to the infile at `path`.
pub(super) fn write_event(event: &Content, infile_ext: &str, path: &Path) -> Result<(), TaskError> {
    let infile = NewInfile {
        path,
        extension: infile_ext,
        free: path.parent().and_then(|dir| disk_space::free(dir).ok()),
    };
    let limit = codec::DEFAULT_LIMIT_BYTES;
    let payload = match event {
        Content::Frame(body) => {
            let Some(bytes) = body.in_memory().filter(|_| unpacked(body).is_some()) else {
                codec::unpack_frame(|| body.reader(), limit, infile)?;
                return Ok(());
            };
            codec::decode_frame(bytes, limit)?
        }
        Content::File(format, body) => {
            let kind = match format {
                FileFormat::Json => FileKind::Json,
                FileFormat::Text => FileKind::Text,
            };
            if body.len() > LARGE_BYTES as u64 {
                codec::unpack_file(|| body.reader(), kind, limit, infile)?;
                return Ok(());
            }
            codec::decode_file(kind, body.read().map_err(|error| unreadable(&error))?)?
        }
    };
    codec::write_infile(&payload, infile_ext, path)?;
    Ok(())
}

fn unreadable(error: &io::Error) -> TaskError {
    TaskError::Os(format!(
        "can't read an event's body: {error}; see to the disk that holds `ewms-pilot-data`"
    ))
}

#[derive(Debug, Clone)]
pub(super) struct WantedResult {
    pub(super) encoding: Encoding,
    pub(super) limit: MessageLimit,
    pub(super) bodies: BodyStore,
}

/// The outfile of a task that has ended.
#[derive(Debug)]
pub(super) enum OutfileState {
    Nothing,
    Result(Content),
    Large(Outfile),
}

/// Looks for a task's outfile; a small one is read at once.
pub(super) fn find_result(
    path: &Path,
    ext: &str,
    wanted: &WantedResult,
) -> Result<OutfileState, TaskError> {
    let Some(outfile) = codec::open_outfile(path, ext, codec::DEFAULT_LIMIT_BYTES)? else {
        return Ok(OutfileState::Nothing);
    };
    if outfile.bytes() > SMALL_BYTES {
        return Ok(OutfileState::Large(outfile));
    }
    read_result(outfile, wanted).map(OutfileState::Result)
}

/// Makes a result of an outfile, encoded as the sink wants it.
pub(super) fn read_result(outfile: Outfile, wanted: &WantedResult) -> Result<Content, TaskError> {
    match wanted.encoding {
        Encoding::Frame => pack(outfile, wanted).map(Content::Frame),
        Encoding::File if outfile.bytes() > SMALL_BYTES => {
            let (kind, file) = codec::check_outfile(outfile)?;
            let body = Body::of_file(file, 0).map_err(|error| unkept(&error))?;
            Ok(Content::File(format(kind), body))
        }
        Encoding::File => {
            let (kind, bytes) = codec::into_file(outfile.read()?);
            Ok(Content::File(format(kind), bytes.into()))
        }
    }
}

fn format(kind: FileKind) -> FileFormat {
    match kind {
        FileKind::Json => FileFormat::Json,
        FileKind::Text => FileFormat::Text,
    }
}

/// A result larger than the broker takes is found here and not when it is published, because here the task's
/// files are still kept.
fn pack(outfile: Outfile, wanted: &WantedResult) -> Result<Body, TaskError> {
    let limit = wanted.limit.bytes();
    if outfile.bytes() <= LARGE_BYTES as u64 {
        let payload = outfile.read()?;
        if payload.message_bytes() <= 2 * LARGE_BYTES {
            let frame = codec::encode_frame(payload)?;
            let bytes = frame.len();
            if bytes > limit {
                return Err(TaskError::ResultTooLarge { bytes, limit });
            }
            return Ok(wanted.bodies.keep(frame));
        }
    }
    let file = wanted.bodies.file().map_err(|error| unkept(&error))?;
    let mut sink = LimitedWriter {
        file: BufWriter::with_capacity(256 * 1024, file),
        written: 0,
        limit,
    };
    match codec::pack_outfile(outfile, &mut sink) {
        Err(PackError::Sink(_)) if sink.written > limit => {
            let bytes = sink.written;
            return Err(TaskError::ResultTooLarge { bytes, limit });
        }
        packed => packed?,
    }
    let file = sink
        .file
        .into_inner()
        .map_err(|error| unkept(error.error()))?;
    let body = Body::of_file(file, 0).map_err(|error| unkept(&error))?;
    if body.len() > SMALL_BYTES {
        return Ok(body);
    }
    Ok(wanted
        .bodies
        .keep(body.read().map_err(|error| unkept(&error))?))
}

fn unkept(error: &io::Error) -> TaskError {
    TaskError::Os(format!(
        "can't keep a packed result: {error}; see to the disk that holds `ewms-pilot-data`"
    ))
}

/// A writer that fails at the first write beyond `limit`.
struct LimitedWriter {
    file: BufWriter<File>,
    /// All bytes given to it, including the last refused write.
    written: usize,
    limit: usize,
}

impl Write for LimitedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written.saturating_add(bytes.len()) > self.limit {
            self.written += bytes.len();
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let written = self.file.write(bytes)?;
        self.written += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
