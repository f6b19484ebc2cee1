//! The bytes of an event or result that the pilot holds: in memory, or in an unnamed file.
//!
//! A pilot holds a window of events and of results, each as large as its broker allows. Small bodies are in
//! memory, and larger ones while [`IN_MEMORY_BYTES`] has room for them; all others are on disk. amqprs holds
//! whole messages in memory, whatever their size. So an event is written to disk before the next one is read,
//! and all queues share [`BodyStore::sending`], so that only one large result is sent at a time.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::blocking;

/// Bodies up to this size, in bytes, are always in memory: even a full window of them is little.
const SMALL_BYTES: usize = 64 * 1024;
/// The largest body that is kept in memory, in bytes: 8 MiB.
pub const LARGE_BYTES: usize = 8 * 1024 * 1024;
/// The bytes that all bodies above [`SMALL_BYTES`] may have in memory together.
const IN_MEMORY_BYTES: usize = 2 * LARGE_BYTES;
/// The bytes that may be on their way to brokers at once. amqprs holds a message twice until it is sent: as
/// it is, and in frames.
pub(super) const SENDING_BYTES: u32 = 8 * 1024 * 1024;

/// The bytes of one event or result. Clones share them.
#[derive(Clone)]
pub struct Body(BodyPlace);

#[derive(Clone)]
enum BodyPlace {
    Memory(Arc<Bytes>),
    Disk {
        file: Arc<File>,
        from: u64,
        bytes: u64,
    },
    Lost {
        bytes: u64,
        reason: Arc<str>,
    },
}

struct Bytes {
    bytes: Vec<u8>,
    /// Its share of [`IN_MEMORY_BYTES`].
    _room: Option<OwnedSemaphorePermit>,
}

impl Body {
    /// The bytes of `file` from offset `from` to the end.
    ///
    /// # Errors
    /// Fails if the file's length can't be read.
    pub fn of_file(file: impl Into<Arc<File>>, from: u64) -> io::Result<Self> {
        let file = file.into();
        let bytes = file.metadata()?.len().saturating_sub(from);
        Ok(Self(BodyPlace::Disk { file, from, bytes }))
    }

    fn lost(bytes: usize, error: &io::Error) -> Self {
        let reason = format!("it could not be kept: {error}");
        Self(BodyPlace::Lost {
            bytes: bytes as u64,
            reason: reason.into(),
        })
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match &self.0 {
            BodyPlace::Memory(held) => held.bytes.len() as u64,
            BodyPlace::Disk { bytes, .. } | BodyPlace::Lost { bytes, .. } => *bytes,
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, if they are in memory.
    #[must_use]
    pub fn in_memory(&self) -> Option<&[u8]> {
        match &self.0 {
            BodyPlace::Memory(held) => Some(&held.bytes),
            BodyPlace::Disk { .. } | BodyPlace::Lost { .. } => None,
        }
    }

    /// Reads from the beginning; blocks if the body is on disk.
    ///
    /// # Errors
    /// Fails if the body was lost.
    pub fn reader(&self) -> io::Result<impl Read + use<>> {
        match &self.0 {
            BodyPlace::Lost { reason, .. } => Err(io::Error::other(Arc::clone(reason).to_string())),
            BodyPlace::Memory(_) | BodyPlace::Disk { .. } => Ok(BodyReader {
                body: self.clone(),
                at: 0,
            }),
        }
    }

    /// Reads all bytes into memory; blocks if the body is on disk.
    ///
    /// # Errors
    /// Fails if the body was lost or can't be read.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        if let Some(bytes) = self.in_memory() {
            return Ok(bytes.to_vec());
        }
        let mut bytes = Vec::with_capacity(usize::try_from(self.len()).unwrap_or(0));
        self.reader()?.read_to_end(&mut bytes)?;
        if bytes.len() as u64 != self.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes)
    }

    /// As [`read`](Self::read), on a thread for blocking work.
    pub(super) fn read_elsewhere(
        &self,
    ) -> impl Future<Output = io::Result<Vec<u8>>> + Send + use<> + 'static {
        let body = self.clone();
        let read = blocking::start(move || body.read());
        async move { read.await.unwrap_or_else(|died| Err(died.into())) }
    }

    /// Writes the whole body to `sink`; blocks.
    ///
    /// # Errors
    /// Fails if the body was lost or can't be read, or if `sink` can't be written.
    pub fn write_to(&self, sink: &mut impl Write) -> io::Result<()> {
        if let Some(bytes) = self.in_memory() {
            return sink.write_all(bytes);
        }
        let copied = io::copy(&mut self.reader()?, sink)?;
        if copied != self.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// Keeps the bytes in memory, whatever their size: for bodies that are known to be small.
impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self(BodyPlace::Memory(Arc::new(Bytes { bytes, _room: None })))
    }
}

