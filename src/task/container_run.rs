//! One container, a task's or the init container, from its directories to a [`TaskOutcome`].

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use nix::libc;
use tokio::sync::{oneshot, watch};
use tracing::warn;

use super::active_containers::ActiveContainer;
use super::binds::{own_binds, shared_binds};
use super::container_end::{NotRun, TaskOutcome, Unbegun, lost_at_gate, outcome, staging_error};
use super::gate::{self, Gate, GateFiles};
use super::held_container::{HeldEnd, Hold, held};
use super::output_capture::{OutputCapture, OutputCopying};
use super::probe_container::cause_of_spawn;
use super::shared_look::SharedLook;
use super::staging::{HUB_IN_CONTAINER, INPUTS_IN_CONTAINER, TaskDirs, TaskIo};
use super::watchdog::{self, ProgressSources, ResourceLimits};
use super::{ContainerLoss, ContainerSpec, SharedTaskContext, TaskContext, TaskMetrics, TaskStart};
use crate::blocking;
use crate::config::{DumpOutput, GpuSet};
use crate::container::{self, Bind, ContainerPaths, Invocation, RunSpec};
use crate::fault::{self, Cause, ContainerRole, FaultClass, TaskError};
use crate::process::{
    self, ChildExit, ChildLimits, ChildPreparation, ChildSpec, ShutdownPhase, ShutdownSender,
    SpawnError, StartFailure, StopCause,
    output::{self, ShownOutput},
};
use crate::telemetry::{OutputStream, Progress};

/// What one container has of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct ContainerOwn<'a> {
    pub(super) stage: &'a TaskDirs,
    /// `None` for the init container.
    pub(super) io: Option<&'a TaskIo>,
    /// The GPUs that it sees; `None` if the job has none.
    pub(super) gpus: Option<&'a GpuSet>,
    pub(super) start: TaskStart,
}

/// Makes a container and runs it to its end. The task in it begins once `turn_comes`: until then the container
/// waits at its gate, or is not made yet. Equal failures of different tasks give equal error texts.
pub(super) async fn launch(
    context: &SharedTaskContext,
    plan: &Arc<ContainerSpec>,
    role: ContainerRole,
    own: ContainerOwn<'_>,
    turn_comes: impl Future<Output = Result<(), Unbegun>>,
    shutdown: watch::Receiver<ShutdownPhase>,
    trace: &mut TaskMetrics,
) -> Result<TaskOutcome, ContainerLoss> {
    let edited = |error: TaskError| error.edited(|text| without_identity(text, own));
    // Boxed: the future is large.
    let ended = Box::pin(start_to_end(
        (context, plan),
        role,
        own,
        turn_comes,
        shutdown,
        trace,
    ));
    match ended.await {
        Ok(TaskOutcome::Failed(error)) | Err(NotRun::Task(error)) => {
            Ok(TaskOutcome::Failed(edited(error)))
        }
        Ok(outcome) => Ok(outcome),
        Err(NotRun::CalledOff) => Err(ContainerLoss::CalledOff),
        Err(NotRun::Broken(error)) => Err(ContainerLoss::Broken(edited(error))),
        Err(NotRun::Died(error)) => Err(ContainerLoss::Died(edited(error))),
        Err(NotRun::Outdated) => Err(ContainerLoss::Outdated),
    }
}

/// Services count equal texts, so the paths of a task's own files are replaced by placeholders.
fn without_identity(text: &str, ContainerOwn { stage, io, .. }: ContainerOwn<'_>) -> String {
    let text = match io {
        Some(io) => fault::scrub(
            text,
            &[
                (&io.infile_in_container(), "{{INFILE}}"),
                (&io.outfile_in_container(), "{{OUTFILE}}"),
            ],
        ),
        None => text.to_owned(),
    };
    stage.scrub(&text)
}

