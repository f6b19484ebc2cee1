//! `ewms-pilot try`: runs files as events in the containers that a pilot would use, without queues. The
//! machine is prepared as for a pilot, and each file goes through the same [`TaskRunner`].
//!
//! | file | content |
//! | --- | --- |
//! | `input_batch` | the input files, and where their results go |
//! | `trial_settings` | the settings as a pilot's variables, and those to submit with |
//! | `trial_report` | the lines for a person |
//! | `input_run` | one input to its end, and its files in place |

mod input_batch;
mod input_run;
mod trial_report;
mod trial_settings;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tempfile::TempDir;
use tracing::level_filters::LevelFilter;

use super::host_setup::{self, PreparedHost};
use super::startup::{initialize, unless_signalled};
use super::{PilotError, guard, setting_warnings, size, start_threads};
use crate::blocking;
use crate::broker::{BodyStore, Encoding, MessageLimit};
use crate::config::{self, Config, Environment, LogLevels, variables};
use crate::container::{Resolution, remove_tree, tree_bytes};
use crate::exit::Exit;
use crate::human;
use crate::preflight::Findings;
use crate::process::{ShutdownPhase, ShutdownSender, StopSignals};
use crate::signals::{Signal, Signals};
use crate::task::staging::scratch_of;
use crate::task::{ContainerSpec, MemoryBudget, SharedTaskContext, TaskRunner};
use crate::telemetry::{OutputStream, Progress, ProgressCounts};
use input_batch::{InputBatch, ResultPlaces, TrialInput};
use input_run::InputRun;
use trial_report::{InputEnd, TriedInput};
use trial_settings::{ImageForm, TrialPlaces};

/// The directory for the files of a trial, unless `TMPDIR` names one: `/tmp` may be in memory, and a task's
/// scratch is there.
const WORK: &str = "/var/tmp";

/// A parsed `ewms-pilot try`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrialRequest {
    /// As the user wrote it.
    pub image: String,
    pub args: String,
    pub init_image: Option<String>,
    pub init_args: String,
    /// The directory for results.
    pub out: PathBuf,
    /// The suffix of results, if not that of the inputs.
    pub out_ext: Option<String>,
    pub existing: ExistingResults,
    /// How many inputs may run at once: a number, or `auto`.
    pub jobs: Option<String>,
    /// GPUs of each input.
    pub gpus: Option<u16>,
    pub timeout_secs: Option<u64>,
    pub inputs: Vec<PathBuf>,
}

/// What to do if a result is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExistingResults {
    Refuse,
    Overwrite,
}

/// A trial whose settings and inputs are known to be good. Nothing has run.
#[derive(Debug)]
pub struct ImageTrial {
    request: TrialRequest,
    batch: InputBatch,
    config: Config,
    user: Environment,
    cwd: PathBuf,
    cache: PathBuf,
    /// The files of the trial; removed at its end.
    work: TempDir,
}

impl ImageTrial {
    /// Checks inputs and settings.
    ///
    /// # Errors
    /// Returns all problems, a line each.
    pub fn plan(
        request: TrialRequest,
        user: &Environment,
        cwd: &Path,
    ) -> Result<Self, Vec<String>> {
        let destination = ResultPlaces {
            directory: &request.out,
            extension: request.out_ext.as_deref(),
            existing: request.existing,
        };
        let batch = InputBatch::of(&request.inputs, cwd, &destination)?;
        let one = |problem: String| vec![problem];
        let cache = trial_settings::cache(user).ok_or_else(|| {
            one("there is no HOME to keep converted images in; set XDG_CACHE_HOME".to_owned())
        })?;
        let parent = user.get("TMPDIR".as_ref() as &std::ffi::OsStr);
        let parent = parent.map_or(Path::new(WORK), Path::new);
        let work = tempfile::Builder::new()
            .prefix("ewms-pilot-try-")
            .tempdir_in(parent);
        let work = work.map_err(|error| {
            one(format!(
                "no directory can be made in `{}`: {error}; set TMPDIR",
                parent.display()
            ))
        })?;
        std::fs::create_dir_all(&cache).map_err(|error| {
            one(format!(
                "`{}` can't be made: {error}; set XDG_CACHE_HOME",
                cache.display()
            ))
        })?;
        let places = TrialPlaces {
            work: work.path(),
            cache: &cache,
        };
        let environment = trial_settings::environment(user, &request, &batch, &places);
        let config = config::load(&environment, cwd)
            .map_err(|problems| trial_settings::problems(&problems))?;
        Ok(Self {
            batch,
            config,
            user: user.clone(),
            cwd: cwd.to_owned(),
            cache,
            work,
            request,
        })
    }

    /// The log is for engineers: it is silent unless the user set its level.
    #[must_use]
    pub fn log_levels(&self) -> LogLevels {
        if self
            .user
            .contains_key(variables::CL_LOG.name.as_ref() as &std::ffi::OsStr)
        {
            return self.config.log;
        }
        LogLevels {
            own: LevelFilter::OFF,
            third_party: LevelFilter::OFF,
        }
    }

