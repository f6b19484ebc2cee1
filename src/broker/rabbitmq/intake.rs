//! One queue's consumer on a session's channel: how it is started and stopped, and the next message of
//! several. Talks to amqprs through a [`Link`]. Apart, because the session knows one channel and these are
//! several.

use std::future::poll_fn;
use std::task::Poll;

use amqprs::channel::{BasicCancelArguments, BasicConsumeArguments, ConsumerMessage};
use tokio::sync::mpsc::UnboundedReceiver;

use super::connection::Connection;
use crate::broker::BrokerError;
use crate::ids::{DeliveryTag, QueueIndex};

/// What a consumer is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Window,
    /// One event in the place of one that is set aside.
    SetAside,
}

/// See the module.
pub(super) struct QueueConsumer {
    pub(super) queue: QueueIndex,
    purpose: Purpose,
    /// Its last delivery, unless it is settled: all that a consumer of one event can hold.
    holds: Option<DeliveryTag>,
    consumer: String,
    messages: UnboundedReceiver<ConsumerMessage>,
}

impl QueueConsumer {
    /// Starts to consume, at most `window` events unsettled.
    pub(super) async fn start(
        link: &mut Connection,
        queue: QueueIndex,
        window: u16,
        purpose: Purpose,
    ) -> Result<Self, BrokerError> {
        // It holds for each consumer that is started after it, by itself.
        link.limit(window).await?;
        let (channel, at) = (link.channel.clone(), link.at.only(queue));
        let arguments = BasicConsumeArguments::new(link.at.name(queue), "")
            .manual_ack(true)
            .finish();
        let call = channel.basic_consume_rx(arguments);
        let (consumer, messages) = link.ask_at(&at, "starting to consume", call).await?;
        Ok(Self {
            queue,
            purpose,
            holds: None,
            consumer,
            messages,
        })
    }

    /// How soon it is ended when this delivery from the queue needs no place any more, the least first; never,
    /// if it is the window's.
    pub(super) fn rank(&self, queue: QueueIndex, tag: DeliveryTag) -> Option<u8> {
        if self.purpose != Purpose::SetAside || self.queue != queue {
            return None;
        }
        Some(match self.holds {
            Some(held) if held == tag => 0,
            None => 1,
            Some(_) => 2,
        })
    }

    pub(super) fn settled(&mut self, tag: DeliveryTag) {
        self.holds = self.holds.filter(|held| *held != tag);
    }

    /// Whether it is the consumer of this tag.
    pub(super) fn is(&self, consumer: &str) -> bool {
        self.consumer == consumer
    }

    /// Ends the consumer, and gives what the server sent before that.
    pub(super) async fn stop(
        mut self,
        link: &mut Connection,
    ) -> Result<Vec<ConsumerMessage>, BrokerError> {
        let channel = link.channel.clone();
        let arguments = BasicCancelArguments::new(&self.consumer);
        link.ask("cancelling the consumer", channel.basic_cancel(arguments))
            .await?;
        // All that the server sent before it confirmed the cancelling is here by now.
        Ok(std::iter::from_fn(|| self.messages.try_recv().ok()).collect())
    }
}

/// The next message of any of them, and none when that one's consumer ended. Cancel-safe. Which is asked
/// first doesn't matter: none goes on for longer than its window.
pub(super) async fn next(intakes: &mut [QueueConsumer]) -> (QueueIndex, Option<ConsumerMessage>) {
    poll_fn(|context| {
        for intake in &mut *intakes {
            if let Poll::Ready(message) = intake.messages.poll_recv(context) {
                let deliver = message
                    .as_ref()
                    .and_then(|message| message.deliver.as_ref());
                intake.holds = deliver.map(|deliver| DeliveryTag(deliver.delivery_tag()));
                return Poll::Ready((intake.queue, message));
            }
        }
        Poll::Pending
    })
    .await
}
