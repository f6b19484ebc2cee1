//! One event: claimed by renaming it into the holder's directory, read, and moved as its verdict says. The
//! functions block.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::lease::Lease;
use super::paths::{SpoolError, SpoolPaths, error_name, format_of, move_beside};
use crate::broker::{Body, Content, Verdict};
use crate::ids::Generation;

/// An event that failed so often is given up.
pub(super) const TRIES_MAX: u64 = 3;

/// No broker carries more; a larger file is no event but a mistake.
const EVENT_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// A larger event is not read but held as an open file, which stays valid wherever it is moved.
const READ_BYTES_MAX: u64 = 64 * 1024;

/// A file found by a search may still be written by a program that uses no temporary name, such as `cp`. If
/// it was changed so recently, it is left alone for a moment.
const SETTLED_AFTER: Duration = Duration::from_millis(300);

/// How the file became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileState {
    /// The kernel reported that it was closed or moved here, so it is complete.
    Announced,
    Found,
}

/// The outcome of trying to claim one file.
#[derive(Debug)]
pub(super) enum ClaimOutcome {
    Claimed(Box<Claim>),
    /// Another pilot has it.
    Gone,
    /// The path is something other than a regular file.
    NoFile(fs::FileType),
    NotYet,
}

/// A pilot's claims and their directory; shared by the claims.
#[derive(Debug)]
pub(super) struct ClaimTable {
    pub(super) paths: SpoolPaths,
    pub(super) own_lease: Lease,
    /// Names that are now in the holder's directory. A second event of the same name has to wait, since its
    /// rename would replace the first.
    names: Mutex<HashSet<OsString>>,
}

#[derive(Debug)]
pub(super) struct Claim {
    desk: Arc<ClaimTable>,
    name: OsString,
    inode: u64,
    pub(super) failures: u64,
}

impl ClaimTable {
    /// Creates a lease, with a directory for claims, in the queue.
    pub(super) fn open(paths: SpoolPaths, generation: Generation) -> Result<Self, SpoolError> {
        let own_lease = Lease::create(&paths, generation)?;
        Ok(Self {
            paths,
            own_lease,
            names: Mutex::default(),
        })
    }

    fn names(&self) -> MutexGuard<'_, HashSet<OsString>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn claim(
        self: &Arc<Self>,
        name: &OsStr,
        sighting: FileState,
    ) -> Result<ClaimOutcome, SpoolError> {
        let from = self.paths.waiting.join(name);
        let found = match fs::symlink_metadata(&from) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ClaimOutcome::Gone),
            found => found.map_err(SpoolError::on("look at", &from))?,
        };
        if !found.is_file() {
            return Ok(if self.paths.is_own(name) {
                ClaimOutcome::Gone
            } else {
                ClaimOutcome::NoFile(found.file_type())
            });
        }
        if sighting == FileState::Found && is_young(&found) {
            return Ok(ClaimOutcome::NotYet);
        }
        if !self.names().insert(name.to_owned()) {
            // This pilot holds it, unless it was taken for dead and the event is back in the queue.
            return match self.own_lease.directory.try_exists() {
                Ok(false) => Err(SpoolError::on("claim", &from)(
                    io::ErrorKind::NotFound.into(),
                )),
                _ => Ok(ClaimOutcome::NotYet),
            };
        }
        let to = self.own_lease.directory.join(name);
        match fs::rename(&from, &to) {
            Ok(()) => {}
            Err(error) => {
                self.names().remove(name);
                // If the directory for claims is gone, this pilot was taken for dead.
                if error.kind() == io::ErrorKind::NotFound && self.own_lease.directory.exists() {
                    return Ok(ClaimOutcome::Gone);
                }
                return Err(SpoolError::on("claim", &from)(error));
            }
        }
        let inode = found.ino();
        let failures = self.failures(name, inode);
        let name = name.to_owned();
        Ok(ClaimOutcome::Claimed(Box::new(Claim {
            desk: Arc::clone(self),
            name,
            inode,
            failures,
        })))
    }

    /// The file beside the queue that counts an event's failures. It holds the inode, since another event may
    /// come under the same name.
    fn tries_file(&self, name: &OsStr) -> PathBuf {
        self.paths.tries.join(name)
    }

    fn failures(&self, name: &OsStr, inode: u64) -> u64 {
        let count = || {
            let text = fs::read_to_string(self.tries_file(name)).ok()?;
            let mut words = text.split_whitespace();
            let (of, count): (u64, u64) =
                (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            (of == inode).then_some(count)
        };
        count().unwrap_or(0)
    }
}

