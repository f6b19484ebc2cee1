//! The consuming side of one connection: a consumer for each queue, the settlements, and the proofs that the
//! server has read them.
//!
//! All queues of a connection share its channel: one round trip proves that all are alive, and a fault of one
//! ends the connection of all. Each queue has its own consumer, and with it its own window. A window can't be
//! changed, so each event that is set aside adds one more consumer, of one event, until it is settled. When
//! such a consumer is ended while it holds an event, the queue may have one event more than its window until
//! that event is settled.
//!
//! Events and results never share a connection: a broker that is short of memory stops reading from
//! connections that publish, and acknowledgements would get stuck there.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use amqprs::channel::{
    BasicAckArguments, BasicCancelArguments, BasicConsumeArguments, BasicNackArguments,
    BasicRejectArguments, ConsumerMessage,
};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout};

use super::callbacks::ChannelEvent;
use super::connection::Connection;
use super::error_mapping;
use super::prefetch::ReceivedEvent;
use super::reconnect::ConnectionLife;
use crate::broker::{Body, BrokerError, Verdict};
use crate::ids::{DeliveryTag, QueueIndex};

/// How often the server must prove that it is alive and reads; detects connections that only look open.
const LIVENESS_EVERY: Duration = Duration::from_secs(12);
/// How soon the server is asked whether it has read the acknowledgements. Those under way when a connection
/// is lost are in doubt.
const PROVE_AFTER: Duration = Duration::from_millis(200);
/// The deadline for handing one frame to amqprs' writer, which waits only when 8,192 frames are queued.
const WRITE_WITHIN: Duration = Duration::from_secs(8);

/// The purpose of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SubscriptionPurpose {
    Window,
    /// Events beyond the window, because the broker is far away.
    Lookahead,
    /// One event in the place of one that was set aside.
    SetAside,
}

pub(super) struct Subscription {
    queue: QueueIndex,
    purpose: SubscriptionPurpose,
    /// Its last delivery, unless that is settled: a consumer of one event can hold no other.
    holds: Option<DeliveryTag>,
    consumer: String,
    /// Bounded by the consumer's window.
    messages: UnboundedReceiver<ConsumerMessage>,
}

impl Subscription {
    async fn start(
        connection: &mut Connection,
        queue: QueueIndex,
        window: u16,
        purpose: SubscriptionPurpose,
    ) -> Result<Self, BrokerError> {
        // A qos applies to the consumers that are started after it.
        connection.limit(window).await?;
        let (channel, at) = (connection.channel.clone(), connection.at.only(queue));
        let arguments = BasicConsumeArguments::new(connection.at.name(queue), "")
            .manual_ack(true)
            .finish();
        let call = channel.basic_consume_rx(arguments);
        let (consumer, messages) = connection.ask_at(&at, "starting to consume", call).await?;
        Ok(Self {
            queue,
            purpose,
            holds: None,
            consumer,
            messages,
        })
    }

    /// The order in which consumers are ended when this delivery from the queue is settled, least first.
    /// `None` for the other consumers, which are never ended for that.
    fn rank(&self, queue: QueueIndex, tag: DeliveryTag) -> Option<u8> {
        if self.purpose != SubscriptionPurpose::SetAside || self.queue != queue {
            return None;
        }
        Some(match self.holds {
            Some(held) if held == tag => 0,
            None => 1,
            Some(_) => 2,
        })
    }

    /// Cancels the consumer. Returns the messages that the server sent before it confirmed that.
    async fn stop(
        mut self,
        connection: &mut Connection,
    ) -> Result<Vec<ConsumedMessage>, BrokerError> {
        let channel = connection.channel.clone();
        let arguments = BasicCancelArguments::new(&self.consumer);
        connection
            .ask("cancelling the consumer", channel.basic_cancel(arguments))
            .await?;
        let messages = std::iter::from_fn(|| self.messages.try_recv().ok());
        let queue = self.queue;
        Ok(messages.map(|message| (queue, Some(message))).collect())
    }
}

/// A message and its queue. `None`: the consumer ended.
pub(super) type ConsumedMessage = (QueueIndex, Option<ConsumerMessage>);

