//! The session that publishes results: what runs on its thread. Talks to amqprs through a [`Link`]
//! and to the [`Sink`](super::Sink) through channels.
//!
//! Only this task assigns tags and publishes, in one go: amqprs counts publishes in the order in
//! which they reach its writer, so two publishers at once would confirm each other's messages.

use std::time::Duration;

use amqprs::channel::{BasicPublishArguments, ConfirmSelectArguments};
use amqprs::{BasicProperties, FieldTable, FieldValue};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::confirms::Pending;
use super::link::Link;
use super::refusal;
use super::session::End;
use super::watch::{SharedConfirms, Signal, with};
use crate::broker::BrokerError;

/// How often somebody who waits for a confirm is told so in the log.
const LATE_EVERY: Duration = Duration::from_mins(1);
/// A broker out of memory or disk confirms nothing until it is well again; giving up early would
/// publish results twice. A dead connection is noticed by its heartbeats long before.
const CONFIRM_WITHIN: Duration = Duration::from_mins(15);
/// For handing one message to amqprs' writer.
const WRITE_WITHIN: Duration = Duration::from_secs(8);
const PERSISTENT: u8 = 2;

/// What the session can be told.
#[derive(Debug)]
pub(super) enum Command {
    /// Publish one message; its outcome is told by `pending`.
    Publish {
        body: Vec<u8>,
        headers: Vec<(&'static str, String)>,
        pending: Pending,
    },
    /// End.
    Close { done: oneshot::Sender<()> },
}

/// A session that publishes.
pub(super) struct Publisher {
    link: Link,
    confirms: SharedConfirms,
}

impl Publisher {
    /// Switches confirms on.
    pub(super) async fn start(
        mut link: Link,
        confirms: SharedConfirms,
    ) -> Result<Self, BrokerError> {
        let channel = link.channel.clone();
        let arguments = ConfirmSelectArguments::new(false);
        link.ask("switching confirms on", channel.confirm_select(arguments))
            .await?;
        Ok(Self { link, confirms })
    }

    /// Serves until the session ends.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut owner: oneshot::Receiver<()>,
    ) -> End {
        let mut late = interval(LATE_EVERY);
        late.set_missed_tick_behavior(MissedTickBehavior::Delay);
        late.reset();
        loop {
            let step = tokio::select! {
                biased;
                signal = self.link.signals.recv() => {
                    let signal = signal.unwrap_or(Signal::Dropped);
                    Err(refusal::of_signal(&signal, &self.link.at))
                }
                _ = &mut owner => return End::Abandoned,
                Some(command) = commands.recv() => match command {
                    Command::Publish { body, headers, pending } => {
                        self.publish(body, headers, pending).await
                    }
                    Command::Close { done } => {
                        self.link.close().await;
                        // Whoever asked may have stopped waiting.
                        let _gone = done.send(());
                        return End::Closed;
                    }
                },
                _ = late.tick() => self.look_for_late_confirms(),
            };
            if let Err(error) = step {
                with(&self.confirms, |confirms| {
                    confirms.lose_all(&error.to_string());
                });
                return End::Lost(error);
            }
        }
    }

    async fn publish(
        &mut self,
        body: Vec<u8>,
        headers: Vec<(&'static str, String)>,
        pending: Pending,
    ) -> Result<(), BrokerError> {
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
        let arguments = BasicPublishArguments::new("", &self.link.at.queue)
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
        let Some((results, bytes, since)) = with(&self.confirms, |confirms| confirms.waiting())
        else {
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
