//! One event through its container: infile, run, outfile. Blocking file work happens off the loop.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tracing::{Instrument, error, info, info_span, warn};

use super::keepsake::{Keeping, Keepsake, Kind};
use super::launch::{Judgement, launch, show_output, staging_error};
use super::staging::{Disposal, Stage, TaskIo};
use super::{ContainerPlan, SharedWorkbench, Trace};
use crate::broker::{Content, Encoding, FileFormat, MessageLimit};
use crate::codec::{self, FileKind};
use crate::config::{DumpOutput, KeepFiles};
use crate::fault::{ContainerRole, TaskError};
use crate::ids::TaskId;
use crate::process::Will;

/// Runs tasks, any number at once.
#[derive(Debug)]
pub struct Runner {
    /// What it shares with the init container.
    pub bench: SharedWorkbench,
    /// What it runs.
    pub plan: ContainerPlan,
    /// Suffix of the infile, without the leading dot.
    pub infile_ext: String,
    /// Suffix of the outfile, without the leading dot.
    pub outfile_ext: String,
    /// How the sink wants results.
    pub encoding: Encoding,
    /// How large one may be, as a frame.
    pub limit: MessageLimit,
}

/// What came of a task.
#[derive(Debug)]
pub struct Report {
    /// How it ended.
    pub end: TaskEnd,
    /// The event, should it be put away.
    pub event: Keepsake,
    /// From the start of staging to the end of collecting.
    pub wall: Duration,
    /// What it cost, as far as it came.
    pub trace: Trace,
}

/// How a task ended.
#[derive(Debug)]
pub enum TaskEnd {
    /// With this output event.
    Output(Content),
    /// Well, without an output event.
    NoOutput,
    /// Badly.
    Failed(TaskError),
    /// Not by itself, and before it finished.
    Interrupted,
}

/// When a task may start.
#[derive(Debug)]
pub enum Turn {
    /// At once.
    Now,
    /// When this is told; never, when its sender is gone.
    Later(oneshot::Receiver<()>),
}

/// A task's directories with its infile, or why there is none.
struct Staged {
    stage: Stage,
    io: TaskIo,
    written: Result<(), TaskError>,
    event: Keeping,
}

impl Runner {
    /// Runs one event to its end. All but its container is made ready before its turn comes. Dropping the
    /// future kills the container.
    pub async fn run(
        self: std::rc::Rc<Self>,
        id: TaskId,
        event: Content,
        turn: Turn,
        will: watch::Receiver<Will>,
    ) -> Report {
        let span = info_span!("task", task_id = %id);
        async {
            let mut trace = Trace::default();
            let (staged, started) = match turn {
                Turn::Now => {
                    let started = begin();
                    (self.stage(id, event).await, started)
                }
                Turn::Later(turn) => {
                    let staged = self.stage_ahead(id, event).await;
                    if turn.await.is_err() {
                        return called_off(staged).await;
                    }
                    (staged, begin())
                }
            };
            let result = match staged {
                Ok(staged) => self.run_staged(staged, will, &mut trace).await,
                Err(error) => Err(error),
            };
            let (end, event) = result.unwrap_or_else(|error| {
                let lost = Keepsake::Lost(error.to_string());
                (TaskEnd::Failed(error), lost)
            });
            let elapsed = started.elapsed();
            log_end(&end, elapsed);
            Report {
                end,
                event,
                wall: elapsed,
                trace,
            }
        }
        .instrument(span)
        .await
    }

    async fn stage(&self, id: TaskId, event: Content) -> Result<Staged, TaskError> {
        let bench = Arc::clone(&self.bench);
        let (infile_ext, outfile_ext) = (self.infile_ext.clone(), self.outfile_ext.clone());
        blocking(move || {
            let (stage, io) = bench
                .dirs
                .stage_task(id, &infile_ext, &outfile_ext)
                .map_err(|error| staging_error("directories", &error))?;
            let (written, event) = write_event(event, &infile_ext, &io, stage.scratch());
            Ok(Staged {
                stage,
                io,
                written,
                event,
            })
        })
        .await
    }

    /// The same, and nothing large stays in memory.
    async fn stage_ahead(&self, id: TaskId, event: Content) -> Result<Staged, TaskError> {
        let mut staged = self.stage(id, event).await?;
        staged.event = Keeping::Done(staged.event.kept().await);
        Ok(staged)
    }

