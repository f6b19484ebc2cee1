//! The pilot's side of the guardian. Every child is started and reaped through [`GuardianHandle`], so that
//! the guardian knows each of them, and a guardian that died is replaced by one that knows them too.
//!
//! The lock is held briefly and never during a start: a program or a guardian on a file system that hangs
//! must not block a thread that reaps. [`StartProgress`] synchronises a start with a replacement of the
//! guardian and with a caller that gives up.

use std::collections::{HashMap, HashSet};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tokio::time::timeout;

use super::protocol::{ChildId, GuardianMessage};
use crate::blocking;
use crate::ids::ProcessGroup;
use crate::process::SuspendAwareTimer;
use crate::process::child::{ChildPreparation, ChildSpec, SpawnError, StartFailure};
use crate::process::hard_kill::{self, KillTarget};
use crate::process::procfs::{self, ProcessStat};
use crate::process::signal::{self, ExitStatus, Usage};
use crate::process::spawn::{self, FailedStart, NotStarted, StartProgress};

/// A handle to the guardian, with the list of the guarded children. The guardian kills the remaining children
/// when the last handle is dropped or the process ends.
#[derive(Debug, Clone)]
pub struct GuardianHandle(Arc<GuardianShared>);

#[derive(Debug)]
struct GuardianShared {
    state: Mutex<GuardianState>,
    /// Held while a guardian is made, by threads that may block.
    replacing: Mutex<()>,
}

#[derive(Debug)]
struct GuardianState {
    start: StartGuardian,
    guardian: GuardianProcess,
    children: HashMap<Pid, ChildId>,
    /// One for each child that may exist but isn't in `children` yet.
    starting: Vec<Arc<StartProgress>>,
    /// Guardians that were killed but not reaped yet.
    dismissed: Vec<Pid>,
    /// Children that the process had before it was a pilot. They are its wrapper's and not ours.
    inherited: HashSet<Pid>,
}

/// Makes a guardian, given the reading end of its pipe.
type StartGuardian = fn(PipeReader) -> io::Result<Option<Pid>>;

#[derive(Debug)]
struct GuardianProcess {
    pipe: Arc<PipeWriter>,
    /// `None` in unit tests, whose guardian is a thread.
    pid: Option<Pid>,
}

#[derive(Debug)]
pub(in crate::process) enum GuardianHealth {
    Well,
    /// The guardian was gone. A new one knows all the children.
    Replaced {
        pid: Option<Pid>,
        children: usize,
    },
    /// The guardian is gone, and a new one can't be made now.
    Missing(io::Error),
}

#[derive(Debug)]
pub(in crate::process) enum StartError {
    Child(io::Error),
    /// No guardian could be told of the child.
    Unguarded(io::Error),
}

/// How long a start may take. One takes milliseconds, or seconds from a cold network file system.
pub(in crate::process) const START_WITHIN: Duration = Duration::from_secs(30);

