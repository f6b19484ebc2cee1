//! A container like a task's, started as a test and not for an event: the same flags, binds, variables and
//! image, with directories of its own. No program of the image runs in it.
//!
//! One start answers everything. A script of ours, sourced after those of the image, tries what tasks rely
//! on. Then Apptainer reports that the command, which can't exist, is missing, so everything up to there
//! works. Only if the image's own scripts end that start, a second start finds out which one did.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use uuid::Uuid;

use super::binds::binds;
use super::gate::{self, GateFiles};
use super::staging::{GATE_DIR, HUB_IN_CONTAINER, IO_IN_CONTAINER, TaskDirs};
use super::{ContainerSpec, ExternalError, TaskContext, TaskStart, file_work};
use crate::blocking;
use crate::config::Verbosity;
use crate::container::{
    self, Bind, ENV_DIR, GATE, ImageShape, LAST, MARK, ProbeFinding, RunSpec, RunscriptNeeds,
    Trials,
};
use crate::fault::{self, Cause, NO_COMMAND, ProbeResult, TaskError};
use crate::process::{
    CaptureError, CaptureQuery, Captured, ChildLimits, ExitStatus, ShutdownPhase, SpawnError,
    StopCause, capture,
};

/// A start takes about 0.1 s, and some seconds on an overcommitted machine.
const DEADLINE: Duration = Duration::from_mins(1);

const SIGKILL: i32 = 9;

/// The file in the task's directory that the probe's container reads.
const QUESTION: &str = "question";
/// The file that it writes there.
const ANSWER: &str = "answer";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerProbeDepth {
    /// Tests whether a container of the image is made and could start a task.
    Start,
    /// As `Start`, and whether a file written into the data hub arrives, where other tasks would see it.
    Hub,
}

