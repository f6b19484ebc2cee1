//! A container as tasks get it, made to learn something and not for an event: same flags, binds and
//! image, directories of its own. Uses container and process.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use tokio::sync::watch;
use uuid::Uuid;

use super::launch::binds;
use super::staging::Stage;
use super::{ExternalError, Workbench};
use crate::config::Verbosity;
use crate::container::{self, Answer, NO_COMMAND, ProcMount, RunSpec};
use crate::fault::Cause;
use crate::process::{
    CaptureError, Captured, EndedBy, ExitStatus, Limits, Query, SpawnError, Will, capture,
};

/// A start takes about 0.1 s, on a machine that is overcommitted some seconds.
const DEADLINE: Duration = Duration::from_mins(1);

/// The name of the file that a probe's container reads.
pub const QUESTION: &str = "question";
/// The name of its program.
pub const WRITER: &str = "writer";

/// The directories of a probe. Dropping it removes them, or leaves them to the next task.
#[derive(Debug)]
pub struct Trial {
    /// Always there, but for the moment of the drop.
    stage: Option<Stage>,
    io: PathBuf,
    workdir: PathBuf,
    name: String,
}

/// Why there is no answer of Apptainer's.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The probe's own directories can't be made.
    #[error("can't make a probe's directories: {0}")]
    Stage(#[from] io::Error),
    /// A directory can't be bound.
    #[error(transparent)]
    Bind(#[from] ExternalError),
    /// No process could be made, or its output not be kept.
    #[error(transparent)]
    Run(#[from] CaptureError),
    /// No command could be made of it.
    #[error(transparent)]
    Command(#[from] container::CommandError),
    /// It did not end.
    #[error("apptainer did not answer within {} s", .0.as_secs())]
    Hanging(Duration),
}

impl TrialError {
    /// What it is called.
    #[must_use]
    pub fn cause(&self) -> Cause {
        match self {
            Self::Stage(error) | Self::Run(CaptureError::Output { source: error, .. }) => {
                cause_of_io(error)
            }
            Self::Bind(error) => error.cause(),
            Self::Run(CaptureError::Spawn(SpawnError::Exhausted { .. })) => Cause::Limits,
            Self::Run(CaptureError::Spawn(_)) | Self::Command(_) => Cause::Unknown,
            Self::Hanging(_) => Cause::Hanging,
        }
    }
}

/// What a failed write is called.
#[must_use]
pub fn cause_of_io(error: &io::Error) -> Cause {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC | Errno::EDQUOT) => Cause::DiskFull,
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EAGAIN) => Cause::Limits,
        _ => Cause::Storage,
    }
}

impl Trial {
    /// Makes the directories.
    ///
    /// # Errors
    /// When they can't be made.
    pub fn prepare(bench: &Workbench) -> io::Result<Self> {
        let name = format!("probe-{}", Uuid::new_v4().simple());
        let stage = bench.dirs.stage(&name)?;
        let trial = Self {
            io: stage.io_dir(),
            workdir: stage.scratch().to_path_buf(),
            stage: Some(stage),
            name,
        };
        std::fs::create_dir(&trial.io)?;
        Ok(trial)
    }

    /// A file for the container to read, in what it sees as its task's own directory.
    #[must_use]
    pub fn question(&self) -> PathBuf {
        self.io.join(QUESTION)
    }

    /// A program for the container, there as well.
    #[must_use]
    pub fn writer(&self) -> PathBuf {
        self.io.join(WRITER)
    }

    /// Runs `command` in the container; nothing when the will ended it.
    ///
    /// # Errors
    /// When it can't be run or doesn't end.
    pub async fn run(
        &self,
        bench: &Workbench,
        image: &Path,
        proc: ProcMount,
        command: &[String],
        will: &watch::Receiver<Will>,
    ) -> Result<Option<Captured>, TrialError> {
        let binds = binds(bench, Some(&self.io), will).await?;
        let invocation = container::exec(
            &bench.apptainer,
            &RunSpec {
                image,
                args: command,
                env: &[],
                binds: &binds,
                workdir: &self.workdir,
                // More would only have to be read past.
                verbosity: Verbosity::Normal,
                proc,
            },
        )?;
        let query = Query {
            program: invocation.program,
            args: invocation.args,
            env: invocation.env,
            cwd: Some(self.workdir.clone()),
            scratch: bench.dirs.apptainer(),
        };
        let limits = Limits {
            timeout: Some(DEADLINE),
            grace: Duration::from_secs(1),
        };
        let captured = capture(&bench.guard, query, limits, will.clone()).await?;
        match captured.ended_by {
            EndedBy::Itself => Ok(Some(captured)),
            EndedBy::Timeout => Err(TrialError::Hanging(DEADLINE)),
            EndedBy::Will => Ok(None),
        }
    }

    /// What Apptainer said, the probe's own name left out: equal failures read the same.
    #[must_use]
    pub fn answer(&self, captured: &Captured) -> Answer {
        match container::answer(shells_code(captured.exit), &captured.stderr) {
            Answer::Works => Answer::Works,
            Answer::Broken { cause, said } => Answer::Broken {
                cause,
                said: container::scrub(&said, &[(&self.name, "<probe>")]),
            },
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let files = [self.question(), self.writer()];
        if let Some(Err(error)) = self.stage.take().map(|stage| stage.clear(&files)) {
            tracing::warn!(%error, "a probe's directories could not be removed");
        }
    }
}

/// Whether containers of `image` can be made here now; nothing when the will came in between.
pub async fn probe(
    bench: &Workbench,
    image: &Path,
    will: &watch::Receiver<Will>,
) -> Option<Answer> {
    let trial = match Trial::prepare(bench) {
        Ok(trial) => trial,
        Err(error) => return Some(broken(&error.into())),
    };
    let command = [NO_COMMAND.to_owned()];
    match trial.run(bench, image, bench.proc, &command, will).await {
        Ok(captured) => captured.map(|captured| trial.answer(&captured)),
        Err(error) => Some(broken(&error)),
    }
}

fn broken(error: &TrialError) -> Answer {
    Answer::Broken {
        cause: error.cause(),
        said: error.to_string(),
    }
}

/// An end as a shell's exit code, in which a signal is one of 128 and more; as containers have it.
pub(super) fn shells_code(exit: ExitStatus) -> i32 {
    match exit {
        ExitStatus::Code(code) => code,
        ExitStatus::Signal(signal) => 128 + signal,
    }
}