    async fn run_staged(
        &self,
        staged: Staged,
        will: watch::Receiver<Will>,
        trace: &mut Trace,
    ) -> Result<(TaskEnd, Keepsake), TaskError> {
        let Staged {
            stage,
            io,
            written,
            event,
        } = staged;
        let running = async {
            match written {
                Ok(()) => self.run_container(&stage, &io, will, trace).await,
                Err(error) => Err(error),
            }
        };
        let (end, kept) = tokio::join!(running, event.kept());
        let disposal = match (&end, self.bench.keep) {
            (_, KeepFiles::All) => Some(Disposal::Keep),
            (Err(_), KeepFiles::Failed) => Some(Disposal::KeepWithinBudget),
            // What the kernel doesn't let go may still write there.
            (Ok(_), KeepFiles::Failed) if trace.survivors > 0 => Some(Disposal::Remove),
            (Ok(_), KeepFiles::Failed) => None,
        };
        let bench = Arc::clone(&self.bench);
        let taken = blocking(move || {
            let taken = stage.taken();
            let done = match disposal {
                Some(disposal) => stage.dispose(disposal, &bench.kept),
                None => stage.clear(&io.files()),
            };
            if let Err(error) = done {
                warn!(%error, "a task's directories could not be removed");
            }
            Ok(taken)
        });
        trace.disk_bytes = Some(taken.await?);
        Ok((end.unwrap_or_else(TaskEnd::Failed), kept))
    }

    async fn run_container(
        &self,
        stage: &Stage,
        io: &TaskIo,
        will: watch::Receiver<Will>,
        trace: &mut Trace,
    ) -> Result<TaskEnd, TaskError> {
        match launch(
            &self.bench,
            &self.plan,
            ContainerRole::Task,
            stage,
            Some(io),
            will,
            trace,
        )
        .await?
        {
            Judgement::Failed(error) => Err(error),
            Judgement::Interrupted => Ok(TaskEnd::Interrupted),
            Judgement::Succeeded => {
                let (outfile, ext) = (io.outfile(), self.outfile_ext.clone());
                let (encoding, limit) = (self.encoding, self.limit.clone());
                let result = blocking(move || read_result(&outfile, &ext, encoding, &limit)).await;
                // Whoever wrote a result that can't be sent may have said why.
                if result.is_err() && self.bench.dump != DumpOutput::All {
                    show_output(&self.bench, ContainerRole::Task, stage);
                }
                if let Ok(TaskEnd::Output(Content::Frame(bytes) | Content::File(_, bytes))) =
                    &result
                {
                    trace.output_bytes = u64::try_from(bytes.len()).ok();
                }
                result
            }
        }
    }
}

fn begin() -> Instant {
    info!("task started");
    Instant::now()
}

/// The report of a task that never started, and of which nothing is left.
async fn called_off(staged: Result<Staged, TaskError>) -> Report {
    let event = match staged {
        Ok(staged) => {
            let cleared = blocking(move || {
                let cleared = staged.stage.clear(&staged.io.files());
                cleared.map_err(|error| staging_error("directories", &error))
            });
            if let Err(error) = cleared.await {
                warn!(%error, "a task's directories could not be removed");
            }
            staged.event.kept().await
        }
        Err(error) => Keepsake::Lost(error.to_string()),
    };
    Report {
        end: TaskEnd::Interrupted,
        event,
        wall: Duration::ZERO,
        trace: Trace::default(),
    }
}

/// Decodes an event and writes it where its task reads it.
fn write_event(
    event: Content,
    infile_ext: &str,
    io: &TaskIo,
    scratch: &Path,
) -> (Result<(), TaskError>, Keeping) {
    let (decoded, keeping) = match event {
        Content::Frame(body) => (
            codec::decode_frame(&body, codec::DEFAULT_LIMIT_BYTES),
            Keeping::of_frame(body, scratch),
        ),
        Content::File(format, bytes) => {
            let kind = match format {
                FileFormat::Json => FileKind::Json,
                FileFormat::Text => FileKind::Text,
            };
            let kept = Keepsake::of(Kind::File(format), &bytes, scratch);
            (codec::decode_file(kind, bytes), Keeping::Done(kept))
        }
    };
    let written = decoded.map_err(TaskError::from).and_then(|payload| {
        codec::write_infile(&payload, infile_ext, &io.infile())?;
        Ok(())
    });
    (written, keeping)
}

/// Reads what a task wrote, as the sink wants it.
fn read_result(
    outfile: &Path,
    ext: &str,
    encoding: Encoding,
    limit: &MessageLimit,
) -> Result<TaskEnd, TaskError> {
    let Some(payload) = codec::read_outfile(outfile, ext, codec::DEFAULT_LIMIT_BYTES)? else {
        return Ok(TaskEnd::NoOutput);
    };
    Ok(TaskEnd::Output(match encoding {
        Encoding::Frame => {
            let frame = codec::encode_frame(payload)?;
            // Here, and not when it is published, because here the task's files are still kept.
            let (bytes, limit) = (frame.len(), limit.bytes());
            if bytes > limit {
                return Err(TaskError::ResultTooLarge { bytes, limit });
            }
            Content::Frame(frame)
        }
        Encoding::File => match codec::into_file(payload) {
            (FileKind::Json, bytes) => Content::File(FileFormat::Json, bytes),
            (FileKind::Text, bytes) => Content::File(FileFormat::Text, bytes),
        },
    }))
}

/// Runs file work on a thread of its own, inside the current span.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TaskError> + Send + 'static,
) -> Result<T, TaskError> {
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
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
