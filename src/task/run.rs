//! One event through its container: infile, run, outfile. Blocking file work happens off the loop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tracing::{Instrument, error, info, info_span, warn};

use super::container_run::{ContainerOutcome, launch, show_output, staging_error};
use super::disk::Budget;
use super::event_copy::{EventCopy, PendingCopy};
use super::staging::{Disposal, TaskDirs, TaskIo};
use super::transfer::{self, MemoryBudget, OutfileState, Wanted};
use super::{ContainerSpec, Leftover, SharedTaskContext, TaskMetrics};
use crate::broker::{BodyStore, Content, Encoding, MessageLimit};
use crate::config::{DumpOutput, KeepFiles};
use crate::fault::{ContainerRole, TaskError};
use crate::ids::TaskId;
use crate::process::ShutdownPhase;
use crate::process::output::Shown;

/// Runs tasks, any number at once.
#[derive(Debug)]
pub struct TaskRunner {
    /// What it shares with the init container.
    pub context: SharedTaskContext,
    pub plan: ContainerSpec,
    /// Suffix of the infile, without the leading dot.
    pub infile_ext: String,
    /// Suffix of the outfile, without the leading dot.
    pub outfile_ext: String,
    pub encoding: Encoding,
    /// How large one may be, as a frame.
    pub limit: MessageLimit,
    /// Where large events and results are kept.
    pub bodies: BodyStore,
    /// Where they are packed and unpacked.
    pub room: MemoryBudget,
}

#[derive(Debug)]
pub struct TaskReport {
    pub end: TaskEnd,
    /// The event, should it be put away.
    pub event: EventCopy,
    /// From the start of staging to the end of collecting.
    pub wall: Duration,
    /// What it cost, as far as it came.
    pub trace: TaskMetrics,
    /// What it left on the disk, to be cleared away when its result is out.
    pub leftover: Leftover,
}

#[derive(Debug)]
pub enum TaskEnd {
    Output(Content),
    /// Well, without an output event.
    NoOutput,
    Failed(TaskError),
    /// Not by itself, and before it finished.
    Interrupted,
}

/// When a task may start.
#[derive(Debug)]
pub enum StartGate {
    /// At once.
    Now,
    /// When this is told; never, when its sender is gone.
    Later(oneshot::Receiver<()>),
}

/// A task's directories with its infile, or why there is none.
struct Staged {
    stage: TaskDirs,
    io: TaskIo,
    written: Result<(), TaskError>,
    event: PendingCopy,
}

