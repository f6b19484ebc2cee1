//! The pilot's side of the guardian: who is its ward, that a guardian is there, and what has to be done
//! to all children at once. Every child is started and reaped through here, so that none can be
//! forgotten.

use std::collections::HashMap;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid};

use super::child::{ChildSpec, ExitStatus};
use super::guardian_message::{ChildId, GuardianMessage};
use super::procfs;
use super::spawn::{self, NotStarted, Usage};

/// A handle to the guardian, and the list of its wards. When the last handle is gone, and at the latest
/// when the process is, the guardian kills the wards that are left.
#[derive(Debug, Clone)]
pub struct GuardianHandle(Arc<Mutex<GuardianState>>);

#[derive(Debug)]
struct GuardianState {
    start_guardian: StartGuardian,
    guardian: Option<GuardianProcess>,
    child_ids: HashMap<Pid, ChildId>,
}

/// How a guardian is made, of the reading end of its pipe.
type StartGuardian = fn(PipeReader) -> io::Result<Option<Pid>>;

#[derive(Debug)]
struct GuardianProcess {
    pipe: Arc<PipeWriter>,
    /// Absent in unit tests, whose guardian is a thread.
    pid: Option<Pid>,
}

/// What a look at the guardian showed.
#[derive(Debug)]
pub(super) enum GuardianHealth {
    Well,
    /// It was gone, and another one knows all the wards.
    Replaced {
        pid: Option<Pid>,
        child_ids: usize,
    },
    /// It is gone, and there can't be another one now.
    Missing(io::Error),
}

/// Why a child didn't start.
#[derive(Debug)]
pub(super) enum StartError {
    Child(io::Error),
    /// There is nobody to guard it.
    Unguarded(io::Error),
}

impl GuardianHandle {
    /// Starts a guardian.
    ///
    /// # Errors
    /// When the system has no pipe or no process for it.
    pub fn start() -> io::Result<Self> {
        Self::with(|pipe| spawn::spawn_guardian(&pipe).map(Some))
    }

