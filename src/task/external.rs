//! The user's external directories as binds of a container, and each file system mounted below one. A
//! read-only bind covers only itself: mounts below stay writable unless they get read-only binds of their
//! own. Before each container it is checked whether the mount table changed, because mounts come and go.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use tokio::sync::watch;

use super::path_probe::{PathHealth, ProbeDepth, look};
use crate::blocking;
use crate::container::{Bind, BindError, MountChanges, MountTable};
use crate::fault::Cause;
use crate::process::{CaptureError, GuardianHandle, ShutdownPhase};

/// The most file systems below one directory. Each costs every container a mount, and the command line two
/// paths.
const MOST: usize = 256;

/// The directories, and the mounts below them when a container was last started.
#[derive(Debug, Clone)]
pub struct ExternalDirs {
    directories: Vec<Bind>,
    last: Arc<Mutex<LastMounts>>,
}

/// The mounts found at the last look.
#[derive(Debug, Default)]
struct LastMounts {
    changes: Option<MountChanges>,
    /// The count of changes when this was found; `None` if something may change uncounted.
    as_of: Option<u64>,
    /// The mounts below, each with the index of its directory.
    mounts: Vec<(usize, PathBuf)>,
    /// The mounts that tasks can reach.
    reachable: Vec<(usize, PathBuf)>,
}

