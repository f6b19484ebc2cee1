//! The session that takes events: what runs on its thread. Talks to amqprs through a [`Link`] and
//! to the [`Source`](super::Source) through channels. Apart, because consuming and publishing fail
//! in different ways and must not share a connection: a broker short of memory stops reading from
//! connections that publish, and acknowledgements would get stuck there.

use std::time::Duration;

use amqprs::channel::{
    BasicAckArguments, BasicCancelArguments, BasicConsumeArguments, BasicNackArguments,
    BasicRejectArguments, ConsumerMessage,
};
use amqprs::{BasicProperties, FieldValue};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::link::Link;
use super::refusal;
use super::session::End;
use super::watch::Signal;
use crate::broker::{BrokerError, Verdict};
use crate::ids::DeliveryTag;

/// How often the server must prove that it lives and reads: catches sessions that only look open.
const LIVENESS_EVERY: Duration = Duration::from_secs(5);
/// For handing one frame to amqprs' writer; it waits only when 8,192 frames wait already.
const WRITE_WITHIN: Duration = Duration::from_secs(8);

/// One event as it came.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) tag: DeliveryTag,
    pub(super) body: Vec<u8>,
    pub(super) earlier_deliveries: Option<u64>,
}

/// What the session can be told. An answer that never comes means that the session was lost.
#[derive(Debug)]
pub(super) enum Command {
    /// Settle one delivery of this session.
    Settle {
        tag: DeliveryTag,
        verdict: Verdict,
        done: oneshot::Sender<()>,
    },
    /// Take no more.
    Stop { done: oneshot::Sender<()> },
    /// End.
    Close { done: oneshot::Sender<()> },
}

struct Intake {
    consumer: String,
    messages: mpsc::UnboundedReceiver<ConsumerMessage>,
    arrivals: mpsc::Sender<Arrival>,
}

/// A session that consumes.
pub(super) struct Consumer {
    link: Link,
    window: u16,
    intake: Option<Intake>,
}

impl Consumer {
    /// Starts to consume. `arrivals` must have room for `window` events.
    pub(super) async fn start(
        mut link: Link,
        window: u16,
        arrivals: mpsc::Sender<Arrival>,
    ) -> Result<Self, BrokerError> {
        link.limit(window).await?;
        let channel = link.channel.clone();
        let arguments = BasicConsumeArguments::new(&link.at.queue, "")
            .manual_ack(true)
            .finish();
        let (consumer, messages) = link
            .ask("starting to consume", channel.basic_consume_rx(arguments))
            .await?;
        let intake = Some(Intake {
            consumer,
            messages,
            arrivals,
        });
        Ok(Self {
            link,
            window,
            intake,
        })
    }

