//! The directories that a container leaves on the disk. They are measured and cleared away when its result
//! is out, so that nothing a task leaves can hold a result up, let alone lose it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::{Span, warn};

use super::disk_space::DiskBudget;
use super::staging::{DirDisposal, TaskDirs};
use crate::blocking;

/// Millions of files take longer; then the pilot goes on while they are removed.
const CLEAR_WITHIN: Duration = Duration::from_mins(1);

/// Dropped, it is cleared away too, and not waited for.
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

    /// What is to be done with a container's directories. Without a `disposal` further tasks may have
    /// them; what may be in them then is these `files`.
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

    /// Clears it away; what it took on disk, as far as that is known by now.
    pub async fn clear(mut self) -> Option<u64> {
        let clearing = self.0.take()?;
        let span = Span::current();
        let cleared = blocking::start(move || span.in_scope(|| clearing.done()));
        if let Ok(cleared) = timeout(CLEAR_WITHIN, cleared).await {
            return cleared.ok();
        }
        warn!("a container left so much that its directories are still being removed");
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