impl TaskRunner {
    /// Runs one event to its end. All but its container is made ready before its turn comes. Dropping the
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
            let (staged, started) = match turn {
                StartGate::Now => {
                    let started = begin();
                    (self.stage(id, event).await, started)
                }
                StartGate::Later(turn) => {
                    let staged = self.stage_ahead(id, event).await;
                    if turn.await.is_err() {
                        return called_off(staged, &self.context.kept).await;
                    }
                    (staged, begin())
                }
            };
            let (end, event, leftover) = match staged {
                Ok(staged) => self.run_staged(staged, shutdown, &mut trace).await,
                Err(error) => {
                    let lost = EventCopy::Lost(error.to_string());
                    (TaskEnd::Failed(error), lost, Leftover::none())
                }
            };
            let elapsed = started.elapsed();
            log_end(&end, elapsed);
            TaskReport {
                end,
                event,
                wall: elapsed,
                trace,
                leftover,
            }
        }
        .instrument(span)
        .await
    }

    async fn stage(&self, id: TaskId, event: Content) -> Result<Staged, TaskError> {
        let context = Arc::clone(&self.context);
        let (infile_ext, outfile_ext) = (self.infile_ext.clone(), self.outfile_ext.clone());
        let (room, bodies) = (self.room.for_event(&event).await, self.bodies.clone());
        blocking(move || {
            let _while_unpacking = room;
            let (stage, io) = context
                .dirs
                .stage_task(id, &infile_ext, &outfile_ext)
                .map_err(|error| staging_error("directories", &error))?;
            let written = transfer::write_event(&event, &infile_ext, &io.infile());
            Ok(Staged {
                stage,
                io,
                written,
                event: PendingCopy { event, bodies },
            })
        })
        .await
    }

    /// The same, and nothing large stays in memory.
    async fn stage_ahead(&self, id: TaskId, event: Content) -> Result<Staged, TaskError> {
        let mut staged = self.stage(id, event).await?;
        staged.event = staged.event.put_by().await;
        Ok(staged)
    }

    async fn run_staged(
        &self,
        staged: Staged,
        shutdown: watch::Receiver<ShutdownPhase>,
        trace: &mut TaskMetrics,
    ) -> (TaskEnd, EventCopy, Leftover) {
        let Staged {
            stage,
            io,
            written,
            event,
        } = staged;
        let running = async {
            match written {
                Ok(()) => self.run_container(&stage, &io, shutdown, trace).await,
                Err(error) => Err(error),
            }
        };
        let (end, kept) = tokio::join!(running, event.kept());
        let disposal = match (&end, self.context.keep) {
            (_, KeepFiles::All) => Some(Disposal::Keep),
            (Err(_), KeepFiles::Failed) => Some(Disposal::KeepWithinBudget),
            // What the kernel doesn't let go may still write there.
            (Ok(_), KeepFiles::Failed) if trace.survivors > 0 => Some(Disposal::Remove),
            (Ok(_), KeepFiles::Failed) => None,
        };
        let leftover = Leftover::of(stage, disposal, io.files().into(), &self.context.kept);
        (end.unwrap_or_else(TaskEnd::Failed), kept, leftover)
    }

    async fn run_container(
        &self,
        stage: &TaskDirs,
        io: &TaskIo,
        shutdown: watch::Receiver<ShutdownPhase>,
        trace: &mut TaskMetrics,
    ) -> Result<TaskEnd, TaskError> {
        match launch(
            &self.context,
            &self.plan,
            ContainerRole::Task,
            stage,
            Some(io),
            shutdown,
            trace,
        )
        .await?
        {
            ContainerOutcome::Failed(error) => Err(error),
            ContainerOutcome::Interrupted => Ok(TaskEnd::Interrupted),
            ContainerOutcome::Succeeded => {
                let result = self.result(io).await;
                // Whoever wrote a result that can't be sent may have said why.
                if result.is_err() && self.context.dump != DumpOutput::All {
                    show_output(&self.context, ContainerRole::Task, stage, Shown::Ends);
                }
                if let Ok(TaskEnd::Output(content)) = &result {
                    trace.output_bytes = Some(content.body().len());
                }
                result
            }
        }
    }

    /// What a task wrote, as the sink wants it.
    async fn result(&self, io: &TaskIo) -> Result<TaskEnd, TaskError> {
        let (outfile, ext) = (io.outfile(), self.outfile_ext.clone());
        let wanted = Wanted {
            encoding: self.encoding,
            limit: self.limit.clone(),
            bodies: self.bodies.clone(),
        };
        let found = {
            let wanted = wanted.clone();
            blocking(move || transfer::find_result(&outfile, &ext, &wanted)).await?
        };
        let outfile = match found {
            OutfileState::Nothing => return Ok(TaskEnd::NoOutput),
            OutfileState::Result(content) => return Ok(TaskEnd::Output(content)),
            OutfileState::Large(outfile) => outfile,
        };
        let room = self.room.for_result(&outfile).await;
        let read = blocking(move || {
            let _while_packing = room;
            transfer::read_result(outfile, &wanted)
        });
        read.await.map(TaskEnd::Output)
    }
}

fn begin() -> Instant {
    info!("task started");
    Instant::now()
}

/// The report of a task that never started, and of which nothing is left.
async fn called_off(staged: Result<Staged, TaskError>, kept: &Arc<Budget>) -> TaskReport {
    let (event, leftover) = match staged {
        Ok(Staged {
            stage, io, event, ..
        }) => {
            let files = io.files().into();
            let leftover = Leftover::of(stage, None, files, kept);
            (event.kept().await, leftover)
        }
        Err(error) => (EventCopy::Lost(error.to_string()), Leftover::none()),
    };
    TaskReport {
        end: TaskEnd::Interrupted,
        event,
        wall: Duration::ZERO,
        trace: TaskMetrics::default(),
        leftover,
    }
}

/// Runs file work on a thread of its own, inside the current span.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TaskError> + Send + 'static,
) -> Result<T, TaskError> {
    let span = tracing::Span::current();
    match crate::blocking::start(move || span.in_scope(work)).await {
        Ok(result) => result,
        Err(error) => Err(TaskError::Os(format!(
            "the pilot's file work stopped: {error}"
        ))),
    }
}

fn log_end(end: &TaskEnd, wall: Duration) {
    let wall_secs = wall.as_secs_f64();
    match end {
        TaskEnd::Output(_) => info!(wall_secs, output = true, "task succeeded"),
        TaskEnd::NoOutput => info!(wall_secs, output = false, "task succeeded"),
        TaskEnd::Failed(error) => error!(wall_secs, error = %error.repr(), "task failed"),
        TaskEnd::Interrupted => warn!(wall_secs, "task ended with the pilot, its event goes back"),
    }
}
