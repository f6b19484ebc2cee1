//! The queues that events come from and results go to: deliveries and confirms.
//!
//! A [`Source`] hands out deliveries, each with a [`Receipt`] that settles it once, by value. A [`Sink`]
//! takes results and says when each is safe. Both survive outages of their broker for as long as
//! [`OutagePolicy`] allows; a call just takes longer then. Only after that is the lost connection an error of
//! [`Source::recv`] and [`Sink::publish_named`].
//!
//! To add a broker, add a variant to [`Address`], [`Source`], [`Sink`] and `ReceiptKind`, and to the groups
//! that [`open_sources`] and [`open_sinks`] open as one.

use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use futures_util::future::Either;
use serde::{Deserialize, Serialize};

use crate::config::AmqpAddress;
use crate::ids::Generation;

mod body;
mod connection_status;
mod endpoint;
mod error;
mod message_limit;
mod multi;
mod outage_policy;
mod outbox;
pub mod rabbitmq;
mod refused_result;
mod result_acceptance;
pub mod spool;
mod start_gate;

pub use body::{Body, BodyStore, LARGE_BYTES};
pub use connection_status::{ConnectionState, ConnectionStatus, Outages};
pub use endpoint::{Direction, Endpoint};
pub use error::{BrokerError, PublishError, SettleError};
pub use message_limit::MessageLimit;
pub use multi::{MultiSink, MultiSource, open_sinks, open_sources};
pub use outage_policy::{BrokerStats, OutagePolicy};
pub use result_acceptance::{ResultAcceptance, ResultAcceptanceWatch};
pub use start_gate::{StartSender, StartSignal};

/// The content of one message or file of a queue. Clones share the bytes.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq, Eq))]
pub enum Content {
    /// A message body as it is on the wire: a zstd frame around `{"headers", "data"}`.
    Frame(Body),
    /// A file's bytes: the event's data and nothing else.
    File(FileFormat, Body),
}

impl Content {
    #[must_use]
    pub fn body(&self) -> &Body {
        let (Self::Frame(body) | Self::File(_, body)) = self;
        body
    }

    /// The same kind of content with other bytes.
    #[must_use]
    pub fn with_body(&self, body: Body) -> Self {
        match self {
            Self::Frame(_) => Self::Frame(body),
            Self::File(format, _) => Self::File(*format, body),
        }
    }
}

/// The format of a [`Content::File`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileFormat {
    /// A JSON value.
    Json,
    Text,
}

/// The kind of [`Content`] that a sink takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// [`Content::Frame`].
    Frame,
    /// [`Content::File`].
    File,
}

/// One event, taken from a queue and not settled yet.
#[derive(Debug)]
pub struct Delivery {
    pub content: Content,
    /// The name of a spool's file. A message has none.
    pub name: Option<OsString>,
    /// How often the event was delivered before, if the broker says so (`x-delivery-count`; tries in a
    /// spool).
    pub earlier_deliveries: Option<u64>,
    pub receipt: Receipt,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The task succeeded, and its result, if any, is confirmed.
    Done,
    /// The event or its task failed: back to the queue, and the broker may count it.
    Failed {
        /// The error. A spool keeps it beside the event.
        reason: String,
    },
    /// The event failed too often: out of the queue, to where the broker puts rejected events.
    Rejected,
    /// The event was not tried to the end, for a reason that is not its own: back to the queue.
    Released,
}

/// Settles one delivery, once. Dropping it unsettled logs an error, unless its connection is gone and there
/// is nothing left to settle.
pub struct Receipt(Option<ReceiptKind>);

enum ReceiptKind {
    RabbitMq(rabbitmq::RabbitMqReceipt),
    Spool(spool::SpoolReceipt),
}

impl Receipt {
    fn new(kind: ReceiptKind) -> Self {
        Self(Some(kind))
    }

    /// The connection that the event came through.
    #[must_use]
    pub fn generation(&self) -> Option<Generation> {
        self.0.as_ref().map(|kind| match kind {
            ReceiptKind::RabbitMq(receipt) => receipt.generation(),
            ReceiptKind::Spool(receipt) => receipt.generation(),
        })
    }

