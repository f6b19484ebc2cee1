//! `/cvmfs`, where sites mount the file systems that distribute software: a read-only bind of every
//! container. No setting asks for it, so a broken one is nobody's fault: it is left out, with the reason.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;
use tracing::warn;

use super::external::{ExternalDirs, ExternalError};
use super::own_files::{OwnPath, shown_by};
use super::path_probe::{PathHealth, ProbeDepth, look};
use crate::blocking;
use crate::container::{Access, Bind, BindError, MountTable};
use crate::process::{GuardianHandle, ShutdownPhase};

/// The path of CVMFS in containers, and on machines that don't name another one.
pub const CVMFS: &str = "/cvmfs";

/// `/cvmfs` as containers see it. By default they see none.
#[derive(Debug, Clone, Default)]
pub struct Cvmfs {
    directory: Option<ExternalDirs>,
    /// Set once something below it can't be bound. It stays left out then, because each try may take as long
    /// as a look at a mount that hangs.
    is_left_out: Arc<AtomicBool>,
}

/// The result of [`find_cvmfs`].
#[derive(Debug)]
pub enum CvmfsSearch {
    /// It is bound from this place.
    Bound {
        cvmfs: Cvmfs,
        place: PathBuf,
        automounts: Automounts,
    },
    Nothing,
    /// It exists, but containers can't see it for this reason.
    LeftOut(String),
}

/// Whether a container sees a file system that is mounted below `/cvmfs` while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Automounts {
    /// Yes, or nothing is mounted there on demand.
    Arrive,
    /// No: opening a file system that wasn't mounted before fails with `ELOOP`.
    CutOff,
}

/// Looks for CVMFS at `places` and takes the first that exists. A place that would show tasks one of the
/// paths in `own` is left out. A child looks at one that exists, with its output in `scratch`, because the look
/// may hang.
pub async fn find_cvmfs(
    guard: &GuardianHandle,
    places: &[PathBuf],
    own: Vec<OwnPath>,
    scratch: &Path,
    shutdown: &watch::Receiver<ShutdownPhase>,
) -> CvmfsSearch {
    for place in places {
        if !is_listed(place).await {
            continue;
        }
        let paths = std::slice::from_ref(place);
        match look(guard, paths, ProbeDepth::Itself, scratch, shutdown).await {
            Ok(PathHealth::Clear) => {}
            Ok(health) => return CvmfsSearch::LeftOut(complaint(place, &health)),
            Err(error) => return CvmfsSearch::LeftOut(error.to_string()),
        }
        let (of, own) = (place.clone(), own.clone());
        let found = match blocking::start(move || bind(&of, &own)).await {
            Ok(found) => found,
            Err(panicked) => Err(panicked.to_string()),
        };
        let (bind, automounts) = match found {
            Ok(Some(found)) => found,
            Ok(None) => continue,
            Err(reason) => return CvmfsSearch::LeftOut(reason),
        };
        let cvmfs = Cvmfs {
            directory: Some(ExternalDirs::new(vec![bind])),
            is_left_out: Arc::default(),
        };
        return match cvmfs.try_binds(guard, scratch, shutdown).await {
            Ok(_) => CvmfsSearch::Bound {
                cvmfs,
                place: place.clone(),
                automounts,
            },
            Err(error) => CvmfsSearch::LeftOut(reason(&error)),
        };
    }
    CvmfsSearch::Nothing
}

/// Whether the directory above lists `place`; also if that can't be told. Unlike a look at the place itself
/// this doesn't touch the file system that is mounted there, so a machine without CVMFS needs no child.
async fn is_listed(place: &Path) -> bool {
    let (Some(parent), Some(name)) = (place.parent(), place.file_name()) else {
        return true;
    };
    let (parent, name) = (parent.to_owned(), name.to_owned());
    let listing = move || -> io::Result<bool> {
        for entry in fs::read_dir(parent)? {
            if entry?.file_name() == name {
                return Ok(true);
            }
        }
        Ok(false)
    };
    blocking::small_files(listing).await.unwrap_or(true)
}

fn complaint(place: &Path, health: &PathHealth) -> String {
    let place = place.display();
    match health {
        PathHealth::Clear => format!("`{place}` answers"),
        PathHealth::Failing { error, .. } => format!("`{place}` can't be read: {error}"),
        PathHealth::Hanging(after) => {
            format!("`{place}` gave no answer within {} s", after.as_secs())
        }
    }
}

/// The bind of `place`, or nothing if it is no directory.
fn bind(place: &Path, own: &[OwnPath]) -> Result<Option<(Bind, Automounts)>, String> {
    let bind = match Bind::new(place, CVMFS, Access::ReadOnly) {
        Ok(bind) => bind,
        Err(BindError::NoDirectory { .. }) => return Ok(None),
        Err(BindError::Source { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error.to_string()),
    };
    let mounts = MountTable::read().map_err(|error| format!("the mount table: {error}"))?;
    if let Some(own) = shown_by(bind.real(), own, &mounts) {
        let (place, path) = (place.display(), own.path.display());
        return Err(format!("`{place}` would show tasks {}, `{path}`", own.what));
    }
    let automounts = if mounts.automounts_are_cut_off(bind.real()) {
        Automounts::CutOff
    } else {
        Automounts::Arrive
    };
    Ok(Some((bind, automounts)))
}

/// The reason why a mount below can't be bound. The error's own text gives advice on external directories.
fn reason(error: &ExternalError) -> String {
    match error {
        ExternalError::Hanging { path, after } => complaint(path, &PathHealth::Hanging(*after)),
        ExternalError::Failing { path, error } => {
            format!("`{}` can't be read: {error}", path.display())
        }
        ExternalError::TooMany { directory, count } => format!(
            "below `{}` {count} file systems are mounted that can be written",
            directory.display()
        ),
        other => other.to_string(),
    }
}

impl Cvmfs {
    /// The binds for a container that is started now. Empty once CVMFS is left out.
    pub(super) async fn binds(
        &self,
        guard: &GuardianHandle,
        scratch: &Path,
        shutdown: &watch::Receiver<ShutdownPhase>,
    ) -> Vec<Bind> {
        if self.is_left_out.load(Ordering::Relaxed) {
            return Vec::new();
        }
        match self.try_binds(guard, scratch, shutdown).await {
            Ok(binds) => binds,
            Err(error) => {
                // Of tasks that start at the same time only one logs it.
                if !self.is_left_out.swap(true, Ordering::Relaxed) {
                    let reason = reason(&error);
                    warn!(%reason, "containers see no /cvmfs from now on");
                }
                Vec::new()
            }
        }
    }

    async fn try_binds(
        &self,
        guard: &GuardianHandle,
        scratch: &Path,
        shutdown: &watch::Receiver<ShutdownPhase>,
    ) -> Result<Vec<Bind>, ExternalError> {
        match &self.directory {
            Some(directory) => directory.binds(guard, scratch, shutdown).await,
            None => Ok(Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_the_directory_has_none() {
        let top = tempfile::tempdir().expect("a directory");
        let file = top.path().join("file");
        fs::write(&file, "").expect("written");
        for place in [&top.path().join("missing"), &file] {
            assert!(matches!(bind(place, &[]), Ok(None)), "{}", place.display());
        }
        let (bind, _) = bind(top.path(), &[]).expect("allowed").expect("there");
        assert_eq!(
            (bind.source(), bind.target()),
            (top.path(), Path::new(CVMFS))
        );
    }
}
