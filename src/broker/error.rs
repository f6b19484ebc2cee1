//! The errors between the pilot and a queue, with texts that name the variable to check. RabbitMQ and the
//! spool share them.
//!
//! No text holds a password or token: an error is built from the host, the port, the queue and the server's
//! text, never from the address as the user wrote it.

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use super::Endpoint;

/// Why a queue can't be used, at the start or any more.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BrokerError {
    /// The host's name has no address.
    #[error("unknown host in broker address {at}: {detail}; check {}", at.address_variable())]
    UnknownHost { at: Endpoint, detail: String },
    #[error("the broker at {at} refused the connection: {detail}; check host and port in {}, and whether the broker is running", at.address_variable())]
    Refused { at: Endpoint, detail: String },
    #[error("the broker at {at} can't be reached: {detail}; check {}, and whether this site lets jobs connect to that port", at.address_variable())]
    Unreachable { at: Endpoint, detail: String },
    #[error("the broker at {at} did not answer within `{}` s ({step}); check {}, and whether this site lets jobs connect to that port", after.as_secs(), at.address_variable())]
    TimedOut {
        at: Endpoint,
        /// What the pilot waited for.
        step: &'static str,
        after: Duration,
    },
    /// The server was reached, and closed the connection before it sent anything.
    #[error("the broker at {at} cut the connection off during the handshake: {detail}; check scheme and port in {}, and whether a RabbitMQ server is there", at.address_variable())]
    CutOff { at: Endpoint, detail: String },
    #[error("no TLS connection to the broker at {at}: {detail}; check the scheme, host and port in {}, the system's CA certificates, and EWMS_PILOT_BROKER_CA_FILE", at.address_variable())]
    Tls { at: Endpoint, detail: String },
    /// The broker doesn't accept the credentials, as far as can be told: RabbitMQ drops such a connection
    /// after about three seconds, without a word.
    #[error("the broker at {at} did not accept the credentials: {detail}; check {token}, or {token}_FILE where that is set, and user and password in {}", at.address_variable(), token = at.token_variable())]
    Authentication { at: Endpoint, detail: String },
    /// The virtual host doesn't exist, or the user may not use it.
    #[error("virtual host `{vhost}` can't be used at broker {at}: {detail}; check what follows the host in {}", at.address_variable())]
    Vhost {
        at: Endpoint,
        vhost: String,
        detail: String,
    },
    /// The user is known, but lacks the permission.
    #[error("the broker at {at} denies access: {detail}; check {}, and what {} may do there", at.queue_variable(), at.token_variable())]
    Permission { at: Endpoint, detail: String },
    /// The broker takes no further connection or channel for now.
    #[error(
        "the broker at {at} is full: {detail}; have that limit raised, or run fewer pilots at once"
    )]
    Full {
        at: Endpoint,
        /// The server's words, which name the limit.
        detail: String,
    },
    /// The queue does not exist.
    #[error("the queue at {at} does not exist; check {}", at.queue_variable())]
    NoQueue { at: Endpoint },
    /// The queue exists, but is of no use to a pilot.
    #[error("the queue at {at} can't be used: {why}; check {}", at.queue_variable())]
    Unusable { at: Endpoint, why: String },
    /// A name longer than AMQP allows.
    #[error("{what} of `{bytes}` bytes is too long for the broker at {at}, at most `255` fit; check {} and {}", at.queue_variable(), at.address_variable())]
    NameTooLong {
        at: Endpoint,
        /// The kind of name.
        what: &'static str,
        bytes: usize,
    },
    /// Any other refusal by the server.
    #[error("the broker at {at} refused: {detail}; check {} and {}", at.queue_variable(), at.address_variable())]
    Rejected { at: Endpoint, detail: String },
    /// The connection ended, and the pilot did not close it.
    #[error("connection to the broker at {at} lost: {detail}; {}", at.direction.after_a_loss())]
    ConnectionLost { at: Endpoint, detail: String },
    /// The spool directory can't be used.
    #[error("spool directory {at}: can't {action} `{}`: {detail}; check {}, the directory's permissions and its free space", path.display(), at.address_variable())]
    Spool {
        at: Endpoint,
        action: &'static str,
        path: PathBuf,
        detail: String,
    },
    /// The queue's name can't be the name of a directory.
    #[error("queue name {} can't be a directory in the spool `{}`: {why}; check {}", at.names(), at.address, at.queue_variable())]
    SpoolName { at: Endpoint, why: &'static str },
    /// The system gives the pilot no thread for the connection.
    #[error(
        "can't start the thread that talks to the broker at {at}: {detail}; check the limits on processes and memory of this job"
    )]
    Thread { at: Endpoint, detail: String },
}