    /// Lets another event come in the place of this one, which will be held for a while with nothing to do.
    /// Resolves when the broker was asked for that.
    pub fn set_aside(&mut self) -> impl Future<Output = ()> + Send + use<> + 'static {
        match &mut self.0 {
            Some(ReceiptKind::RabbitMq(receipt)) => Either::Left(receipt.set_aside()),
            Some(ReceiptKind::Spool(receipt)) => {
                receipt.set_aside();
                Either::Right(std::future::ready(()))
            }
            None => Either::Right(std::future::ready(())),
        }
    }

    /// Tells the broker the verdict. For RabbitMQ, `Ok` means that the acknowledgement is on its way or
    /// deferred: if the connection that delivered the event is lost, its tag is void, and the verdict is
    /// applied when the broker delivers the event again. [`Source::close`] waits for that, up to a minute;
    /// [`BrokerStats::unacknowledged`] counts the events that never came.
    ///
    /// # Errors
    /// [`SettleError::SessionLost`] when the source is closed, or another pilot has taken the claim on a
    /// spool's file. [`SettleError::Spool`] when that file can't be moved.
    pub async fn settle(mut self, verdict: Verdict) -> Result<(), SettleError> {
        match self.0.take() {
            Some(ReceiptKind::RabbitMq(receipt)) => receipt.settle(verdict).await,
            Some(ReceiptKind::Spool(receipt)) => receipt.settle(verdict).await,
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt")
            .field("generation", &self.generation())
            .finish_non_exhaustive()
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        match self.0.take() {
            Some(ReceiptKind::RabbitMq(receipt)) => receipt.report_drop(),
            Some(ReceiptKind::Spool(receipt)) => receipt.report_drop(),
            None => {}
        }
    }
}

/// The address of a queue's broker, with the credentials for RabbitMQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address<'a> {
    RabbitMq(&'a AmqpAddress),
    /// A directory; the queue is its subdirectory of that name.
    Spool(&'a Path),
}

impl Address<'_> {
    /// The only kind of [`Content`] that a [`Sink`] of this broker takes.
    #[must_use]
    pub fn encoding(self) -> Encoding {
        match self {
            Self::RabbitMq(_) => Encoding::Frame,
            Self::Spool(_) => Encoding::File,
        }
    }
}

/// Opens the dead-letter queue, which takes events that failed too often.
///
/// # Errors
/// Returns the errors of [`open_sources`].
pub async fn open_dead_letters(
    queue: &str,
    broker: Address<'_>,
    outage_policy: &OutagePolicy,
) -> Result<Sink, BrokerError> {
    match broker {
        Address::RabbitMq(address) => {
            rabbitmq::open_for_a_moment(Direction::DeadLetters, queue, address, outage_policy)
                .await
                .map(Sink::RabbitMq)
        }
        Address::Spool(directory) => spool::SpoolSink::open(queue, directory, outage_policy)
            .await
            .map(Sink::Spool),
    }
}

/// The state of a queue, or of the place where it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueLook {
    /// There is no queue. A pilot would create it.
    Missing,
    There {
        waiting: u64,
        /// The number of consumers, or of pilots that hold a spool's events.
        consumers: u64,
    },
}

/// Looks at a queue. Takes, sends and creates nothing.
///
/// # Errors
/// Returns the errors of [`open_sources`]. A missing queue is none.
pub async fn look(
    direction: Direction,
    queue: &str,
    broker: Address<'_>,
) -> Result<QueueLook, BrokerError> {
    match broker {
        Address::RabbitMq(address) => rabbitmq::look(direction, queue, address).await,
        Address::Spool(directory) => spool::look(direction, queue, directory).await,
    }
}

pub enum Source {
    /// Events of RabbitMQ: of several queues in turn, if they share a connection.
    RabbitMq(rabbitmq::RabbitMqSource),
    Spool(spool::SpoolSource),
    /// Events of several brokers, in turn.
    Several(MultiSource),
}

impl Source {
    /// The next event. Waits while there is none, and while the broker is away. Cancel-safe. Never resolves
    /// after [`Source::stop`].
    ///
    /// # Errors
    /// Fails when the broker was away for too long. Receipts stay usable.
    pub async fn recv(&mut self) -> Result<Delivery, BrokerError> {
        match self {
            Self::RabbitMq(source) => source.recv().await,
            Self::Spool(source) => source.recv().await,
            Self::Several(sources) => sources.recv().await,
        }
    }

    /// Starts to measure how long the queues are silent, see [`Source::idle_left`].
    pub fn start_idle_clock(&mut self) {
        match self {
            Self::RabbitMq(source) => source.start_idle_clock(),
            // A spool has no connection that could be lost.
            Self::Spool(_) => {}
            Self::Several(sources) => sources.start_idle_clock(),
        }
    }

    /// The part of `wait` that is left before a queue that gave nothing counts as idle. Only time with a
    /// connection counts, on all connections since the clock was started.
    #[must_use]
    pub fn idle_left(&self, wait: Duration) -> Duration {
        match self {
            Self::RabbitMq(source) => source.idle_left(wait),
            Self::Spool(_) => Duration::ZERO,
            Self::Several(sources) => sources.idle_left(wait),
        }
    }

