//! The reporter: takes values from the pilot without making it wait, and sends them to the chirp server in
//! rounds, each over its own connection.
//!
//! Rounds are rare: one for each interval and each status. With a connection for each, none is stale, and the
//! new configuration of a restarted starter is found.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::client::Client;
use super::protocol::{ChirpCommand, ChirpError, ChirpServer};
use super::update_queue::{QueuedUpdate, Refusal, UpdateQueue, UpdateScope, Urgency};
use super::{ChirpSettings, ChirpValue, Destination};
use crate::backoff;
use crate::mailbox::{Mail, Mailbox, MailboxSender, mailbox};

/// The prefix of every attribute's name, by which services find the pilot's attributes.
const PREFIX: &str = "HTChirpEWMSPilot";

const LAST_UPDATED: &str = "LastUpdatedTimestamp";

/// The attributes that go into the job event log: only those that services read there, since one log serves
/// thousands of jobs.
const IN_EVENT_LOG: [&str; 8] = [
    "StartedTimestamp",
    "Status",
    "TasksTotal",
    "TasksFailed",
    "TasksSuccess",
    "Error",
    "ErrorTraceback",
    LAST_UPDATED,
];

/// How long the actor waits for the server, and after failures.
#[derive(Debug, Clone, Copy)]
struct RetryPace {
    /// For connecting, and for each reply.
    patience: Duration,
    /// After the first failure; doubled by each further one.
    first_pause: Duration,
    longest_pause: Duration,
}

const PACE: RetryPace = RetryPace {
    patience: Duration::from_secs(10),
    first_pause: Duration::from_secs(1),
    longest_pause: Duration::from_mins(1),
};

/// How long a count waits for a status to be sent with.
fn company_wait(destination: Destination) -> Duration {
    match destination {
        // The counts of one event change together.
        Destination::JobAttr => Duration::from_millis(200),
        // Each round ends in a timestamp, which is one more line there. A pilot that is idle for the default of 1 s
        // says so within this time.
        Destination::JobEventLog => Duration::from_secs(5),
    }
}

impl RetryPace {
    fn pause(&self, failures: u32) -> Duration {
        backoff::exponential(self.first_pause, self.longest_pause, failures.into())
    }
}

/// The pilot's handle: sets values, and waits only in [`ChirpReporter::flush`]. When the last clone is
/// dropped, the actor ends.
#[derive(Debug, Clone)]
pub struct ChirpReporter(Option<ReporterHandle>);

#[derive(Debug, Clone)]
struct ReporterHandle {
    destination: Destination,
    sender: MailboxSender<UpdateQueue>,
}

impl ChirpReporter {
    #[must_use]
    pub fn off() -> Self {
        Self(None)
    }

    /// Starts the actor on the current tokio runtime, which must exist. Without a configuration file, logs
    /// that and returns [`ChirpReporter::off`].
    #[must_use]
    pub fn start(settings: ChirpSettings) -> Self {
        Self::start_at(settings, PACE)
    }

    fn start_at(settings: ChirpSettings, pace: RetryPace) -> Self {
        if let Err(error) = std::fs::metadata(&settings.config_file) {
            let path = settings.config_file.display();
            info!(%path, %error, "no chirp configuration: nothing is reported to HTCondor; a job with `+WantIOProxy = true` has one");
            return Self::off();
        }
        let (sender, mailbox) = mailbox(UpdateQueue::new(
            settings.interval,
            company_wait(settings.destination),
        ));
        let actor = ReporterActor {
            destination: settings.destination,
            config_file: settings.config_file,
            pace,
            mailbox,
            failures: 0,
            not_before: None,
            timestamp: TimestampState::Current,
        };
        tokio::spawn(actor.run());
        Self(Some(ReporterHandle {
            destination: settings.destination,
            sender,
        }))
    }

    /// Sets `attribute`, named without its prefix, to `value`. Only changes are sent, and only the attributes
    /// that services read there go into the job event log.
    pub fn set(&self, attribute: &'static str, value: ChirpValue, urgency: Urgency) {
        let Some(handle) = &self.0 else { return };
        if handle.destination == Destination::JobEventLog && !IN_EVENT_LOG.contains(&attribute) {
            return;
        }
        let Some(text) = value.render(&prefixed(attribute), handle.destination) else {
            return;
        };
        handle
            .sender
            .change(|queue| queue.set(attribute, text, urgency, Instant::now()));
    }

