//! The session that publishes results: what runs on its thread, and the handle by which it is held.
//! Talks to amqprs through a [`Link`] and to the [`Sink`](super::Sink) through channels.
//!
//! Only this task assigns tags and publishes, in one go: amqprs counts publishes in the order in
//! which they reach its writer, so two publishers at once would confirm each other's messages.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use amqprs::channel::{BasicPublishArguments, BasicQosArguments, ConfirmSelectArguments};
use amqprs::{BasicProperties, FieldTable, FieldValue};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use uuid::Uuid;

use super::callbacks::{ChannelEvent, SharedConfirms, with};
use super::confirms::Pending;
use super::connection::Connection;
use super::error_mapping;
use super::session_thread::{self, SessionEnd, SessionThread};
use crate::broker::{Body, BrokerError, Direction, Endpoint, PublishError};
use crate::config::AmqpAddress;
use crate::ids::{Generation, QueueIndex};

/// How often somebody who waits for a confirm is told so in the log.
const LATE_EVERY: Duration = Duration::from_mins(1);
/// A broker out of memory or disk confirms nothing until it is well again; giving up early would
/// publish results twice. A dead connection is noticed by its heartbeats long before.
const CONFIRM_WITHIN: Duration = Duration::from_mins(15);
/// A server from which nothing was heard for so long is asked whether it lives before it is sent a
/// result. What is sent into a connection that is dead or stuck may arrive or not, and would have to
/// be sent again; what waits is there once.
const FRESH: Duration = Duration::from_secs(1);
/// For the answer whether we may publish. A broker out of memory or disk gives none until it is well.
const PERMISSION_WITHIN: Duration = Duration::from_secs(3);
/// For handing one message to amqprs' writer.
const WRITE_WITHIN: Duration = Duration::from_secs(8);
const PERSISTENT: u8 = 2;

/// One message; its outcome is told by `pending`. No outcome: it was not sent.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) body: Body,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) pending: Pending,
}

/// What the session can be told.
#[derive(Debug)]
pub(super) enum PublisherCommand {
    Publish(Message),
    Close { done: oneshot::Sender<()> },
}

/// The holder's side of a session that publishes. Dropping it ends the session at once.
#[derive(Debug)]
pub(super) struct PublisherHandle {
    pub(super) hold: SessionThread,
    pub(super) commands: mpsc::Sender<PublisherCommand>,
}

impl PublisherHandle {
    /// Connects, declares the queues and switches confirms on.
    pub(super) async fn open(
        at: Endpoint,
        address: AmqpAddress,
        generation: Generation,
    ) -> Result<Self, BrokerError> {
        let (commands, to_session) = mpsc::channel(16);
        let place = at.clone();
        let hold = session_thread::start(generation, &at, move |ready, owner| async move {
            let name = Uuid::new_v4().simple().to_string();
            let publisher = async {
                let link = Connection::open(&address, &place, &name).await?;
                let confirms = Arc::clone(&link.confirms);
                Publisher::start(link, confirms).await
            };
            match publisher.await {
                Ok(publisher) => {
                    // Nobody waits any more: the owner's signal ends it at once.
                    let _gone = ready.send(Ok(()));
                    publisher.run(to_session, owner).await
                }
                Err(error) => {
                    let _gone = ready.send(Err(error));
                    SessionEnd::Abandoned
                }
            }
        })
        .await?;
        Ok(Self { hold, commands })
    }

    /// Ends it. Whoever waits for a confirm learns nothing more.
    pub(super) async fn close(self, within: Duration) {
        let (done, is_done) = oneshot::channel();
        let closing = async {
            self.commands
                .send(PublisherCommand::Close { done })
                .await
                .is_ok()
                && is_done.await.is_ok()
        };
        if !timeout(within, closing).await.unwrap_or(false) {
            let (at, error) = (&self.hold.at, self.hold.loss());
            let error = error.map(|error| error.to_string());
            tracing::debug!(%at, error, "the outgoing queue was not closed in order");
        }
    }
}

/// The question, since when it is asked, and the publish that waits for its answer.
struct LivenessProbe {
    answer: Pin<Box<dyn Future<Output = Result<(), amqprs::error::Error>>>>,
    since: Instant,
    message: Message,
}

/// A session that publishes, on its own thread.
struct Publisher {
    link: Connection,
    confirms: SharedConfirms,
    heard: Instant,
    /// Whether the server lives; one short of memory answers when it has some again. Never
    /// cancelled: amqprs may panic then.
    probe: Option<LivenessProbe>,
}

impl Publisher {
    async fn start(mut link: Connection, confirms: SharedConfirms) -> Result<Self, BrokerError> {
        let channel = link.channel.clone();
        let arguments = ConfirmSelectArguments::new(false);
        link.ask("switching confirms on", channel.confirm_select(arguments))
            .await?;
        let mut publisher = Self {
            link,
            confirms,
            heard: Instant::now(),
            probe: None,
        };
        match publisher.link.at.direction {
            Direction::Outgoing | Direction::DeadLetters => publisher.ask_permission().await?,
            // It is only visited.
            Direction::Incoming => {}
        }
        Ok(publisher)
    }