impl GuardianHandle {
    /// Starts a guardian. From here on, orphans of the children are reparented to the pilot, which reaps
    /// them.
    ///
    /// # Errors
    /// When no pipe or process can be made for it, or its start hangs.
    pub async fn start() -> io::Result<Self> {
        // A late handle is dropped by its thread, which closes the pipe and so ends the guardian.
        let starting =
            blocking::start(|| Self::with(|pipe| spawn::spawn_guardian(&pipe).map(Some)));
        match timeout(START_WITHIN, starting).await {
            Ok(started) => started?,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn with(start: StartGuardian) -> io::Result<Self> {
        // Only a seccomp filter refuses this; the sweep then looks at all processes.
        let _refused = nix::sys::prctl::set_child_subreaper(true);
        let inherited = procfs::own_children().unwrap_or_default();
        let guardian = GuardianProcess::start(start)?;
        Ok(Self(Arc::new(GuardianShared {
            state: Mutex::new(GuardianState {
                start,
                guardian,
                children: HashMap::new(),
                starting: Vec::new(),
                dismissed: Vec::new(),
                inherited: inherited.into_iter().collect(),
            }),
            replacing: Mutex::new(()),
        })))
    }

    /// A guardian for unit tests: a thread, because their binary can't be a guardian.
    #[cfg(test)]
    pub(crate) fn in_thread() -> Self {
        Self::with(|pipe| {
            std::thread::spawn(|| super::server::guard_until_end(pipe));
            Ok(None)
        })
        .expect("a pipe")
    }

    /// Prepares and starts a child on a thread that may block. Dropping the future abandons the start: a child
    /// that exists by then is killed, and one made later ends at once.
    ///
    /// # Errors
    /// When there is no child; also when the start takes longer than [`START_WITHIN`].
    pub(in crate::process) async fn start_child<E: Send + 'static>(
        &self,
        preparation: ChildPreparation<impl FnOnce() -> Result<ChildSpec, E> + Send + 'static>,
    ) -> Result<OwnedChild, StartFailure<E>> {
        let progress = Arc::new(StartProgress::default());
        let _called_off = AbandonOnDrop {
            guardian: self,
            progress: &progress,
        };
        let ChildPreparation { program, prepare } = preparation;
        let (handle, of_thread) = (self.clone(), Arc::clone(&progress));
        let starting = blocking::start(move || {
            let spec = prepare().map_err(StartFailure::Unprepared)?;
            match handle.spawn(&spec, &of_thread) {
                Ok(id) => Ok(OwnedChild::new(id, handle)),
                Err(error) => Err(spawn_error(spec, error).into()),
            }
        });
        let mut within = SuspendAwareTimer::new(START_WITHIN);
        tokio::select! {
            biased;
            started = starting => started.unwrap_or_else(|panicked| {
                let source = panicked.into();
                Err(SpawnError::Program { program, source }.into())
            }),
            () = within.over() => {
                let after = START_WITHIN;
                Err(SpawnError::Hanging { program, after }.into())
            }
        }
    }

    /// Starts a child that the guardian knows before its program runs. Blocks as long as the program's file
    /// system does.
    fn spawn(
        &self,
        spec: &ChildSpec,
        progress: &Arc<StartProgress>,
    ) -> Result<ChildId, StartError> {
        let mut was_unheard = false;
        loop {
            if progress.is_abandoned() {
                return Err(StartError::Child(Errno::ECANCELED.into()));
            }
            let pipe = self.lock().enlist(progress);
            let FailedStart { ended, why } = match spawn::spawn(spec, &pipe, progress) {
                Ok(child) => {
                    self.lock().started(progress, child);
                    return Ok(child);
                }
                Err(failed) => failed,
            };
            self.lock().failed(progress, ended);
            match why {
                NotStarted::Unmade(error) => return Err(StartError::Child(error)),
                NotStarted::Unheard(error) if was_unheard => {
                    return Err(StartError::Unguarded(error));
                }
                NotStarted::Unheard(_) => {
                    was_unheard = true;
                    self.replace(&pipe).map_err(StartError::Unguarded)?;
                }
                // Either the caller gave up, or the guardian was replaced before it was told of the child:
                // try again with the new one.
                NotStarted::CalledOff => {}
            }
        }
    }

    /// Reaps and forgets a child whose session is empty. Blocks unless the child has ended.
    pub(in crate::process) fn reap(&self, child: ChildId) -> nix::Result<(ExitStatus, Usage)> {
        let mut state = self.lock();
        // Told before the pid is free. A guardian that misses the message compares start times.
        let _ = state.guardian.tell(GuardianMessage::Gone(child));
        let answer = signal::reap(child.leader.0);
        state.children.remove(&child.leader.0);
        answer
    }

    pub(in crate::process) fn guardian_lives(&self) -> bool {
        self.lock().guardian.is_there()
    }

    /// Replaces the guardian if it is gone. Blocks as long as the pilot's own binary can't be read.
    pub(in crate::process) fn check(&self) -> GuardianHealth {
        let gone = {
            let state = self.lock();
            if state.guardian.is_there() {
                return GuardianHealth::Well;
            }
            Arc::clone(&state.guardian.pipe)
        };
        match self.replace(&gone) {
            Ok(()) => {
                let state = self.lock();
                GuardianHealth::Replaced {
                    pid: state.guardian.pid,
                    children: state.children.len(),
                }
            }
            Err(error) => GuardianHealth::Missing(error),
        }
    }

    /// Makes a guardian that knows all the children and replaces the one with this pipe, unless that was
    /// replaced already. The old one stays until there is a new one: even if it reads no more, it knows the
    /// children that it was told of.
    fn replace(&self, gone: &Arc<PipeWriter>) -> io::Result<()> {
        let _alone = self
            .0
            .replacing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let start = {
            let state = self.lock();
            if !Arc::ptr_eq(&state.guardian.pipe, gone) {
                return Ok(());
            }
            state.start
        };
        let successor = GuardianProcess::start(start)?;
        self.lock().succeed(successor)
    }

    /// Reaps the orphans of our children, and replaced guardians.
    pub(in crate::process) fn reap_orphans(&self) {
        let mut state = self.lock();
        state.dismissed.retain(|pid| match signal::has_ended(*pid) {
            Ok(false) => true,
            Ok(true) => signal::reap(*pid).is_err(),
            Err(_) => false,
        });
        // A starting child with an unknown pid would look like an orphan, but its starter reaps it.
        if state.starting.iter().any(|start| start.child().is_none()) {
            return;
        }
        for pid in state.orphans().unwrap_or_else(procfs::zombie_children) {
            if waitpid(pid, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status.pid().is_some()) {
                state.inherited.remove(&pid);
            }
        }
    }

    /// Whether a process that an ended child left behind may still run. A descendant that loses its parent
    /// becomes a child of the pilot's main thread. Children are reaped only under this lock, so one look at
    /// that thread's list misses none.
    pub(in crate::process) fn may_have_orphans(&self) -> bool {
        let state = self.lock();
        let Some(mut orphans) = state.orphans() else {
            return true;
        };
        orphans.retain(|pid| !state.inherited.contains(pid));
        orphans
            .iter()
            .any(|pid| ProcessStat::of(*pid).is_some_and(|stat| !stat.is_zombie))
    }

    /// Stops all processes of the children, whatever sessions they made in their containers. Goes from the
    /// top down, so that parents don't see their children stop.
    pub(in crate::process) fn suspend(&self) {
        for leader in self.lock().leaders() {
            // A process forked during a look is found by the next one.
            let mut stopped = Vec::new();
            loop {
                let mut tree = procfs::process_tree(leader);
                tree.retain(|pid| !stopped.contains(pid));
                if tree.is_empty() {
                    break;
                }
                for pid in tree {
                    signal::send(pid, libc::SIGSTOP);
                    stopped.push(pid);
                }
            }
        }
    }

    /// Lets them run again, from the bottom up.
    pub(in crate::process) fn resume(&self) {
        for leader in self.lock().leaders() {
            for pid in procfs::process_tree(leader).into_iter().rev() {
                signal::send(pid, libc::SIGCONT);
            }
        }
    }

    /// Abandons a start: kills the child made so far; a child made later ends at once.
    fn abandon(&self, progress: &Arc<StartProgress>) {
        let state = self.lock();
        progress.abandon();
        // Only while it is on the list: otherwise its pid may belong to another process by now.
        let is_listed = state
            .starting
            .iter()
            .any(|start| Arc::ptr_eq(start, progress));
        if let Some(child) = progress.child().filter(|_| is_listed) {
            // If its program has already made a container, `OwnedChild` ends that.
            signal::send(child.leader.0, libc::SIGKILL);
        }
    }

    fn lock(&self) -> MutexGuard<'_, GuardianState> {
        // The state is consistent after every statement, so a poisoned lock is usable.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GuardianState {
    /// Lists a start and returns the pipe on which its child will announce itself.
    fn enlist(&mut self, progress: &Arc<StartProgress>) -> Arc<PipeWriter> {
        self.starting.push(Arc::clone(progress));
        Arc::clone(&self.guardian.pipe)
    }

    fn started(&mut self, progress: &Arc<StartProgress>, child: ChildId) {
        self.strike_off(progress);
        self.children.insert(child.leader.0, child);
    }

    /// Removes a failed start, and reaps its child if there was one.
    fn failed(&mut self, progress: &Arc<StartProgress>, ended: Option<Pid>) {
        if let Some(child) = progress.child() {
            let _ = self.guardian.tell(GuardianMessage::Gone(child));
        }
        if let Some(pid) = ended {
            let _ = signal::reap(pid);
        }
        self.strike_off(progress);
        progress.begin_anew();
    }

    fn strike_off(&mut self, progress: &Arc<StartProgress>) {
        self.starting.retain(|start| !Arc::ptr_eq(start, progress));
    }

    /// Tells a new guardian of all the children, then replaces the old one. A child that is being started is
    /// either announced here or sees, before its exec, that it is called off.
    fn succeed(&mut self, successor: GuardianProcess) -> io::Result<()> {
        let starting = self.starting.iter().filter_map(|start| start.call_off());
        let all: Vec<ChildId> = self.children.values().copied().chain(starting).collect();
        for child in all {
            if let Err(error) = successor.tell(GuardianMessage::Born(child)) {
                self.dismissed.extend(successor.kill());
                return Err(error);
            }
        }
        let old = std::mem::replace(&mut self.guardian, successor);
        self.dismissed.extend(old.kill());
        Ok(())
    }

    fn leaders(&self) -> impl Iterator<Item = ProcessGroup> {
        let starting = self.starting.iter().filter_map(|start| start.child());
        let all = self.children.values().copied().chain(starting);
        all.map(|child| child.leader)
    }

    /// The children of this process that it didn't start itself. `None` if the kernel doesn't list children.
    fn orphans(&self) -> Option<Vec<Pid>> {
        let mut orphans = procfs::own_children()?;
        orphans.retain(|pid| {
            !self.children.contains_key(pid)
                && self.guardian.pid != Some(*pid)
                && !self.dismissed.contains(pid)
                && self
                    .starting
                    .iter()
                    .filter_map(|start| start.child())
                    .all(|child| child.leader.0 != *pid)
        });
        Some(orphans)
    }
}

impl GuardianProcess {
    fn start(start: StartGuardian) -> io::Result<Self> {
        let (reader, pipe) = io::pipe()?;
        // A guardian that doesn't read must not block the pilot.
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let pid = start(reader)?;
        Ok(Self {
            pipe: Arc::new(pipe),
            pid,
        })
    }

