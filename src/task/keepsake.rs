//! An event as it came, kept while its task runs: whoever takes it out of its queue for good must put
//! it somewhere. Touches one file without a name, in the task's scratch. Apart, because the task's own
//! copy is the task's to change.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::broker::{Content, FileFormat};

/// What stays in memory. Most events do; of the others, a full window of the largest would be gigabytes.
const IN_MEMORY_BYTES: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub enum Keepsake {
    /// A small one.
    Memory(Content),
    /// A large one, and which kind it is. The file is gone when this is.
    Disk(File, Kind),
    /// It could not be kept; the broker has it still.
    Lost(String),
}

/// Which kind of [`Content`] the bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`Content::Frame`].
    Frame,
    /// [`Content::File`].
    File(FileFormat),
}

impl Kind {
    fn content(self, bytes: Vec<u8>) -> Content {
        match self {
            Self::Frame => Content::Frame(bytes),
            Self::File(format) => Content::File(format, bytes),
        }
    }
}

/// A keepsake that is made, or will be while the task's container starts.
#[derive(Debug)]
pub(super) enum Keeping {
    Done(Keepsake),
    /// Of a large frame, in this directory.
    Due(Vec<u8>, PathBuf),
}

impl Keeping {
    pub(super) fn of_frame(body: Vec<u8>, scratch: &Path) -> Self {
        if body.len() <= IN_MEMORY_BYTES {
            Self::Done(Keepsake::Memory(Content::Frame(body)))
        } else {
            Self::Due(body, scratch.to_owned())
        }
    }

    /// Makes it, on a thread of its own, if it is not made yet.
    pub(super) async fn kept(self) -> Keepsake {
        let (body, scratch) = match self {
            Self::Done(kept) => return kept,
            Self::Due(body, scratch) => (body, scratch),
        };
        let keep = move || Keepsake::of(Kind::Frame, &body, &scratch);
        tokio::task::spawn_blocking(keep)
            .await
            .unwrap_or_else(|error| Keepsake::Lost(error.to_string()))
    }
}

impl Keepsake {
    /// Keeps an event; blocks for as long as writing it takes.
    pub(super) fn of(kind: Kind, bytes: &[u8], scratch: &Path) -> Self {
        if bytes.len() <= IN_MEMORY_BYTES {
            return Self::Memory(kind.content(bytes.to_vec()));
        }
        let written = tempfile::tempfile_in(scratch).and_then(|mut file| {
            file.write_all(bytes)?;
            Ok(file)
        });
        match written {
            Ok(file) => Self::Disk(file, kind),
            Err(error) => {
                warn!(%error, "no copy of the event could be kept: it goes back to its queue whatever becomes of it");
                Self::Lost(error.to_string())
            }
        }
    }

    /// The event; blocks for as long as reading it takes.
    ///
    /// # Errors
    /// When it was lost, or can't be read.
    pub fn into_content(self) -> io::Result<Content> {
        match self {
            Self::Memory(content) => Ok(content),
            Self::Disk(mut file, kind) => {
                file.rewind()?;
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes)?;
                Ok(kind.content(bytes))
            }
            Self::Lost(reason) => Err(io::Error::other(reason)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 3] = [
        Kind::Frame,
        Kind::File(FileFormat::Json),
        Kind::File(FileFormat::Text),
    ];

    #[tokio::test]
    async fn events_of_any_size_come_back_as_they_were_and_leave_no_file() {
        let scratch = tempfile::tempdir().expect("a directory");
        for size in [0, IN_MEMORY_BYTES, IN_MEMORY_BYTES + 1, 3_000_000] {
            let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(size).collect();
            for kind in KINDS {
                let kept = Keepsake::of(kind, &bytes, scratch.path());
                assert_eq!(
                    kept.into_content().expect("kept"),
                    kind.content(bytes.clone())
                );
            }
            let later = Keeping::of_frame(bytes.clone(), scratch.path());
            assert_eq!(
                later.kept().await.into_content().expect("kept"),
                Content::Frame(bytes)
            );
        }
        let left = std::fs::read_dir(scratch.path()).expect("there").count();
        assert_eq!(left, 0);
    }

    #[test]
    fn only_what_is_small_is_kept_in_memory() {
        let scratch = tempfile::tempdir().expect("a directory");
        let keep = |size, scratch| Keepsake::of(Kind::Frame, &vec![0; size], scratch);
        let there = scratch.path();
        assert!(matches!(keep(IN_MEMORY_BYTES, there), Keepsake::Memory(_)));
        assert!(matches!(
            keep(IN_MEMORY_BYTES + 1, there),
            Keepsake::Disk(..)
        ));
        let gone = keep(IN_MEMORY_BYTES + 1, Path::new("/proc/none"));
        assert!(gone.into_content().is_err());
    }
}
