//! The EWMS pilot: takes events from a queue, runs a container image once for each, publishes what
//! it wrote, and only then acknowledges the event.
//!
//! # Layout
//!
//! | module | what it is |
//! | --- | --- |
//! | [`cli`] | arguments and `--help`; clap stops here |
//! | [`config`] | environment and env file, parsed once into a [`config::Config`] |
//! | [`pilot`] | the event loop: the only module that knows acks |
//! | [`preflight`] | the checks that a machine must pass before it gets an event |
//! | [`task`] | one event in, one report out |
//! | [`broker`] | the source of events and the sink for results: RabbitMQ or a spool directory |
//! | [`codec`] | message body ⇄ payload ⇄ infile and outfile |
//! | [`container`] | Apptainer's command line, binds and images |
//! | [`process`] | one supervised child: session, signals, grace, kill, reap; the guardian |
//! | [`chirp`] | reports to HTCondor while the pilot runs |
//! | [`records`] | the file of records, one for each task and two for the pilot |
//! | [`report`] | sums over the records of any number of pilots |
//! | [`status`] | the view of a running pilot for a person on the execution point, and its file |
//! | [`human`] | numbers and texts as people read them |
//! | [`stats`] | tallies, run-time statistics and their histogram |
//! | [`telemetry`] | logging and the progress line |
//! | [`blocking`], [`mailbox`], [`backoff`] | threads for work that may block; state for an actor that may be slow; pauses between tries |
//! | [`fault`] | failures, whose fault they are, and the rules that read Apptainer's stderr |
//! | [`exit`], [`ids`], [`signals`] | exit codes, identities, signals of the pilot |
//! | [`regular_file`] | opens files whose path came from outside, and only regular ones |
//!
//! A module uses only those below it: `cli` → `pilot` → `preflight`, `status` → `task` → `broker`, `container`, `process`,
//! `codec`, `chirp` (which never import each other) → `ids`, `fault`, `exit`. A test enforces this.

pub mod backoff;
pub mod blocking;
pub mod broker;
pub mod chirp;
pub mod cli;
pub mod codec;
pub mod config;
pub mod container;
pub mod exit;
pub mod fault;
pub mod human;
pub mod ids;
pub mod mailbox;
pub mod pilot;
pub mod preflight;
pub mod process;
pub mod records;
pub mod regular_file;
pub mod report;
pub mod signals;
pub mod stats;
pub mod status;
pub mod task;
pub mod telemetry;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use color_eyre::eyre::{Result, WrapErr};
use tracing::{debug, info, warn};

use cli::Command;
use config::variables::ENV_FILE;
use config::{Config, ConfigErrors, LogFormat, SettingsOrigin};
use exit::Exit;
use fault::Diagnosis;
use human::OutputFormat;
use pilot::{CheckPlace, CheckRequest, ImageTrial, TrialRequest};
use preflight::{Check, CheckNote, Findings};
use records::PilotIdentity;
use signals::Signals;
use status::Repeat;
use telemetry::{DETAILS, LogAudience};

