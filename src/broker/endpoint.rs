//! A queue and its address, as errors, logs, the status file and the labels of kept results name it.

use std::fmt;

use crate::ids::QueueIndex;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Incoming,
    Outgoing,
    /// The queue for events that failed too often; it is on the incoming broker.
    DeadLetters,
}

impl Direction {
    fn prefix(self) -> &'static str {
        match self {
            Self::Incoming => "EWMS_PILOT_QUEUE_INCOMING",
            Self::Outgoing => "EWMS_PILOT_QUEUE_OUTGOING",
            Self::DeadLetters => "EWMS_PILOT_QUEUE_DEAD_LETTER",
        }
    }

    /// The prefix of the variables that configure its broker.
    fn broker_prefix(self) -> &'static str {
        match self {
            Self::Incoming | Self::Outgoing => self.prefix(),
            Self::DeadLetters => Self::Incoming.prefix(),
        }
    }

    pub(super) fn after_a_loss(self) -> &'static str {
        match self {
            Self::Incoming => "unsettled events will be delivered again",
            Self::DeadLetters => "the event stays in its queue, and may be here too",
            Self::Outgoing => "a result that was not confirmed may be there or not",
        }
    }
}

/// A queue and its address, as errors name it; or several queues that share a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub direction: Direction,
    /// `host:port`, followed by `/vhost` unless that is the default one; or the spool directory.
    pub address: String,
    /// The names of the queues; usually one.
    pub queues: Vec<String>,
}

impl Endpoint {
    pub(super) fn name(&self, queue: QueueIndex) -> &str {
        self.queues.get(queue.0).map_or("", String::as_str)
    }

    pub(super) fn only(&self, queue: QueueIndex) -> Self {
        Self {
            queues: vec![self.name(queue).to_owned()],
            direction: self.direction,
            address: self.address.clone(),
        }
    }

    pub(super) fn indices(&self) -> impl Iterator<Item = QueueIndex> + use<> {
        (0..self.queues.len()).map(QueueIndex)
    }

    pub(super) fn names(&self) -> String {
        format!("`{}`", self.queues.join("`, `"))
    }

    pub(super) fn address_variable(&self) -> String {
        format!("{}_BROKER_ADDRESS", self.direction.broker_prefix())
    }

    pub(super) fn token_variable(&self) -> String {
        format!("{}_AUTH_TOKEN", self.direction.broker_prefix())
    }

    pub(super) fn queue_variable(&self) -> &'static str {
        self.direction.prefix()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.queues.len() {
            1 => "queue",
            _ => "queues",
        };
        write!(f, "`{}` ({kind} {})", self.address, self.names())
    }
}