/// The reason why the directories can't be bound.
#[derive(Debug, thiserror::Error)]
pub enum ExternalError {
    #[error("the mount table can't be read: {0}; external directories need /proc")]
    Table(io::Error),
    #[error(
        "below the external directory `{directory}` {count} file systems are mounted that can be written, and \
         at most {MOST} are protected; name the directories in it that tasks need"
    )]
    TooMany { directory: PathBuf, count: usize },
    #[error(
        "`{path}`, below an external directory, gave no answer within {} s; have it mounted again, or name \
         directories without it", .after.as_secs()
    )]
    Hanging { path: PathBuf, after: Duration },
    #[error(
        "`{path}`, below an external directory, can't be read: {error}; have it mounted again, or name \
         directories without it"
    )]
    Failing { path: PathBuf, error: io::Error },
    #[error(transparent)]
    Bind(#[from] BindError),
    /// No process could be started to look.
    #[error(transparent)]
    Look(#[from] CaptureError),
}

impl ExternalError {
    #[must_use]
    pub fn cause(&self) -> Cause {
        match self {
            Self::Table(_) | Self::Failing { .. } => Cause::Storage,
            Self::TooMany { .. } | Self::Bind(_) => Cause::BindSource,
            Self::Hanging { .. } => Cause::Hanging,
            Self::Look(_) => Cause::Limits,
        }
    }
}

impl ExternalDirs {
    /// Takes directories that may be bound.
    #[must_use]
    pub fn new(directories: Vec<Bind>) -> Self {
        Self {
            directories,
            last: Arc::default(),
        }
    }

    /// The directories, and the known mounts below them.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        let directories = self.directories.iter().map(|bind| bind.source().to_owned());
        let mut paths: Vec<PathBuf> = directories.collect();
        let last = self.last();
        paths.extend(last.reachable.iter().map(|(_, point)| point.clone()));
        paths
    }

    /// The binds for a container that is started now. A child looks at new mounts first, with its output in
    /// `scratch`, because the look may hang.
    ///
    /// # Errors
    /// When a mount below can be neither protected nor left out.
    pub async fn binds(
        &self,
        guard: &GuardianHandle,
        scratch: &Path,
        shutdown: &watch::Receiver<ShutdownPhase>,
    ) -> Result<Vec<Bind>, ExternalError> {
        if self.directories.is_empty() {
            return Ok(Vec::new());
        }
        let (changes, known) = {
            let mut last = self.last();
            let changes = last.count_changes().map_err(ExternalError::Table)?;
            let is_known = last.as_of == Some(changes);
            (changes, is_known.then(|| last.reachable.clone()))
        };
        let reachable = match known {
            Some(known) => known,
            None => self.look_again(changes, guard, scratch, shutdown).await?,
        };
        let mut binds = self.directories.clone();
        for (of, point) in &reachable {
            let bind = self.directories[*of].read_only_below(point)?;
            if binds.iter().all(|other| other.target() != bind.target()) {
                binds.push(bind);
            }
        }
        // Parents come first, whatever the order of the setting, because a parent bound later would cover its
        // children.
        binds.sort_by_key(|bind| bind.target().components().count());
        Ok(binds)
    }

    /// The mounts that tasks can reach, after this many changes; a child looks at those that are new.
    async fn look_again(
        &self,
        changes: u64,
        guard: &GuardianHandle,
        scratch: &Path,
        shutdown: &watch::Receiver<ShutdownPhase>,
    ) -> Result<Vec<(usize, PathBuf)>, ExternalError> {
        let table = MountTable::read().map_err(ExternalError::Table)?;
        let may_become_writable =
            |directory: &Bind| table.may_become_writable_below(directory.real());
        let as_of = (!self.directories.iter().any(may_become_writable)).then_some(changes);
        let mounts = self.mounts(&table)?;
        let (known_mounts, known) = {
            let last = self.last();
            (last.mounts.clone(), last.reachable.clone())
        };
        let reachable = if mounts == known_mounts {
            known
        } else {
            let mut reachable = Vec::new();
            for mount in &mounts {
                let is_known = known.contains(mount);
                if is_known || can_be_reached(guard, &mount.1, scratch, shutdown).await? {
                    reachable.push(mount.clone());
                }
            }
            reachable
        };
        let mut last = self.last();
        last.as_of = as_of;
        last.mounts = mounts;
        last.reachable.clone_from(&reachable);
        Ok(reachable)
    }

    fn mounts(&self, table: &MountTable) -> Result<Vec<(usize, PathBuf)>, ExternalError> {
        let mut mounts = Vec::new();
        for (place, directory) in self.directories.iter().enumerate() {
            let below = table.writable_below(directory.real());
            if below.len() > MOST {
                return Err(ExternalError::TooMany {
                    directory: directory.source().to_owned(),
                    count: below.len(),
                });
            }
            mounts.extend(below.into_iter().map(|point| (place, point)));
        }
        Ok(mounts)
    }

    fn last(&self) -> std::sync::MutexGuard<'_, LastMounts> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LastMounts {
    /// # Errors
    /// When there is no `/proc`.
    fn count_changes(&mut self) -> io::Result<u64> {
        let changes = match &mut self.changes {
            Some(changes) => changes,
            none => none.insert(MountChanges::watch()?),
        };
        Ok(changes.count())
    }
}

/// Whether this user can reach the mount. Apptainer can't bind an unreachable one, so no task can write
/// there.
async fn can_be_reached(
    guard: &GuardianHandle,
    point: &Path,
    scratch: &Path,
    shutdown: &watch::Receiver<ShutdownPhase>,
) -> Result<bool, ExternalError> {
    let paths = [point.to_owned()];
    match look(guard, &paths, ProbeDepth::Glance, scratch, shutdown).await? {
        PathHealth::Clear => Ok(true),
        PathHealth::Hanging(after) => Err(ExternalError::Hanging {
            path: point.to_owned(),
            after,
        }),
        PathHealth::Failing { path, error } => match error.raw_os_error().map(Errno::from_raw) {
            // It answers at least, so `stat` won't hang: a mount that can't be listed may still be reachable.
            Some(Errno::EACCES | Errno::EPERM) => {
                let point = point.to_owned();
                let found = blocking::start(move || std::fs::metadata(point)).await;
                Ok(matches!(found, Ok(Ok(_))))
            }
            // A dead FUSE file system: it never comes back in this mount.
            Some(Errno::ENOTCONN) => Ok(false),
            _ => Err(ExternalError::Failing { path, error }),
        },
    }
}