/// Does what the command line asks for.
///
/// # Errors
/// Returns errors that no module has a name for: there is no working directory, or no runtime.
pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run => run_pilot(),
        Command::Guardian => {
            process::guard_until_end(std::io::stdin().lock());
            Ok(ExitCode::SUCCESS)
        }
        Command::Try(request) => try_image(*request),
        Command::Check(request) => check(&request),
        Command::Look(paths, extent) => Ok(task::path_probe::child(&paths, extent)),
        Command::Namespaces => Ok(preflight::namespaces_child()),
        Command::Report(request) => {
            let mut out = BufWriter::new(io::stdout().lock());
            let exit = report::run(&request, &mut out, &mut io::stderr());
            Ok(exit.code().into())
        }
        Command::Status(request) => show_status(&request),
        Command::Print(text) => {
            // A closed stdout is no failure.
            let _unread = io::stdout().write_all(&text);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run_pilot() -> Result<ExitCode> {
    process::keep_memory_private();
    process::survive_file_size_limit();
    process::spare_memory();
    let cwd = std::env::current_dir()
        .wrap_err("the working directory is gone; start in one that exists")?;
    let environment: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    let config = match config::load(&environment, &cwd) {
        Ok(config) => config,
        Err(problems) => {
            refuse(&problems);
            chirp(&problems);
            return Ok(Exit::Configuration.code().into());
        }
    };
    let telemetry = telemetry::init(config.log, config.log_format);
    let audience = telemetry.audience;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        "ewms-pilot"
    );
    for warning in pilot::setting_warnings(&config) {
        warn!("{warning}");
    }
    for (name, value) in config.dump() {
        debug!(name, value, "setting");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .wrap_err("can't start the event loop")?;
    let task_log = config.task_log.clone();
    let progress = telemetry.progress.clone();
    let ended = runtime.block_on(async {
        let signals = Signals::install().wrap_err("can't take signals over")?;
        let (ended, identity) = pilot::run(config, signals, progress).await;
        let reporting = move || log_records(task_log.as_deref(), &identity, audience);
        if let Err(error) = blocking::within(REPORT_WITHIN, reporting).await {
            warn!(%error, "the pilot's records can't be reported");
        }
        Ok::<_, color_eyre::Report>(ended)
    })?;
    // A call that hangs in the system, on a dead network or file system, must not hold up the end.
    runtime.shutdown_background();
    blocking::finish(FINISH_WITHIN);
    if let Some(line) = &ended.last_line {
        telemetry.say(line);
    }
    Ok(ended.exit.code().into())
}

/// How long clean-up that is under way at the pilot's end may take, of half-made images for example.
const FINISH_WITHIN: Duration = Duration::from_secs(3);
/// A file of records is read in milliseconds, unless its disk hangs.
const REPORT_WITHIN: Duration = Duration::from_secs(30);

/// Ends the log with the sums of the pilot's records: as `ewms-pilot report` shows them, or for a person in a few
/// lines.
fn log_records(task_log: Option<&Path>, pilot: &PilotIdentity, audience: LogAudience) {
    // A device or a pipe takes records and gives none back, or never ends.
    let Some(file) = task_log.filter(|file| file.is_file()) else {
        return;
    };
    match report::of_pilot(file, &pilot.pilot_id) {
        Ok(report) => {
            for line in report.whole {
                info!(target: DETAILS, "{line}");
            }
            if audience == LogAudience::Person {
                for line in report.brief {
                    info!("{line}");
                }
            }
        }
        Err(error) => warn!(%error, "the pilot's records can't be reported"),
    }
}

/// Writes a line to stderr, if that can be written. `eprintln!` would panic on a full disk or a closed pipe;
/// there the exit code alone says how the pilot ended.
fn say(text: &impl Display) {
    let _unheard = writeln!(io::stderr(), "{text}");
}

/// Says what is wrong with the settings, or, if there are none at all, what the program is. A program that reads
/// stderr finds its last line in any case.
fn refuse(problems: &ConfigErrors) {
    match problems.origin() {
        SettingsOrigin::Given => say(problems),
        SettingsOrigin::Nowhere => {
            say(&cli::first_words());
            if !io::stderr().is_terminal() {
                say(&problems.last_line());
            }
        }
    }
}

/// Tells HTCondor the problems of the configuration, if it can be reached.
fn chirp(problems: &ConfigErrors) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    // stderr has it in any case.
    if let Ok(runtime) = runtime {
        runtime.block_on(pilot::chirp_wrong_configuration(problems));
        runtime.shutdown_background();
    }
}