    /// Runs the inputs. The trial's own files are gone when it returns.
    pub async fn run(self, mut signals: Signals, progress: Progress) -> Exit {
        let screen = Screen { progress };
        let ended = self.prepare_and_run(&mut signals, &screen).await;
        screen.progress.finish();
        let exit = match ended {
            Ok(exit) => exit,
            Err(PilotError::Signal(signal)) => {
                screen.note("interrupted before any input was run").await;
                Exit::Signal(signal)
            }
            Err(error) => {
                let text = trial_settings::in_options(&error.diagnosis().to_string());
                screen.note(format!("error: {text}")).await;
                error.exit()
            }
        };
        let work = self.work.path().to_owned();
        // A second Ctrl-C need not wait for a slow disk.
        let removing = blocking::start(move || remove_tree(&work));
        tokio::select! {
            _removed = removing => {}
            _signal = signals.recv() => {}
        }
        exit
    }

    async fn prepare_and_run(
        &self,
        signals: &mut Signals,
        screen: &Screen,
    ) -> Result<Exit, PilotError> {
        for warning in setting_warnings(&self.config) {
            let text = trial_settings::in_options(&warning);
            screen.note(format!("note: {text}")).await;
        }
        let (context, task) = self.prepare(signals, screen).await?;
        let form = if task.image.starts_with(&self.cache) {
            ImageForm::Converted
        } else {
            ImageForm::Sandbox
        };
        let (tried, end) = self.run_inputs(context, task, signals, screen).await;
        screen.progress.finish();
        let sums = trial_report::sums(&tried, self.batch.inputs.len());
        let exit = match end {
            BatchEnd::Signal(signal) => {
                screen
                    .print(format!("interrupted by {}: {sums}", signal.name()))
                    .await;
                return Ok(Exit::Signal(signal.number()));
            }
            BatchEnd::Stopped(exit) => {
                screen.print(format!("{sums}\nstopped: what failed last is no fault of the input, and would fail all others too"))
                    .await;
                return Ok(exit);
            }
            BatchEnd::All if tried.iter().any(|one| trial_report::is_failure(&one.end)) => {
                Exit::TasksFailed
            }
            BatchEnd::All => Exit::Success,
        };
        screen.print(&sums).await;
        if tried.iter().any(|one| matches!(one.end, InputEnd::Done(_))) {
            let Self {
                request,
                batch,
                user,
                cwd,
                ..
            } = self;
            let settings = trial_settings::to_submit(request, batch, user, cwd, form);
            screen.print(format!("\n{}", settings.trim_end())).await;
        }
        Ok(exit)
    }

    /// Prepares the machine as for a pilot, and runs the init container.
    async fn prepare(
        &self,
        signals: &mut Signals,
        screen: &Screen,
    ) -> Result<(SharedTaskContext, ContainerSpec), PilotError> {
        let config = &self.config;
        start_threads()?;
        screen.progress.show("preparing the machine and the image");
        let guard = unless_signalled(signals, guard(StopSignals::Handled)).await?;
        for image in std::iter::once(&config.task).chain(&config.init) {
            self.announce(&image.image, screen).await;
        }
        let mut findings = Findings::default();
        let output = Progress::unseen();
        let preparing = host_setup::prepare_host(config, guard, &output, &mut findings, None);
        let prepared = unless_signalled(signals, Box::pin(preparing)).await?;
        let PreparedHost { context, task, .. } = prepared;
        let context = Arc::new(context);
        self.say_where(&task.image, screen).await;
        if let Some(init) = &config.init {
            let host = (&*context, &task);
            let planning = host_setup::prepare_init(config, host, init, &mut findings);
            let plan = unless_signalled(signals, Box::pin(planning)).await?;
            screen.progress.show("running the init container");
            let ended = initialize(&context, &Arc::new(plan), signals).await;
            if ended.is_err() {
                self.keep_init_stderr(screen).await;
            }
            ended?;
        }
        for note in findings.worked_around() {
            screen.note(format!("note: {note}")).await;
        }
        Ok((context, task))
    }

    /// Says that an image must be converted, which takes a while, and how a bare name is understood.
    async fn announce(&self, image: &str, screen: &Screen) {
        let (of, cwd, policy) = (
            image.to_owned(),
            self.cwd.clone(),
            self.config.images.clone(),
        );
        let resolving = blocking::start(move || {
            let resolution = Resolution::of(&of, &cwd, &policy).ok()?;
            let Resolution::Convert(conversion) = resolution else {
                return None;
            };
            let source = conversion.source().to_owned();
            (!conversion.target().exists()).then_some(source)
        });
        // What is wrong with an image is said when it is prepared.
        let Ok(Some(source)) = resolving.await else {
            return;
        };
        let meant = match source.strip_prefix("docker://") {
            Some(name) if name == image => {
                format!(" (there is no such path here, so {source} is meant)")
            }
            _ => String::new(),
        };
        let kept = self.cache.display();
        screen
            .note(format!(
                "converting `{image}`{meant} to a directory, once; it is kept in {kept}"
            ))
            .await;
    }

