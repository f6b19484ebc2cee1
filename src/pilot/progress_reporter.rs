//! Reports the pilot's progress to the log, the terminal's progress line, the status file and HTCondor.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use tracing::info;

use super::PilotExit;
use super::events::Status;
use crate::chirp::{ChirpReporter, ChirpSettings, ChirpValue, Destination, Urgency};
use crate::config::{ChirpDestination, Config, ConfigErrors, EarlyChirp, MachineNames};
use crate::exit::Exit;
use crate::stats::Tally;
use crate::status::StatusWriter;
use crate::telemetry::{Progress, ProgressCounts};

/// How long a pilot waits at its end for HTCondor to take the last report. On a sound EP it takes
/// milliseconds.
const FLUSH: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct ProgressReporter {
    progress: Progress,
    chirp: ChirpReporter,
    keeper: StatusWriter,
    status: Cell<Option<Status>>,
}

impl ProgressReporter {
    /// Starts reporting to HTCondor, if it is there and wanted.
    #[must_use]
    pub fn start(config: &Config, progress: Progress, keeper: StatusWriter) -> Self {
        let chirp = match (config.chirp, &config.condor.chirp_file) {
            (Some(chirp), Some(config_file)) => ChirpReporter::start(ChirpSettings {
                destination: destination(chirp.destination),
                interval: chirp.interval,
                config_file: config_file.clone(),
            }),
            (Some(_), None) => {
                info!("this is no HTCondor job: nothing is chirped");
                ChirpReporter::off()
            }
            (None, _) => ChirpReporter::off(),
        };
        chirp_names(&chirp, &config.condor.names);
        // The same job may have run before, and its ad keeps the attributes of that run.
        for attribute in ERROR_ATTRIBUTES {
            chirp.set(attribute, ChirpValue::Undefined, Urgency::AtOnce);
        }
        Self {
            progress,
            chirp,
            keeper,
            status: Cell::new(None),
        }
    }

    /// Reports a phase of the pilot's life, unless it is the last one reported.
    pub fn status(&self, status: Status) {
        if self.status.replace(Some(status)) == Some(status) {
            return;
        }
        info!(status = status.name(), "status");
        self.keeper
            .change(|snapshot| status.name().clone_into(&mut snapshot.facts.status));
        if status == Status::Started {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs();
            let now = ChirpValue::Int(i64::try_from(now).unwrap_or(i64::MAX));
            self.chirp.set("StartedTimestamp", now, Urgency::AtOnce);
        }
        chirp_status(&self.chirp, status);
    }

    /// Reports the current counts of events and tasks.
    pub fn counts(&self, tally: Tally, running: u64) {
        self.progress.update(ProgressCounts {
            done: tally.succeeded,
            running,
            failed: tally.failed,
            waiting: tally.pending().saturating_sub(running),
        });
        self.keeper.change(|snapshot| snapshot.facts.events = tally);
        self.chirp_counts(tally, running);
    }

    /// Reports the last counts. HTCondor gets them with the pilot's end, or earlier if that takes longer than
    /// a count may wait.
    pub fn final_counts(&self, tally: Tally) {
        self.progress.finish();
        self.keeper.change(|snapshot| snapshot.facts.events = tally);
        self.chirp_counts(tally, 0);
    }

    /// Reports how many sessions with a broker were replaced.
    pub fn reconnects(&self, count: u64) {
        if count > 0 {
            self.chirp.set(
                "BrokerReconnects",
                ChirpValue::Count(count),
                Urgency::WithinInterval,
            );
        }
    }

    fn chirp_counts(&self, tally: Tally, running: u64) {
        let urgency = Urgency::WithinInterval;
        for (name, count) in [
            ("TasksTotal", tally.received),
            ("TasksFailed", tally.failed),
            ("TasksSuccess", tally.succeeded),
            ("EventsGivenBack", tally.given_back),
            ("EventsDeadLettered", tally.dead_lettered + tally.rejected),
        ] {
            self.chirp.set(name, ChirpValue::Count(count), urgency);
        }
        let running = ChirpValue::Int(i64::try_from(running).unwrap_or(i64::MAX));
        self.chirp.set("TasksRunning", running, urgency);
    }