    fn tell(&self, message: GuardianMessage) -> io::Result<()> {
        (&*self.pipe).write_all(&message.to_bytes())
    }

    /// Kills the guardian and returns the pid to reap. It is killed before its pipe is closed, because at the
    /// end of the pipe it would kill the children.
    fn kill(self) -> Option<Pid> {
        let pid = self.pid?;
        signal::send(pid, libc::SIGKILL);
        Some(pid)
    }

    fn is_there(&self) -> bool {
        self.pid
            .is_none_or(|pid| signal::has_ended(pid) == Ok(false))
    }
}

/// Abandons a start when its caller gives up.
struct AbandonOnDrop<'a> {
    guardian: &'a GuardianHandle,
    progress: &'a Arc<StartProgress>,
}

impl Drop for AbandonOnDrop<'_> {
    fn drop(&mut self) {
        self.guardian.abandon(self.progress);
    }
}

/// A started child. If dropped unreaped, it is killed, and a thread reaps it.
#[derive(Debug)]
pub(in crate::process) struct OwnedChild {
    id: ChildId,
    guardian: GuardianHandle,
    state: ChildState,
}

#[derive(Debug, PartialEq, Eq)]
enum ChildState {
    Unreaped,
    /// Its pid may belong to another process by now.
    Reaped,
}