    /// The time of a round trip to the farthest broker, measured on the live connection: the shortest of the
    /// last few. `None` before the first, and for a spool.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        match self {
            Self::RabbitMq(source) => source.round_trip(),
            Self::Spool(_) => None,
            Self::Several(sources) => sources.round_trip(),
        }
    }

    /// Takes up to so many events of each queue beyond the window, from the next settlement on. A spool has
    /// no need of it.
    pub fn look_ahead(&self, events: u16) {
        match self {
            Self::RabbitMq(source) => source.look_ahead(events),
            Self::Spool(_) => {}
            Self::Several(sources) => sources.look_ahead(events),
        }
    }

    /// Takes no more events, and gives back those that were prefetched and not handed out. Receipts stay
    /// usable, and their events are recognised when they come again. Idempotent; bounded in time.
    ///
    /// # Errors
    /// Fails if the broker does not answer. It takes the events back by itself when the connection ends.
    pub async fn stop(&mut self) -> Result<(), BrokerError> {
        match self {
            Self::RabbitMq(source) => source.stop().await,
            Self::Spool(source) => source.stop().await,
            Self::Several(sources) => sources.stop().await,
        }
    }

    /// Waits for events that are done but lost their connection before the acknowledgement, then closes the
    /// connection in the order that loses no acknowledgement. To be called after all receipts are settled.
    /// Takes at most about three minutes, and seconds once the pilot was told to end. Failures are logged.
    pub async fn close(self) {
        match self {
            Self::RabbitMq(source) => source.close().await,
            Self::Spool(source) => source.close().await,
            Self::Several(sources) => sources.close().await,
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RabbitMq(_) => "Source::RabbitMq",
            Self::Spool(_) => "Source::Spool",
            Self::Several(_) => "Source::Several",
        })
    }
}

pub enum Sink {
    /// Results to RabbitMQ, each to all queues that share the connection.
    RabbitMq(rabbitmq::RabbitMqSink),
    Spool(spool::SpoolSink),
    /// Results to several brokers, each to all of them.
    Several(MultiSink),
}

impl Sink {
    /// The only kind of [`Content`] that [`Sink::publish_named`] takes.
    #[must_use]
    pub fn encoding(&self) -> Encoding {
        match self {
            Self::RabbitMq(_) => Encoding::Frame,
            Self::Spool(_) => Encoding::File,
            Self::Several(sinks) => sinks.encoding(),
        }
    }

    /// Publishes the result of the event `event`: a spool names the file after it, a message has no place for
    /// a name. Resolves when the broker has confirmed the result, or the file is durably in place. Many
    /// results may be under way at once; beyond a bound on their number and bytes, further ones wait.
    ///
    /// # Errors
    /// [`PublishError::TooLarge`]: the result was not and can never be sent. [`PublishError::Unroutable`],
    /// [`PublishError::Nacked`], [`PublishError::Spool`]: the queue refused it for as long as an outage is
    /// tolerated. [`PublishError::SessionLost`]: the broker was away for too long; the result may have
    /// arrived. Refused results and those of a lost session are kept on disk, to be sent by a later pilot.
    pub fn publish_named(
        &self,
        content: Content,
        event: Option<OsString>,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + use<> + 'static {
        match self {
            Self::RabbitMq(sink) => Either::Left(Either::Left(sink.publish(content, &[]))),
            Self::Spool(sink) => Either::Left(Either::Right(sink.publish(content, event))),
            Self::Several(sinks) => Either::Right(sinks.publish_named(&content, event.as_deref())),
        }
    }

    /// As [`Sink::publish_named`], with headers for the message. A spool has no place for headers.
    ///
    /// # Errors
    /// Returns the errors of [`Sink::publish_named`].
    pub fn publish_with(
        &self,
        content: Content,
        headers: &[(&'static str, String)],
    ) -> impl Future<Output = Result<(), PublishError>> + Send + use<> + 'static {
        match self {
            Self::RabbitMq(sink) => Either::Left(Either::Left(sink.publish(content, headers))),
            Self::Spool(sink) => Either::Left(Either::Right(sink.publish(content, None))),
            Self::Several(sinks) => Either::Right(sinks.publish(&content, headers)),
        }
    }

    /// Closes the connection. Bounded in time; failures are logged.
    pub async fn close(self) {
        match self {
            Self::RabbitMq(sink) => sink.close().await,
            Self::Spool(_) => {}
            Self::Several(sinks) => sinks.close().await,
        }
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RabbitMq(_) => "Sink::RabbitMq",
            Self::Spool(_) => "Sink::Spool",
            Self::Several(_) => "Sink::Several",
        })
    }
}
