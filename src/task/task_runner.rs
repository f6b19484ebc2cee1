//! Runs one event to its [`TaskOutcome`]: infile, container, outfile.

use std::cell::Cell;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{MaybeDone, maybe_done};
use tokio::sync::{oneshot, watch};
use tracing::{Instrument, error, info, info_span, warn};

use super::container_end::{ContainerLoss, TaskOutcome, Unbegun, staging_error};
use super::container_run::{ContainerOwn, launch, show_output};
use super::event_copy::{EventCopy, PendingCopy};
use super::event_files::{self, MemoryBudget, OutfileState, WantedResult};
use super::staging::{DirDisposal, TaskDirs, TaskIo};
use super::{
    ContainerSpec, GpuLease, Leftover, SharedTaskContext, TaskMetrics, TaskStart, TaskTurn,
    file_work,
};
use crate::broker::{BodyStore, Content, Encoding, MessageLimit};
use crate::config::{DumpOutput, KeepFiles};
use crate::fault::{ContainerRole, TaskError};
use crate::ids::TaskId;
use crate::process::ShutdownPhase;
use crate::process::output::ShownOutput;

/// Runs tasks, any number at once.
#[derive(Debug)]
pub struct TaskRunner {
    pub context: SharedTaskContext,
    pub plan: Arc<ContainerSpec>,
    /// Suffix of the infile, without the leading dot.
    pub infile_ext: String,
    /// Suffix of the outfile, without the leading dot.
    pub outfile_ext: String,
    pub encoding: Encoding,
    /// The largest result, as a frame.
    pub limit: MessageLimit,
    /// The store for large events and results.
    pub bodies: BodyStore,
    /// The memory to pack and unpack them in.
    pub room: MemoryBudget,
}

#[derive(Debug)]
pub struct TaskReport {
    pub outcome: TaskOutcome,
    /// The event, in case it goes to the dead-letter queue.
    pub event: EventCopy,
    /// From the start of staging to the end of collecting.
    pub wall: Duration,
    /// The measurements, as far as the task got.
    pub trace: TaskMetrics,
    /// The directories to clear away after the result is published.
    pub leftover: Leftover,
}

/// The end of a task whose container may have been made before its event was known.
#[derive(Debug)]
pub enum TaskEnd {
    /// It had an event.
    Task(Box<TaskReport>),
    /// No event was given to it.
    Unused(ContainerLoss),
}

/// An event in its infile, or the error of writing it.
struct Infile {
    written: Result<(), TaskError>,
    event: PendingCopy,
}

impl TaskRunner {
    /// Runs one event to its end. The container is made before the event is known, if `turn` says so, and waits.
    /// Dropping the future kills it.
    pub async fn run(
        self: std::rc::Rc<Self>,
        id: TaskId,
        turn: TaskTurn,
        shutdown: watch::Receiver<ShutdownPhase>,
    ) -> TaskEnd {
        let span = info_span!("task", task_id = %id);
        self.run_turn(id, turn, shutdown).instrument(span).await
    }

