//! A pilot's life, from its start through the event loop to its end. The only module that knows when an
//! event is acknowledged.
#![doc = include_str!("README.md")]

use std::io;
use std::num::NonZeroU32;

use tracing::{error, info, warn};

mod broker_defaults;
mod check;
pub mod dead_letter;
pub mod deadline;
pub mod disk_floor;
pub mod driver;
mod error;
pub mod events;
mod host_binds;
mod host_images;
mod host_setup;
mod image_trial;
mod lookahead;
mod own_paths;
mod progress_reporter;
mod recorder;
mod requeue_backoff;
mod set_aside;
mod setting_warnings;
mod startup;
pub mod state;
mod status_feed;
mod submission;
mod summary;
mod task_set;
pub mod warm_start;

pub use check::{CheckPlace, CheckRequest, check};
pub use error::PilotError;
pub use image_trial::{ExistingResults, ImageTrial, TrialRequest};
pub use progress_reporter::{ProgressReporter, chirp_wrong_configuration};
pub use setting_warnings::setting_warnings;
pub use submission::{check_env_file, check_submission};

use crate::blocking;
use crate::broker::{self, BodyStore, MessageLimit, OutagePolicy, Sink, Source};
use crate::config::{BrokerConfig, Config};
use crate::exit::Exit;
use crate::fault::Diagnosis;
use crate::process::{GuardianHandle, StopSignals};
use crate::records::PilotIdentity;
use crate::signals::Signals;
use crate::stats::Tally;
use crate::task::staging::scratch_of;
use crate::telemetry::Progress;
use dead_letter::DeadLetters;
use deadline::Deadline;
use disk_floor::DiskFloor;
use driver::DriverOptions;
use events::Status;
use recorder::Recorder;
use startup::{Observers, Started};
use state::LoopRules;

/// The source of events and the sink for results, with the policy for outages of their brokers.
#[derive(Debug)]
pub struct Queues {
    pub source: Source,
    pub sink: Sink,
    pub outage_policy: OutagePolicy,
}

/// The end of a pilot: its exit code and, after a failure, the texts for people and services.
#[derive(Debug)]
pub struct PilotExit {
    /// The code that HTCondor sees.
    pub exit: Exit,
    /// The last line on stderr: `RuntimeError: …` and its like.
    pub last_line: Option<String>,
    /// The error that is chirped. `None` for a pilot that was told to stop: that is no error, and services
    /// keep a job's last error.
    pub chirped_error: Option<String>,
    /// Details that the error has no room for.
    pub details: Option<String>,
}

impl From<PilotError> for PilotExit {
    fn from(fatal: PilotError) -> Self {
        Self {
            exit: fatal.exit(),
            last_line: Some(fatal.to_string()),
            chirped_error: fatal.chirped(),
            details: None,
        }
    }
}

/// Runs a pilot to its end. Also returns the identity that its records carry.
pub async fn run(
    config: Config,
    mut signals: Signals,
    progress: Progress,
) -> (PilotExit, PilotIdentity) {
    let mut recorder = Recorder::open(&config);
    let keeper = recorder.keeper().clone();
    let progress_reporter = ProgressReporter::start(&config, progress.clone(), keeper.clone());
    progress_reporter.status(Status::Started);
    let mut tally = Tally::default();
    let ended = live(
        &config,
        &mut signals,
        &progress,
        &progress_reporter,
        &mut recorder,
        &mut tally,
    )
    .await
    .unwrap_or_else(PilotExit::from);
    recorder.close(tally, &ended).await;
    progress_reporter.ended(&ended).await;
    if let Some(line) = &ended.last_line
        && !config.quarantine.is_zero()
        && !matches!(ended.exit, Exit::Signal(_))
    {
        error!(error = %line, "fatal error");
        quarantine(&config, &mut signals).await;
        progress_reporter.flush().await;
    }
    keeper.close().await;
    (ended, recorder.source().clone())
}

/// Keeps the slot, so that a broken EP gets no further pilots for a while. A signal ends the quarantine.
async fn quarantine(config: &Config, signals: &mut Signals) {
    warn!(
        seconds = config.quarantine.as_secs(),
        "quarantining this EP"
    );
    tokio::select! {
        () = tokio::time::sleep(config.quarantine) => {}
        signal = signals.recv() => warn!(signal = signal.name(), "signal received: quarantine over"),
    }
}

