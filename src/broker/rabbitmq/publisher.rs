//! The publishing side of one connection: confirms, the liveness probe before a result is sent into a silent
//! connection, and the check of the permission to publish.
//!
//! Only the actor's thread assigns tags and publishes, in one step: amqprs counts publishes in the order in
//! which they reach its writer, so two publishers at once would confirm each other's messages.

use std::future::pending;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use amqprs::channel::{BasicPublishArguments, BasicQosArguments, ConfirmSelectArguments};
use amqprs::{BasicProperties, FieldTable, FieldValue};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::callbacks::{ChannelEvent, SharedConfirms, with};
use super::confirms::PendingConfirm;
use super::connection::Connection;
use super::error_mapping;
use super::reconnect::ConnectionLife;
use crate::broker::{Body, BrokerError, Direction, Endpoint, PublishError};
use crate::config::AmqpAddress;
use crate::ids::{Generation, QueueIndex};

/// How often the log reports results whose confirm is late.
const LATE_EVERY: Duration = Duration::from_mins(1);
/// A broker that is out of memory or disk confirms nothing until it recovers; giving up early would publish
/// results twice. A dead connection is noticed by its heartbeats long before.
const CONFIRM_WITHIN: Duration = Duration::from_mins(15);
/// A server that was silent for so long is probed before it is sent a result. A result sent into a dead or
/// stuck connection may arrive or not, and would have to be sent again; one that waits is there once.
const FRESH: Duration = Duration::from_secs(1);
/// The deadline for checking the permission to publish. A broker that is out of memory or disk answers only
/// once it recovers.
const PERMISSION_WITHIN: Duration = Duration::from_secs(3);
/// The deadline for handing one message to amqprs' writer.
const WRITE_WITHIN: Duration = Duration::from_secs(8);
const PERSISTENT: u8 = 2;

/// One message. `pending` gets its outcome; if that is dropped without one, the message was not sent.
#[derive(Debug)]
pub(super) struct OutgoingMessage {
    /// The connection to send it through.
    pub(super) generation: Generation,
    pub(super) body: Body,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) pending: PendingConfirm,
}

/// What a message waits for before it is sent. Later messages wait behind it.
pub(super) enum PendingSend {
    Nothing,
    /// The answer to a liveness probe. A server that is short of memory answers only once it recovers. Never
    /// cancelled while the connection is used, since amqprs may panic then.
    Probe {
        answer: Pin<Box<dyn Future<Output = Result<(), amqprs::error::Error>>>>,
        since: Instant,
        message: Box<OutgoingMessage>,
    },
    /// Its body, which is being read from disk.
    Body {
        bytes: Pin<Box<dyn Future<Output = io::Result<Vec<u8>>>>>,
        message: Box<OutgoingMessage>,
    },
}

/// The end of the wait of a [`PendingSend`].
pub(super) enum PendingSendDone {
    Answered(Result<(), amqprs::error::Error>),
    Read(io::Result<Vec<u8>>),
}

impl PendingSend {
    pub(super) fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    /// Resolves when the wait is over. Cancel-safe.
    pub(super) async fn done(&mut self) -> PendingSendDone {
        match self {
            Self::Probe { answer, .. } => PendingSendDone::Answered(answer.as_mut().await),
            Self::Body { bytes, .. } => PendingSendDone::Read(bytes.as_mut().await),
            Self::Nothing => pending().await,
        }
    }
}

pub(super) struct Publisher {
    pub(super) connection: Connection,
    pub(super) waiting: PendingSend,
    confirms: SharedConfirms,
    heard: Instant,
    opened: Instant,
    late_at: Instant,
}

impl Publisher {
    /// Connects, declares the queues, switches confirms on and checks the permission to publish.
    pub(super) async fn open(at: &Endpoint, address: &AmqpAddress) -> Result<Self, BrokerError> {
        let name = Uuid::new_v4().simple().to_string();
        let mut connection = Connection::open(address, at, &name).await?;
        let channel = connection.channel.clone();
        let arguments = ConfirmSelectArguments::new(false);
        connection
            .ask("switching confirms on", channel.confirm_select(arguments))
            .await?;
        let now = Instant::now();
        let mut publisher = Self {
            confirms: Arc::clone(&connection.confirms),
            connection,
            waiting: PendingSend::Nothing,
            heard: now,
            opened: now,
            late_at: now + LATE_EVERY,
        };
        match publisher.connection.at.direction {
            Direction::Outgoing | Direction::DeadLetters => publisher.ask_permission().await?,
            // Nothing is published to an incoming queue.
            Direction::Incoming => {}
        }
        Ok(publisher)
    }

