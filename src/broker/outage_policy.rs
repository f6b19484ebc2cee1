//! The settings and counts about outages that the queues of one pilot share: the time for which one is
//! tolerated, the shorter waits of a pilot that was told to end, the directory for results that can't be
//! sent, and the counts. Also the largest message and the store of bodies.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::connection_status::{ConnectionState, ConnectionStatus, ConnectionStatuses, Outages};
use super::result_acceptance::{RefusedCount, ResultAcceptanceWatch};
use super::{BodyStore, Endpoint, MessageLimit};

/// How long a pilot that was told to end waits for its brokers: with closing, it is gone after 5 s unless a
/// task runs.
pub(super) const SHORT_WAIT: Duration = Duration::from_secs(3);
/// The least time for a wait that begins later, when the tasks have ended.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// Policy and counts; clones share them.
#[derive(Debug, Clone)]
pub struct OutagePolicy {
    shared: Arc<OutageState>,
    message_limit: MessageLimit,
    bodies: BodyStore,
}

#[derive(Debug)]
struct OutageState {
    reconnect_within: Duration,
    unsent: Option<PathBuf>,
    stats: Mutex<BrokerStats>,
    /// The time at which the pilot was told to end.
    told_to_end: watch::Sender<Option<Instant>>,
    links: ConnectionStatuses,
    refused: RefusedCount,
}

/// The effects of outages on a pilot's queues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BrokerStats {
    pub reconnects: u64,
    /// Events that were delivered again while their task ran, or after it ended, and were not run again.
    pub adopted: u64,
    /// Results that were sent again because it is unknown whether they had arrived. Each may be in the
    /// outgoing queue twice.
    pub published_again: u64,
    /// Events that are done but whose acknowledgement never arrived. Each will be delivered again, so its
    /// output may be in the queue twice.
    pub unacknowledged: u64,
    /// Results that could not be sent, and are kept on disk.
    pub kept_unsent: u64,
    /// Results of earlier pilots that were found on disk and sent.
    pub sent_late: u64,
}

impl BrokerStats {
    /// The number of outputs that may be in the outgoing queue twice.
    #[must_use]
    pub fn possible_duplicates(&self) -> u64 {
        self.published_again + self.unacknowledged + self.kept_unsent + self.sent_late
    }
}

impl OutagePolicy {
    /// Tolerates outages for `reconnect_within` without any connection. Results that can't be sent then are
    /// kept in the directory `unsent`, which is created when needed.
    #[must_use]
    pub fn new(reconnect_within: Duration, unsent: PathBuf) -> Self {
        Self::with(reconnect_within, Some(unsent))
    }

    /// The policy for a queue beside the pilot's own: its results are not kept on disk, and its connection is
    /// not in the status file.
    #[must_use]
    pub fn for_dead_letters(&self) -> Self {
        let shared = OutageState {
            reconnect_within: self.shared.reconnect_within,
            unsent: None,
            stats: Mutex::default(),
            told_to_end: self.shared.told_to_end.clone(),
            links: ConnectionStatuses::new(),
            refused: self.shared.refused.clone(),
        };
        Self {
            shared: Arc::new(shared),
            message_limit: MessageLimit::default(),
            bodies: self.bodies.clone(),
        }
    }

    /// Tolerates no outage and keeps nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::with(Duration::ZERO, None)
    }

    fn with(reconnect_within: Duration, unsent: Option<PathBuf>) -> Self {
        Self {
            shared: Arc::new(OutageState {
                reconnect_within,
                unsent,
                stats: Mutex::default(),
                told_to_end: watch::Sender::new(None),
                links: ConnectionStatuses::new(),
                refused: RefusedCount::new(),
            }),
            message_limit: MessageLimit::default(),
            bodies: BodyStore::new(std::env::temp_dir()),
        }
    }

    /// Sets the brokers' limit on messages.
    #[must_use]
    pub fn with_message_limit(mut self, limit: MessageLimit) -> Self {
        self.message_limit = limit;
        self
    }

    /// Sets where large events and results are kept.
    #[must_use]
    pub fn with_bodies(mut self, bodies: BodyStore) -> Self {
        self.bodies = bodies;
        self
    }

    /// The store of large events and results.
    #[must_use]
    pub fn bodies(&self) -> &BodyStore {
        &self.bodies
    }

    /// The largest message that a broker takes.
    #[must_use]
    pub fn message_limit(&self) -> &MessageLimit {
        &self.message_limit
    }

    #[must_use]
    pub fn stats(&self) -> BrokerStats {
        *self.lock()
    }

    /// The status of each queue, in the order in which they were first connected; publishes each change.
    #[must_use]
    pub fn links(&self) -> watch::Receiver<Vec<ConnectionStatus>> {
        self.shared.links.watch()
    }

    #[must_use]
    pub fn outages(&self) -> Outages {
        self.shared.links.outages()
    }

    /// A watch on whether results are accepted.
    #[must_use]
    pub fn result_acceptance(&self) -> ResultAcceptanceWatch {
        self.shared.refused.watch()
    }

    pub(super) fn refused_count(&self) -> &RefusedCount {
        &self.shared.refused
    }

    /// Tells the queues that the pilot is to end: from now on no broker is waited for longer than
    /// `SHORT_WAIT`.
    pub fn shorten_waits(&self) {
        self.shared.told_to_end.send_if_modified(|since| {
            let is_news = since.is_none();
            since.get_or_insert_with(Instant::now);
            is_news
        });
    }

    /// The time at which the pilot was told to end.
    #[must_use]
    pub fn told_to_end_since(&self) -> Option<Instant> {
        *self.shared.told_to_end.borrow()
    }

    /// A watch on the pilot being told to end.
    pub(super) fn told_to_end(&self) -> watch::Receiver<Option<Instant>> {
        self.shared.told_to_end.subscribe()
    }

    /// When a wait that began at `began` is over; `None` unless the pilot was told to end.
    pub(super) fn short_wait_ends(&self, began: Instant) -> Option<Instant> {
        let told = self.told_to_end_since()?;
        Some((told + SHORT_WAIT).max(began + SHORTEST_WAIT))
    }

    /// Resolves when a pilot that was told to end has waited long enough for something that begins now.
    pub(super) fn short_wait_over(&self) -> impl Future<Output = ()> + Send + use<> + 'static {
        self.short_wait_over_since(Instant::now())
    }

    /// As [`short_wait_over`](Self::short_wait_over), for a wait that began earlier.
    pub(super) fn short_wait_over_since(
        &self,
        began: Instant,
    ) -> impl Future<Output = ()> + Send + use<> + 'static {
        let policy = self.clone();
        async move {
            // The sender lives as long as the policy.
            let mut told = policy.told_to_end();
            drop(told.wait_for(Option::is_some).await);
            sleep_until(policy.short_wait_ends(began).unwrap_or(began)).await;
        }
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut BrokerStats)) {
        change(&mut self.lock());
    }

    pub(super) fn note(&self, at: &Endpoint, state: ConnectionState) {
        self.shared.links.note(at, state);
    }

    pub(super) fn reconnect_within(&self) -> Duration {
        self.shared.reconnect_within
    }

    pub(super) fn unsent(&self) -> Option<&Path> {
        self.shared.unsent.as_deref()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BrokerStats> {
        self.shared
            .stats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
