//! Reports the pilot's progress to the log, the terminal's progress line, the status file and HTCondor.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::info;

use super::PilotExit;
use super::events::Status;
use crate::chirp::{ChirpReporter, ChirpSettings, ChirpValue, Destination, Urgency};
use crate::config::{ChirpDestination, Config};
use crate::exit::Exit;
use crate::stats::Tally;
use crate::status::StatusWriter;
use crate::telemetry::{Progress, ProgressCounts};

/// How long the end of a pilot waits for HTCondor to take its last words. On a sound EP it takes
/// milliseconds.
const FLUSH: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct ProgressReporter {
    progress: Progress,
    chirp: ChirpReporter,
    keeper: StatusWriter,
}

impl ProgressReporter {
    /// Starts reporting to HTCondor, if it is there and wanted.
    #[must_use]
    pub fn start(config: &Config, progress: Progress, keeper: StatusWriter) -> Self {
        let chirp = match (config.chirp, &config.condor.chirp_file) {
            (Some(chirp), Some(config_file)) => ChirpReporter::start(ChirpSettings {
                destination: match chirp.destination {
                    ChirpDestination::JobAttributes => Destination::JobAttr,
                    ChirpDestination::JobEventLog => Destination::JobEventLog,
                },
                interval: chirp.interval,
                config_file: config_file.clone(),
            }),
            (Some(_), None) => {
                info!("this is no HTCondor job: nothing is chirped");
                ChirpReporter::off()
            }
            (None, _) => ChirpReporter::off(),
        };
        if let Some(site) = &config.condor.site {
            chirp.set("Site", ChirpValue::Text(site.clone()), Urgency::AtOnce);
        }
        Self {
            progress,
            chirp,
            keeper,
        }
    }

    /// The pilot entered a phase of its life.
    pub fn status(&self, status: Status) {
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
        self.chirp.set(
            "Status",
            ChirpValue::Text(status.name().to_owned()),
            Urgency::AtOnce,
        );
    }

    /// Events and tasks are now where these counts say.
    pub fn counts(&self, tally: Tally, running: u64) {
        self.progress.update(ProgressCounts {
            done: tally.succeeded,
            running,
            failed: tally.failed,
            waiting: tally.pending().saturating_sub(running),
        });
        self.keeper.change(|snapshot| snapshot.facts.events = tally);
        self.chirp_counts(tally, running, Urgency::WithinInterval);
    }

    /// The last counts: HTCondor is told now.
    pub fn final_counts(&self, tally: Tally) {
        self.progress.finish();
        self.keeper.change(|snapshot| snapshot.facts.events = tally);
        self.chirp_counts(tally, 0, Urgency::AtOnce);
    }

    /// Sessions with a broker were replaced so often.
    pub fn reconnects(&self, count: u64) {
        if count > 0 {
            self.chirp.set(
                "BrokerReconnects",
                ChirpValue::Count(count),
                Urgency::WithinInterval,
            );
        }
    }

    fn chirp_counts(&self, tally: Tally, running: u64, urgency: Urgency) {
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

    /// The pilot ended; if badly, says why and whose fault it is.
    pub async fn ended(&self, ended: &PilotExit) {
        self.progress.finish();
        self.keeper
            .change(|snapshot| snapshot.facts.error.clone_from(&ended.last_line));
        if let Some(line) = &ended.last_line {
            self.chirp
                .set("Error", ChirpValue::Text(line.clone()), Urgency::AtOnce);
            let details = ended.details.clone().unwrap_or_else(|| line.clone());
            self.chirp
                .set("ErrorTraceback", ChirpValue::Text(details), Urgency::AtOnce);
            self.chirp.set(
                "ErrorClass",
                ChirpValue::Text(whose_fault(ended.exit).to_owned()),
                Urgency::AtOnce,
            );
            self.status(Status::FatalError);
        } else {
            self.status(Status::Done);
        }
        self.chirp.flush(FLUSH).await;
    }

    /// What was said during a quarantine.
    pub async fn flush(&self) {
        self.chirp.flush(FLUSH).await;
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