fn is_young(found: &fs::Metadata) -> bool {
    // If this clock differs from the file system's, a file looks old or from the future; either way it isn't
    // waited for.
    let age = || {
        SystemTime::now()
            .duration_since(found.modified().ok()?)
            .ok()
    };
    age().is_some_and(|age| age < SETTLED_AFTER)
}

impl Claim {
    pub(super) fn desk(&self) -> &ClaimTable {
        &self.desk
    }

    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    fn path(&self) -> PathBuf {
        self.desk.own_lease.directory.join(&self.name)
    }

    pub(super) fn read(&self) -> Result<Content, SpoolError> {
        let path = self.path();
        let mut file = File::open(&path).map_err(SpoolError::on("read", &path))?;
        let size = file
            .metadata()
            .map_err(SpoolError::on("look at", &path))?
            .len();
        if size > EVENT_BYTES_MAX {
            let text = format!("it has `{size}` bytes, at most `{EVENT_BYTES_MAX}` are read");
            let error = io::Error::new(io::ErrorKind::FileTooLarge, text);
            return Err(SpoolError::on("read", &path)(error));
        }
        let format = format_of(&self.name);
        if size > READ_BYTES_MAX {
            let body = Body::of_file(file, 0).map_err(SpoolError::on("look at", &path))?;
            return Ok(Content::File(format, body));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(SpoolError::on("read", &path))?;
        Ok(Content::File(format, bytes.into()))
    }

    /// Moves the event to where the verdict says.
    pub(super) fn settle(self, verdict: &Verdict) -> Result<(), SpoolError> {
        let paths = &self.desk.paths;
        match verdict {
            Verdict::Done => {
                move_beside(&self.path(), &paths.done, &self.name)?;
                self.forget_failures();
            }
            Verdict::Rejected => {
                move_beside(&self.path(), &paths.failed, &self.name)?;
                self.forget_failures();
            }
            Verdict::Released => {
                let name = move_beside(&self.path(), &paths.waiting, &self.name)?;
                self.rename_failures(&name)?;
            }
            Verdict::Failed { reason } if self.failures + 1 < TRIES_MAX => {
                // Counted first: if the pilot dies in between, the failure still counts.
                let file = self.desk.tries_file(&self.name);
                let text = format!("{} {}\n{reason}\n", self.inode, self.failures + 1);
                fs::write(&file, text).map_err(SpoolError::on("write", &file))?;
                let name = move_beside(&self.path(), &paths.waiting, &self.name)?;
                self.rename_failures(&name)?;
            }
            Verdict::Failed { reason } => {
                let name = move_beside(&self.path(), &paths.failed, &self.name)?;
                let file = paths.failed.join(error_name(&name));
                let text = format!(
                    "failed {} times; the last time:\n{reason}\n",
                    self.failures + 1
                );
                fs::write(&file, text).map_err(SpoolError::on("write", &file))?;
                self.forget_failures();
            }
        }
        Ok(())
    }

    fn forget_failures(&self) {
        if self.failures > 0 {
            // A leftover names an inode that no waiting event has.
            let _stale = fs::remove_file(self.desk.tries_file(&self.name));
        }
    }

    fn rename_failures(&self, name: &OsStr) -> Result<(), SpoolError> {
        if name == self.name {
            return Ok(());
        }
        let file = self.desk.tries_file(&self.name);
        match fs::rename(&file, self.desk.tries_file(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SpoolError::on("move", &file)(error))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let name = std::mem::take(&mut self.name);
        // If the claim was dropped unsettled, its file is still here, and its name stays taken.
        if !self.desk.own_lease.directory.join(&name).exists() {
            self.desk.names().remove(&name);
        }
    }
}
