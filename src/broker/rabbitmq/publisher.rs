//! The publishing side of one connection: confirms, the question whether the server lives before a result is sent into
//! a silent connection, and the permission to publish.
//!
//! Only the actor's thread assigns tags and publishes, in one go: amqprs counts publishes in the order in which they
//! reach its writer, so two publishers at once would confirm each other's messages.

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

/// How often results that wait for their confirm are told of in the log.
const LATE_EVERY: Duration = Duration::from_mins(1);
/// A broker out of memory or disk confirms nothing until it is well again; giving up early would publish results
/// twice. A dead connection is noticed by its heartbeats long before.
const CONFIRM_WITHIN: Duration = Duration::from_mins(15);
/// A server from which nothing was heard for so long is asked whether it lives before it is sent a result. What is
/// sent into a connection that is dead or stuck may arrive or not, and would have to be sent again; what waits is there
/// once.
const FRESH: Duration = Duration::from_secs(1);
/// For the answer whether we may publish. A broker out of memory or disk gives none until it is well.
const PERMISSION_WITHIN: Duration = Duration::from_secs(3);
/// For handing one message to amqprs' writer.
const WRITE_WITHIN: Duration = Duration::from_secs(8);
const PERSISTENT: u8 = 2;

/// One message; its outcome is told by `pending`. No outcome: it was not sent.
#[derive(Debug)]
pub(super) struct OutgoingMessage {
    /// The connection that it is for.
    pub(super) generation: Generation,
    pub(super) body: Body,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) pending: PendingConfirm,
}

/// What a message waits for before it is sent. The next one waits for it.
pub(super) enum PendingSend {
    Nothing,
    /// The answer to a liveness probe; a server short of memory answers when it has some again. Never cancelled while
    /// the connection is used: amqprs may panic then.
    Probe {
        answer: Pin<Box<dyn Future<Output = Result<(), amqprs::error::Error>>>>,
        since: Instant,
        message: Box<OutgoingMessage>,
    },
    /// Its body, which is on the disk.
    Body {
        bytes: Pin<Box<dyn Future<Output = io::Result<Vec<u8>>>>>,
        message: Box<OutgoingMessage>,
    },
}

/// What [`PendingSend`] has come to.
pub(super) enum PendingSendDone {
    Answered(Result<(), amqprs::error::Error>),
    Read(io::Result<Vec<u8>>),
}

impl PendingSend {
    pub(super) fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    /// Cancel-safe.
    pub(super) async fn done(&mut self) -> PendingSendDone {
        match self {
            Self::Probe { answer, .. } => PendingSendDone::Answered(answer.as_mut().await),
            Self::Body { bytes, .. } => PendingSendDone::Read(bytes.as_mut().await),
            Self::Nothing => pending().await,
        }
    }
}

/// A connection that publishes.
pub(super) struct Publisher {
    pub(super) connection: Connection,
    pub(super) waiting: PendingSend,
    confirms: SharedConfirms,
    heard: Instant,
    opened: Instant,
    late_at: Instant,
}

impl Publisher {
    /// Connects, declares the queues, switches confirms on and asks for permission.
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
            // It is only visited.
            Direction::Incoming => {}
        }
        Ok(publisher)
    }

    /// Publishes to a queue that can't exist. That needs the same permission as a result does, and leaves nothing, for
    /// it is not mandatory: the broker confirms it and forgets it.
    async fn ask_permission(&mut self) -> Result<(), BrokerError> {
        let (outcome, answered) = oneshot::channel();
        let nothing = PendingConfirm {
            queue: QueueIndex(0),
            outcome,
            since: Instant::now(),
            bytes: 0,
            permits: None,
        };
        // No channel, no permission: the event tells.
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
            // Should it be denied later, that ends the connection.
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }

    pub(super) fn life(&self) -> ConnectionLife {
        ConnectionLife {
            lasted: self.opened.elapsed(),
            work: with(&self.confirms, |confirms| confirms.results_confirmed()),
        }
    }

    /// Sends a message, at once if the server was heard of just now and the body is in memory.
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

    /// What the message waited for is there.
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

    /// All of a body must be in memory, for as long as amqprs needs it. A disk may hang: it is read on another thread.
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
                // Its sender may have stopped waiting: the pilot was told to end.
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
        // First the entry, then the message: its confirm may be faster than our next line.
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
        // Without `mandatory` a message to a queue that is gone would be confirmed and lost.
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

    /// When confirms that are late are looked for.
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

    /// The connection is lost: results that wait for their confirm learn so.
    pub(super) fn lose(&self, error: &BrokerError) {
        with(&self.confirms, |confirms| {
            confirms.lose_all(&error.to_string());
        });
    }

    /// Says good-bye, unless the server owes an answer: one call at a time.
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

/// Headers of a message. A text that AMQP can't carry is left out: none is worth the message.
fn table(headers: Vec<(&'static str, String)>) -> FieldTable {
    let mut table = FieldTable::new();
    for (name, text) in headers {
        if let (Ok(name), Ok(text)) = (name.try_into(), text.try_into()) {
            table.insert(name, FieldValue::S(text));
        }
    }
    table
}
