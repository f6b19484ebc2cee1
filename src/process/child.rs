//! The specification of a child ([`ChildSpec`], [`ChildLimits`]) and its end ([`ChildExit`]).

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::signal::{ExitStatus, Usage};

#[derive(Debug)]
pub struct ChildSpec {
    /// Absolute.
    pub program: PathBuf,
    /// Without the program's name.
    pub args: Vec<OsString>,
    /// The whole environment: the pilot's own is not inherited.
    pub env: Vec<(OsString, OsString)>,
    /// The working directory; `None` is the pilot's own.
    pub cwd: Option<PathBuf>,
    pub stdout: File,
    pub stderr: File,
}

/// A child whose [`ChildSpec`] is still to be made, by `prepare`, on the thread that starts it: that may
/// block, and handing two pieces of work to a thread costs twice what one costs.
#[derive(Debug)]
pub struct ChildPreparation<F> {
    /// The program that `prepare` will name.
    pub program: PathBuf,
    pub prepare: F,
}

impl ChildSpec {
    pub(in crate::process) fn ready(
        self,
    ) -> ChildPreparation<impl FnOnce() -> Result<Self, Infallible> + Send> {
        ChildPreparation {
            program: self.program.clone(),
            prepare: || Ok(self),
        }
    }
}

/// The time limits of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChildLimits {
    /// Wall time after which it is told to end; `None` is no limit.
    pub timeout: Option<Duration>,
    /// The time between the first signal and the kill.
    pub grace: Duration,
}

/// The reason for a child's end. Unless it is [`StopCause::Itself`], the exit status says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopCause {
    Itself,
    Timeout,
    /// The pilot's [`ShutdownPhase`](super::ShutdownPhase).
    Shutdown,
}

/// The extent of a hard kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HardKill {
    /// The child ended by itself or after a signal.
    NotNeeded,
    /// The container's first process was killed, and the runtime cleaned up.
    Container,
    /// The child and its whole session were killed.
    Session,
}

/// The processes left in the session after its leader's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftovers {
    None,
    /// Some were killed and are gone.
    Swept,
    /// Processes that survived a kill for ten seconds: the kernel holds them, or they aren't ours.
    Survive(Vec<Pid>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildExit {
    /// How the first process ended. Also [`ExitStatus::Signal`] 9 if it survives its kill.
    pub exit: ExitStatus,
    pub ended_by: StopCause,
    pub usage: Usage,
    /// From the start until none of its processes ran.
    pub wall: Duration,
    pub hard_kill: HardKill,
    pub leftovers: Leftovers,
}

/// The reason why a child could not be started or supervised.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("can't start `{program}`: {source}; check that it is installed and executable")]
    Program { program: PathBuf, source: io::Error },
    #[error("can't start in `{cwd}`: {source}; make the directory first")]
    Directory { cwd: PathBuf, source: io::Error },
    /// The child has not reached its exec after this long.
    #[error(
        "`{program}` could not be started within {} s: its file system gives no answer",
        after.as_secs()
    )]
    Hanging { program: PathBuf, after: Duration },
    /// The arguments and environment are longer than the kernel accepts.
    #[error(
        "arguments and environment of `{program}` have {bytes} bytes, more than the kernel takes; \
         give large values to the container as files"
    )]
    TooLong { program: PathBuf, bytes: usize },
    /// The machine has no process or memory left for us.
    #[error(
        "no process could be made for `{program}`: {source}; the machine or its limits are used up"
    )]
    Exhausted { program: PathBuf, source: io::Error },
    /// There is no guardian, so the child could outlive a pilot that is killed.
    #[error(
        "no guardian could be made for the pilot's containers: {0}; the machine or its limits are used up"
    )]
    Unguarded(io::Error),
    #[error("can't watch for the end of children: {0}")]
    Watch(io::Error),
    /// Something else in this process waited for the child.
    #[error("the end of `{program}` can't be known: {source}; something else waited for it")]
    Lost { program: PathBuf, source: Errno },
}

/// The reason why a child that was to be prepared first gave no [`ChildExit`].
#[derive(Debug)]
pub enum StartFailure<E> {
    /// The error of [`ChildPreparation::prepare`].
    Unprepared(E),
    Spawn(SpawnError),
}

impl<E> From<SpawnError> for StartFailure<E> {
    fn from(error: SpawnError) -> Self {
        Self::Spawn(error)
    }
}

impl From<StartFailure<Infallible>> for SpawnError {
    fn from(failure: StartFailure<Infallible>) -> Self {
        match failure {
            StartFailure::Unprepared(never) => match never {},
            StartFailure::Spawn(error) => error,
        }
    }
}
