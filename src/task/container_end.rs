//! What the end of a container means: for its task, or for the pilot if no task ran in it.

use std::io;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::{error, warn};

use super::fault_diagnosis::{self, Stderr};
use super::memory_cgroup::MemoryKillSign;
use super::output_capture::BytesWritten;
use super::probe_container::shells_code;
use super::staging::TaskDirs;
use super::{ContainerSpec, SharedTaskContext, TaskContext, file_work};
use crate::broker::Content;
use crate::fault::{self, Attribution, Cause, ContainerRole, TaskError};
use crate::process::{ChildExit, ExitStatus, Leftovers, ShutdownPhase, StopCause};

/// How a task ended.
#[derive(Debug)]
pub enum TaskOutcome {
    Output(Content),
    /// It succeeded and wrote no output event. For a container alone: it succeeded.
    NoOutput,
    /// It failed, reached its time limit, or was hit by a fault of the machine.
    Failed(TaskError),
    /// It was told to end with the pilot and did not finish before.
    Interrupted,
}

/// The reason why a container that waited for its event never got one.
#[derive(Debug)]
pub enum ContainerLoss {
    /// It was let go, or the pilot ends.
    CalledOff,
    /// It could not be made, for a cause that is known: no other can be.
    Broken(TaskError),
    /// It ended without a known cause: something killed it.
    Died(TaskError),
    /// What the machine has mounted changed since it was made, so that its task might write where it must not.
    Outdated,
}

/// The reason why a task did not begin.
#[derive(Debug, Clone)]
pub(super) enum Unbegun {
    CalledOff,
    /// Its event could not be written.
    Failed(TaskError),
}

/// Why a container came to no task's outcome.
pub(super) enum NotRun {
    /// The error of its task.
    Task(TaskError),
    CalledOff,
    /// The container's own, for a known cause, before its task began.
    Broken(TaskError),
    Died(TaskError),
    Outdated,
}

impl From<Unbegun> for NotRun {
    fn from(unbegun: Unbegun) -> Self {
        match unbegun {
            Unbegun::CalledOff => Self::CalledOff,
            Unbegun::Failed(error) => Self::Task(error),
        }
    }
}

/// How a container's task ended, by all that is known when the container is gone.
pub(super) async fn outcome(
    (context, plan): (&SharedTaskContext, &Arc<ContainerSpec>),
    role: ContainerRole,
    stage: &TaskDirs,
    (ended, breach, kills_before): (&ChildExit, Option<TaskError>, u64),
    [_, stderr_bytes]: &[BytesWritten; 2],
    shutdown: &watch::Receiver<ShutdownPhase>,
) -> Result<TaskOutcome, TaskError> {
    if let Leftovers::Survive(pids) = &ended.leftovers {
        error!(?pids, "processes of a container can't be killed");
    }
    let explained = out_of_memory(context, role, ended, kills_before)
        .map(TaskOutcome::Failed)
        .or_else(|| ended_by_pilot(role, ended, plan));
    let judged = if let Some(outcome) = explained {
        outcome
    } else {
        let stderr = read_stderr(stage, stderr_bytes).await?;
        judge(context, role, ended.exit, plan, stage, &stderr, shutdown).await
    };
    Ok(match (judged, breach) {
        (TaskOutcome::Interrupted, Some(breach)) => TaskOutcome::Failed(breach),
        (outcome, _) => outcome,
    })
}

/// Why a container ended before its task began, which is never the task's doing.
pub(super) async fn lost_at_gate(
    (context, plan): (&TaskContext, &ContainerSpec),
    stage: &TaskDirs,
    (ended, kills_before): (ChildExit, u64),
    [_, stderr_bytes]: &[BytesWritten; 2],
    shutdown: &watch::Receiver<ShutdownPhase>,
) -> NotRun {
    if ended.ended_by != StopCause::Itself {
        return NotRun::CalledOff;
    }
    if let Some(error) = out_of_memory(context, ContainerRole::Task, &ended, kills_before) {
        return NotRun::Died(error);
    }
    let stderr = match read_stderr(stage, stderr_bytes).await {
        Ok(stderr) => stderr,
        Err(error) => return NotRun::Broken(error),
    };
    match fault_diagnosis::blame(context, plan, stage, ended.exit, &stderr, shutdown).await {
        blame @ Attribution::Cause(..) => {
            let code = python_code(ended.exit);
            NotRun::Broken(blame.error(ContainerRole::Task, code, &stderr.tail))
        }
        Attribution::Unknown => NotRun::CalledOff,
        Attribution::Task => NotRun::Died(died(ended.exit, &fault::reason(&stderr.tail))),
    }
}

