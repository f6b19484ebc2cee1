//! Leases: who holds a claim, and how others know that the holder is dead.
//!
//! A pilot's claims lie in `claimed/ID/`, beside a file `.lease`. As long as the pilot lives it
//! keeps that file locked and sets its time every ten seconds. A holder is dead
//! - at once, when it was on this machine (same boot, same file system) and its lock is free:
//!   the kernel frees it however a process ends;
//! - else when its lease is older than a minute by the *file system's* clock, which is the only
//!   one that all machines share: the time of one's own lease, just set.
//!
//! A dead holder's directory is taken by renaming it into one's own. Only one rename can succeed,
//! so one of two pilots takes it. Should that one die too, the directory is part of what is taken from it.

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
use crate::ids::Generation;

/// A lease that was not set for so long belongs to a dead pilot. Six refreshes may fail before.
pub(super) const STALE_AFTER: Duration = Duration::from_mins(1);
pub(super) const REFRESH_EVERY: Duration = Duration::from_secs(10);

const LEASE: &str = ".lease";
/// Taken directories inside one's own. No event is called so: events are files.
const TAKEN: &str = "taken-";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaseScope {
    /// Those of this machine, where the lock tells at once.
    ThisMachine,
    Everyone,
}

/// A living pilot's place for claims. Dropping it frees the lock.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) generation: Generation,
    pub(super) directory: PathBuf,
    id: String,
    mark: LeaseMark,
    _lock: Option<File>,
}

/// What tells whether a lock says anything: the kernel and the mount it was taken through.
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
    /// Makes the directory, complete with its lease, under a hidden name first: no pilot ever sees
    /// a holder without one.
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
        let host = nix::unistd::gethostname()
            .map_or_else(|_| "?".into(), |host| host.to_string_lossy().into_owned());
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

    /// Says that this pilot lives, and returns the file system's time. `NotFound` when another
    /// pilot took us for dead.
    pub(super) fn refresh(&self) -> Result<SystemTime, SpoolError> {
        let lease = self.directory.join(LEASE);
        let now = TimeSpec::UTIME_NOW;
        utimensat(AT_FDCWD, &lease, &now, &now, UtimensatFlags::FollowSymlink)
            .map_err(io::Error::from)
            .and_then(|()| fs::metadata(&lease)?.modified())
            .map_err(SpoolError::on("refresh", &lease))
    }

    /// Puts dead pilots' events back into the queue. Returns how many.
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
                // Another pilot was faster.
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

    /// Puts back what is left of our own claims, and removes the directory.
    pub(super) fn retire(&self, paths: &SpoolPaths) -> Result<usize, SpoolError> {
        put_back(paths, &self.directory)
    }

    fn proof_of_death(&self, path: &Path, now: Option<SystemTime>) -> Option<ProofOfDeath> {
        let lease = path.join(LEASE);
        // Opened, not just looked at: network file systems answer from a cache otherwise. And for
        // writing, if we may: they lock nothing else.
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

/// How it is known that a holder is dead.
enum ProofOfDeath {
    /// Its lock was free. Held until its directory is taken, so that no other pilot of this
    /// machine gets there at the same time.
    Lock {
        _held: File,
    },
    Lease,
}

fn is_stale(written: io::Result<fs::Metadata>, now: Option<SystemTime>) -> bool {
    let age = || now?.duration_since(written.ok()?.modified().ok()?).ok();
    age().is_some_and(|age| age > STALE_AFTER)
}

/// Moves every event in a holder's directory, and in those that it had taken, into the queue.
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
                // Its holder lives after all and has just settled it.
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