    /// Serves until the session ends.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut owner: oneshot::Receiver<()>,
    ) -> End {
        let mut liveness = interval(LIVENESS_EVERY);
        liveness.set_missed_tick_behavior(MissedTickBehavior::Delay);
        liveness.reset();
        loop {
            let step = tokio::select! {
                biased;
                signal = self.link.signals.recv() => {
                    let signal = signal.unwrap_or(Signal::Dropped);
                    Err(refusal::of_signal(&signal, &self.link.at))
                }
                _ = &mut owner => return End::Abandoned,
                Some(command) = commands.recv() => match command {
                    Command::Settle { tag, verdict, done } => {
                        self.settle(tag, &verdict).await.map(|()| answer(done))
                    }
                    Command::Stop { done } => self.stop().await.map(|()| answer(done)),
                    Command::Close { done } => {
                        return match self.close().await {
                            Ok(()) => {
                                answer(done);
                                End::Closed
                            }
                            Err(error) => End::Lost(error),
                        };
                    }
                },
                message = next(&mut self.intake) => self.hand_over(message),
                _ = liveness.tick() => self.link.limit(self.window).await,
            };
            if let Err(error) = step {
                return End::Lost(error);
            }
        }
    }

    fn hand_over(&mut self, message: Option<ConsumerMessage>) -> Result<(), BrokerError> {
        let lost = |detail: &str| BrokerError::ConnectionLost {
            at: self.link.at.clone(),
            detail: detail.to_owned(),
        };
        let arrival = message
            .and_then(arrival)
            .ok_or_else(|| lost("the consumer ended without a word"))?;
        let Some(intake) = &self.intake else {
            return Ok(());
        };
        match intake.arrivals.try_send(arrival) {
            Err(TrySendError::Full(_)) => Err(lost("the server sent more than it was asked for")),
            // Closed: the source is being dropped; the owner's signal follows.
            Ok(()) | Err(TrySendError::Closed(_)) => Ok(()),
        }
    }

    async fn settle(&mut self, tag: DeliveryTag, verdict: &Verdict) -> Result<(), BrokerError> {
        let channel = &self.link.channel;
        let sent = timeout(WRITE_WITHIN, async {
            match verdict {
                Verdict::Done => {
                    channel
                        .basic_ack(BasicAckArguments::new(tag.0, false))
                        .await
                }
                Verdict::Failed { .. } => {
                    channel
                        .basic_reject(BasicRejectArguments::new(tag.0, true))
                        .await
                }
                Verdict::Rejected => {
                    channel
                        .basic_reject(BasicRejectArguments::new(tag.0, false))
                        .await
                }
                Verdict::Released => {
                    channel
                        .basic_nack(BasicNackArguments::new(tag.0, false, true))
                        .await
                }
            }
        });
        let at = || self.link.at.clone();
        match sent.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(BrokerError::ConnectionLost {
                at: at(),
                detail: error.to_string(),
            }),
            Err(_elapsed) => Err(BrokerError::TimedOut {
                at: at(),
                step: "sending an acknowledgement",
                after: WRITE_WITHIN,
            }),
        }
    }

    async fn stop(&mut self) -> Result<(), BrokerError> {
        let Some(Intake {
            consumer,
            mut messages,
            arrivals: _closes,
        }) = self.intake.take()
        else {
            return Ok(());
        };
        let channel = self.link.channel.clone();
        let arguments = BasicCancelArguments::new(&consumer);
        self.link
            .ask("cancelling the consumer", channel.basic_cancel(arguments))
            .await?;
        // All that the server sent before it confirmed the cancelling is here by now.
        while let Ok(message) = messages.try_recv() {
            if let Some(arrival) = arrival(message) {
                self.settle(arrival.tag, &Verdict::Released).await?;
            }
        }
        Ok(())
    }

    async fn close(mut self) -> Result<(), BrokerError> {
        self.stop().await?;
        // Without this round trip up to 60 % of 100 acknowledgements just sent were lost.
        self.link.limit(self.window).await?;
        self.link.close().await;
        Ok(())
    }
}

async fn next(intake: &mut Option<Intake>) -> Option<ConsumerMessage> {
    match intake {
        Some(intake) => intake.messages.recv().await,
        None => std::future::pending().await,
    }
}

fn answer(done: oneshot::Sender<()>) {
    // Whoever asked may have stopped waiting.
    let _gone = done.send(());
}

fn arrival(message: ConsumerMessage) -> Option<Arrival> {
    let deliver = message.deliver?;
    let counted = message.basic_properties.as_ref().and_then(delivery_count);
    let first = (!deliver.redelivered()).then_some(0);
    Some(Arrival {
        tag: DeliveryTag(deliver.delivery_tag()),
        body: message.content.unwrap_or_default(),
        earlier_deliveries: counted.or(first),
    })
}

/// Quorum queues count deliveries in the header `x-delivery-count`.
fn delivery_count(properties: &BasicProperties) -> Option<u64> {
    let name = "x-delivery-count".try_into().ok()?;
    match properties.headers()?.get(&name)? {
        FieldValue::l(count) => u64::try_from(*count).ok(),
        FieldValue::I(count) => u64::try_from(*count).ok(),
        FieldValue::s(count) => u64::try_from(*count).ok(),
        FieldValue::b(count) => u64::try_from(*count).ok(),
        FieldValue::i(count) => Some(u64::from(*count)),
        FieldValue::u(count) => Some(u64::from(*count)),
        FieldValue::B(count) => Some(u64::from(*count)),
        _ => None,
    }
}
