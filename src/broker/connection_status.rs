//! How each queue is connected, for the status file and the count of outages. The actors report it; no
//! decision depends on it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use super::Endpoint;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionStatus {
    pub at: Endpoint,
    pub state: ConnectionState,
    /// The time of the last change to `state`. A queue that is given up counts from when it went down.
    pub since: SystemTime,
}

/// How a queue is connected. A spool is always up: it has no connection that could be lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionState {
    Up,
    /// The connection is lost, and the pilot tries to make it again. The text says why the last try failed;
    /// no text of an error holds a password or token.
    Down(String),
    /// The connection was away for longer than an outage is tolerated, for this reason. It is used if it
    /// comes back.
    GivenUp(String),
}

/// Connections that were lost so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outages {
    pub count: u64,
    /// The time in which at least one connection was away.
    pub time: Duration,
}

/// The status of every queue of a pilot, and the channel that publishes changes.
#[derive(Debug)]
pub(super) struct ConnectionStatuses {
    board: watch::Sender<Vec<ConnectionStatus>>,
    /// Outages that are over, and the start of the present one.
    outages: Mutex<(Outages, Option<Instant>)>,
}

impl ConnectionStatuses {
    pub(super) fn new() -> Self {
        Self {
            board: watch::Sender::new(Vec::new()),
            outages: Mutex::default(),
        }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Vec<ConnectionStatus>> {
        self.board.subscribe()
    }

    /// All outages, the present one included.
    pub(super) fn outages(&self) -> Outages {
        let (mut outages, since) = *self.outages.lock().unwrap_or_else(PoisonError::into_inner);
        outages.time += since.map(|since| since.elapsed()).unwrap_or_default();
        outages
    }

    fn count(&self, links: &[ConnectionStatus], was_up: bool) {
        let all_up = links.iter().all(|link| link.state == ConnectionState::Up);
        let mut guard = self.outages.lock().unwrap_or_else(PoisonError::into_inner);
        let (outages, since) = &mut *guard;
        if was_up && !all_up {
            outages.count += 1;
            since.get_or_insert_with(Instant::now);
        }
        if all_up && let Some(since) = since.take() {
            outages.time += since.elapsed();
        }
    }

    /// Records the state of the queue `at`. A queue that was given up stays so until it is up; a failed try
    /// only updates the reason.
    pub(super) fn note(&self, at: &Endpoint, state: ConnectionState) {
        self.board.send_if_modified(|links| {
            let Some(link) = links.iter_mut().find(|link| link.at == *at) else {
                links.push(ConnectionStatus {
                    at: at.clone(),
                    state,
                    since: SystemTime::now(),
                });
                return true;
            };
            let state = match (&link.state, state) {
                (ConnectionState::GivenUp(_), ConnectionState::Down(why)) => {
                    ConnectionState::GivenUp(why)
                }
                (_, state) => state,
            };
            if link.state == state {
                return false;
            }
            if std::mem::discriminant(&link.state) != std::mem::discriminant(&state)
                && !matches!(state, ConnectionState::GivenUp(_))
            {
                link.since = SystemTime::now();
            }
            let was_up = link.state == ConnectionState::Up;
            link.state = state;
            self.count(links, was_up);
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Direction;

    fn place(direction: Direction) -> Endpoint {
        Endpoint {
            direction,
            address: "mq:5672".into(),
            queues: vec!["q".into()],
        }
    }

    #[test]
    fn an_outage_lasts_until_the_last_link_is_up_and_each_loss_counts() {
        let links = ConnectionStatuses::new();
        let places = [Direction::Incoming, Direction::Outgoing].map(place);
        for at in &places {
            links.note(at, ConnectionState::Up);
        }
        assert_eq!(links.outages(), Outages::default());
        links.note(&places[0], ConnectionState::Down("lost".into()));
        links.note(&places[1], ConnectionState::Down("lost".into()));
        links.note(&places[0], ConnectionState::Down("refused".into()));
        links.note(&places[0], ConnectionState::Up);
        let during = links.outages();
        assert_eq!(during.count, 2);
        assert!(links.outages().time > during.time, "it goes on");
        links.note(&places[1], ConnectionState::Up);
        assert_eq!(links.outages(), links.outages(), "it is over");
        assert!(links.outages().time > during.time);
    }

    #[test]
    fn a_link_is_down_since_it_was_lost_however_often_it_is_tried() {
        let links = ConnectionStatuses::new();
        let at = place(Direction::Incoming);
        let state = || links.watch().borrow()[0].clone();
        links.note(&at, ConnectionState::Up);
        links.note(&at, ConnectionState::Down("lost".into()));
        let lost = state();
        links.note(&at, ConnectionState::Down("refused".into()));
        links.note(&at, ConnectionState::GivenUp("refused".into()));
        assert_eq!(state().since, lost.since);
        links.note(&at, ConnectionState::Down("no route".into()));
        assert_eq!(state().state, ConnectionState::GivenUp("no route".into()));
        links.note(&at, ConnectionState::Up);
        assert_eq!(state().state, ConnectionState::Up);
        assert!(state().since >= lost.since);
    }

    #[test]
    fn each_direction_has_a_link_of_its_own_and_what_is_no_change_wakes_nobody() {
        let links = ConnectionStatuses::new();
        let mut watch = links.watch();
        for direction in [Direction::Incoming, Direction::Outgoing] {
            links.note(&place(direction), ConnectionState::Up);
        }
        assert_eq!(watch.borrow_and_update().len(), 2);
        links.note(&place(Direction::Incoming), ConnectionState::Up);
        assert!(!watch.has_changed().expect("the sender is here"));
    }
}