    async fn run_turn(
        &self,
        id: TaskId,
        turn: TaskTurn,
        shutdown: watch::Receiver<ShutdownPhase>,
    ) -> TaskEnd {
        let TaskTurn {
            container,
            mut event,
            start,
        } = turn;
        let (stage, io) = match self.stage(id).await {
            Ok(staged) => staged,
            Err(error) => {
                return match event.try_recv() {
                    Ok(event) => unstaged(error, PendingCopy::of(event, &self.bodies)).await,
                    Err(_) => TaskEnd::Unused(ContainerLoss::Broken(error)),
                };
            }
        };
        // Removed as well if this future is dropped.
        let leftover = Leftover::of(stage, None, io.files().into(), &self.context.kept);
        let Some(stage) = leftover.stage() else {
            return TaskEnd::Unused(ContainerLoss::CalledOff);
        };
        let mut trace = TaskMetrics::default();
        let (began, has_event) = (Cell::new(None), Cell::new(false));
        let mut infile = pin!(maybe_done(self.infile(event, &io, &has_event)));
        let ended = match made(container, infile.as_mut()).await {
            None => Err(ContainerLoss::CalledOff),
            Some(gpus) => {
                let begins = || began.set(Some(begin(&gpus)));
                let mut turn_comes = pin!(maybe_done(turn_comes(infile.as_mut(), start, begins)));
                let mut attempts = 0;
                loop {
                    let turn = turn_of(turn_comes.as_mut());
                    let task_start = match (self.context.task_start, attempts) {
                        (TaskStart::AtGate, 1..) => TaskStart::AtOpenGate,
                        (start, _) => start,
                    };
                    let own = (stage, &io, &gpus, task_start);
                    let ended = self
                        .run_container(own, turn, shutdown.clone(), &mut trace)
                        .await;
                    attempts += 1;
                    // The event may have come meanwhile.
                    let _comes = turn_comes.as_mut().now_or_never();
                    match ended {
                        Err(ContainerLoss::Died(error)) if has_event.get() && attempts == 1 => {
                            warn!(error = %error.repr(), "a container died before its task began: another is made");
                        }
                        Err(ContainerLoss::Outdated) if attempts == 1 => {
                            info!(
                                "what is mounted here changed since a container was made: another is made"
                            );
                        }
                        ended => break ended,
                    }
                }
            }
        };
        let _comes = infile.as_mut().now_or_never();
        if !has_event.get() {
            // Nothing is awaited between this look and the return, so no event can come and be lost.
            return TaskEnd::Unused(ended.err().unwrap_or(ContainerLoss::CalledOff));
        }
        infile.as_mut().await;
        let event = match infile.as_mut().take_output().flatten() {
            Some(infile) => infile.event.kept().await,
            None => EventCopy::Lost("it was never given to its task".to_owned()),
        };
        let outcome = match ended {
            Ok(outcome) => outcome,
            Err(ContainerLoss::CalledOff | ContainerLoss::Outdated) => TaskOutcome::Interrupted,
            Err(ContainerLoss::Broken(error) | ContainerLoss::Died(error)) => {
                TaskOutcome::Failed(error)
            }
        };
        let wall = began.get().map_or(Duration::ZERO, |began| began.elapsed());
        if began.get().is_some() {
            log_end(&outcome, wall);
        }
        let leftover = leftover.disposed_of(self.disposal(&outcome, &trace));
        TaskEnd::Task(Box::new(TaskReport {
            outcome,
            event,
            wall,
            trace,
            leftover,
        }))
    }

    async fn stage(&self, id: TaskId) -> Result<(TaskDirs, TaskIo), TaskError> {
        let dirs = self.context.dirs.clone();
        let (infile_ext, outfile_ext) = (self.infile_ext.clone(), self.outfile_ext.clone());
        file_work(move || {
            let staged = dirs.stage_task(id, &infile_ext, &outfile_ext);
            staged.map_err(|error| staging_error("directories", &error))
        })
        .await
    }

    /// Writes the event once it is known; `None` if it never comes.
    async fn infile(
        &self,
        event: oneshot::Receiver<Content>,
        io: &TaskIo,
        has_event: &Cell<bool>,
    ) -> Option<Infile> {
        let event = event.await.ok()?;
        has_event.set(true);
        let room = self.room.for_event(&event).await;
        let (infile_ext, path, content) = (self.infile_ext.clone(), io.infile(), event.clone());
        let written = file_work(move || {
            let _while_unpacking = room;
            event_files::write_event(&content, &infile_ext, &path)
        })
        .await;
        Some(Infile {
            written,
            event: PendingCopy::of(event, &self.bodies).put_by(),
        })
    }

    /// What happens to a task's directories; `None` if further tasks may have them.
    fn disposal(&self, outcome: &TaskOutcome, trace: &TaskMetrics) -> Option<DirDisposal> {
        match (outcome, self.context.keep) {
            (_, KeepFiles::All) => Some(DirDisposal::Keep),
            (TaskOutcome::Failed(_), KeepFiles::Failed) => Some(DirDisposal::KeepWithinBudget),
            // Processes that can't be killed may still write there.
            (_, KeepFiles::Failed) if trace.survivors > 0 => Some(DirDisposal::Remove),
            (_, KeepFiles::Failed) => None,
        }
    }

    /// Makes the container, lets it wait for its turn and runs it.
    async fn run_container(
        &self,
        (stage, io, gpus, start): (&TaskDirs, &TaskIo, &GpuLease, TaskStart),
        turn_comes: impl Future<Output = Result<(), Unbegun>>,
        shutdown: watch::Receiver<ShutdownPhase>,
        trace: &mut TaskMetrics,
    ) -> Result<TaskOutcome, ContainerLoss> {
        let own = ContainerOwn {
            stage,
            io: Some(io),
            gpus: gpus.seen(),
            start,
        };
        let role = ContainerRole::Task;
        let ended = launch(
            &self.context,
            &self.plan,
            role,
            own,
            turn_comes,
            shutdown,
            trace,
        )
        .await?;
        if !matches!(ended, TaskOutcome::NoOutput) {
            return Ok(ended);
        }
        Ok(match self.result(io).await {
            Ok(outcome) => {
                if let TaskOutcome::Output(content) = &outcome {
                    trace.output_bytes = Some(content.body().len());
                }
                outcome
            }
            Err(error) => {
                // The task whose result can't be sent may have said why.
                if self.context.dump != DumpOutput::All {
                    show_output(&self.context, role, stage, ShownOutput::Ends).await;
                }
                TaskOutcome::Failed(error)
            }
        })
    }

