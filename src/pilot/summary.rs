//! The end of a pilot: its last log lines and its exit code.

use std::time::Duration;

use tokio::time::timeout;
use tracing::{error, info, warn};

use super::driver::LoopEnd;
use super::recorder::Recorder;
use super::state::Conclusion;
use super::{PilotError, PilotExit, address};
use crate::broker::{self, BrokerStats, Direction, QueueLook};
use crate::config::QueueConfig;
use crate::exit::Exit;
use crate::fault::Diagnosis;
use crate::telemetry::DETAILS;

/// Logs the tallies, the statistics with their histogram, and the failures.
pub(super) fn log(finished: &LoopEnd, recorder: &Recorder) {
    let tally = finished.conclusion.tally;
    info!(
        received = tally.received,
        published = tally.published,
        no_output = tally.no_output,
        given_back = tally.given_back,
        dead_lettered = tally.dead_lettered,
        rejected = tally.rejected,
        "done tasking"
    );
    info!("{tally}");
    if tally.received == 0 {
        warn!("No Messages Were Received.");
        return;
    }
    for line in recorder.runtimes().report() {
        info!(target: DETAILS, "{line}");
    }
    for (text, count) in finished.conclusion.failures.by_frequency() {
        error!(count, error = %text, "tasks failed alike");
    }
}

/// Whether the pilot got no event, and nothing else ended it.
pub(super) fn ended_for_lack_of_events(conclusion: &Conclusion) -> bool {
    let was_cut_short =
        conclusion.fatal.is_some() || conclusion.disk_low.is_some() || conclusion.signal.is_some();
    conclusion.tally.received == 0 && !was_cut_short
}

/// How long a look at the queues may take at the end of a pilot that got no event.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

/// Logs why no event came, as far as a look at each incoming queue tells: a queue that is empty and that nobody
/// else uses may have the wrong name.
pub(super) async fn log_unused_queues(queues: &[QueueConfig]) {
    for QueueConfig { name, broker } in queues {
        let looking = broker::look(Direction::Incoming, name, address(broker));
        // A broker that doesn't answer now has no part in this.
        let Ok(Ok(look)) = timeout(LOOK_WITHIN, looking).await else {
            continue;
        };
        let found = match look {
            QueueLook::Missing => "is gone".to_owned(),
            QueueLook::There {
                waiting: 0,
                consumers: 0,
            } => "is empty and has no other consumers".to_owned(),
            QueueLook::There {
                waiting: 0,
                consumers,
            } => {
                info!(
                    queue = name,
                    consumers, "the queue is empty, and others take its events"
                );
                continue;
            }
            QueueLook::There { .. } => continue,
        };
        warn!(
            "the queue `{name}` {found}: is this its name, and are events in it? (EWMS_PILOT_QUEUE_INCOMING)"
        );
    }
}

/// Logs that the tasks that succeeded left no result at all, which is seldom meant.
pub(super) fn log_no_outfiles(succeeded: u64) {
    error!(
        succeeded,
        "no task wrote an outfile, though its arguments or variables name one: these events are done and have no \
         result; look at what the image runs"
    );
}

/// Logs the effects of broker outages, if there were any.
pub(super) fn log_outages(stats: BrokerStats) {
    if stats == BrokerStats::default() {
        return;
    }
    info!(
        reconnects = stats.reconnects,
        adopted = stats.adopted,
        published_again = stats.published_again,
        unacknowledged = stats.unacknowledged,
        kept_unsent = stats.kept_unsent,
        sent_late = stats.sent_late,
        possible_duplicates = stats.possible_duplicates(),
        "outages of the broker"
    );
}

/// How the pilot exits. Failed tasks come first, because readers of the last line look for them.
pub(super) fn ended(conclusion: &Conclusion) -> Result<PilotExit, PilotError> {
    let failed = conclusion.failures.fatal_line();
    let exit = match (&conclusion.fatal, conclusion.signal) {
        (_, Some(signal)) if failed.is_none() => return Err(PilotError::Signal(signal)),
        (_, Some(signal)) => Exit::Signal(signal),
        (Some(reason), None) => {
            error!(%reason, "the broker was lost, or took no results");
            if failed.is_none() {
                return Err(PilotError::Broker(Diagnosis::of_text(reason)));
            }
            Exit::Broker
        }
        (None, None) if conclusion.disk_low.is_some() => {
            let reason = conclusion.disk_low.clone().unwrap_or_default();
            error!(reason, "the disk was too full");
            if failed.is_none() {
                return Err(PilotError::ExecutionPoint(Diagnosis::of_text(&reason)));
            }
            Exit::ExecutionPoint
        }
        (None, None)
            if failed.is_none()
                && let Some(error) = &conclusion.no_containers =>
        {
            let said = Diagnosis::of_text(&error.message());
            return Err(PilotError::of(error.class(), said));
        }
        (None, None) => match conclusion.broken {
            Some(class) => class.exit(),
            None if failed.is_some() => Exit::TasksFailed,
            None => Exit::Success,
        },
    };
    let most_frequent = conclusion.failures.by_frequency();
    let details = most_frequent.first().map(|(text, _)| (*text).to_owned());
    let was_stopped = matches!(exit, Exit::Signal(_));
    Ok(PilotExit {
        exit,
        // Being told to stop is no error even if tasks failed before: `TasksFailed` has their number.
        chirped_error: failed.clone().filter(|_| !was_stopped),
        last_line: failed,
        details,
    })
}
