//! The state that a source and its actor share: events that were not handed out, events in hand, and the
//! start of the live connection.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use super::prefetch::{PrefetchBuffer, ReceivedEvent};
use super::unacked::{SessionTag, UnackedId, UnackedTable};
use crate::broker::{Body, BrokerError};
use crate::ids::Generation;

/// The state that the handle and the actor share. No await happens under its lock.
#[derive(Debug, Default)]
pub(super) struct SharedState {
    state: Mutex<SourceState>,
    /// Notified when an event can be handed out, or no more will come.
    news: Notify,
}

#[derive(Debug, Default)]
pub(super) struct SourceState {
    /// Events of the live connection only.
    pub(super) prefetched: PrefetchBuffer,
    pub(super) unacked: UnackedTable,
    /// The live connection and its start.
    pub(super) live: Option<(Generation, Instant)>,
    /// How long earlier connections lived, together.
    connected_before: Duration,
    /// Why no more events will come.
    given_up: Option<BrokerError>,
    round_trips: RoundTrips,
    /// How many events of each queue the pilot wants beyond its window.
    pub(super) lookahead: u16,
}

/// The last few round trips to the broker.
#[derive(Debug, Default)]
struct RoundTrips(VecDeque<Duration>);

impl RoundTrips {
    /// A busy machine makes some of them long, so the shortest of this many counts.
    const REMEMBERED: usize = 8;

    fn took(&mut self, time: Duration) {
        if self.0.len() >= Self::REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(time);
    }
}

impl SharedState {
    /// Resolves when an event can be handed out, or no more will come.
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

    pub(super) fn round_trip_took(&mut self, time: Duration) {
        self.round_trips.took(time);
    }

    /// The shortest of the last round trips; `None` before the first.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.round_trips.0.iter().min().copied()
    }

    /// The total time in which events could come.
    pub(super) fn connected_for(&self) -> Duration {
        let now = self.live.map(|(_, since)| since.elapsed());
        self.connected_before + now.unwrap_or_default()
    }
}

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