async fn start_to_end(
    (context, plan): (&SharedTaskContext, &Arc<ContainerSpec>),
    role: ContainerRole,
    own: ContainerOwn<'_>,
    turn_comes: impl Future<Output = Result<(), Unbegun>>,
    shutdown: watch::Receiver<ShutdownPhase>,
    trace: &mut TaskMetrics,
) -> Result<TaskOutcome, NotRun> {
    let ContainerOwn { stage, io, .. } = own;
    let mut turn_comes = pin!(turn_comes);
    if own.start == TaskStart::WithContainer {
        turn_comes.as_mut().await.map_err(NotRun::from)?;
    }
    let (copying, outputs) = OutputCapture::new(context.output_limit);
    let (gate, gate_files) = oneshot::channel();
    let shared = shared_binds(context, plan, &shutdown).await;
    let shared = shared.map_err(|error| own.not_made(unusable(&error)))?;
    let child = preparation(context, plan, own, (copying, gate), shared.clone());
    let child = child.map_err(|error| own.not_made(error))?;
    let (started, leader) = oneshot::channel();
    let written = outputs.written();
    let signs = ProgressSources {
        leader,
        outputs: written.clone(),
        outfile: io.map(TaskIo::outfile),
    };
    let (limits, guards) = limits(context, plan, role);
    let kills_before = context.memory_kills.count();
    let own_shutdown = ShutdownSender::new();
    own_shutdown.advance(*shutdown.borrow());
    let (begins, work_begins) = oneshot::channel::<()>();
    let mut run = pin!(process::prepare_and_supervise(
        &context.guard,
        child,
        limits,
        own_shutdown.subscribe(),
        (started, work_begins.map(drop)),
    ));
    let mut gate = None;
    if own.start != TaskStart::WithContainer {
        let turn_comes = async {
            turn_comes.await?;
            match own.start {
                TaskStart::AtGate => still_valid(context, plan, &shared, &shutdown).await,
                TaskStart::AtOpenGate | TaskStart::WithContainer => Ok(()),
            }
        };
        let held = held(
            run.as_mut(),
            Hold {
                files: gate_files,
                list: &context.waiting,
                name: stage.name(),
            },
            turn_comes,
            shutdown.clone(),
        );
        match held.await {
            HeldEnd::Opened(opened, waited) => {
                gate = Some(opened);
                trace.waited = Some(waited);
            }
            HeldEnd::Ended(ended) => {
                let ended = ended.map_err(|failure| not_made(own, failure))?;
                outputs.finish(["stdoutfile", "stderrfile"]).await;
                let ended = (ended, kills_before);
                return Err(lost_at_gate((context, plan), stage, ended, &written, &shutdown).await);
            }
            HeldEnd::NotRun(reason) => {
                own_shutdown.advance(ShutdownPhase::Kill);
                if let Ok(ended) = run.await {
                    trace.ended(&ended);
                }
                return Err(reason);
            }
        }
    }
    let opened = Instant::now();
    // The child may have ended.
    let _unheard = begins.send(());
    let entered = context.running.enter(stage.name());
    let watched = (guards, signs, &entered, &context.look);
    let begun = gate.as_mut().map(|gate| (gate, &mut trace.began));
    let forwarded = (shutdown.clone(), &own_shutdown);
    let (ended, breach) =
        guarded(run, watched, begun, forwarded, &mut trace.container_memory).await;
    drop(entered);
    let ended = ended.map_err(|failure| not_made(own, failure))?;
    outputs.finish(["stdoutfile", "stderrfile"]).await;

    trace.ended(&ended);
    if let Some(gate) = &mut gate {
        trace.container_time = Some(opened.elapsed());
        if !gate.has_begun() && ended.ended_by == StopCause::Itself && breach.is_none() {
            let ended = (ended, kills_before);
            return Err(lost_at_gate((context, plan), stage, ended, &written, &shutdown).await);
        }
        trace.began.get_or_insert(opened);
    }
    let ended = (&ended, breach, kills_before);
    let outcome = outcome((context, plan), role, stage, ended, &written, &shutdown).await;
    let outcome = outcome.map_err(NotRun::Task)?;
    // The files of failed tasks are kept; of the others only the log remains.
    match (&outcome, context.dump) {
        (TaskOutcome::Failed(_), _) => show_output(context, role, stage, ShownOutput::Ends).await,
        (_, DumpOutput::All) => show_output(context, role, stage, ShownOutput::Whole).await,
        _ => {}
    }
    Ok(outcome)
}

fn limits(
    context: &TaskContext,
    plan: &ContainerSpec,
    role: ContainerRole,
) -> (ChildLimits, ResourceLimits) {
    let limits = ChildLimits {
        timeout: plan.timeout,
        grace: context.grace,
    };
    let guards = match role {
        ContainerRole::Task => context.guards,
        ContainerRole::Init => ResourceLimits::default(),
    };
    (limits, guards)
}

/// Checks that nothing was mounted since a container was made, where its task could write.
async fn still_valid(
    context: &SharedTaskContext,
    plan: &Arc<ContainerSpec>,
    made_with: &[Bind],
    shutdown: &watch::Receiver<ShutdownPhase>,
) -> Result<(), NotRun> {
    match shared_binds(context, plan, shutdown).await {
        Ok(now) if now == made_with => Ok(()),
        Ok(_) => Err(NotRun::Outdated),
        Err(error) => Err(NotRun::Broken(unusable(&error))),
    }
}

