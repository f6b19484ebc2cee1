//! The pilot's end of the guardian: every child is started and reaped through [`GuardianHandle`], so
//! that the guardian knows each of them, and a guardian that died is replaced by one that knows as much.
//!
//! The lock is held for moments only, never across a start: a program or a guardian whose file system
//! hangs must not hold up a thread that reaps. A start, a replaced guardian and a caller that gives up meet
//! in [`StartProgress`].

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
use crate::process::child::{ChildSpec, SpawnError};
use crate::process::hard_kill::{self, KillTarget};
use crate::process::procfs::{self, ProcessStat};
use crate::process::signal::{self, ExitStatus, Usage};
use crate::process::spawn::{self, FailedStart, NotStarted, StartProgress};

/// A handle to the guardian, and the list of the children that it guards. When the last handle is gone,
/// and at the latest when the process is, the guardian kills the children that are left.
#[derive(Debug, Clone)]
pub struct GuardianHandle(Arc<GuardianShared>);

#[derive(Debug)]
struct GuardianShared {
    state: Mutex<GuardianState>,
    /// Held while a guardian is made. For threads that may block only.
    replacing: Mutex<()>,
}

#[derive(Debug)]
struct GuardianState {
    start: StartGuardian,
    guardian: GuardianProcess,
    children: HashMap<Pid, ChildId>,
    /// One for each child that may exist and isn't in `children` yet.
    starting: Vec<Arc<StartProgress>>,
    /// Guardians that were killed and are not reaped yet.
    dismissed: Vec<Pid>,
    /// Children that the process had before it was a pilot: its wrapper's, and none of ours.
    inherited: HashSet<Pid>,
}

/// Makes a guardian of the reading end of its pipe.
type StartGuardian = fn(PipeReader) -> io::Result<Option<Pid>>;

#[derive(Debug)]
struct GuardianProcess {
    pipe: Arc<PipeWriter>,
    /// Absent in unit tests, whose guardian is a thread.
    pid: Option<Pid>,
}

#[derive(Debug)]
pub(in crate::process) enum GuardianHealth {
    Well,
    /// It was gone, and another one knows all the children.
    Replaced {
        pid: Option<Pid>,
        children: usize,
    },
    /// It is gone, and there can't be another one now.
    Missing(io::Error),
}

/// Why a child didn't start.
#[derive(Debug)]
pub(in crate::process) enum StartError {
    Child(io::Error),
    /// No guardian could be told of it.
    Unguarded(io::Error),
}

/// How long a start may take. One takes milliseconds, from a cold network file system seconds.
pub(in crate::process) const START_WITHIN: Duration = Duration::from_secs(30);

impl GuardianHandle {
    /// Starts a guardian. From here on, orphans of the children fall to the pilot, which reaps them.
    ///
    /// # Errors
    /// When the system has no pipe or no process for it, or its start hangs.
    pub async fn start() -> io::Result<Self> {
        // Dropped late, a handle ends its guardian: the end of its pipe does.
        let starting =
            blocking::start(|| Self::with(|pipe| spawn::spawn_guardian(&pipe).map(Some)));
        match timeout(START_WITHIN, starting).await {
            Ok(started) => started?,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn with(start: StartGuardian) -> io::Result<Self> {
        // Refused by a seccomp filter at most: then the sweep looks at all processes.
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

    /// A guardian for unit tests, whose binary can't be one: a thread.
    #[cfg(test)]
    pub(crate) fn in_thread() -> Self {
        Self::with(|pipe| {
            std::thread::spawn(|| super::server::guard_until_end(pipe));
            Ok(None)
        })
        .expect("a pipe")
    }

    /// Starts a child on a thread that may block. Dropping the future calls the start off: what there is of
    /// the child by then is killed, and what comes of it later ends at once.
    ///
    /// # Errors
    /// When there is no child, for one after [`START_WITHIN`].
    pub(in crate::process) async fn start_child(
        &self,
        spec: ChildSpec,
    ) -> Result<OwnedChild, SpawnError> {
        let progress = Arc::new(StartProgress::default());
        let _called_off = AbandonOnDrop {
            guardian: self,
            progress: &progress,
        };
        let program = spec.program.clone();
        let (handle, of_thread) = (self.clone(), Arc::clone(&progress));
        let starting = blocking::start(move || match handle.spawn(&spec, &of_thread) {
            Ok(id) => Ok(OwnedChild::new(id, handle)),
            Err(error) => Err(spawn_error(spec, error)),
        });
        let mut within = SuspendAwareTimer::new(START_WITHIN);
        tokio::select! {
            biased;
            started = starting => started.unwrap_or_else(|panicked| {
                let source = panicked.into();
                Err(SpawnError::Program { program, source })
            }),
            () = within.over() => {
                let after = START_WITHIN;
                Err(SpawnError::Hanging { program, after })
            }
        }
    }

    /// Starts a child that the guardian knows before anything of it runs. Blocks for as long as the file
    /// system of its program does.
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
                // Nobody waits any more, or the guardian was replaced before it could be told: its
                // successor can.
                NotStarted::CalledOff => {}
            }
        }
    }

    /// Waits for a child of which nothing is left, and forgets it. Blocks unless it has ended.
    pub(in crate::process) fn reap(&self, child: ChildId) -> nix::Result<(ExitStatus, Usage)> {
        let mut state = self.lock();
        // Before its pid is free. A guardian that doesn't hear it checks start times.
        let _ = state.guardian.tell(GuardianMessage::Gone(child));
        let answer = signal::reap(child.leader.0);
        state.children.remove(&child.leader.0);
        answer
    }

