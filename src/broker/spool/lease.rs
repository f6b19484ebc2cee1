//! Leases: who holds a claim, and how other pilots know that the holder is dead.
//!
//! A pilot's claims are in `claimed/ID/`, beside a file `.lease`. While the pilot lives, it keeps that file
//! locked and sets its time every ten seconds. A holder is dead
//! - at once, when it was on this machine (same boot, same file system) and its lock is free:
//!   the kernel frees it however a process ends;
//! - else when its lease is older than a minute by the *file system's* clock, the only clock that all
//!   machines share: that is, than the pilot's own lease, just set.
//!
//! A dead holder's directory is taken by renaming it into the taker's own. Only one rename can succeed, so
//! only one of two pilots takes it. If the taker dies too, the directory is among those taken from it.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use uuid::Uuid;

use super::paths::{SpoolError, SpoolPaths, move_beside};
use crate::ids::{self, Generation};

/// A lease that was not renewed for so long belongs to a dead pilot. Six renewals may fail before.
pub(super) const STALE_AFTER: Duration = Duration::from_mins(1);
pub(super) const REFRESH_EVERY: Duration = Duration::from_secs(10);

const LEASE: &str = ".lease";
/// The prefix of taken directories inside the taker's own. No clash with events, which are files.
const TAKEN: &str = "taken-";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaseScope {
    /// Holders on this machine, where the lock tells at once.
    ThisMachine,
    Everyone,
}

/// A live pilot's lease, with its directory for claims. Dropping it frees the lock.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) generation: Generation,
    pub(super) directory: PathBuf,
    id: String,
    mark: LeaseMark,
    _lock: Option<File>,
}

/// Tells whether a lock means anything here: the kernel and the mount that it was taken through.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LeaseMark {
    boot: String,
    device: String,
    lock: String,
}

impl LeaseMark {
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .map(str::trim)
        };
        Some(Self {
            boot: field("boot")?.to_owned(),
            device: field("device")?.to_owned(),
            lock: field("lock")?.to_owned(),
        })
    }

    fn decides_for(&self, other: &Self) -> bool {
        self == other && !self.boot.is_empty() && self.lock == "flock"
    }
}

impl Lease {
    /// Creates the directory and its lease under a hidden name first, so that no pilot ever sees a holder
    /// without a lease.
    pub(super) fn create(paths: &SpoolPaths, generation: Generation) -> Result<Self, SpoolError> {
        let id = Uuid::new_v4().simple().to_string();
        let directory = paths.claimed.join(&id);
        let hidden = paths.claimed.join(format!(".new-{id}"));
        fs::create_dir(&hidden).map_err(SpoolError::on("create directory", &hidden))?;
        let lease = hidden.join(LEASE);
        let mut file = File::create_new(&lease).map_err(SpoolError::on("create", &lease))?;
        let locked = file.try_lock().is_ok();
        let device = file
            .metadata()
            .map_err(SpoolError::on("look at", &lease))?
            .dev();
        let mark = LeaseMark {
            boot: fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .map_or_else(|_| String::new(), |id| id.trim().to_owned()),
            device: device.to_string(),
            lock: if locked { "flock" } else { "none" }.to_owned(),
        };
        let host = ids::host_name();
        let text = format!(
            "boot={}\ndevice={}\nlock={}\nhost={host}\npid={}\n",
            mark.boot,
            mark.device,
            mark.lock,
            std::process::id()
        );
        file.write_all(text.as_bytes())
            .map_err(SpoolError::on("write", &lease))?;
        fs::rename(&hidden, &directory).map_err(SpoolError::on("move", &hidden))?;
        Ok(Self {
            generation,
            directory,
            id,
            mark,
            _lock: locked.then_some(file),
        })
    }

    /// Renews the lease, and returns the file system's time. `NotFound` when another pilot took this one for
    /// dead.
    pub(super) fn refresh(&self) -> Result<SystemTime, SpoolError> {
        let lease = self.directory.join(LEASE);
        let now = TimeSpec::UTIME_NOW;
        utimensat(AT_FDCWD, &lease, &now, &now, UtimensatFlags::FollowSymlink)
            .map_err(io::Error::from)
            .and_then(|()| fs::metadata(&lease)?.modified())
            .map_err(SpoolError::on("refresh", &lease))
    }

