//! The directories that a container leaves on the disk. They are measured and removed after its result is
//! published, so that leftover files can neither delay nor lose a result.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::{Span, warn};

use super::disk_space::DiskBudget;
use super::staging::{DirDisposal, TaskDirs};
use crate::blocking;

/// Removing millions of files takes longer. The pilot then goes on while the removal continues.
const CLEAR_WITHIN: Duration = Duration::from_mins(1);

/// The directories of a container that has ended. Dropping this also removes them, without waiting.
#[derive(Debug)]
pub struct Leftover(Option<Clearing>);

#[derive(Debug)]
struct Clearing {
    stage: TaskDirs,
    disposal: Option<DirDisposal>,
    files: Vec<PathBuf>,
    kept: Arc<DiskBudget>,
}

impl Leftover {
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Disposes of a container's directories. Without a `disposal` they may be reused by further tasks, and
    /// can then contain only these `files`.
    pub(super) fn of(
        stage: TaskDirs,
        disposal: Option<DirDisposal>,
        files: Vec<PathBuf>,
        kept: &Arc<DiskBudget>,
    ) -> Self {
        Self(Some(Clearing {
            stage,
            disposal,
            files,
            kept: Arc::clone(kept),
        }))
    }

    /// The directories, until they are cleared.
    pub(super) fn stage(&self) -> Option<&TaskDirs> {
        self.0.as_ref().map(|clearing| &clearing.stage)
    }

    /// The same directories, to be disposed of in this way.
    pub(super) fn disposed_of(mut self, disposal: Option<DirDisposal>) -> Self {
        if let Some(clearing) = &mut self.0 {
            clearing.disposal = disposal;
        }
        self
    }

    /// Removes or keeps the directories. Returns the bytes that they took on disk, if that is known by now.
    pub async fn clear(mut self) -> Option<u64> {
        let clearing = self.0.take()?;
        let span = Span::current();
        let cleared = blocking::start(move || span.in_scope(|| clearing.done()));
        if let Ok(cleared) = timeout(CLEAR_WITHIN, cleared).await {
            return cleared.ok();
        }
        warn!(
            waited_secs = CLEAR_WITHIN.as_secs(),
            "a container left so much that its directories are still being removed"
        );
        None
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        if let Some(clearing) = self.0.take() {
            drop(blocking::start(move || clearing.done()));
        }
    }
}

impl Clearing {
    fn done(self) -> u64 {
        let taken = self.stage.taken();
        let cleared = match self.disposal {
            Some(disposal) => self.stage.dispose(disposal, &self.kept),
            None => self.stage.clear(&self.files),
        };
        if let Err(error) = cleared {
            warn!(%error, "a container's directories could not be removed");
        }
        taken
    }
}