    /// Reads the outfile and encodes it as the sink wants it.
    async fn result(&self, io: &TaskIo) -> Result<TaskOutcome, TaskError> {
        let (outfile, ext) = (io.outfile(), self.outfile_ext.clone());
        let wanted = WantedResult {
            encoding: self.encoding,
            limit: self.limit.clone(),
            bodies: self.bodies.clone(),
        };
        let found = {
            let wanted = wanted.clone();
            file_work(move || event_files::find_result(&outfile, &ext, &wanted)).await?
        };
        let outfile = match found {
            OutfileState::Nothing => return Ok(TaskOutcome::NoOutput),
            OutfileState::Result(content) => return Ok(TaskOutcome::Output(content)),
            OutfileState::Large(outfile) => outfile,
        };
        let room = self.room.for_result(&outfile).await;
        let read = file_work(move || {
            let _while_packing = room;
            event_files::read_result(outfile, &wanted)
        });
        read.await.map(TaskOutcome::Output)
    }
}

fn begin(gpus: &GpuLease) -> Instant {
    match gpus.gpus() {
        [] => info!("task started"),
        gpus => {
            let ids: Vec<&str> = gpus.iter().map(|gpu| gpu.id.as_str()).collect();
            info!(gpus = ids.join(","), "task started");
        }
    }
    Instant::now()
}

/// Waits until the container may be made; `None` if the task is called off before. An event that waits for its
/// slot is written meanwhile.
async fn made<I: Future<Output = Option<Infile>>>(
    container: oneshot::Receiver<GpuLease>,
    infile: Pin<&mut MaybeDone<I>>,
) -> Option<GpuLease> {
    let mut container = container;
    tokio::select! {
        biased;
        made = &mut container => return made.ok(),
        () = infile => {}
    }
    container.await.ok()
}

/// Waits until the event is in its infile and the task may start.
async fn turn_comes<I: Future<Output = Option<Infile>>>(
    mut infile: Pin<&mut MaybeDone<I>>,
    start: oneshot::Receiver<()>,
    begins: impl FnOnce(),
) -> Result<(), Unbegun> {
    infile.as_mut().await;
    let Some(Some(infile)) = infile.as_mut().output_mut() else {
        return Err(Unbegun::CalledOff);
    };
    start.await.map_err(|_gone| Unbegun::CalledOff)?;
    begins();
    infile.written.clone().map_err(Unbegun::Failed)
}

/// The result of [`turn_comes`], as often as it is asked for.
async fn turn_of<F: Future<Output = Result<(), Unbegun>>>(
    mut turn_comes: Pin<&mut MaybeDone<F>>,
) -> Result<(), Unbegun> {
    turn_comes.as_mut().await;
    turn_comes
        .as_mut()
        .output_mut()
        .map_or(Err(Unbegun::CalledOff), |result| result.clone())
}

/// The end of a task whose directories could not be made.
async fn unstaged(error: TaskError, event: PendingCopy) -> TaskEnd {
    log_end(&TaskOutcome::Failed(error.clone()), Duration::ZERO);
    TaskEnd::Task(Box::new(TaskReport {
        outcome: TaskOutcome::Failed(error),
        event: event.kept().await,
        wall: Duration::ZERO,
        trace: TaskMetrics::default(),
        leftover: Leftover::none(),
    }))
}

fn log_end(outcome: &TaskOutcome, wall: Duration) {
    let wall_secs = wall.as_secs_f64();
    match outcome {
        TaskOutcome::Output(_) => info!(wall_secs, output = true, "task succeeded"),
        TaskOutcome::NoOutput => info!(wall_secs, output = false, "task succeeded"),
        TaskOutcome::Failed(error) => error!(wall_secs, error = %error.repr(), "task failed"),
        TaskOutcome::Interrupted => {
            warn!(wall_secs, "task ended with the pilot, its event goes back");
        }
    }
}