    /// Tries once to send all remaining values, whatever the interval and past failures. Returns when they
    /// are sent, when that failed, or after `deadline`.
    pub async fn flush(&self, deadline: Duration) {
        let Some(handle) = &self.0 else { return };
        if handle.sender.request(deadline).await.is_err() {
            debug!(?deadline, "the last chirp did not arrive in time");
        }
    }
}

/// Whether the last timestamp sent covers the last value sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TimestampState {
    Current,
    Owed,
}

/// The actor, which alone talks to the server.
#[derive(Debug)]
struct ReporterActor {
    destination: Destination,
    config_file: PathBuf,
    pace: RetryPace,
    mailbox: Mailbox<UpdateQueue>,
    /// Consecutive failed rounds.
    failures: u32,
    /// After a failure, the earliest time of the next round.
    not_before: Option<Instant>,
    timestamp: TimestampState,
}

impl ReporterActor {
    async fn run(mut self) {
        loop {
            let due = self.due(Instant::now());
            match self.mailbox.next(due).await {
                Mail::Changed => {}
                Mail::Due => self.round(UpdateScope::Due).await,
                Mail::Request(done) => {
                    self.round(UpdateScope::Everything).await;
                    // The caller may have stopped waiting.
                    let _ = done.send(());
                }
                Mail::Closed => return,
            }
        }
    }

    fn due(&self, now: Instant) -> Option<Instant> {
        let due = match self.timestamp {
            TimestampState::Owed => Some(now),
            TimestampState::Current => self.mailbox.state().due(now),
        };
        due.max(due.and(self.not_before))
    }

    /// Sends a batch and records the outcome.
    async fn round(&mut self, scope: UpdateScope) {
        let batch = self.mailbox.state().take(scope, Instant::now());
        if batch.is_empty() && self.timestamp == TimestampState::Current {
            return;
        }
        match self.send(&batch).await {
            Ok(()) => {
                if self.failures > 0 {
                    info!(failures = self.failures, "chirp works again");
                }
                self.failures = 0;
                self.not_before = None;
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                let pause = self.pace.pause(self.failures);
                self.not_before = Some(Instant::now() + pause);
                // One line for each outage, since there may be no chirp server for days.
                if self.failures == 1 {
                    warn!(%error, "chirp failed; the pilot goes on, and tries again now and then");
                } else {
                    debug!(%error, failures = self.failures, ?pause, "chirp failed again");
                }
            }
        }
    }

    /// Sends `batch`, then the timestamp. A refused value does not stop the others; the last refusal is the
    /// error of the round.
    async fn send(&mut self, batch: &[QueuedUpdate]) -> Result<(), ChirpError> {
        let contact = ChirpServer::read(&self.config_file, self.pace.patience).await?;
        let mut client = Client::connect(&contact, self.pace.patience).await?;
        let mut outcome = Ok(());
        for entry in batch {
            match self.put(&mut client, entry.attribute, &entry.text).await {
                Ok(()) => {
                    self.timestamp = TimestampState::Owed;
                    self.mailbox.state().delivered(entry, Instant::now());
                }
                Err(error @ (ChirpError::Refused { .. } | ChirpError::TooLong { .. })) => {
                    if self.mailbox.state().refused(entry) == Refusal::GivenUp {
                        debug!(attribute = entry.attribute, %error, "a chirp value is given up");
                    }
                    outcome = Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        if self.timestamp == TimestampState::Owed {
            let stamp =
                ChirpValue::Int(unix_time()).render(&prefixed(LAST_UPDATED), self.destination);
            let answer = self
                .put(&mut client, LAST_UPDATED, &stamp.unwrap_or_default())
                .await;
            if matches!(answer, Ok(()) | Err(ChirpError::Refused { .. })) {
                self.timestamp = TimestampState::Current;
            }
            outcome = outcome.and(answer);
        }
        outcome
    }

    async fn put(
        &self,
        client: &mut Client,
        attribute: &str,
        text: &str,
    ) -> Result<(), ChirpError> {
        let name = prefixed(attribute);
        debug!(name, text, "chirp");
        match self.destination {
            Destination::JobAttr => {
                client
                    .send(ChirpCommand::SetJobAttr {
                        name: &name,
                        expression: text,
                    })
                    .await
            }
            Destination::JobEventLog => {
                client
                    .send(ChirpCommand::Ulog {
                        text: &format!("{name}: {text}"),
                    })
                    .await
            }
        }
    }
}

fn prefixed(attribute: &str) -> String {
    format!("{PREFIX}{attribute}")
}

/// Seconds since 1970.
fn unix_time() -> i64 {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "reporter_tests.rs"]
mod tests;