    /// Reports the pilot's end and, after an error, its reason and fault class.
    pub async fn ended(&self, ended: &PilotExit) {
        self.progress.finish();
        self.keeper
            .change(|snapshot| snapshot.facts.error.clone_from(&ended.last_line));
        self.status(match &ended.chirped_error {
            Some(error) => {
                let details = ended.details.as_ref().unwrap_or(error);
                chirp_error(&self.chirp, error, details, ended.exit);
                Status::FatalError
            }
            None if matches!(ended.exit, Exit::Signal(_)) => Status::PendingRemainingTasks,
            None => Status::Done,
        });
        self.chirp.flush(FLUSH).await;
    }

    /// Sends anything that was reported during a quarantine.
    pub async fn flush(&self) {
        self.chirp.flush(FLUSH).await;
    }
}

/// Tells HTCondor why no pilot starts. If reports go to the event log only, the job's ad gets the error all
/// the same, because policies that hold a job read the ad. Takes 5 s at most.
pub async fn chirp_wrong_configuration(errors: &ConfigErrors) {
    let Some(settings) = errors.chirp() else {
        return;
    };
    let mut reporters = Vec::new();
    for wanted in &settings.destinations {
        let chirp = early_reporter(settings, *wanted);
        chirp_names(&chirp, &settings.names);
        chirp_error(
            &chirp,
            &errors.chirped(),
            &errors.to_string(),
            Exit::Configuration,
        );
        chirp_status(&chirp, Status::FatalError);
        reporters.push(chirp);
    }
    if settings.destinations == [ChirpDestination::JobEventLog] {
        let chirp = early_reporter(settings, ChirpDestination::JobAttributes);
        chirp_text(&chirp, "Error", &errors.chirped());
        reporters.push(chirp);
    }
    join_all(reporters.iter().map(|chirp| chirp.flush(FLUSH))).await;
}

fn early_reporter(settings: &EarlyChirp, wanted: ChirpDestination) -> ChirpReporter {
    ChirpReporter::start(ChirpSettings {
        destination: destination(wanted),
        interval: Duration::ZERO,
        config_file: settings.file.clone(),
    })
}

fn destination(wanted: ChirpDestination) -> Destination {
    match wanted {
        ChirpDestination::JobAttributes => Destination::JobAttr,
        ChirpDestination::JobEventLog => Destination::JobEventLog,
    }
}

fn chirp_text(chirp: &ChirpReporter, attribute: &'static str, text: &str) {
    chirp.set(
        attribute,
        ChirpValue::Text(text.to_owned()),
        Urgency::AtOnce,
    );
}

/// Reports where the pilot runs, by the names that requirements are matched against.
fn chirp_names(chirp: &ChirpReporter, names: &MachineNames) {
    chirp_text(chirp, "Machine", &names.machine);
    for (attribute, name) in [("Site", &names.site), ("ResourceName", &names.resource)] {
        match name {
            Some(name) => chirp_text(chirp, attribute, name),
            // An earlier run of the job may have been at a place with a name.
            None => chirp.set(attribute, ChirpValue::Undefined, Urgency::AtOnce),
        }
    }
}

fn chirp_status(chirp: &ChirpReporter, status: Status) {
    chirp_text(chirp, "Status", status.name());
}

/// The attributes that an error sets in the job's ad.
const ERROR_ATTRIBUTES: [&str; 3] = ["Error", "ErrorTraceback", "ErrorClass"];

fn chirp_error(chirp: &ChirpReporter, error: &str, details: &str, exit: Exit) {
    let texts = [error, details, whose_fault(exit)];
    for (attribute, text) in ERROR_ATTRIBUTES.into_iter().zip(texts) {
        chirp_text(chirp, attribute, text);
    }
}

/// The fault class of a pilot's end, by the names of the exit codes' table.
fn whose_fault(exit: Exit) -> &'static str {
    match exit {
        Exit::Success => "none",
        Exit::TasksFailed => "task",
        Exit::Configuration => "configuration",
        Exit::ExecutionPoint => "ep",
        Exit::Broker => "broker",
        Exit::Init => "init",
        Exit::Image => "image",
        Exit::Signal(_) => "signal",
    }
}