    /// Publishes to a queue that can't exist. That needs the same permission as a result, and has no effect:
    /// the message is not mandatory, so the broker confirms it and drops it.
    async fn ask_permission(&mut self) -> Result<(), BrokerError> {
        let (outcome, answered) = oneshot::channel();
        let nothing = PendingConfirm {
            queue: QueueIndex(0),
            outcome,
            since: Instant::now(),
            bytes: 0,
            permits: None,
        };
        // If the channel is gone, its event says why.
        let _lost = with(&self.confirms, |confirms| confirms.insert(nothing));
        let nowhere = format!("ewms-pilot-permission-{}", Uuid::new_v4().simple());
        let arguments = BasicPublishArguments::new("", &nowhere);
        let properties = BasicProperties::default();
        let channel = &self.connection.channel;
        let published = channel.basic_publish(properties, Vec::new(), arguments);
        let asking = async {
            published.await.map_err(|error| error.to_string())?;
            match answered.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_denied) => Err("it was denied".to_owned()),
            }
        };
        let asked = tokio::select! {
            biased;
            event = self.connection.signals.recv() => {
                let event = event.unwrap_or(ChannelEvent::Dropped);
                return Err(error_mapping::of_signal(&event, &self.connection.at));
            }
            asked = timeout(PERMISSION_WITHIN, asking) => asked,
        };
        match asked {
            Ok(Err(detail)) => Err(self.lost(detail)),
            // A later denial ends the connection.
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }

    pub(super) fn life(&self) -> ConnectionLife {
        ConnectionLife {
            lasted: self.opened.elapsed(),
            work: with(&self.confirms, |confirms| confirms.results_confirmed()),
        }
    }

    /// Sends a message. It goes out at once if the server was heard of recently and the body is in memory.
    pub(super) async fn send(&mut self, message: OutgoingMessage) -> Result<(), BrokerError> {
        let confirmed = with(&self.confirms, |confirms| confirms.last_heard());
        self.heard = self.heard.max(confirmed.unwrap_or(self.heard));
        if self.heard.elapsed() < FRESH {
            return self.read(message).await;
        }
        let channel = self.connection.channel.clone();
        let probe = async move { channel.basic_qos(BasicQosArguments::new(0, 0, false)).await };
        self.waiting = PendingSend::Probe {
            answer: Box::pin(probe),
            since: Instant::now(),
            message: Box::new(message),
        };
        Ok(())
    }

    /// Continues with the message whose wait is over.
    pub(super) async fn go_on(&mut self, done: PendingSendDone) -> Result<(), BrokerError> {
        match (
            std::mem::replace(&mut self.waiting, PendingSend::Nothing),
            done,
        ) {
            (PendingSend::Probe { message, .. }, PendingSendDone::Answered(answer)) => {
                answer.map_err(|error| self.lost(error.to_string()))?;
                self.heard = Instant::now();
                self.read(*message).await
            }
            (PendingSend::Body { message, .. }, PendingSendDone::Read(bytes)) => {
                self.publish_read(*message, bytes).await
            }
            (PendingSend::Nothing | PendingSend::Probe { .. } | PendingSend::Body { .. }, _) => {
                Ok(())
            }
        }
    }

    /// Reads a body, which must be in memory as a whole for as long as amqprs needs it. The disk may hang, so
    /// another thread reads.
    async fn read(&mut self, message: OutgoingMessage) -> Result<(), BrokerError> {
        if let Some(bytes) = message.body.in_memory() {
            let bytes = bytes.to_vec();
            return self.publish(message, bytes).await;
        }
        let bytes = Box::pin(message.body.read_elsewhere());
        let message = Box::new(message);
        self.waiting = PendingSend::Body { bytes, message };
        Ok(())
    }

    async fn publish_read(
        &mut self,
        message: OutgoingMessage,
        bytes: io::Result<Vec<u8>>,
    ) -> Result<(), BrokerError> {
        match bytes {
            Ok(bytes) => self.publish(message, bytes).await,
            Err(error) => {
                let detail = error.to_string();
                let unreadable = PublishError::Unreadable { detail };
                // The sender may have stopped waiting: the pilot was told to end.
                let _gone = message.pending.outcome.send(Err(unreadable));
                Ok(())
            }
        }
    }

    async fn publish(
        &mut self,
        message: OutgoingMessage,
        body: Vec<u8>,
    ) -> Result<(), BrokerError> {
        let OutgoingMessage {
            headers, pending, ..
        } = message;
        let queue = pending.queue;
        // The entry goes first, since the confirm may arrive before publishing returns.
        let Some(id) = with(&self.confirms, |confirms| confirms.insert(pending)) else {
            return Ok(());
        };
        let mut properties = BasicProperties::default();
        properties
            .with_message_id(&id)
            .with_delivery_mode(PERSISTENT);
        if !headers.is_empty() {
            properties.with_headers(table(headers));
        }
        // Without `mandatory`, a message to a queue that is gone would be confirmed and lost.
        let arguments = BasicPublishArguments::new("", self.connection.at.name(queue))
            .mandatory(true)
            .finish();
        let channel = &self.connection.channel;
        let published = channel.basic_publish(properties, body, arguments);
        match timeout(WRITE_WITHIN, published).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.lost(error.to_string())),
            Err(_elapsed) => Err(self.timed_out("sending a result", WRITE_WITHIN)),
        }
    }

    /// When to look for late confirms next.
    pub(super) fn late_at(&self) -> Instant {
        self.late_at
    }

    pub(super) fn look_for_late_confirms(&mut self) -> Result<(), BrokerError> {
        self.late_at = Instant::now() + LATE_EVERY;
        let waiting = with(&self.confirms, |confirms| confirms.waiting());
        let probed = match &self.waiting {
            PendingSend::Probe { since, message, .. } => Some((1, message.pending.bytes, *since)),
            PendingSend::Nothing | PendingSend::Body { .. } => None,
        };
        let Some((results, bytes, since)) = waiting.or(probed) else {
            return Ok(());
        };
        let waited = since.elapsed();
        if waited >= CONFIRM_WITHIN {
            return Err(self.timed_out("confirming a result", CONFIRM_WITHIN));
        }
        if waited >= LATE_EVERY {
            let at = &self.connection.at;
            let waited_secs = waited.as_secs();
            tracing::warn!(
                %at, results, bytes, waited_secs,
                "results wait for the broker's confirm; a broker out of memory or disk confirms \
                 nothing until it has some again"
            );
        }
        Ok(())
    }

    /// The connection is lost: tells that to the results that wait for their confirm.
    pub(super) fn lose(&self, error: &BrokerError) {
        with(&self.confirms, |confirms| {
            confirms.lose_all(&error.to_string());
        });
    }

    /// Closes the connection in order, unless the server owes an answer: one call at a time.
    pub(super) async fn close(self) {
        if !matches!(self.waiting, PendingSend::Probe { .. }) {
            self.connection.close().await;
        }
    }

    fn lost(&self, detail: String) -> BrokerError {
        BrokerError::ConnectionLost {
            at: self.connection.at.clone(),
            detail,
        }
    }

    fn timed_out(&self, step: &'static str, after: Duration) -> BrokerError {
        BrokerError::TimedOut {
            at: self.connection.at.clone(),
            step,
            after,
        }
    }
}

/// The headers of a message. A text that AMQP can't carry is left out, since no header is worth the message.
fn table(headers: Vec<(&'static str, String)>) -> FieldTable {
    let mut table = FieldTable::new();
    for (name, text) in headers {
        if let (Ok(name), Ok(text)) = (name.try_into(), text.try_into()) {
            table.insert(name, FieldValue::S(text));
        }
    }
    table
}