    /// Puts dead pilots' events back into the queue. Returns their number.
    pub(super) fn take_back(
        &self,
        paths: &SpoolPaths,
        whose: LeaseScope,
    ) -> Result<usize, SpoolError> {
        let now = match whose {
            LeaseScope::ThisMachine => None,
            LeaseScope::Everyone => Some(self.refresh()?),
        };
        let mut events = 0;
        let claimed = &paths.claimed;
        for entry in fs::read_dir(claimed).map_err(SpoolError::on("read directory", claimed))? {
            let entry = entry.map_err(SpoolError::on("read directory", claimed))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if name == self.id || !path.is_dir() {
                continue;
            }
            let Some(_proof) = self.proof_of_death(&path, now) else {
                continue;
            };
            let taken = self.directory.join(format!("{TAKEN}{name}"));
            match fs::rename(&path, &taken) {
                // Another pilot took it first.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(SpoolError::on("take back", &path)(error)),
                Ok(()) => {
                    let returned = put_back(paths, &taken)?;
                    tracing::info!(
                        own_lease = name,
                        events = returned,
                        "took back the events of a pilot that is dead"
                    );
                    events += returned;
                }
            }
        }
        Ok(events)
    }

    /// Puts the pilot's remaining claims back, and removes its directory. Returns the number of events.
    pub(super) fn retire(&self, paths: &SpoolPaths) -> Result<usize, SpoolError> {
        put_back(paths, &self.directory)
    }

    fn proof_of_death(&self, path: &Path, now: Option<SystemTime>) -> Option<ProofOfDeath> {
        let lease = path.join(LEASE);
        // Opened, since network file systems may answer a mere `stat` from a cache. For writing if possible,
        // since they grant an exclusive lock only then.
        let lease = File::options()
            .read(true)
            .write(true)
            .open(&lease)
            .or_else(|_not_ours| File::open(&lease));
        let Ok(mut lease) = lease else {
            return is_stale(fs::metadata(path), now).then_some(ProofOfDeath::Lease);
        };
        let mut text = String::new();
        let mark = Read::by_ref(&mut lease)
            .take(4096)
            .read_to_string(&mut text)
            .ok()
            .and_then(|_| LeaseMark::parse(&text));
        if mark.is_some_and(|mark| self.mark.decides_for(&mark)) {
            match lease.try_lock() {
                Ok(()) => return Some(ProofOfDeath::Lock { _held: lease }),
                Err(TryLockError::WouldBlock) => return None,
                Err(TryLockError::Error(_locks_broke)) => {}
            }
        }
        is_stale(lease.metadata(), now).then_some(ProofOfDeath::Lease)
    }
}

/// The proof that a holder is dead.
enum ProofOfDeath {
    /// Its lock was free. The lock is held until the directory is taken, so that no other pilot of this
    /// machine takes it at the same time.
    Lock {
        _held: File,
    },
    Lease,
}

fn is_stale(written: io::Result<fs::Metadata>, now: Option<SystemTime>) -> bool {
    let age = || now?.duration_since(written.ok()?.modified().ok()?).ok();
    age().is_some_and(|age| age > STALE_AFTER)
}

/// Moves every event in a holder's directory, and in the directories that it had taken, into the queue.
fn put_back(paths: &SpoolPaths, directory: &Path) -> Result<usize, SpoolError> {
    let mut events = 0;
    for entry in fs::read_dir(directory).map_err(SpoolError::on("read directory", directory))? {
        let entry = entry.map_err(SpoolError::on("read directory", directory))?;
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            events += put_back(paths, &path)?;
        } else if name != LEASE {
            match move_beside(&path, &paths.waiting, &name) {
                Ok(_) => events += 1,
                // The holder is alive after all, and has just settled the event.
                Err(trouble) if trouble.error.kind() == io::ErrorKind::NotFound => {}
                Err(trouble) => return Err(trouble),
            }
        }
    }
    let lease = directory.join(LEASE);
    match fs::remove_file(&lease) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(SpoolError::on("remove", &lease)(error));
        }
        _ => {}
    }
    fs::remove_dir(directory).map_err(SpoolError::on("remove directory", directory))?;
    Ok(events)
}