/// Compares the contents, for tests.
#[cfg(test)]
impl PartialEq for Body {
    fn eq(&self, other: &Self) -> bool {
        self.read().unwrap() == other.read().unwrap()
    }
}

#[cfg(test)]
impl Eq for Body {}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.0 {
            BodyPlace::Memory(_) => "memory",
            BodyPlace::Disk { .. } => "disk",
            BodyPlace::Lost { .. } => "lost",
        };
        f.debug_struct("Body")
            .field("bytes", &self.len())
            .field("place", &place)
            .finish()
    }
}

struct BodyReader {
    body: Body,
    at: u64,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.body.len() - self.at;
        let wanted = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..wanted];
        let read = match &self.body.0 {
            BodyPlace::Memory(held) => {
                let at = usize::try_from(self.at).unwrap_or(usize::MAX);
                buffer.copy_from_slice(&held.bytes[at..at + wanted]);
                wanted
            }
            // Clones share the file and its offset.
            BodyPlace::Disk { file, from, .. } => file.read_at(buffer, from + self.at)?,
            BodyPlace::Lost { .. } => 0,
        };
        self.at += read as u64;
        Ok(read)
    }
}

/// Keeps the bodies of one pilot. Clones share its limits.
#[derive(Debug, Clone)]
pub struct BodyStore(Arc<BodyStoreState>);

#[derive(Debug)]
struct BodyStoreState {
    directory: PathBuf,
    memory: Arc<Semaphore>,
    sending: Arc<Semaphore>,
}