impl OwnedChild {
    fn new(id: ChildId, guardian: GuardianHandle) -> Self {
        Self {
            id,
            guardian,
            state: ChildState::Unreaped,
        }
    }

    pub(in crate::process) fn id(&self) -> ChildId {
        self.id
    }

    pub(in crate::process) fn guardian(&self) -> &GuardianHandle {
        &self.guardian
    }

    /// On an error its pid may belong to another process: no signal may be sent to it any more.
    pub(in crate::process) fn has_ended(&mut self) -> nix::Result<bool> {
        signal::has_ended(self.id.leader.0).inspect_err(|_| self.state = ChildState::Reaped)
    }

    /// Blocks unless the child has ended.
    pub(in crate::process) fn reap(mut self) -> nix::Result<(ExitStatus, Usage)> {
        self.state = ChildState::Reaped;
        self.guardian.reap(self.id)
    }
}

impl Drop for OwnedChild {
    fn drop(&mut self) {
        if self.state == ChildState::Reaped {
            return;
        }
        // At once, because the pilot itself may be about to exit. After the death of the container's first
        // process the rest ends without us.
        let (id, guardian) = (self.id, self.guardian.clone());
        let target = KillTarget::begin(id);
        // A thread, because the runtime may be gone. Without a thread there is no time for a clean-up.
        let spawned = std::thread::Builder::new()
            .name("reaper".into())
            .spawn(move || {
                hard_kill::kill_all(vec![target]);
                // Waits as long as the kernel holds it. An error means that it is no longer our child.
                if signal::await_end(id.leader.0).is_ok() {
                    let _ = guardian.reap(id);
                }
            });
        if spawned.is_err() {
            signal::send(id.leader.0, libc::SIGKILL);
            hard_kill::kill_session(id);
        }
    }
}

fn spawn_error(spec: ChildSpec, error: StartError) -> SpawnError {
    let source = match error {
        StartError::Unguarded(source) => return SpawnError::Unguarded(source),
        StartError::Child(source) => source,
    };
    let strings = spec
        .args
        .iter()
        .chain(spec.env.iter().flat_map(|(name, value)| [name, value]));
    let bytes = strings.map(|string| string.len() + 1).sum();
    let ChildSpec { program, cwd, .. } = spec;
    match (source.raw_os_error().map(Errno::from_raw), cwd) {
        (Some(Errno::E2BIG), _) => SpawnError::TooLong { program, bytes },
        (Some(Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE), _) => {
            SpawnError::Exhausted { program, source }
        }
        // The kernel returns ENOENT for both; the program is blamed if the directory exists.
        (_, Some(cwd)) if !cwd.is_dir() => SpawnError::Directory { cwd, source },
        _ => SpawnError::Program { program, source },
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