/// Runs the container under its watchdog, and notes when its task begins. Also returns the error for which the
/// watchdog ended it.
async fn guarded<E>(
    mut run: Pin<&mut impl Future<Output = Result<ChildExit, E>>>,
    (guards, signs, entered, look): (
        ResourceLimits,
        ProgressSources,
        &ActiveContainer,
        &SharedLook,
    ),
    mut begun: Option<(&mut Gate, &mut Option<Instant>)>,
    (pilots_shutdown, own_shutdown): (watch::Receiver<ShutdownPhase>, &ShutdownSender),
    memory: &mut Option<u64>,
) -> (Result<ChildExit, E>, Option<TaskError>) {
    let mut forwarded = pin!(watchdog::forward(pilots_shutdown, own_shutdown));
    let breach = {
        let mut watch = pin!(guards.watch(signs, entered, look, own_shutdown, memory));
        loop {
            tokio::select! {
                biased;
                () = begins(&mut begun) => {
                    if let Some((_, began)) = begun.take() {
                        *began = Some(Instant::now());
                    }
                }
                ended = &mut run => return (ended, None),
                breach = &mut watch => break breach,
                never = &mut forwarded => match never {},
            }
        }
    };
    // The pilot's shutdown is still forwarded: its kill shortens the grace period that the watchdog began.
    let ended = tokio::select! {
        ended = &mut run => ended,
        never = &mut forwarded => match never {},
    };
    (ended, Some(breach))
}

async fn begins(begun: &mut Option<(&mut Gate, &mut Option<Instant>)>) {
    match begun {
        Some((gate, _)) => gate.begun().await,
        None => std::future::pending().await,
    }
}

/// The container's command, and what is done for it on the thread that starts it: the paths of its own
/// directories are checked, and the files for its outputs made.
fn preparation(
    context: &SharedTaskContext,
    plan: &Arc<ContainerSpec>,
    own: ContainerOwn<'_>,
    (copying, gate): (OutputCopying<2>, oneshot::Sender<GateFiles>),
    shared: Vec<Bind>,
) -> Result<ChildPreparation<impl FnOnce() -> Result<ChildSpec, TaskError> + Send + use<>>, TaskError>
{
    let ContainerOwn {
        stage,
        io,
        gpus,
        start,
    } = own;
    let own = own_binds(context, io.map(|io| io.dir.as_path()));
    let gate = io
        .filter(|_| start != TaskStart::WithContainer)
        .map(|io| (io.dir.clone(), stage.dir().to_owned(), gate));
    let [stdout, stderr] = [stage.stdout(), stage.stderr()];
    let (args, env) = (arguments(plan, io)?, variables(context, plan, io));
    let (scratch, gpus) = (stage.scratch().to_path_buf(), gpus.cloned());
    let (shared_context, plan) = (Arc::clone(context), Arc::clone(plan));
    let prepare = move || {
        let mut binds = own().map_err(|error| unusable(&error))?;
        binds.extend(shared);
        if let Some((seen, unseen, gate)) = gate {
            let script = |text: &str| shared_context.dirs.gate_script(text);
            let made = gate::bind(&binds, script)
                .and_then(|bind| Ok((bind, GateFiles::make(&seen, &unseen)?)))
                .map_err(|error| staging_error("gate", &error))?;
            binds.push(made.0);
            // The task may be called off already.
            let _called_off = gate.send(made.1);
        }
        let words = (&*args, &*env);
        let invocation = invocation(
            &shared_context,
            &plan,
            &binds,
            words,
            gpus.as_ref(),
            &scratch,
        )?;
        let files = [
            created(&stdout, "stdoutfile")?,
            created(&stderr, "stderrfile")?,
        ];
        let [stdout, stderr] = copying.start(files).map_err(|error| {
            TaskError::setup(
                Cause::Limits,
                &format!("no pipe or thread could be made for the task's outputs: {error}"),
            )
        })?;
        Ok(ChildSpec {
            program: invocation.program,
            args: invocation.args,
            env: invocation.env,
            cwd: Some(scratch),
            stdout,
            stderr,
        })
    };
    Ok(ChildPreparation {
        program: context.apptainer.program().to_owned(),
        prepare,
    })
}

fn unusable(error: &dyn std::error::Error) -> TaskError {
    TaskError::InvalidBindMount(error.to_string())
}

impl ContainerOwn<'_> {
    /// A container that could not be made: of one that waits for its event, no event's failure.
    fn not_made(&self, error: TaskError) -> NotRun {
        match self.start {
            TaskStart::WithContainer => NotRun::Task(error),
            TaskStart::AtGate | TaskStart::AtOpenGate => NotRun::Broken(error),
        }
    }
}