impl BodyStore {
    /// Creates files in `directory`. They have no name there, and vanish with the pilot, however it ends.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self(Arc::new(BodyStoreState {
            directory,
            memory: Arc::new(Semaphore::new(IN_MEMORY_BYTES)),
            sending: Arc::new(Semaphore::new(SENDING_BYTES as usize)),
        }))
    }

    /// Permits for [`SENDING_BYTES`] on their way to brokers. A body larger than that takes all of them.
    pub(super) fn sending(&self) -> Arc<Semaphore> {
        Arc::clone(&self.0.sending)
    }

    /// Keeps bytes in memory or on disk; blocks while it writes to the disk. If that fails, reading the body
    /// fails.
    #[must_use]
    pub fn keep(&self, bytes: Vec<u8>) -> Body {
        self.keep_in_memory(bytes)
            .unwrap_or_else(|bytes| self.spill(&bytes))
    }

    /// Keeps bytes in memory, or returns them if they aren't small and there is no room.
    pub(super) fn keep_in_memory(&self, mut bytes: Vec<u8>) -> Result<Body, Vec<u8>> {
        let room = self.room(bytes.len());
        if room.is_none() && bytes.len() > SMALL_BYTES {
            return Err(bytes);
        }
        // The body may wait for long, and the buffer may have spare capacity.
        bytes.shrink_to_fit();
        Ok(Body(BodyPlace::Memory(Arc::new(Bytes {
            bytes,
            _room: room,
        }))))
    }

    /// Keeps bytes on disk. The disk may hang, so a thread for blocking work writes them.
    pub(super) fn keep_on_disk(
        &self,
        bytes: Vec<u8>,
    ) -> impl Future<Output = Body> + Send + use<> + 'static {
        let (store, length) = (self.clone(), bytes.len());
        let kept = blocking::start(move || store.spill(&bytes));
        async move {
            kept.await
                .unwrap_or_else(|died| Body::lost(length, &died.into()))
        }
    }

    /// Whether [`BodyStore::put_by`] would move the body to disk.
    #[must_use]
    pub fn would_put_by(&self, body: &Body) -> bool {
        let bytes = body.in_memory();
        bytes.is_some_and(|bytes| bytes.len() > SMALL_BYTES)
    }

    /// Moves a body that is in memory and not small to disk, to make room for others; blocks.
    #[must_use]
    pub fn put_by(&self, body: Body) -> Body {
        match body.in_memory() {
            Some(bytes) if self.would_put_by(&body) => self.spill(bytes),
            _ => body,
        }
    }

    /// Creates an unnamed file that becomes a body.
    ///
    /// # Errors
    /// Fails if the file can't be created.
    pub fn file(&self) -> io::Result<File> {
        tempfile::tempfile_in(&self.0.directory)
    }

    fn spill(&self, bytes: &[u8]) -> Body {
        let written = self.file().and_then(|mut file| {
            file.write_all(bytes)?;
            Body::of_file(file, 0)
        });
        written.unwrap_or_else(|error| {
            tracing::warn!(%error, "an event or result can't be kept on the disk");
            Body::lost(bytes.len(), &error)
        })
    }

    fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let wanted = u32::try_from(bytes).ok()?;
        if bytes <= SMALL_BYTES || bytes > LARGE_BYTES {
            return None;
        }
        Arc::clone(&self.0.memory)
            .try_acquire_many_owned(wanted)
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn bytes(length: usize) -> Vec<u8> {
        (0..=u8::MAX).cycle().take(length).collect()
    }

    #[test]
    fn bodies_of_any_size_come_back_as_they_were_and_leave_no_file() {
        let scratch = tempfile::tempdir().unwrap();
        let bodies = BodyStore::new(scratch.path().to_owned());
        for length in [0, 1, SMALL_BYTES, SMALL_BYTES + 1, LARGE_BYTES + 1] {
            let content = bytes(length);
            for body in [
                bodies.keep(content.clone()),
                bodies.put_by(bodies.keep(content.clone())),
                Body::from(content.clone()),
            ] {
                assert_eq!(body.len(), length as u64);
                assert!(body.read().unwrap() == content);
                let mut copied = Vec::new();
                body.clone().write_to(&mut copied).unwrap();
                assert!(copied == content);
            }
        }
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_in_memory_is_small_or_has_room_there() {
        let scratch = tempfile::tempdir().unwrap();
        let bodies = BodyStore::new(scratch.path().to_owned());
        let in_memory = |body: &Body| body.in_memory().is_some();
        assert!(!in_memory(&bodies.keep(bytes(LARGE_BYTES + 1))));
        let (first, second) = (
            bodies.keep(bytes(LARGE_BYTES)),
            bodies.keep(bytes(LARGE_BYTES)),
        );
        assert!(in_memory(&first) && in_memory(&second));
        assert!(!in_memory(&bodies.keep(bytes(SMALL_BYTES + 1))));
        assert!(in_memory(&bodies.keep(bytes(SMALL_BYTES))));
        drop(second);
        assert!(in_memory(&bodies.keep(bytes(LARGE_BYTES))));
        assert!(!in_memory(&bodies.put_by(first)));
    }

    #[test]
    fn what_could_not_be_kept_says_so_when_it_is_read() {
        let bodies = BodyStore::new(Path::new("/proc/none").to_owned());
        let body = bodies.keep(bytes(LARGE_BYTES + 1));
        assert_eq!(body.len(), LARGE_BYTES as u64 + 1);
        assert!(body.reader().is_err());
        let error = body.read().unwrap_err().to_string();
        assert!(error.contains("could not be kept"), "{error}");
    }

    #[test]
    fn a_body_may_begin_within_a_file() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"label\nbody").unwrap();
        let body = Body::of_file(file, 6).unwrap();
        assert_eq!((body.len(), &*body.read().unwrap()), (4, &b"body"[..]));
    }
}