async fn live(
    config: &Config,
    signals: &mut Signals,
    progress: &Progress,
    progress_reporter: &ProgressReporter,
    recorder: &mut Recorder,
    tally: &mut Tally,
) -> Result<PilotExit, PilotError> {
    start_threads()?;
    let stops = if signals.ignores_stop() {
        StopSignals::Ignored
    } else {
        StopSignals::Handled
    };
    let guard = startup::unless_signalled(signals, guard(stops)).await?;
    let outage_policy = OutagePolicy::new(
        config.reconnect_timeout,
        config.data_parent.join(own_paths::UNSENT_DIR),
    )
    .with_message_limit(MessageLimit::of(config.limits.message))
    .with_bodies(BodyStore::new(scratch_of(&config.data_parent)));
    status_feed::follow_queues(recorder.keeper(), &outage_policy);
    let mut observers = Observers {
        signals: &mut *signals,
        progress,
        progress_reporter,
        recorder: &mut *recorder,
    };
    let Started {
        tasks,
        source,
        sink,
    } = startup::start(config, guard, &outage_policy, &mut observers).await?;

    let names_outfile = tasks.runner().plan.names_outfile();
    let rules = LoopRules {
        slots: size(config.slots),
        window: size(config.window()),
        on_task_error: config.on_task_error.clone(),
        max_deliveries: config.limits.max_deliveries,
        first_event_timeout: config.first_event_timeout,
        idle_timeout: config.idle_timeout,
    };
    info!(
        slots = config.slots,
        window = config.window(),
        "taking events"
    );
    broker_defaults::advise_on_long_tasks(config);
    recorder.connected();
    let extras = DriverOptions {
        dead_letters: DeadLetters::new(config, recorder.source(), &outage_policy),
        wall_time: wall_time(config, recorder),
        disk_floor: config.limits.min_free_disk.map(|bytes| DiskFloor {
            directory: config.data_parent.clone(),
            bytes,
        }),
    };
    let queues = Queues {
        source,
        sink,
        outage_policy: outage_policy.clone(),
    };
    let finished = driver::run(
        rules,
        queues,
        tasks,
        signals,
        progress_reporter,
        recorder,
        extras,
    )
    .await;
    *tally = finished.conclusion.tally;
    recorder.outages(outage_policy.outages(), outage_policy.stats());
    if names_outfile && tally.no_output > 0 && tally.no_output == tally.succeeded {
        recorder.outfile_never_written();
        summary::log_no_outfiles(tally.no_output);
    }
    summary::log(&finished, recorder);
    if summary::ended_for_lack_of_events(&finished.conclusion) {
        summary::log_unused_queues(&config.incoming).await;
    }
    summary::log_outages(outage_policy.stats());
    summary::ended(&finished.conclusion)
}

fn wall_time(config: &Config, recorder: &Recorder) -> Option<Deadline> {
    let began = recorder.began();
    let (limit, cause) = deadline::earlier(began, config.limits.max_runtime, config.token_end)?;
    info!(
        seconds = limit.as_secs(),
        ?cause,
        "the time of this pilot is limited"
    );
    status_feed::ends(recorder.keeper(), began, limit);
    Deadline::new(began, limit, config.kill_grace)
}

/// Starts the threads for blocking work, before other processes can use up the limit on threads.
fn start_threads() -> Result<(), PilotError> {
    blocking::prepare().map_err(|error| used_up(format!("can't start a thread: {error}")))
}

/// Starts the guardian. From here on no container outlives the pilot.
async fn guard(stops: StopSignals) -> Result<GuardianHandle, PilotError> {
    let refused = |error| unguarded(&error);
    let guard = GuardianHandle::start().await.map_err(refused)?;
    // Runs until the runtime ends.
    tokio::spawn(guard.maintain(stops).map_err(refused)?);
    Ok(guard)
}

fn unguarded(error: &io::Error) -> PilotError {
    used_up(format!("can't guard the containers: {error}"))
}

fn used_up(seen: String) -> PilotError {
    PilotError::ExecutionPoint(Diagnosis::new(
        seen,
        "the machine or its limits are used up",
    ))
}

fn address(broker: &BrokerConfig) -> broker::Address<'_> {
    match broker {
        BrokerConfig::RabbitMq(address) => broker::Address::RabbitMq(address),
        BrokerConfig::Spool(directory) => broker::Address::Spool(directory),
    }
}

fn size(count: NonZeroU32) -> usize {
    usize::try_from(count.get()).unwrap_or(usize::MAX)
}
