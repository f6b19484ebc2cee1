//! What a child is started with ([`ChildSpec`], [`ChildLimits`]) and how it ended ([`ChildExit`]).

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
    /// Absolute path.
    pub program: PathBuf,
    /// Its arguments, without the program's name.
    pub args: Vec<OsString>,
    /// The whole environment; nothing of the pilot's own is added.
    pub env: Vec<(OsString, OsString)>,
    /// Where it starts; `None` is the pilot's own working directory.
    pub cwd: Option<PathBuf>,
    pub stdout: File,
    pub stderr: File,
}

/// How long it may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChildLimits {
    /// Wall time after which it is told to end; `None` is without end.
    pub timeout: Option<Duration>,
    /// Time between being told and being killed.
    pub grace: Duration,
}

/// Who wanted the end. When it wasn't the child, its exit status says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopCause {
    Itself,
    Timeout,
    /// The pilot's [`ShutdownPhase`](super::ShutdownPhase).
    Shutdown,
}

/// How far the kill had to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HardKill {
    /// It ended by itself or when told.
    NotNeeded,
    /// The container's first process was killed, and the runtime cleaned up.
    Container,
    /// The child and all of its session were killed.
    Session,
}

/// What was left of the session when its leader had ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftovers {
    None,
    /// Processes that were killed and are gone.
    Swept,
    /// Processes that a kill didn't end in ten seconds: the kernel holds them, or they aren't ours.
    Survive(Vec<Pid>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildExit {
    /// How the first process ended. [`ExitStatus::Signal`] 9 too when it survives its kill.
    pub exit: ExitStatus,
    pub ended_by: StopCause,
    pub usage: Usage,
    /// From the start until nothing of it ran.
    pub wall: Duration,
    /// How far the kill had to go.
    pub hard_kill: HardKill,
    pub leftovers: Leftovers,
}

/// Why there was no child to supervise.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The program can't be executed.
    #[error("can't start `{program}`: {source}; check that it is installed and executable")]
    Program { program: PathBuf, source: io::Error },
    /// The directory to start in is missing.
    #[error("can't start in `{cwd}`: {source}; make the directory first")]
    Directory { cwd: PathBuf, source: io::Error },
    /// The child is not a program yet after this long.
    #[error(
        "`{program}` could not be started within {} s: its file system gives no answer",
        after.as_secs()
    )]
    Hanging { program: PathBuf, after: Duration },
    /// Arguments and environment are longer than the kernel takes.
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
    /// A child would outlive a pilot that is killed.
    #[error(
        "no guardian could be made for the pilot's containers: {0}; the machine or its limits are used up"
    )]
    Unguarded(io::Error),
    /// The ends of children can't be watched.
    #[error("can't watch for the end of children: {0}")]
    Watch(io::Error),
    /// The child was waited for by something else in this process.
    #[error("the end of `{program}` can't be known: {source}; something else waited for it")]
    Lost { program: PathBuf, source: Errno },
}