/// Whether the gate at which a container waits for its event works here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GateTrial {
    /// The container passed it.
    Passed,
    NotTried,
    Useless(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerProbeOutcome {
    Well {
        took: Duration,
        /// Things that tasks may miss.
        notes: Vec<String>,
        gate: GateTrial,
    },
    /// A container was made, but nothing could be tried in it: the site doesn't allow binds where the image
    /// has no file.
    Made(Duration),
    /// Tasks can't run in such containers.
    Broken {
        cause: Cause,
        /// In Apptainer's words, or ours.
        said: String,
    },
    /// Something killed the container, without a word of Apptainer's.
    Killed(String),
}

impl ContainerProbeOutcome {
    /// A kill may come from anywhere, above all from the kernel for memory: it says nothing about Apptainer.
    fn unless_killed(self, exit: ExitStatus) -> Self {
        match self {
            Self::Broken {
                cause: Cause::Unknown,
                said,
            } if shells_code(exit) == 128 + SIGKILL => Self::Killed(said),
            outcome => outcome,
        }
    }
}

/// A probe that got no answer from Apptainer.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("can't make a probe's files: {0}")]
    Stage(#[from] io::Error),
    #[error(transparent)]
    Bind(#[from] ExternalError),
    /// No process could be made, or its output could not be kept.
    #[error(transparent)]
    Run(#[from] CaptureError),
    #[error(transparent)]
    Command(#[from] container::CommandError),
    #[error("apptainer did not answer within {} s", .0.as_secs())]
    Hanging(Duration),
    #[error(transparent)]
    Look(TaskError),
    /// The image's file system does not answer.
    #[error("the image gave no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// A file came out different from what was written.
    #[error("what a container writes into the data directory {0}")]
    Lost(String),
}

impl ProbeError {
    fn cause(&self) -> Cause {
        match self {
            Self::Stage(error) | Self::Run(CaptureError::Output { source: error, .. }) => {
                Cause::of_io(error)
            }
            Self::Bind(error) => error.cause(),
            Self::Look(_) => Cause::Limits,
            Self::Run(CaptureError::Spawn(error)) => cause_of_spawn(error),
            Self::Command(_) => Cause::Unknown,
            Self::Hanging(_) | Self::Silent(_) => Cause::Hanging,
            Self::Lost(_) => Cause::BindsUseless,
        }
    }
}

impl From<ProbeError> for ContainerProbeOutcome {
    fn from(error: ProbeError) -> Self {
        Self::Broken {
            cause: error.cause(),
            said: error.to_string(),
        }
    }
}

/// The cause of a container that could not be started.
#[must_use]
pub fn cause_of_spawn(error: &SpawnError) -> Cause {
    match error {
        SpawnError::Exhausted { .. } | SpawnError::Unguarded(_) => Cause::Limits,
        SpawnError::Hanging { .. } => Cause::Hanging,
        _ => Cause::Unknown,
    }
}

/// Whether tasks can run in containers of `plan`'s image now; `None` if the shutdown interrupted the probe.
pub async fn probe(
    context: &TaskContext,
    plan: &ContainerSpec,
    depth: ContainerProbeDepth,
    shutdown: &watch::Receiver<ShutdownPhase>,
) -> Option<ContainerProbeOutcome> {
    let shape = match shape(&plan.image).await {
        Ok(shape) => shape,
        Err(error) => return Some(error.into()),
    };
    if let Some(said) = &shape.misshapen {
        return Some(ContainerProbeOutcome::Broken {
            cause: Cause::ImageIncomplete,
            said: said.clone(),
        });
    }
    let probe = match ProbeContainer::prepare(context, plan, shutdown).await {
        Ok(probe) => probe,
        Err(error) => return Some(error.into()),
    };
    let asked = probe.ask(&shape, depth).await;
    probe.remove().await;
    let probed = match asked {
        Ok(probed) => probed?,
        Err(error) => error.into(),
    };
    // A machine that can't run containers takes precedence over a runscript that can't start.
    match (probed, &shape.needs) {
        (ContainerProbeOutcome::Well { .. } | ContainerProbeOutcome::Made(_), Err(error)) => {
            Some(ContainerProbeOutcome::Broken {
                cause: Cause::ImageRunscript,
                said: error.to_string(),
            })
        }
        (probed, _) => Some(probed),
    }
}

/// Inspects the image, which may be on a file system that hangs.
async fn shape(image: &Path) -> Result<ImageShape, ProbeError> {
    let image = image.to_owned();
    let looking = file_work(move || Ok(ImageShape::of(&image)));
    match tokio::time::timeout(DEADLINE, looking).await {
        Ok(Ok(shape)) => Ok(shape),
        Ok(Err(error)) => Err(ProbeError::Look(error)),
        Err(_) => Err(ProbeError::Silent(DEADLINE)),
    }
}

/// A probe's directories and files. Dropping it removes them, or returns them to the pool.
struct ProbeContainer<'a> {
    context: &'a TaskContext,
    plan: &'a ContainerSpec,
    shutdown: &'a watch::Receiver<ShutdownPhase>,
    /// `None` only after the drop has begun.
    stage: Option<TaskDirs>,
    io: PathBuf,
    workdir: PathBuf,
    /// New for each probe, so that nothing else uses file names with it.
    word: String,
}

impl<'a> ProbeContainer<'a> {
    async fn prepare(
        context: &'a TaskContext,
        plan: &'a ContainerSpec,
        shutdown: &'a watch::Receiver<ShutdownPhase>,
    ) -> Result<Self, ProbeError> {
        let word = format!("probe-{}", Uuid::new_v4().simple());
        let (dirs, name) = (context.dirs.clone(), word.clone());
        let making = move || {
            let stage = dirs.stage(&name)?;
            fs::create_dir(stage.io_dir())?;
            Ok(stage)
        };
        let stage = blocking::small_files(making).await?;
        Ok(Self {
            io: stage.io_dir(),
            workdir: stage.scratch().to_path_buf(),
            stage: Some(stage),
            context,
            plan,
            shutdown,
            word,
        })
    }

    async fn ask(
        &self,
        shape: &ImageShape,
        depth: ContainerProbeDepth,
    ) -> Result<Option<ContainerProbeOutcome>, ProbeError> {
        let nothing = RunscriptNeeds::default();
        let [question, own] = [QUESTION, ANSWER].map(|name| format!("{IO_IN_CONTAINER}/{name}"));
        let answer = format!("{HUB_IN_CONTAINER}/.{}", self.word);
        let trials = Trials {
            word: &self.word,
            needs: shape.needs.as_ref().unwrap_or(&nothing),
            copy: match depth {
                ContainerProbeDepth::Start => None,
                ContainerProbeDepth::Hub => Some((&question, &answer)),
            },
            own: &own,
        };
        let (path, text) = (self.io.join(QUESTION), format!("{}\n", self.word));
        blocking::small_files(move || fs::write(path, text)).await?;
        let script = self.script(LAST, container::script(&trials)).await?;
        let gate = match depth {
            ContainerProbeDepth::Hub => self.gate().await,
            ContainerProbeDepth::Start => None,
        };
        let opened = gate.as_ref().and_then(|gate| gate.as_ref().ok());
        let began = Instant::now();
        let Some(captured) = self.run(std::slice::from_ref(&script), opened).await? else {
            return Ok(None);
        };
        let took = began.elapsed();
        let answer = self.answer(&captured);
        if is_about(&answer, LAST) || is_about(&answer, GATE) {
            return self.ask_apptainer_alone().await;
        }
        let found = container::found(
            &trials,
            (&captured.stdout, &captured.stderr),
            &answer,
            self.context.proc,
            |path| shape.has(path),
        );
        let outcome = match found {
            ProbeFinding::Well { notes } => {
                if depth == ContainerProbeDepth::Hub {
                    self.check_hub().await?;
                }
                ContainerProbeOutcome::Well {
                    took,
                    notes,
                    gate: tried(gate),
                }
            }
            ProbeFinding::Broken { cause, said } => ContainerProbeOutcome::Broken { cause, said },
            ProbeFinding::Silent => ContainerProbeOutcome::Made(took),
            ProbeFinding::Ended => {
                return self
                    .ask_who_ended_it(&shape.scripts, &captured, script)
                    .await;
            }
        };
        Ok(Some(outcome.unless_killed(captured.exit)))
    }

    async fn ask_apptainer_alone(&self) -> Result<Option<ContainerProbeOutcome>, ProbeError> {
        let began = Instant::now();
        let captured = self.run(&[], None).await?;
        Ok(captured.map(|captured| {
            let outcome = match self.answer(&captured) {
                ProbeResult::Works => ContainerProbeOutcome::Made(began.elapsed()),
                ProbeResult::Broken { cause, said } => {
                    ContainerProbeOutcome::Broken { cause, said }
                }
            };
            outcome.unless_killed(captured.exit)
        }))
    }

    /// Starts once more, with a marker after each script of the image.
    async fn ask_who_ended_it(
        &self,
        names: &[String],
        first: &Captured,
        last: Bind,
    ) -> Result<Option<ContainerProbeOutcome>, ProbeError> {
        let mut scripts = vec![last];
        for name in names {
            let (name, text) = (format!("{name}{MARK}"), container::mark(&self.word, name));
            scripts.push(self.script(&name, text).await?);
        }
        let Some(captured) = self.run(&scripts, None).await? else {
            return Ok(None);
        };
        let code = shells_code(first.exit);
        let culprit = container::not_past(&self.word, names, &captured.stdout)
            // Nothing shows that a container that was killed had come to its first script.
            .filter(|name| {
                code != 128 + SIGKILL || names.first().is_none_or(|first| first != name)
            });
        let (cause, who) = match culprit {
            Some(name) => (
                Cause::ImageEnvironment,
                format!("`{ENV_DIR}/{name}` of the image ends"),
            ),
            // A container killed without a message may have been killed by anything.
            None if code >= 128 => (Cause::Unknown, "something ended".to_owned()),
            None => (
                Cause::ImageEnvironment,
                format!("the scripts in `{ENV_DIR}` of the image end"),
            ),
        };
        let said = fault::reason(&first.stderr);
        let outcome = ContainerProbeOutcome::Broken {
            cause,
            said: format!("{who} every container at its start (exit code {code}): {said}"),
        };
        Ok(Some(outcome.unless_killed(first.exit)))
    }

    /// Checks that the file written into the hub by the container is there.
    async fn check_hub(&self) -> Result<(), ProbeError> {
        let path = self.hub_file();
        let text = blocking::small_files(move || fs::read_to_string(path))
            .await
            .map_err(|error| ProbeError::Lost(format!("does not arrive: {error}")))?;
        if text.trim_end() == self.word {
            Ok(())
        } else {
            Err(ProbeError::Lost("arrives as something else".to_owned()))
        }
    }

    fn hub_file(&self) -> PathBuf {
        self.context.dirs.hub().join(format!(".{}", self.word))
    }

    /// Writes a script of ours and binds it among those of the image.
    async fn script(&self, name: &str, text: String) -> Result<Bind, ProbeError> {
        let path = self.workdir.join(name);
        let written = path.clone();
        blocking::small_files(move || fs::write(written, text)).await?;
        Ok(Bind::script(path, format!("{ENV_DIR}/{name}")))
    }

    /// A gate that stands open, if containers of tasks are to wait at one.
    async fn gate(&self) -> Option<io::Result<GateFiles>> {
        if self.context.task_start == TaskStart::WithContainer {
            return None;
        }
        let (seen, unseen) = (self.io.clone(), self.stage.as_ref()?.dir().to_owned());
        let making = move || {
            let gate = GateFiles::make(&seen, &unseen)?;
            gate.open_for_good()?;
            Ok(gate)
        };
        Some(blocking::small_files(making).await)
    }

    /// Runs the container; `None` if the shutdown ended it.
    async fn run(
        &self,
        scripts: &[Bind],
        gate: Option<&GateFiles>,
    ) -> Result<Option<Captured>, ProbeError> {
        let mut binds = binds(self.context, self.plan, Some(&self.io), self.shutdown).await?;
        binds.extend_from_slice(scripts);
        if gate.is_some() {
            let (dirs, others) = (self.context.dirs.clone(), binds.clone());
            let making = move || gate::bind(&others, |text| dirs.gate_script(text));
            binds.push(blocking::small_files(making).await?);
        }
        let invocation = container::exec(
            &self.context.apptainer,
            &RunSpec {
                image: &self.plan.image,
                args: &[NO_COMMAND.to_owned()],
                env: &self.plan.env,
                binds: &binds,
                workdir: &self.workdir,
                // More output would only have to be skipped.
                verbosity: Verbosity::Normal,
                gpus: self.context.gpus.all().as_ref(),
                proc: self.context.proc,
                user_namespace: self.context.user_namespace,
            },
        )?;
        let query = CaptureQuery {
            program: invocation.program,
            args: invocation.args,
            env: invocation.env,
            cwd: Some(self.workdir.clone()),
            scratch: self.context.dirs.apptainer(),
        };
        let limits = ChildLimits {
            timeout: Some(DEADLINE),
            grace: Duration::from_secs(1),
        };
        let captured = capture(&self.context.guard, query, limits, self.shutdown.clone()).await?;
        match captured.ended_by {
            StopCause::Itself => Ok(Some(captured)),
            StopCause::Timeout => Err(ProbeError::Hanging(DEADLINE)),
            StopCause::Shutdown => Ok(None),
        }
    }

    /// Apptainer's answer without the probe's own name, so that equal failures read the same.
    fn answer(&self, captured: &Captured) -> ProbeResult {
        match fault::answer(shells_code(captured.exit), &captured.stderr) {
            ProbeResult::Works => ProbeResult::Works,
            ProbeResult::Broken { cause, said } => ProbeResult::Broken {
                cause,
                said: fault::scrub(&said, &[(&self.word, "<probe>")]),
            },
        }
    }

    /// Removes the container's files, so that its directories are as before, and returns them to the pool.
    async fn remove(mut self) {
        if let Some(removing) = self.removing() {
            let _panicked = blocking::start(removing).await;
        }
    }

    /// The clean-up as a closure; `None` if it was taken already.
    fn removing(&mut self) -> Option<impl FnOnce() + Send + use<>> {
        let stage = self.stage.take()?;
        let hidden = format!(".{}", self.word);
        let (hub_file, workdir) = (self.hub_file(), self.workdir.clone());
        let files = [QUESTION, ANSWER].map(|name| self.io.join(name));
        let gate = self.io.join(GATE_DIR);
        Some(move || {
            // For the first task. Not every probe has one.
            let _not_there = fs::rename(gate, stage.dir().join(GATE_DIR));
            let scratch = ["tmp", "var_tmp", "home"].map(|part| workdir.join(part).join(&hidden));
            let scripts = fs::read_dir(&workdir).into_iter().flatten().flatten();
            let scripts = scripts
                .map(|entry| entry.path())
                .filter(|path| path.is_file());
            for file in scratch.into_iter().chain([hub_file]).chain(scripts) {
                // A missing file was never written.
                let _ = fs::remove_file(file);
            }
            if let Err(error) = stage.clear(&files) {
                tracing::warn!(%error, "a probe's directories could not be removed");
            }
        })
    }
}

impl Drop for ProbeContainer<'_> {
    fn drop(&mut self) {
        if let Some(removing) = self.removing() {
            drop(blocking::start(removing));
        }
    }
}

fn tried(gate: Option<io::Result<GateFiles>>) -> GateTrial {
    match gate {
        None => GateTrial::NotTried,
        Some(Err(error)) => GateTrial::Useless(format!("no FIFO can be made for them: {error}")),
        Some(Ok(gate)) if gate.was_passed() => GateTrial::Passed,
        Some(Ok(_)) => {
            GateTrial::Useless("Apptainer does not run the script that would hold them".to_owned())
        }
    }
}

/// Whether Apptainer could not bind our script in this container.
fn is_about(answer: &ProbeResult, script: &str) -> bool {
    matches!(answer, ProbeResult::Broken { cause: Cause::ImageIncomplete | Cause::Mount, said } if said.contains(script))
}

/// An exit as a shell's exit code: 128 plus the number for a signal. Apptainer passes on such codes.
pub(super) fn shells_code(exit: ExitStatus) -> i32 {
    match exit {
        ExitStatus::Code(code) => code,
        ExitStatus::Signal(signal) => 128 + signal,
    }
}