impl BrokerError {
    /// Whether another try at the same address may succeed a moment later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Refused { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::CutOff { .. }
            // Name servers fail for a moment, too, and some then say that there is no such name.
            | Self::UnknownHost { .. }
            | Self::Full { .. }
            // The queue was deleted after it was found.
            | Self::NoQueue { .. }
            | Self::ConnectionLost { .. } => true,
            Self::Tls { .. }
            | Self::Authentication { .. }
            | Self::Vhost { .. }
            | Self::Permission { .. }
            | Self::Unusable { .. }
            | Self::NameTooLong { .. }
            | Self::Rejected { .. }
            | Self::Spool { .. }
            | Self::SpoolName { .. }
            | Self::Thread { .. } => false,
        }
    }
}

impl BrokerError {
    /// Whether this error proves that the broker let us in: its address and the credentials are right.
    #[must_use]
    pub fn knows_us(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::NoQueue { .. })
    }
}

/// Why a result is not in the outgoing queue, or not known to be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PublishError {
    /// The message can never be published.
    #[error(
        "a message is too large for the broker: `{bytes}` bytes after compression, the limit is `{limit}`; send less, or raise max_message_size at the broker and EWMS_PILOT_BROKER_MAX_MESSAGE_SIZE"
    )]
    TooLarge {
        bytes: usize,
        /// The largest message that the broker takes, in bytes.
        limit: usize,
    },
    /// The queue no longer exists, or never did.
    #[error(
        "the broker returned the result as unroutable (`{code} {text}`): queue `{queue}` is gone; check EWMS_PILOT_QUEUE_OUTGOING"
    )]
    Unroutable {
        queue: String,
        /// AMQP's code, 312.
        code: u16,
        text: String,
    },
    /// The broker took the result and then refused it: the queue is full, or its leader is lost.
    #[error(
        "the broker did not accept the result for queue `{queue}`; check the queue's length limit and its replicas"
    )]
    Nacked { queue: String },
    /// The connection ended before the broker confirmed: the result may have arrived or not.
    #[error("no confirm for the result, the session with the broker was lost: {detail}")]
    SessionLost { detail: String },
    /// The file could not be written.
    #[error("can't {action} `{}`: {detail}; check EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS, the directory's permissions and its free space", path.display())]
    Spool {
        action: &'static str,
        path: PathBuf,
        detail: String,
    },
    /// The pilot's own copy of the result can't be read.
    #[error(
        "can't read a result that waits to be sent: {detail}; see to the disk that holds `ewms-pilot-scratch`"
    )]
    Unreadable { detail: String },
    /// The content isn't of the sink's [`Encoding`](super::Encoding).
    #[error("the content is not of the encoding that this sink asks for; a bug in the pilot")]
    WrongEncoding,
}

/// Why a delivery could not be settled. The event will be delivered again.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SettleError {
    /// The connection or claim that the event came through is gone.
    #[error("the session that delivered the event is lost; the event will be delivered again")]
    SessionLost,
    /// The spool's file can't be moved.
    #[error("can't {action} `{}`: {detail}; the event stays claimed until this pilot ends", path.display())]
    Spool {
        action: &'static str,
        path: PathBuf,
        detail: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Direction;
    use crate::ids::QueueIndex;

    fn at(direction: Direction) -> Endpoint {
        Endpoint {
            direction,
            address: "mq.example:5672".into(),
            queues: vec!["pixels".into()],
        }
    }

    #[test]
    fn text_names_address_queue_and_the_variable_of_its_direction() {
        for (direction, variable) in [
            (
                Direction::Incoming,
                "EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS",
            ),
            (
                Direction::Outgoing,
                "EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS",
            ),
        ] {
            let text = BrokerError::Refused {
                at: at(direction),
                detail: "nobody".into(),
            }
            .to_string();
            assert!(text.contains("`mq.example:5672`"), "{text}");
            assert!(text.contains("`pixels`"), "{text}");
            assert!(text.contains(variable), "{text}");
        }
    }

    #[test]
    fn all_queues_of_a_session_are_named_and_one_alone_when_it_is_its_own_fault() {
        let at = Endpoint {
            queues: vec!["a".into(), "b".into()],
            ..at(Direction::Outgoing)
        };
        assert_eq!(at.to_string(), "`mq.example:5672` (queues `a`, `b`)");
        let one = at.only(QueueIndex(1));
        assert_eq!(one.to_string(), "`mq.example:5672` (queue `b`)");
    }

    #[test]
    fn only_faults_of_the_network_are_tried_again() {
        let at = at(Direction::Incoming);
        let detail = String::new();
        assert!(
            BrokerError::Refused {
                at: at.clone(),
                detail: detail.clone()
            }
            .is_transient()
        );
        assert!(!BrokerError::Authentication { at, detail }.is_transient());
    }
}