/// Looks for pilots and shows them.
fn show_status(request: &status::StatusRequest) -> Result<ExitCode> {
    let places = if let Some(path) = &request.path {
        vec![path.clone()]
    } else {
        let cwd = std::env::current_dir()
            .wrap_err("the working directory is gone; name the one to look in")?;
        config::data_parents(&std::env::vars_os().collect(), &cwd)
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let mut complaints = io::stderr();
    let exit = match request.repeat {
        Repeat::Once => status::run(&places, request.output, &mut out, &mut complaints),
        Repeat::Every(pause) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .wrap_err("can't start the event loop")?;
            let watching = status::watch(&places, pause, &mut out, &mut complaints);
            let watched = runtime.block_on(watching);
            // A look at a file system that hangs goes on.
            runtime.shutdown_background();
            match watched {
                // Who watched has closed the pipe.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Success,
                watched => watched.wrap_err("can't go on watching")?,
            }
        }
    };
    Ok(exit.code().into())
}

/// Runs files as events.
fn try_image(request: TrialRequest) -> Result<ExitCode> {
    process::keep_memory_private();
    process::survive_file_size_limit();
    let cwd = std::env::current_dir()
        .wrap_err("the working directory is gone; start in one that exists")?;
    let environment: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    let trial = match ImageTrial::plan(request, &environment, &cwd) {
        Ok(trial) => trial,
        Err(problems) => {
            for problem in problems {
                say(&format_args!("error: {problem}"));
            }
            return Ok(Exit::Configuration.code().into());
        }
    };
    let telemetry = telemetry::init(trial.log_levels(), LogFormat::Text);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .wrap_err("can't start the event loop")?;
    let progress = telemetry.progress.clone();
    let exit = runtime.block_on(async {
        let signals = Signals::install().wrap_err("can't take signals over")?;
        Ok::<_, color_eyre::Report>(trial.run(signals, progress).await)
    })?;
    runtime.shutdown_background();
    blocking::finish(FINISH_WITHIN);
    Ok(exit.code().into())
}

/// Checks the machine and the brokers, or what pilots would be submitted with, and reports the findings on stdout.
fn check(request: &CheckRequest) -> Result<ExitCode> {
    process::keep_memory_private();
    process::survive_file_size_limit();
    let cwd = std::env::current_dir()
        .wrap_err("the working directory is gone; start in one that exists")?;
    let mut environment: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    if let Some(file) = &request.env_file {
        environment.insert(ENV_FILE.name.into(), file.into());
    }
    let mut findings = Findings::default();
    let (env_file, loaded) = match request.place {
        CheckPlace::ExecutionPoint => (Exit::Success, config::load(&environment, &cwd)),
        CheckPlace::SubmitNode => (
            pilot::check_env_file(&environment, &cwd, &mut findings),
            config::load_to_submit(&environment, &cwd),
        ),
    };
    let exit = match loaded {
        Err(problems) => {
            for warning in problems.warning_lines() {
                findings.seen(Check::Configuration, CheckNote::Odd(warning));
            }
            for problem in problems.problem_lines() {
                findings.failed(Check::Configuration, &Diagnosis::without_fix(problem));
            }
            Exit::Configuration
        }
        Ok(config) => check_with(&config, request.place, &mut findings)?,
    };
    let said = match request.output {
        OutputFormat::Text => findings.to_string(),
        OutputFormat::Json => format!("{}\n", serde_json::to_string_pretty(&findings)?),
    };
    io::stdout()
        .write_all(said.as_bytes())
        .wrap_err("stdout can't be written")?;
    let exit = if env_file == Exit::Success {
        exit
    } else {
        env_file
    };
    Ok(exit.code().into())
}

fn check_with(config: &Config, place: CheckPlace, findings: &mut Findings) -> Result<Exit> {
    let telemetry = telemetry::init(config::LogLevels::QUIET, LogFormat::Text);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .wrap_err("can't start the event loop")?;
    let exit = runtime.block_on(async {
        match place {
            CheckPlace::ExecutionPoint => {
                for warning in pilot::setting_warnings(config) {
                    findings.seen(Check::Configuration, CheckNote::Odd(warning));
                }
                pilot::check(config, &telemetry.progress, findings).await
            }
            CheckPlace::SubmitNode => pilot::check_submission(config, findings).await,
        }
    });
    runtime.shutdown_background();
    Ok(exit)
}