    /// Publishes to a queue that can't exist. That needs the same permission as a result does, and leaves
    /// nothing, for it is not mandatory: the broker confirms it and forgets it.
    async fn ask_permission(&mut self) -> Result<(), BrokerError> {
        let (outcome, answered) = oneshot::channel();
        let nothing = Pending {
            queue: QueueIndex(0),
            outcome,
            since: Instant::now(),
            bytes: 0,
            permits: None,
        };
        // No channel, no permission: the signal tells.
        let _lost = with(&self.confirms, |confirms| confirms.insert(nothing));
        let nowhere = format!("ewms-pilot-permission-{}", Uuid::new_v4().simple());
        let arguments = BasicPublishArguments::new("", &nowhere);
        let properties = BasicProperties::default();
        let published = self
            .link
            .channel
            .basic_publish(properties, Vec::new(), arguments);
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
            signal = self.link.signals.recv() => {
                let signal = signal.unwrap_or(ChannelEvent::Dropped);
                return Err(error_mapping::of_signal(&signal, &self.link.at));
            }
            asked = timeout(PERMISSION_WITHIN, asking) => asked,
        };
        match asked {
            Ok(Err(detail)) => Err(BrokerError::ConnectionLost {
                at: self.link.at.clone(),
                detail,
            }),
            // Should it be denied later, that ends the session.
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }

    /// Serves until the session ends.
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<PublisherCommand>,
        mut owner: oneshot::Receiver<()>,
    ) -> SessionEnd {
        let mut late = interval(LATE_EVERY);
        late.set_missed_tick_behavior(MissedTickBehavior::Delay);
        late.reset();
        loop {
            let step = tokio::select! {
                biased;
                signal = self.link.signals.recv() => {
                    let signal = signal.unwrap_or(ChannelEvent::Dropped);
                    Err(error_mapping::of_signal(&signal, &self.link.at))
                }
                _ = &mut owner => return SessionEnd::Abandoned,
                answered = answer(&mut self.probe) => self.publish_probed(answered).await,
                Some(command) = commands.recv(), if self.probe.is_none() => match command {
                    PublisherCommand::Publish(message) => self.probe_or_publish(message).await,
                    PublisherCommand::Close { done } => {
                        self.link.close().await;
                        // Whoever asked may have stopped waiting.
                        let _gone = done.send(());
                        return SessionEnd::Closed;
                    }
                },
                _ = late.tick() => self.look_for_late_confirms(),
            };
            if let Err(error) = step {
                with(&self.confirms, |confirms| {
                    confirms.lose_all(&error.to_string());
                });
                return SessionEnd::Lost(error);
            }
        }
    }

    async fn probe_or_publish(&mut self, message: Message) -> Result<(), BrokerError> {
        let confirmed = with(&self.confirms, |confirms| confirms.last_heard());
        self.heard = self.heard.max(confirmed.unwrap_or(self.heard));
        if self.heard.elapsed() < FRESH {
            return self.publish(message).await;
        }
        let channel = self.link.channel.clone();
        let probe = async move { channel.basic_qos(BasicQosArguments::new(0, 0, false)).await };
        self.probe = Some(LivenessProbe {
            answer: Box::pin(probe),
            since: Instant::now(),
            message,
        });
        Ok(())
    }

    async fn publish_probed(
        &mut self,
        answered: Result<(), amqprs::error::Error>,
    ) -> Result<(), BrokerError> {
        let waiting = self.probe.take();
        answered.map_err(|error| BrokerError::ConnectionLost {
            at: self.link.at.clone(),
            detail: error.to_string(),
        })?;
        self.heard = Instant::now();
        match waiting {
            Some(LivenessProbe { message, .. }) => self.publish(message).await,
            None => Ok(()),
        }
    }

    async fn publish(&mut self, message: Message) -> Result<(), BrokerError> {
        let Message {
            body,
            headers,
            pending,
        } = message;
        let queue = pending.queue;
        // All of it in memory, for as long as amqprs needs it. From the disk here, on the session's
        // thread, where only the session waits for it.
        let body = match body.read() {
            Ok(body) => body,
            Err(error) => {
                let detail = error.to_string();
                // Nobody may wait any more: the pilot was told to stop.
                let _gone = pending
                    .outcome
                    .send(Err(PublishError::Unreadable { detail }));
                return Ok(());
            }
        };
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
        let arguments = BasicPublishArguments::new("", self.link.at.name(queue))
            .mandatory(true)
            .finish();
        let published = self.link.channel.basic_publish(properties, body, arguments);
        match timeout(WRITE_WITHIN, published).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(BrokerError::ConnectionLost {
                at: self.link.at.clone(),
                detail: error.to_string(),
            }),
            Err(_elapsed) => Err(self.timed_out("sending a result", WRITE_WITHIN)),
        }
    }

    fn look_for_late_confirms(&self) -> Result<(), BrokerError> {
        let waiting = with(&self.confirms, |confirms| confirms.waiting());
        let probed = self
            .probe
            .as_ref()
            .map(|probe| (1, probe.message.pending.bytes, probe.since));
        let Some((results, bytes, since)) = waiting.or(probed) else {
            return Ok(());
        };
        let waited = since.elapsed();
        if waited >= CONFIRM_WITHIN {
            return Err(self.timed_out("confirming a result", CONFIRM_WITHIN));
        }
        if waited >= LATE_EVERY {
            let at = &self.link.at;
            let waited_secs = waited.as_secs();
            tracing::warn!(
                %at, results, bytes, waited_secs,
                "results wait for the broker's confirm; a broker out of memory or disk confirms \
                 nothing until it has some again"
            );
        }
        Ok(())
    }

    fn timed_out(&self, step: &'static str, after: Duration) -> BrokerError {
        BrokerError::TimedOut {
            at: self.link.at.clone(),
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

/// The answer to the question, if one was asked.
async fn answer(probe: &mut Option<LivenessProbe>) -> Result<(), amqprs::error::Error> {
    match probe {
        Some(probe) => probe.answer.as_mut().await,
        None => std::future::pending().await,
    }
}
