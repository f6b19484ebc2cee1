//! Feeds the status file: passes each change that `ewms-pilot status` shows to its writer, without waiting.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::broker::{self, ConnectionStatus, Direction, OutagePolicy};
use crate::config::Config;
use crate::records::{PilotIdentity, UnixTime};
use crate::status::{PilotFacts, ProcessId, QueueState, QueueStatus, Snapshot, StatusWriter};
use crate::task::{GpuPool, TaskContext};

/// Starts the status file with the facts known before the first event.
pub(super) fn start(config: &Config, source: &PilotIdentity) -> StatusWriter {
    let facts = PilotFacts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pilot_id: source.pilot_id.clone(),
        job_id: config.condor.job_id.clone(),
        site: source.site.clone(),
        process: ProcessId::own(),
        started_unix_secs: UnixTime::now(),
        slots: config.slots.get(),
        window: config.window().get(),
        ..PilotFacts::default()
    };
    let first = Snapshot {
        facts,
        ..Snapshot::default()
    };
    StatusWriter::start(&config.data_parent, first)
}

/// The pilot that began at `began` must end after `limit`.
pub(super) fn ends(keeper: &StatusWriter, began: Instant, limit: Duration) {
    let left = limit.saturating_sub(began.elapsed());
    let end = UnixTime::now().0 + left.as_secs_f64();
    let end = UnixTime((end * 1e3).round() / 1e3);
    keeper.change(|snapshot| snapshot.facts.ends_unix_secs = Some(end));
}

/// Reports the job's GPUs.
pub(super) fn show_gpus(keeper: &StatusWriter, gpus: &GpuPool) {
    let gpus = gpus.summary();
    keeper.change(|snapshot| snapshot.facts.gpus = gpus);
}

/// Reports containers as they start and end, and how many wait.
pub(super) fn follow_containers(keeper: &StatusWriter, context: &TaskContext) {
    let (mut running, mut waiting) = (context.running.watch(), context.waiting.watch());
    let keeper = keeper.clone();
    // A container may wait already.
    waiting.mark_changed();
    // Runs until the context is dropped.
    tokio::spawn(async move {
        loop {
            tokio::select! {
                Ok(()) = running.changed() => {
                    let now = running.borrow_and_update().clone();
                    keeper.change(|snapshot| snapshot.contain(&now));
                }
                Ok(()) = waiting.changed() => {
                    let count = waiting.borrow_and_update().len();
                    let count = u32::try_from(count).unwrap_or(u32::MAX);
                    keeper.change(|snapshot| snapshot.facts.waiting_containers = count);
                }
                else => break,
            }
        }
    });
}

/// Reports queues as they are connected and lost.
pub(super) fn follow_queues(keeper: &StatusWriter, outage_policy: &OutagePolicy) {
    let (keeper, outage_policy) = (keeper.clone(), outage_policy.clone());
    let mut links = outage_policy.links();
    // Runs until the runtime ends.
    tokio::spawn(async move {
        while links.changed().await.is_ok() {
            let mut queues: Vec<QueueStatus> =
                links.borrow_and_update().iter().map(queue).collect();
            // Outgoing queues are connected first, but incoming ones are shown first.
            queues.sort_by(|a, b| a.direction.cmp(&b.direction));
            keeper.change(|snapshot| {
                snapshot.facts.queues = queues;
                snapshot.facts.reconnects = outage_policy.stats().reconnects;
            });
        }
    });
}

fn queue(link: &ConnectionStatus) -> QueueStatus {
    let (state, error) = match &link.state {
        broker::ConnectionState::Up => (QueueState::Up, None),
        broker::ConnectionState::Down(why) => (QueueState::Down, Some(why.clone())),
        broker::ConnectionState::GivenUp(why) => (QueueState::GivenUp, Some(why.clone())),
    };
    let direction = match link.at.direction {
        Direction::Incoming => "incoming",
        Direction::Outgoing => "outgoing",
        Direction::DeadLetters => "dead_letters",
    };
    QueueStatus {
        direction: direction.to_owned(),
        queue: link.at.queues.join(", "),
        address: link.at.address.clone(),
        link: state,
        since_unix_secs: unix(link.since),
        error,
    }
}

fn unix(time: SystemTime) -> UnixTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixTime((since.as_secs_f64() * 1e3).round() / 1e3)
}