fn died(exit: ExitStatus, said: &str) -> TaskError {
    let how = match exit {
        ExitStatus::Code(code) => format!("exit code {code}"),
        ExitStatus::Signal(signal) => format!("signal {signal}"),
    };
    let said = format!("a container ended before its task began ({how}): {said}");
    TaskError::setup(Cause::Killed, &said)
}

/// Whether the kernel killed a container for memory. The counters of the control group tell, because the
/// container itself shows only a kill.
fn out_of_memory(
    context: &TaskContext,
    role: ContainerRole,
    ended: &ChildExit,
    kills_before: u64,
) -> Option<TaskError> {
    const KILLED: i32 = 128 + 9;
    if ended.ended_by != StopCause::Itself {
        return None;
    }
    let sign = match shells_code(ended.exit) {
        0 => return None,
        KILLED => MemoryKillSign::Killed,
        _ if context.running.watch().borrow().is_empty() => MemoryKillSign::FailedAlone,
        _ => return None,
    };
    if !context.memory_kills.explain(kills_before, sign) {
        return None;
    }
    let limit = context.memory_kills.limit();
    warn!(
        largest_process_bytes = ended.usage.max_rss_bytes,
        job_limit_bytes = limit,
        "the kernel killed a container for memory"
    );
    Some(TaskError::OutOfMemory { role, limit })
}

/// The outcome of a container that the pilot ended. One that was told to end and exits with 0 has finished
/// its work.
fn ended_by_pilot(
    role: ContainerRole,
    ended: &ChildExit,
    plan: &ContainerSpec,
) -> Option<TaskOutcome> {
    match (ended.ended_by, ended.exit) {
        (StopCause::Timeout, _) => Some(TaskOutcome::Failed(TaskError::Timeout {
            role,
            after: plan.timeout.unwrap_or_default(),
        })),
        (StopCause::Shutdown, ExitStatus::Code(0)) => Some(TaskOutcome::NoOutput),
        (StopCause::Shutdown, _) => Some(TaskOutcome::Interrupted),
        (StopCause::Itself, _) => None,
    }
}

/// The outcome of a container that ended by itself.
async fn judge(
    context: &TaskContext,
    role: ContainerRole,
    exit: ExitStatus,
    plan: &ContainerSpec,
    stage: &TaskDirs,
    stderr: &Stderr,
    shutdown: &watch::Receiver<ShutdownPhase>,
) -> TaskOutcome {
    let blame = fault_diagnosis::blame(context, plan, stage, exit, stderr, shutdown).await;
    match (&blame, exit) {
        (Attribution::Task | Attribution::Unknown, ExitStatus::Code(0)) => TaskOutcome::NoOutput,
        (Attribution::Unknown, _) => TaskOutcome::Interrupted,
        (Attribution::Task | Attribution::Cause(..), exit) => {
            TaskOutcome::Failed(blame.error(role, python_code(exit), &stderr.tail))
        }
    }
}

/// Skips an empty file: reading it would take a thread.
async fn read_stderr(stage: &TaskDirs, written: &BytesWritten) -> Result<Stderr, TaskError> {
    if written.bytes() == 0 {
        return Ok(Stderr::default());
    }
    let path = stage.stderr();
    file_work(move || Stderr::read(&path).map_err(|error| staging_error("stderrfile", &error)))
        .await
}

/// An error for a file or directory of a task that can't be written or read. Names the purpose and not the
/// path, which is different for every task: services count equal texts.
pub(super) fn staging_error(what: &'static str, error: &io::Error) -> TaskError {
    TaskError::Os(format!(
        "can't handle the task's {what}: {error}; see to the disk that holds `ewms-pilot-data`"
    ))
}

/// A process's return code as Python and all services that count our errors have it: -N for a process ended
/// by signal N.
fn python_code(exit: ExitStatus) -> i32 {
    match exit {
        ExitStatus::Code(code) => code,
        ExitStatus::Signal(signal) => -signal,
    }
}
