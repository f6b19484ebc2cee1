//! `/cvmfs`, where sites mount the file systems that software is distributed by: a read-only bind of every
//! container, wherever this machine has it. No setting names it, so what is wrong with it is nobody's fault: it
//! is left out then, with the reason.

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

/// Where containers have it, and machines too, unless they say another place.
pub const CVMFS: &str = "/cvmfs";

/// `/cvmfs` as containers see it; by default they see none.
#[derive(Debug, Clone, Default)]
pub struct Cvmfs {
    directory: Option<ExternalDirs>,
    /// Set once something below it can't be bound; it stays left out then, because each try may take as
    /// long as a look at what hangs.
    is_left_out: Arc<AtomicBool>,
}

/// What a machine has of it.
#[derive(Debug)]
pub enum CvmfsSearch {
    /// It is bound from this place.
    Bound {
        cvmfs: Cvmfs,
        place: PathBuf,
        automounts: Automounts,
    },
    Nothing,
    /// It is there, and containers can't see it for this reason.
    LeftOut(String),
}

/// Whether a container sees a file system that is mounted below `/cvmfs` while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Automounts {
    /// It does, or nothing is mounted there on demand.
    Arrive,
    /// Whoever goes to one that wasn't mounted before gets an error (`ELOOP`).
    CutOff,
}

/// Looks for it at `places`, the first of which that is there counts. What would show a task something of
/// `own` is left out. A child looks first, with its output in `scratch`: it may hang.
pub async fn find_cvmfs(
    guard: &GuardianHandle,
    places: &[PathBuf],
    own: Vec<OwnPath>,
    scratch: &Path,
    shutdown: &watch::Receiver<ShutdownPhase>,
) -> CvmfsSearch {
    for place in places {
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

/// The bind of `place`, if a directory is there.
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

/// Why what is below can't be bound; the error's own text gives advice on external directories.
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
    /// The binds for a container that is started now: none where it is left out.
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
                // Of tasks that start at the same time one says it.
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
        std::fs::write(&file, "").expect("written");
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