/// The next message of any consumer. Cancel-safe. The order of the polls doesn't matter, since no consumer
/// gives more than its window without a settlement.
pub(super) async fn next_message(
    subscriptions: &mut [Subscription],
    backlog: &mut VecDeque<ConsumedMessage>,
) -> ConsumedMessage {
    if let Some(message) = backlog.pop_front() {
        return message;
    }
    poll_fn(|context| {
        for subscription in &mut *subscriptions {
            if let Poll::Ready(message) = subscription.messages.poll_recv(context) {
                let deliver = message
                    .as_ref()
                    .and_then(|message| message.deliver.as_ref());
                subscription.holds = deliver.map(|deliver| DeliveryTag(deliver.delivery_tag()));
                return Poll::Ready((subscription.queue, message));
            }
        }
        Poll::Pending
    })
    .await
}

/// An event that is being written to disk because there was no room in memory.
pub(super) type Spilling = Option<(ReceivedEvent, Pin<Box<dyn Future<Output = Body> + Send>>)>;

/// A connection that consumes. Its methods call the server, one at a time. None may be cancelled unless the
/// connection is discarded.
pub(super) struct Consumer {
    pub(super) connection: Connection,
    /// Empty after [`stop`](Self::stop).
    pub(super) subscriptions: Vec<Subscription>,
    /// Messages of consumers that were ended. Bounded by their windows.
    pub(super) backlog: VecDeque<ConsumedMessage>,
    pub(super) spilling: Spilling,
    /// The window given in round trips. Its value has no effect: a consumer keeps the one that it was started
    /// with.
    window: u16,
    /// The most events of each queue beyond its window.
    lookahead: u16,
    /// The time that the last round trip took.
    round_trip: Option<Duration>,
    /// Deliveries that are set aside; each has one more consumer.
    aside: HashMap<DeliveryTag, QueueIndex>,
    opened: Instant,
    settled: u64,
    proven: u64,
    prove_at: Instant,
}

impl Consumer {
    /// Starts to consume. `windows` gives the most unsettled events for each queue.
    pub(super) async fn start(
        mut connection: Connection,
        windows: &[u16],
    ) -> Result<Self, BrokerError> {
        let mut subscriptions = Vec::new();
        for (queue, &window) in connection.at.indices().zip(windows) {
            let started =
                Subscription::start(&mut connection, queue, window, SubscriptionPurpose::Window);
            subscriptions.push(started.await?);
        }
        let now = Instant::now();
        Ok(Self {
            connection,
            subscriptions,
            backlog: VecDeque::new(),
            spilling: None,
            window: windows.iter().copied().max().unwrap_or_default(),
            lookahead: 0,
            round_trip: None,
            aside: HashMap::new(),
            opened: now,
            settled: 0,
            proven: 0,
            prove_at: now + LIVENESS_EVERY,
        })
    }

    pub(super) fn life(&self) -> ConnectionLife {
        ConnectionLife {
            lasted: self.opened.elapsed(),
            work: self.proven,
        }
    }

    /// The error for an event from the server, with its queue if that is known.
    pub(super) fn fault(&self, event: &ChannelEvent) -> BrokerError {
        let cancelled = match event {
            ChannelEvent::ConsumerCancelled(consumer) => self
                .subscriptions
                .iter()
                .find(|subscription| subscription.consumer == *consumer),
            ChannelEvent::Closed { .. } | ChannelEvent::Returned | ChannelEvent::Dropped => None,
        };
        match cancelled {
            Some(subscription) => {
                error_mapping::of_signal(event, &self.connection.at.only(subscription.queue))
            }
            None => error_mapping::of_signal(event, &self.connection.at),
        }
    }

    pub(super) fn prove_at(&self) -> Instant {
        self.prove_at
    }

    /// Makes a round trip, which proves that the server is alive and has read everything sent to it. Returns
    /// the number of the last settlement.
    pub(super) async fn prove(&mut self) -> Result<u64, BrokerError> {
        let asked = Instant::now();
        self.connection.limit(self.window).await?;
        self.round_trip = Some(asked.elapsed());
        self.proven = self.settled;
        self.prove_at = Instant::now() + LIVENESS_EVERY;
        Ok(self.proven)
    }