    /// Says which directory a converted image is, and how large.
    async fn say_where(&self, image: &Path, screen: &Screen) {
        if !image.starts_with(&self.cache) {
            return;
        }
        let directory = image.to_owned();
        let bytes = blocking::start(move || tree_bytes(&directory))
            .await
            .unwrap_or(0);
        let size = human::bytes(human::as_float(bytes));
        let image = image.display();
        screen
            .note(format!("the image is used as {image} ({size})"))
            .await;
    }

    /// Keeps the stderr of an init container that failed.
    async fn keep_init_stderr(&self, screen: &Screen) {
        let kept = self.cwd.join(&self.request.out).join("init.stderr");
        let parent = self.config.data_parent.clone();
        let (from, to) = (parent, kept.clone());
        let keeping = blocking::start(move || input_run::keep_init_stderr(&from, &to));
        if let Ok(Ok(())) = keeping.await {
            let shown = self.request.out.join("init.stderr");
            screen
                .note(format!("the init container's stderr: {}", shown.display()))
                .await;
        }
    }

    async fn run_inputs(
        &self,
        context: SharedTaskContext,
        task: ContainerSpec,
        signals: &mut Signals,
        screen: &Screen,
    ) -> (Vec<TriedInput>, BatchEnd) {
        let runs = InputRun {
            names_outfile: task.names_outfile(),
            runner: self.runner(context, task),
            cwd: self.cwd.clone(),
            data_parent: self.config.data_parent.clone(),
        };
        let width = trial_report::name_width(&self.batch.inputs);
        let mut batch = Batch {
            waiting: self.batch.inputs.iter(),
            tried: Vec::new(),
            end: BatchEnd::All,
        };
        let shutdown = ShutdownSender::new();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < size(self.config.slots)
                && let Some(input) = batch.next()
            {
                running.push(runs.run(input.clone(), shutdown.subscribe()));
            }
            screen.progress.update(batch.counts(running.len()));
            let ended = tokio::select! {
                biased;
                signal = signals.recv() => {
                    if matches!(batch.end, BatchEnd::Signal(_)) {
                        // What still runs is killed with its future.
                        break;
                    }
                    batch.end = BatchEnd::Signal(signal);
                    shutdown.advance(ShutdownPhase::Kill);
                    continue;
                }
                ended = running.next() => ended,
            };
            let Some(ended) = ended else { break };
            if ended.end != InputEnd::NotDone {
                screen.print(trial_report::line(&ended, width)).await;
            }
            batch.note(ended);
        }
        (batch.tried, batch.end)
    }

    fn runner(&self, context: SharedTaskContext, task: ContainerSpec) -> Rc<TaskRunner> {
        Rc::new(TaskRunner {
            context,
            plan: Arc::new(task),
            infile_ext: self.config.infile_ext.clone(),
            outfile_ext: self.config.outfile_ext.clone(),
            encoding: Encoding::File,
            limit: MessageLimit::of(self.config.limits.message),
            bodies: BodyStore::new(scratch_of(&self.config.data_parent)),
            room: MemoryBudget::new(),
        })
    }
}

/// Why no further input is run.
#[derive(Debug, Clone, Copy)]
enum BatchEnd {
    All,
    Signal(Signal),
    /// A fault of the machine or the image, which a pilot would end with this code.
    Stopped(Exit),
}

/// The inputs that wait, and those that ended.
struct Batch<'a> {
    waiting: std::slice::Iter<'a, TrialInput>,
    tried: Vec<TriedInput>,
    end: BatchEnd,
}

impl<'a> Batch<'a> {
    fn next(&mut self) -> Option<&'a TrialInput> {
        match self.end {
            BatchEnd::All => self.waiting.next(),
            BatchEnd::Signal(_) | BatchEnd::Stopped(_) => None,
        }
    }

    fn note(&mut self, ended: TriedInput) {
        if let (InputEnd::Failed(error), BatchEnd::All) = (&ended.end, self.end)
            && !error.class().is_events_own()
        {
            self.end = BatchEnd::Stopped(error.class().exit());
        }
        self.tried.push(ended);
    }

    fn counts(&self, running: usize) -> ProgressCounts {
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let failed = self
            .tried
            .iter()
            .filter(|one| trial_report::is_failure(&one.end));
        ProgressCounts {
            done: number(self.tried.len()),
            running: number(running),
            failed: number(failed.count()),
            waiting: number(self.waiting.len()),
        }
    }
}

/// Where a person reads: results on stdout, notes on stderr.
struct Screen {
    progress: Progress,
}

impl Screen {
    async fn print(&self, text: impl Display) {
        self.write(OutputStream::Stdout, text).await;
    }

    async fn note(&self, text: impl Display) {
        self.write(OutputStream::Stderr, text).await;
    }

    async fn write(&self, stream: OutputStream, text: impl Display) {
        let line = format!("{text}\n");
        // A closed stdout ends no trial: the results are files.
        let _unread = self
            .progress
            .dump(stream, move |sink| sink.write_all(line.as_bytes()))
            .await;
    }
}
