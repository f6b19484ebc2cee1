//! What the queues of one pilot share about outages: how long one is borne, how long anything is waited for once the
//! pilot is told to end, where results wait that can't be sent, and what outages did. Also how large a message may be.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::connection_status::{ConnectionState, ConnectionStatus, ConnectionStatuses, Outages};
use super::result_acceptance::{RefusedCount, ResultAcceptanceWatch};
use super::{BodyStore, Endpoint, MessageLimit};

/// How long a pilot that was told to end waits for its brokers: with closing it is gone after 5 s, unless a task runs.
pub(super) const SHORT_WAIT: Duration = Duration::from_secs(3);
/// What begins later, when the tasks have ended, has at least this long.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// Policy and counts, shared by all who hold a clone.
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
    /// Since when the pilot is told to end.
    told_to_end: watch::Sender<Option<Instant>>,
    links: ConnectionStatuses,
    refused: RefusedCount,
}

/// What outages did to a pilot's queues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BrokerStats {
    pub reconnects: u64,
    /// Events that came again while their task ran, or after it had ended, and were not run again.
    pub adopted: u64,
    /// Results that were sent again because it is unknown whether they had arrived: each may be in the outgoing queue
    /// twice.
    pub published_again: u64,
    /// Events that are done but whose acknowledgement never arrived: each will be delivered again,
    /// so that its output may be there twice.
    pub unacknowledged: u64,
    /// Results that could not be sent and are kept on disk.
    pub kept_unsent: u64,
    /// Results of earlier pilots that were found on disk and sent.
    pub sent_late: u64,
}

impl BrokerStats {
    /// Outputs that may be in the outgoing queue twice.
    #[must_use]
    pub fn possible_duplicates(&self) -> u64 {
        self.published_again + self.unacknowledged + self.kept_unsent + self.sent_late
    }
}

impl OutagePolicy {
    /// Outages are borne for `reconnect_within` without any connection; results that can't be sent
    /// then are kept in the directory `unsent`, which is made when it is needed.
    #[must_use]
    pub fn new(reconnect_within: Duration, unsent: PathBuf) -> Self {
        Self::with(reconnect_within, Some(unsent))
    }

    /// The same for a queue beside the pilot's own: no result of it is kept on disk, and its connection is not in the
    /// status file.
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

    /// No outage is borne and nothing is kept.
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

    /// The same, for brokers with this limit on messages.
    #[must_use]
    pub fn with_message_limit(mut self, limit: MessageLimit) -> Self {
        self.message_limit = limit;
        self
    }

    /// The same, with large events and results kept there.
    #[must_use]
    pub fn with_bodies(mut self, bodies: BodyStore) -> Self {
        self.bodies = bodies;
        self
    }

    /// Where large events and results are kept.
    #[must_use]
    pub fn bodies(&self) -> &BodyStore {
        &self.bodies
    }

    /// How large a message may be.
    #[must_use]
    pub fn message_limit(&self) -> &MessageLimit {
        &self.message_limit
    }

    #[must_use]
    pub fn stats(&self) -> BrokerStats {
        *self.lock()
    }

    /// How each queue is connected, in the order in which they were; changes when that does.
    #[must_use]
    pub fn links(&self) -> watch::Receiver<Vec<ConnectionStatus>> {
        self.shared.links.watch()
    }

    #[must_use]
    pub fn outages(&self) -> Outages {
        self.shared.links.outages()
    }

    /// Whether results are taken, from now on.
    #[must_use]
    pub fn result_acceptance(&self) -> ResultAcceptanceWatch {
        self.shared.refused.watch()
    }

    pub(super) fn refused_count(&self) -> &RefusedCount {
        &self.shared.refused
    }

    /// The pilot is to end: from now on no broker is waited for longer than `SHORT_WAIT`.
    pub fn shorten_waits(&self) {
        self.shared.told_to_end.send_if_modified(|since| {
            let is_news = since.is_none();
            since.get_or_insert_with(Instant::now);
            is_news
        });
    }

    /// Since when the pilot is told to end, if it is.
    #[must_use]
    pub fn told_to_end_since(&self) -> Option<Instant> {
        *self.shared.told_to_end.borrow()
    }

    /// Changes when the pilot is told to end.
    pub(super) fn told_to_end(&self) -> watch::Receiver<Option<Instant>> {
        self.shared.told_to_end.subscribe()
    }

    /// When a wait that began then is over, if the pilot is told to end.
    pub(super) fn short_wait_ends(&self, began: Instant) -> Option<Instant> {
        let told = self.told_to_end_since()?;
        Some((told + SHORT_WAIT).max(began + SHORTEST_WAIT))
    }

    /// Resolves when a pilot that was told to end has waited enough for what begins now.
    pub(super) fn short_wait_over(&self) -> impl Future<Output = ()> + Send + use<> + 'static {
        self.short_wait_over_since(Instant::now())
    }

    /// The same for what began then.
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
