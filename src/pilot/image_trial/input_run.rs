//! One input of a trial: runs it as a pilot runs an event, then puts its result, or its stderr, where the user
//! finds it.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;

use super::input_batch::TrialInput;
use super::trial_report::{InputEnd, TriedInput};
use crate::blocking;
use crate::broker::{Body, Content, FileFormat};
use crate::container::remove_tree;
use crate::ids::TaskId;
use crate::process::ShutdownPhase;
use crate::regular_file;
use crate::task::staging::{DATA_DIR, outputs_of};
use crate::task::{TaskEnd, TaskMetrics, TaskOutcome, TaskReport, TaskRunner, TurnSender};

/// What all inputs share.
pub(super) struct InputRun {
    pub(super) runner: Rc<TaskRunner>,
    /// Whether a task should write a result.
    pub(super) names_outfile: bool,
    pub(super) cwd: PathBuf,
    pub(super) data_parent: PathBuf,
}

impl InputRun {
    /// Runs an input to its end. Dropping the future kills its container.
    pub(super) async fn run(
        &self,
        input: TrialInput,
        shutdown: watch::Receiver<ShutdownPhase>,
    ) -> TriedInput {
        let id = TaskId::random();
        let format = format_of(&self.runner.infile_ext);
        let path = input.path.clone();
        let event = match blocking::start(move || event(&path, format)).await {
            Ok(Ok(event)) => event,
            Ok(Err(error)) => return unread(input, &error.to_string()),
            Err(error) => return unread(input, &error.to_string()),
        };
        let (mut sender, turn) = TurnSender::new();
        sender.make_container(self.runner.context.gpus.take());
        sender.give_event(event);
        sender.start();
        let ended = Rc::clone(&self.runner).run(id, turn, shutdown).await;
        let TaskEnd::Task(ended) = ended else {
            // Called off before it had its event.
            return not_done(input);
        };
        let TaskReport {
            outcome,
            wall,
            trace,
            leftover,
            event: _,
        } = *ended;
        let files = TaskFiles {
            input: input.clone(),
            cwd: self.cwd.clone(),
            data_parent: self.data_parent.clone(),
            task: id.to_string(),
        };
        let names_outfile = self.names_outfile;
        let keeping = blocking::start(move || files.keep(outcome, names_outfile));
        let (end, stderr) = keeping
            .await
            .unwrap_or_else(|error| (InputEnd::Unkept(error.to_string()), None));
        leftover.clear().await;
        TriedInput {
            memory: memory(&trace),
            input,
            end,
            wall,
            stderr,
        }
    }
}

fn not_done(input: TrialInput) -> TriedInput {
    TriedInput {
        end: InputEnd::NotDone,
        input,
        wall: Duration::ZERO,
        memory: None,
        stderr: None,
    }
}

fn unread(input: TrialInput, reason: &str) -> TriedInput {
    TriedInput {
        end: InputEnd::Unkept(format!("the input can't be read: {reason}")),
        input,
        wall: Duration::ZERO,
        memory: None,
        stderr: None,
    }
}

/// A file as a spool gives it to a pilot.
fn event(path: &Path, format: FileFormat) -> io::Result<Content> {
    let file = regular_file::open(path)?;
    Ok(Content::File(format, Body::of_file(file, 0)?))
}

fn format_of(extension: &str) -> FileFormat {
    match extension {
        "json" => FileFormat::Json,
        _ => FileFormat::Text,
    }
}

/// The most memory that was seen: of the largest process, or of the whole container.
fn memory(trace: &TaskMetrics) -> Option<u64> {
    let largest = trace.usage.as_ref().map(|usage| usage.max_rss_bytes);
    largest
        .max(trace.container_memory)
        .filter(|bytes| *bytes > 0)
}

/// An input's files: those that its task left, and those for the user.
struct TaskFiles {
    input: TrialInput,
    cwd: PathBuf,
    data_parent: PathBuf,
    task: String,
}

impl TaskFiles {
    /// Keeps the result, or the stderr of a task without one, and removes the task's directory. Files of an
    /// earlier trial go: they would belong to another run.
    fn keep(&self, outcome: TaskOutcome, names_outfile: bool) -> (InputEnd, Option<PathBuf>) {
        let end = match outcome {
            TaskOutcome::Interrupted => InputEnd::NotDone,
            outcome => self.keep_result(outcome, names_outfile),
        };
        let stderr = match end {
            InputEnd::Failed(_) | InputEnd::NoResult | InputEnd::Unkept(_) => self.keep_stderr(),
            InputEnd::Done(_) | InputEnd::NotDone => None,
        };
        // The whole directory of the trial is removed at its end in any case.
        let _ = remove_tree(&self.data_parent.join(DATA_DIR).join(&self.task));
        (end, stderr)
    }

    fn keep_result(&self, outcome: TaskOutcome, names_outfile: bool) -> InputEnd {
        let result = self.cwd.join(&self.input.result);
        for old in [&result, &self.cwd.join(&self.input.stderr)] {
            // Mostly there is none.
            let _ = fs::remove_file(old);
        }
        match outcome {
            TaskOutcome::Output(content) => match write(&content, &result) {
                Ok(()) => InputEnd::Done(Some(self.input.result.clone())),
                Err(error) => InputEnd::Unkept(format!(
                    "`{}` can't be written: {error}",
                    self.input.result.display()
                )),
            },
            TaskOutcome::NoOutput if names_outfile => InputEnd::NoResult,
            TaskOutcome::NoOutput => InputEnd::Done(None),
            TaskOutcome::Failed(error) => InputEnd::Failed(error),
            TaskOutcome::Interrupted => InputEnd::NotDone,
        }
    }

    /// The file for the user with the task's stderr; `None` if it said nothing, or it can't be kept.
    fn keep_stderr(&self) -> Option<PathBuf> {
        let [_, stderr] = outputs_of(&self.data_parent, &self.task);
        let kept = &self.input.stderr;
        copy_if_any(&stderr, &self.cwd.join(kept))
            .ok()?
            .then(|| kept.clone())
    }
}

/// Copies a file that isn't empty. Returns whether there was one.
fn copy_if_any(from: &Path, to: &Path) -> io::Result<bool> {
    if fs::metadata(from)?.len() == 0 {
        return Ok(false);
    }
    make_parent(to)?;
    fs::copy(from, to)?;
    Ok(true)
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// Writes a result, which appears as a whole.
fn write(content: &Content, path: &Path) -> io::Result<()> {
    make_parent(path)?;
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".partial");
    let partial = path.with_file_name(name);
    let written = write_whole(content, &partial).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

fn write_whole(content: &Content, path: &Path) -> io::Result<()> {
    let mut file = BufWriter::new(fs::File::create(path)?);
    content.body().write_to(&mut file)?;
    file.flush()
}

/// Copies the stderr of the init container to `kept`.
pub(super) fn keep_init_stderr(data_parent: &Path, kept: &Path) -> io::Result<()> {
    for entry in fs::read_dir(data_parent.join(DATA_DIR))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("init-") {
            let [_, stderr] = outputs_of(data_parent, &name);
            if copy_if_any(&stderr, kept)? {
                return Ok(());
            }
        }
    }
    Err(io::ErrorKind::NotFound.into())
}
