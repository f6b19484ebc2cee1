//! What a source and its actor share: the events that were not handed out, the events in hand, and since when the
//! connection is there.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use super::prefetch::{PrefetchBuffer, ReceivedEvent};
use super::unacked::{SessionTag, UnackedId, UnackedTable};
use crate::broker::{Body, BrokerError};
use crate::ids::Generation;

/// What handle and actor share. No await happens under its lock.
#[derive(Debug, Default)]
pub(super) struct SharedState {
    state: Mutex<SourceState>,
    /// An event can be handed out, or none will come.
    news: Notify,
}

#[derive(Debug, Default)]
pub(super) struct SourceState {
    /// All of the live connection.
    pub(super) prefetched: PrefetchBuffer,
    pub(super) unacked: UnackedTable,
    /// The live connection, and since when.
    pub(super) live: Option<(Generation, Instant)>,
    /// How long earlier ones lived.
    connected_before: Duration,
    /// Why no more events are to be expected.
    given_up: Option<BrokerError>,
}

impl SharedState {
    /// Resolves when an event can be handed out, or none will come.
    pub(super) fn news(&self) -> Notified<'_> {
        self.news.notified()
    }

    pub(super) fn with<T>(&self, change: impl FnOnce(&mut SourceState) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn hand_out(&self, arrival: ReceivedEvent, body: Body) {
        self.with(|state| state.prefetched.push(arrival, body));
        self.news.notify_one();
    }

    pub(super) fn give_up(&self, error: BrokerError) {
        self.with(|state| state.given_up = Some(error));
        self.news.notify_one();
    }
}

impl SourceState {
    pub(super) fn connected(&mut self, generation: Generation) {
        self.live = Some((generation, Instant::now()));
    }

    pub(super) fn disconnected(&mut self) {
        if let Some((_, since)) = self.live.take() {
            self.connected_before += since.elapsed();
        }
        drop(self.prefetched.take());
    }

    pub(super) fn is_connected(&self) -> bool {
        self.live.is_some()
    }

    /// All the time in which events could come.
    pub(super) fn connected_for(&self) -> Duration {
        let now = self.live.map(|(_, since)| since.elapsed());
        self.connected_before + now.unwrap_or_default()
    }
}

/// An event that is handed out.
pub(super) struct TakenEvent {
    pub(super) event: UnackedId,
    pub(super) generation: Generation,
    pub(super) arrival: ReceivedEvent,
    pub(super) body: Body,
}

impl SourceState {
    pub(super) fn take(&mut self) -> Option<Result<TakenEvent, BrokerError>> {
        if let Some(error) = &self.given_up {
            return Some(Err(error.clone()));
        }
        let (generation, _) = self.live?;
        let (arrival, body) = self.prefetched.pop()?;
        let tag = SessionTag {
            generation,
            tag: arrival.tag,
        };
        let event = self.unacked.enter(arrival.fingerprint, tag, arrival.flag);
        Some(Ok(TakenEvent {
            event,
            generation,
            arrival,
            body,
        }))
    }
}