    pub(in crate::process) fn guardian_lives(&self) -> bool {
        self.lock().guardian.is_there()
    }

    /// Replaces the guardian if it is gone. Blocks for as long as the pilot's own binary can't be read.
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

    /// Makes a guardian that knows all the children, in place of the one with this pipe, unless that was
    /// replaced already. The old one stays for as long as there is no other: even if it hears no more, it
    /// knows those that it was told of.
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

    /// Reaps what fell to us: orphans of our children, and guardians that were replaced.
    pub(in crate::process) fn reap_orphans(&self) {
        let mut state = self.lock();
        state.dismissed.retain(|pid| match signal::has_ended(*pid) {
            Ok(false) => true,
            Ok(true) => signal::reap(*pid).is_err(),
            Err(_) => false,
        });
        // One that isn't known by its pid yet is its starter's to reap.
        if state.starting.iter().any(|start| start.child().is_none()) {
            return;
        }
        for pid in state.orphans().unwrap_or_else(procfs::zombie_children) {
            if waitpid(pid, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status.pid().is_some()) {
                state.inherited.remove(&pid);
            }
        }
    }

    /// Whether something that a child left behind when it ended may still run. Whatever descends from a
    /// child and loses its parent becomes a child of the pilot's main thread, which reaps under this lock
    /// only, so that one look at that list misses none.
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

    /// Stops all that the children are, whatever sessions they made in their containers. Those on top
    /// first: they shall not see the others stop.
    pub(in crate::process) fn suspend(&self) {
        for leader in self.lock().leaders() {
            // What forks while we look is found at the next look.
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

    /// Lets them run again, in the opposite order.
    pub(in crate::process) fn resume(&self) {
        for leader in self.lock().leaders() {
            for pid in procfs::process_tree(leader).into_iter().rev() {
                signal::send(pid, libc::SIGCONT);
            }
        }
    }

    /// For a start whose caller gave up: kills what it made so far; what it makes later ends at once.
    fn abandon(&self, progress: &Arc<StartProgress>) {
        let state = self.lock();
        progress.abandon();
        // On the list only: the pid of any other may be another process's by now.
        let is_listed = state
            .starting
            .iter()
            .any(|start| Arc::ptr_eq(start, progress));
        if let Some(child) = progress.child().filter(|_| is_listed) {
            // Its program may run by now, and have made a container: that one is for `OwnedChild` to end.
            signal::send(child.leader.0, libc::SIGKILL);
        }
    }

    fn lock(&self) -> MutexGuard<'_, GuardianState> {
        // What is locked is whole after every statement.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GuardianState {
    /// The pipe on which a child that is about to be made announces itself.
    fn enlist(&mut self, progress: &Arc<StartProgress>) -> Arc<PipeWriter> {
        self.starting.push(Arc::clone(progress));
        Arc::clone(&self.guardian.pipe)
    }

    fn started(&mut self, progress: &Arc<StartProgress>, child: ChildId) {
        self.strike_off(progress);
        self.children.insert(child.leader.0, child);
    }

    /// The child, if one was made, has ended.
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

    /// Tells a new guardian of all the children and puts it in the old one's place. A child that is being
    /// started either is told of here or sees that it is called off before it becomes a program.
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

    /// The children of the process that are none of its own making. `None` where the kernel doesn't say.
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
        // A guardian that reads no more must not block the pilot.
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

    /// Ends it; gives what is to be reaped. Killed before its pipe is closed, whose end would make it kill
    /// the children.
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

/// Ends a start whose caller gave up.
struct AbandonOnDrop<'a> {
    guardian: &'a GuardianHandle,
    progress: &'a Arc<StartProgress>,
}

impl Drop for AbandonOnDrop<'_> {
    fn drop(&mut self) {
        self.guardian.abandon(self.progress);
    }
}

/// A started child. Dropped before it is reaped, it is killed, and reaped by a thread of its own.
#[derive(Debug)]
pub(in crate::process) struct OwnedChild {
    id: ChildId,
    guardian: GuardianHandle,
    state: ChildState,
}

#[derive(Debug, PartialEq, Eq)]
enum ChildState {
    Unreaped,
    /// Its pid may be another process's by now.
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

    /// An error means that its pid may be another's by now: nothing may be sent to it any more.
    pub(in crate::process) fn has_ended(&mut self) -> nix::Result<bool> {
        signal::has_ended(self.id.leader.0).inspect_err(|_| self.state = ChildState::Reaped)
    }

    /// Only of one that has ended, else it blocks.
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
        // At once: the pilot itself may be on its way out. With the container's first process dead,
        // the rest follows without us.
        let (id, guardian) = (self.id, self.guardian.clone());
        let target = KillTarget::begin(id);
        // A thread, because the runtime may be gone; if there can't be one, no time for clean-up.
        let spawned = std::thread::Builder::new()
            .name("reaper".into())
            .spawn(move || {
                hard_kill::kill_all(vec![target]);
                // However long the kernel holds it. An error: it is no child of ours any more.
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
        // The kernel says ENOENT for either; the program is reported when the directory is there.
        (_, Some(cwd)) if !cwd.is_dir() => SpawnError::Directory { cwd, source },
        _ => SpawnError::Program { program, source },
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
