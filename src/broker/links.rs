//! What is known of the connection of each queue, for whoever wants to show it. Told by those who keep
//! the connections, talks to nobody. Apart, because it must cost them nothing and decide nothing.

use std::time::SystemTime;

use tokio::sync::watch;

use super::Place;

/// One queue and how it is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Which queue, and where.
    pub at: Place,
    /// How it is.
    pub state: LinkState,
    /// Since when it is so.
    pub since: SystemTime,
}

/// How a queue is connected. A spool is always up: it has no connection that could be lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// It can be used.
    Up,
    /// The connection is lost and tried again; this is why the last try failed. No text of an error
    /// holds a password or token.
    Down(String),
    /// It was away for longer than is borne, for this reason. Should it come back, it is used.
    GivenUp(String),
}

/// All links of a pilot, and who watches them.
#[derive(Debug)]
pub(super) struct Links(watch::Sender<Vec<Link>>);

impl Links {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(Vec::new()))
    }

    pub(super) fn watch(&self) -> watch::Receiver<Vec<Link>> {
        self.0.subscribe()
    }

    /// The queue `at` is now `state`. What was given up is so until it is up: that it is still tried is
    /// no news.
    pub(super) fn note(&self, at: &Place, state: LinkState) {
        self.0.send_if_modified(|links| {
            let Some(link) = links.iter_mut().find(|link| link.at == *at) else {
                links.push(Link {
                    at: at.clone(),
                    state,
                    since: SystemTime::now(),
                });
                return true;
            };
            let state = match (&link.state, state) {
                (LinkState::GivenUp(_), LinkState::Down(why)) => LinkState::GivenUp(why),
                (_, state) => state,
            };
            if link.state == state {
                return false;
            }
            if std::mem::discriminant(&link.state) != std::mem::discriminant(&state)
                && !matches!(state, LinkState::GivenUp(_))
            {
                link.since = SystemTime::now();
            }
            link.state = state;
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Direction;

    fn place(direction: Direction) -> Place {
        Place {
            direction,
            address: "mq:5672".into(),
            queue: "q".into(),
        }
    }

    #[test]
    fn a_link_is_down_since_it_was_lost_however_often_it_is_tried() {
        let links = Links::new();
        let at = place(Direction::Incoming);
        let state = || links.watch().borrow()[0].clone();
        links.note(&at, LinkState::Up);
        links.note(&at, LinkState::Down("lost".into()));
        let lost = state();
        links.note(&at, LinkState::Down("refused".into()));
        links.note(&at, LinkState::GivenUp("refused".into()));
        assert_eq!(state().since, lost.since);
        links.note(&at, LinkState::Down("no route".into()));
        assert_eq!(state().state, LinkState::GivenUp("no route".into()));
        links.note(&at, LinkState::Up);
        assert_eq!(state().state, LinkState::Up);
        assert!(state().since >= lost.since);
    }

    #[test]
    fn each_direction_has_a_link_of_its_own_and_what_is_no_change_wakes_nobody() {
        let links = Links::new();
        let mut watch = links.watch();
        for direction in [Direction::Incoming, Direction::Outgoing] {
            links.note(&place(direction), LinkState::Up);
        }
        assert_eq!(watch.borrow_and_update().len(), 2);
        links.note(&place(Direction::Incoming), LinkState::Up);
        assert!(!watch.has_changed().expect("the sender is here"));
    }
}
