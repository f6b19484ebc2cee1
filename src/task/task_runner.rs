//! Runs one event to its [`TaskOutcome`]: infile, container, outfile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tracing::{Instrument, error, info, info_span, warn};

use super::container_run::{ContainerOwn, TaskOutcome, launch, show_output, staging_error};
use super::disk_space::DiskBudget;
use super::event_copy::{EventCopy, PendingCopy};
use super::event_files::{self, MemoryBudget, OutfileState, WantedResult};
use super::staging::{DirDisposal, TaskDirs, TaskIo};
use super::{ContainerSpec, GpuLease, Leftover, SharedTaskContext, TaskMetrics, file_work};
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

/// When a task may start, and with which GPUs.
#[derive(Debug)]
pub enum StartGate {
    /// At once.
    Now(GpuLease),
    /// On this message; never, if the sender is dropped.
    Later(oneshot::Receiver<GpuLease>),
}

/// A task's directories with its infile, or the error of writing it.
struct StagedTask {
    stage: TaskDirs,
    io: TaskIo,
    written: Result<(), TaskError>,
    event: PendingCopy,
}

impl TaskRunner {
    /// Runs one event to its end. Prepares everything but the container before its turn comes. Dropping the
    /// future kills the container.
    pub async fn run(
        self: std::rc::Rc<Self>,
        id: TaskId,
        event: Content,
        turn: StartGate,
        shutdown: watch::Receiver<ShutdownPhase>,
    ) -> TaskReport {
        let span = info_span!("task", task_id = %id);
        async {
            let mut trace = TaskMetrics::default();
            let (staged, started, gpus) = match turn {
                StartGate::Now(gpus) => {
                    let started = begin(&gpus);
                    (self.stage(id, event).await, started, gpus)
                }
                StartGate::Later(turn) => {
                    let staged = self.stage_ahead(id, event).await;
                    let Ok(gpus) = turn.await else {
                        return called_off(staged, &self.context.kept).await;
                    };
                    (staged, begin(&gpus), gpus)
                }
            };
            let (outcome, event, leftover) = match staged {
                Ok(staged) => self.run_staged(staged, &gpus, shutdown, &mut trace).await,
                Err(error) => {
                    let lost = EventCopy::Lost(error.to_string());
                    (TaskOutcome::Failed(error), lost, Leftover::none())
                }
            };
            let elapsed = started.elapsed();
            log_end(&outcome, elapsed);
            TaskReport {
                outcome,
                event,
                wall: elapsed,
                trace,
                leftover,
            }
        }
        .instrument(span)
        .await
    }

    async fn stage(&self, id: TaskId, event: Content) -> Result<StagedTask, TaskError> {
        let context = Arc::clone(&self.context);
        let (infile_ext, outfile_ext) = (self.infile_ext.clone(), self.outfile_ext.clone());
        let (room, bodies) = (self.room.for_event(&event).await, self.bodies.clone());
        file_work(move || {
            let _while_unpacking = room;
            let (stage, io) = context
                .dirs
                .stage_task(id, &infile_ext, &outfile_ext)
                .map_err(|error| staging_error("directories", &error))?;
            let written = event_files::write_event(&event, &infile_ext, &io.infile());
            Ok(StagedTask {
                stage,
                io,
                written,
                event: PendingCopy { event, bodies },
            })
        })
        .await
    }

    /// As [`Self::stage`], but a large event doesn't stay in memory.
    async fn stage_ahead(&self, id: TaskId, event: Content) -> Result<StagedTask, TaskError> {
        let mut staged = self.stage(id, event).await?;
        staged.event = staged.event.put_by().await;
        Ok(staged)
    }

    async fn run_staged(
        &self,
        staged: StagedTask,
        gpus: &GpuLease,
        shutdown: watch::Receiver<ShutdownPhase>,
        trace: &mut TaskMetrics,
    ) -> (TaskOutcome, EventCopy, Leftover) {
        let StagedTask {
            stage,
            io,
            written,
            event,
        } = staged;
        let running = async {
            match written {
                Ok(()) => self.run_container(&stage, &io, gpus, shutdown, trace).await,
                Err(error) => TaskOutcome::Failed(error),
            }
        };
        let (outcome, kept) = tokio::join!(running, event.kept());
        let disposal = match (&outcome, self.context.keep) {
            (_, KeepFiles::All) => Some(DirDisposal::Keep),
            (TaskOutcome::Failed(_), KeepFiles::Failed) => Some(DirDisposal::KeepWithinBudget),
            // Processes that can't be killed may still write there.
            (_, KeepFiles::Failed) if trace.survivors > 0 => Some(DirDisposal::Remove),
            (_, KeepFiles::Failed) => None,
        };
        let leftover = Leftover::of(stage, disposal, io.files().into(), &self.context.kept);
        (outcome, kept, leftover)
    }

    async fn run_container(
        &self,
        stage: &TaskDirs,
        io: &TaskIo,
        gpus: &GpuLease,
        shutdown: watch::Receiver<ShutdownPhase>,
        trace: &mut TaskMetrics,
    ) -> TaskOutcome {
        let own = ContainerOwn {
            stage,
            io: Some(io),
            gpus: gpus.seen(),
        };
        let ended = launch(
            &self.context,
            &self.plan,
            ContainerRole::Task,
            own,
            shutdown,
            trace,
        );
        let outcome = ended.await;
        if !matches!(outcome, TaskOutcome::NoOutput) {
            return outcome;
        }
        match self.result(io).await {
            Ok(outcome) => {
                if let TaskOutcome::Output(content) = &outcome {
                    trace.output_bytes = Some(content.body().len());
                }
                outcome
            }
            Err(error) => {
                // The task whose result can't be sent may have said why.
                if self.context.dump != DumpOutput::All {
                    show_output(&self.context, ContainerRole::Task, stage, ShownOutput::Ends).await;
                }
                TaskOutcome::Failed(error)
            }
        }
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

/// The report of a task that was prepared but never started.
async fn called_off(staged: Result<StagedTask, TaskError>, kept: &Arc<DiskBudget>) -> TaskReport {
    let (event, leftover) = match staged {
        Ok(StagedTask {
            stage, io, event, ..
        }) => {
            let files = io.files().into();
            let leftover = Leftover::of(stage, None, files, kept);
            (event.kept().await, leftover)
        }
        Err(error) => (EventCopy::Lost(error.to_string()), Leftover::none()),
    };
    TaskReport {
        outcome: TaskOutcome::Interrupted,
        event,
        wall: Duration::ZERO,
        trace: TaskMetrics::default(),
        leftover,
    }
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