    fn with(start_guardian: StartGuardian) -> io::Result<Self> {
        let mut state = GuardianState {
            start_guardian,
            guardian: None,
            child_ids: HashMap::new(),
        };
        state.replace()?;
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    /// A guardian for unit tests, whose binary can't be one: a thread.
    #[cfg(test)]
    pub(crate) fn in_thread() -> Self {
        Self::with(|pipe| {
            std::thread::spawn(|| super::guard_until_end(pipe));
            Ok(None)
        })
        .expect("a pipe")
    }

    /// Starts a child that the guardian knows before anything of it runs.
    pub(super) fn spawn(&self, job: &ChildSpec) -> Result<ChildId, StartError> {
        let mut state = self.lock();
        let pipe = state.pipe().map_err(StartError::Unguarded)?;
        let child_id = match spawn::spawn(job, &pipe) {
            Err(NotStarted::Unheard(_)) => {
                let pipe = state.replace().map_err(StartError::Unguarded)?;
                spawn::spawn(job, &pipe)
            }
            started => started,
        }
        .map_err(|failure| match failure {
            NotStarted::Unheard(error) => StartError::Unguarded(error),
            NotStarted::Unmade(error) => StartError::Child(error),
        })?;
        state.child_ids.insert(child_id.leader.0, child_id);
        Ok(child_id)
    }

    /// Waits for a ward of which nothing is left, and forgets it. Blocks unless it has ended.
    pub(super) fn reap(&self, child_id: ChildId) -> nix::Result<(ExitStatus, Usage)> {
        let mut state = self.lock();
        // Before its pid is free. A guardian that doesn't hear it checks start times.
        if let Some(guardian) = &state.guardian {
            let _ = guardian.tell(GuardianMessage::Gone(child_id));
        }
        let answer = spawn::reap(child_id.leader.0);
        state.child_ids.remove(&child_id.leader.0);
        answer
    }

    /// Replaces the guardian if it is gone.
    pub(super) fn check(&self) -> GuardianHealth {
        let mut state = self.lock();
        if state
            .guardian
            .as_ref()
            .is_some_and(GuardianProcess::is_there)
        {
            return GuardianHealth::Well;
        }
        match state.replace() {
            Ok(_) => GuardianHealth::Replaced {
                pid: state.guardian.as_ref().and_then(|guardian| guardian.pid),
                child_ids: state.child_ids.len(),
            },
            Err(error) => GuardianHealth::Missing(error),
        }
    }

    /// Reaps what fell to us and is no child of ours: as pid 1 of a container, nobody else does.
    pub(super) fn reap_orphans(&self) {
        let state = self.lock();
        let guardian = state.guardian.as_ref().and_then(|guardian| guardian.pid);
        for pid in procfs::zombies_of_ours() {
            if !state.child_ids.contains_key(&pid) && Some(pid) != guardian {
                let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            }
        }
    }

    /// Stops all that the children are, whatever sessions they made in their containers. Those on top
    /// first: they shall not see the others stop.
    pub(super) fn suspend(&self) {
        for child_id in self.lock().child_ids.values() {
            // What forks while we look is found at the next look.
            let mut stopped = Vec::new();
            loop {
                let mut family = procfs::process_tree(child_id.leader);
                family.retain(|pid| !stopped.contains(pid));
                if family.is_empty() {
                    break;
                }
                for pid in family {
                    spawn::send(pid, libc::SIGSTOP);
                    stopped.push(pid);
                }
            }
        }
    }

    /// Lets them run again, in the opposite order.
    pub(super) fn resume(&self) {
        for child_id in self.lock().child_ids.values() {
            for pid in procfs::process_tree(child_id.leader).into_iter().rev() {
                spawn::send(pid, libc::SIGCONT);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, GuardianState> {
        // What is locked is whole after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GuardianState {
    fn pipe(&mut self) -> io::Result<Arc<PipeWriter>> {
        match &self.guardian {
            Some(guardian) => Ok(Arc::clone(&guardian.pipe)),
            None => self.replace(),
        }
    }

    /// Makes a new guardian, which knows all the wards, in place of the old one. That one stays for as long
    /// as there is no other: even if it hears no more, it knows those that it was told of.
    fn replace(&mut self) -> io::Result<Arc<PipeWriter>> {
        let (reader, pipe) = io::pipe()?;
        // A guardian that reads no more must not block the pilot.
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let pid = (self.start_guardian)(reader)?;
        let pipe = Arc::new(pipe);
        let successor = GuardianProcess {
            pipe: Arc::clone(&pipe),
            pid,
        };
        for child_id in self.child_ids.values() {
            if let Err(error) = successor.tell(GuardianMessage::Born(*child_id)) {
                successor.dismiss();
                return Err(error);
            }
        }
        if let Some(old) = self.guardian.replace(successor) {
            old.dismiss();
        }
        Ok(pipe)
    }
}

impl GuardianProcess {
    fn tell(&self, message: GuardianMessage) -> io::Result<()> {
        (&*self.pipe).write_all(&message.to_bytes())
    }

    /// Ends it. Killed before its pipe is closed, whose end would make it kill its wards.
    fn dismiss(self) {
        if let Some(pid) = self.pid {
            spawn::send(pid, libc::SIGKILL);
            let _ = spawn::reap(pid);
        }
    }

    fn is_there(&self) -> bool {
        self.pid
            .is_none_or(|pid| spawn::has_ended(pid) == Ok(false))
    }
}

/// Whether orphans of our descendants become our children: we are pid 1 of a container, or what
/// started us asked for it.
pub(super) fn adopts_orphans() -> bool {
    getpid() == Pid::from_raw(1) || nix::sys::prctl::get_child_subreaper() == Ok(true)
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
