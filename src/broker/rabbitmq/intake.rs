//! One queue's consumer on a session's channel: how it is started and stopped, and the next message of
//! several. Talks to amqprs through a [`Link`]. Apart, because the session knows one channel and these are
//! several.

use std::future::poll_fn;
use std::task::Poll;

use amqprs::FieldTable;
use amqprs::channel::{BasicCancelArguments, BasicConsumeArguments, ConsumerMessage};
use tokio::sync::mpsc::UnboundedReceiver;

use super::link::Link;
use crate::broker::BrokerError;
use crate::ids::QueueIndex;

/// See the module.
pub(super) struct Intake {
    pub(super) queue: QueueIndex,
    consumer: String,
    messages: UnboundedReceiver<ConsumerMessage>,
}

impl Intake {
    /// Starts to consume, at most `window` events unsettled.
    pub(super) async fn start(
        link: &mut Link,
        queue: QueueIndex,
        window: u16,
    ) -> Result<Self, BrokerError> {
        // It holds for each consumer that is started after it, by itself.
        link.limit(window).await?;
        let (channel, at) = (link.channel.clone(), link.at.only(queue));
        // Means something to a stream only, which says so with its first message and is refused. Without
        // this it would send none of those that it has, and look like an empty queue.
        let mut offset = FieldTable::new();
        offset.insert(
            "x-stream-offset".try_into().expect("it is short"),
            "first".into(),
        );
        let arguments = BasicConsumeArguments::new(link.at.name(queue), "")
            .manual_ack(true)
            .arguments(offset)
            .finish();
        let call = channel.basic_consume_rx(arguments);
        let (consumer, messages) = link.ask_at(&at, "starting to consume", call).await?;
        Ok(Self {
            queue,
            consumer,
            messages,
        })
    }

    /// Whether it is the consumer of this tag.
    pub(super) fn is(&self, consumer: &str) -> bool {
        self.consumer == consumer
    }

    /// Ends the consumer, and gives what the server sent before that.
    pub(super) async fn stop(
        mut self,
        link: &mut Link,
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
pub(super) async fn next(intakes: &mut [Intake]) -> (QueueIndex, Option<ConsumerMessage>) {
    poll_fn(|context| {
        for intake in &mut *intakes {
            if let Poll::Ready(message) = intake.messages.poll_recv(context) {
                return Poll::Ready((intake.queue, message));
            }
        }
        Poll::Pending
    })
    .await
}