fn not_made(own: ContainerOwn<'_>, failure: StartFailure<TaskError>) -> NotRun {
    let was_killed = matches!(
        &failure,
        StartFailure::Spawn(SpawnError::Program { source, .. })
            if source.raw_os_error() == Some(libc::ECANCELED)
    );
    let error = not_started(failure);
    if was_killed && own.start != TaskStart::WithContainer {
        let said = format!(
            "a container ended before its task began: {}",
            error.message()
        );
        return NotRun::Died(TaskError::setup(Cause::Killed, &said));
    }
    own.not_made(error)
}

fn not_started(failure: StartFailure<TaskError>) -> TaskError {
    match failure {
        StartFailure::Unprepared(error) => error,
        StartFailure::Spawn(error) => match cause_of_spawn(&error) {
            Cause::Unknown => setup_error(&error, FaultClass::Ep),
            cause => TaskError::setup(cause, &error.to_string()),
        },
    }
}

/// The arguments, with the paths as this container sees them.
fn arguments(plan: &ContainerSpec, io: Option<&TaskIo>) -> Result<Vec<String>, TaskError> {
    let rendered = plan.args.render(&ContainerPaths {
        infile: io.map(TaskIo::infile_in_container).as_deref(),
        outfile: io.map(TaskIo::outfile_in_container).as_deref(),
        data_hub: HUB_IN_CONTAINER,
        input_files: INPUTS_IN_CONTAINER,
    });
    rendered.map_err(|error| setup_error(&error, FaultClass::Task))
}

/// The variables, ours after those of the configuration: of two of one name the later wins.
fn variables(
    context: &TaskContext,
    plan: &ContainerSpec,
    io: Option<&TaskIo>,
) -> Vec<(String, String)> {
    let inputs = context.inputs.as_ref().map(|_| INPUTS_IN_CONTAINER.into());
    let own = [
        ("EWMS_TASK_DATA_HUB_DIR", Some(HUB_IN_CONTAINER.into())),
        ("EWMS_TASK_INPUT_FILES_DIR", inputs),
        ("EWMS_TASK_INFILE", io.map(TaskIo::infile_in_container)),
        ("EWMS_TASK_OUTFILE", io.map(TaskIo::outfile_in_container)),
    ];
    let own = own
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    plan.env.iter().cloned().chain(own).collect()
}

fn invocation(
    context: &TaskContext,
    plan: &ContainerSpec,
    binds: &[Bind],
    (args, env): (&[String], &[(String, String)]),
    gpus: Option<&GpuSet>,
    workdir: &Path,
) -> Result<Invocation, TaskError> {
    container::run(
        &context.apptainer,
        &RunSpec {
            image: &plan.image,
            args,
            env,
            binds,
            workdir,
            verbosity: context.verbosity,
            gpus,
            proc: context.proc,
            user_namespace: context.user_namespace,
        },
    )
    .map_err(|error| setup_error(&error, FaultClass::Task))
}

/// Copies a container's stdout to the pilot's stdout, and its stderr to the pilot's stderr. Waits for that,
/// so that at most the running tasks have a copy pending, but not for a reader that is too slow: the files
/// may then be removed unshown.
pub(super) async fn show_output(
    context: &TaskContext,
    role: ContainerRole,
    stage: &TaskDirs,
    shown: ShownOutput,
) {
    let show = |stream: OutputStream, path: PathBuf| {
        let name = format!("{role} {} ({stream})", stage.name());
        async move {
            let dumped = show_stream(&context.log, stream, path, name, shown).await;
            if let Err(error) = dumped {
                warn!(%stream, %error, "a container's output can't be shown");
            }
        }
    };
    tokio::join!(
        show(OutputStream::Stdout, stage.stdout()),
        show(OutputStream::Stderr, stage.stderr())
    );
}

async fn show_stream(
    log: &Progress,
    stream: OutputStream,
    path: PathBuf,
    name: String,
    shown: ShownOutput,
) -> io::Result<()> {
    let opening = move || -> io::Result<_> {
        let file = File::open(&path)?;
        let is_empty = file.metadata()?.len() == 0;
        Ok((!is_empty).then_some((file, path)))
    };
    let Some((file, path)) = blocking::start(opening).await?? else {
        return Ok(());
    };
    let dump = move |sink: &mut dyn io::Write| output::dump((file, &path), &name, shown, sink);
    log.dump(stream, dump).await
}

fn created(path: &Path, what: &'static str) -> Result<File, TaskError> {
    File::create(path).map_err(|error| staging_error(what, &error))
}

fn setup_error(error: &dyn std::error::Error, class: FaultClass) -> TaskError {
    TaskError::ContainerSetup {
        message: error.to_string(),
        class,
    }
}