    /// The time that the last [`prove`](Self::prove) waited for the server.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Takes at most `events` of each queue beyond its window. Events of more that came before stay.
    pub(super) async fn look_ahead(&mut self, events: u16) -> Result<(), BrokerError> {
        if self.lookahead == events || self.subscriptions.is_empty() {
            return Ok(());
        }
        let is_ahead = |subscription: &mut Subscription| {
            subscription.purpose == SubscriptionPurpose::Lookahead
        };
        for subscription in self
            .subscriptions
            .extract_if(.., is_ahead)
            .collect::<Vec<_>>()
        {
            let messages = subscription.stop(&mut self.connection).await?;
            self.backlog.extend(messages);
        }
        self.lookahead = events;
        if events == 0 {
            return Ok(());
        }
        for queue in self.connection.at.indices() {
            let purpose = SubscriptionPurpose::Lookahead;
            let more = Subscription::start(&mut self.connection, queue, events, purpose);
            self.subscriptions.push(more.await?);
        }
        Ok(())
    }

    /// The number of the next settlement on this connection.
    pub(super) fn next_settlement(&self) -> u64 {
        self.settled + 1
    }

    pub(super) async fn settle(
        &mut self,
        tag: DeliveryTag,
        verdict: &Verdict,
    ) -> Result<(), BrokerError> {
        if let Some(queue) = self.aside.remove(&tag) {
            self.take_one_less(tag, queue).await?;
        }
        for subscription in &mut self.subscriptions {
            subscription.holds = subscription.holds.filter(|held| *held != tag);
        }
        if self.proven == self.settled {
            self.prove_at = self.prove_at.min(Instant::now() + PROVE_AFTER);
        }
        self.settled += 1;
        self.write(tag, verdict).await
    }

    async fn write(&self, tag: DeliveryTag, verdict: &Verdict) -> Result<(), BrokerError> {
        let channel = &self.connection.channel;
        let sent = timeout(WRITE_WITHIN, async {
            match verdict {
                Verdict::Done => {
                    let arguments = BasicAckArguments::new(tag.0, false);
                    channel.basic_ack(arguments).await
                }
                Verdict::Failed { .. } => {
                    let arguments = BasicRejectArguments::new(tag.0, true);
                    channel.basic_reject(arguments).await
                }
                Verdict::Rejected => {
                    let arguments = BasicRejectArguments::new(tag.0, false);
                    channel.basic_reject(arguments).await
                }
                Verdict::Released => {
                    let arguments = BasicNackArguments::new(tag.0, false, true);
                    channel.basic_nack(arguments).await
                }
            }
        });
        let at = || self.connection.at.clone();
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

    /// Takes one more event from the queue as long as this delivery is unsettled.
    pub(super) async fn set_aside(
        &mut self,
        tag: DeliveryTag,
        queue: QueueIndex,
    ) -> Result<(), BrokerError> {
        if self.subscriptions.is_empty() || self.aside.insert(tag, queue).is_some() {
            return Ok(());
        }
        let more = Subscription::start(
            &mut self.connection,
            queue,
            1,
            SubscriptionPurpose::SetAside,
        )
        .await?;
        self.subscriptions.push(more);
        Ok(())
    }

    /// Ends one of the consumers for events set aside, when `tag` is about to be settled: preferably the
    /// consumer that holds `tag`, so that nothing comes in its place, else one that holds nothing, else any.
    async fn take_one_less(
        &mut self,
        tag: DeliveryTag,
        queue: QueueIndex,
    ) -> Result<(), BrokerError> {
        let ranks = self.subscriptions.iter().enumerate();
        let least = ranks
            .filter_map(|(place, subscription)| Some((subscription.rank(queue, tag)?, place)))
            .min();
        if let Some((_, place)) = least {
            let subscription = self.subscriptions.swap_remove(place);
            let messages = subscription.stop(&mut self.connection).await?;
            self.backlog.extend(messages);
        }
        Ok(())
    }

    /// Ends all consumers. Messages that the server sent before that are in the backlog.
    pub(super) async fn stop(&mut self) -> Result<(), BrokerError> {
        for subscription in std::mem::take(&mut self.subscriptions) {
            let messages = subscription.stop(&mut self.connection).await?;
            self.backlog.extend(messages);
        }
        Ok(())
    }

    /// Closes the connection in the order that loses no acknowledgement.
    pub(super) async fn close(mut self) -> Result<(), BrokerError> {
        self.stop().await?;
        // Without this round trip, up to 60 % of 100 acknowledgements just sent were lost.
        self.connection.limit(self.window).await?;
        self.connection.close().await;
        Ok(())
    }
}
