//! Where events come from and results go: queues, deliveries and confirms.
//!
//! A [`Source`] hands out deliveries, each with a [`Receipt`] that settles it once, by value. A [`Sink`] takes results
//! and says when each is safe. Both live through outages of their broker, as long as [`OutagePolicy`] says; a call then
//! just takes longer. After that, and only then, the lost connection is an error of [`Source::recv`] and
//! [`Sink::publish_named`].
//!
//! A broker is added by one more variant in [`Address`], [`Source`], [`Sink`] and `ReceiptKind`, and of what
//! [`open_sources`] and [`open_sinks`] open as one.

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

/// What a queue carries for one event. A clone is the same bytes.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq, Eq))]
pub enum Content {
    /// A message body as it is on the wire: a zstd frame around `{"headers", "data"}`.
    Frame(Body),
    /// A file's bytes: the event's data and nothing else.
    File(FileFormat, Body),
}

impl Content {
    /// Its bytes.
    #[must_use]
    pub fn body(&self) -> &Body {
        let (Self::Frame(body) | Self::File(_, body)) = self;
        body
    }

    /// The same kind with other bytes.
    #[must_use]
    pub fn with_body(&self, body: Body) -> Self {
        match self {
            Self::Frame(_) => Self::Frame(body),
            Self::File(format, _) => Self::File(*format, body),
        }
    }
}

/// How the bytes of a [`Content::File`] are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileFormat {
    /// A JSON value.
    Json,
    Text,
}

/// Which kind of [`Content`] a sink wants.
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
    /// What its queue calls it: the name of a spool's file. A message has none.
    pub name: Option<OsString>,
    /// How often it was delivered before, when the broker says so (`x-delivery-count`, tries).
    pub earlier_deliveries: Option<u64>,
    pub receipt: Receipt,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It was worked through, and its result, if any, is confirmed.
    Done,
    /// The event or its task failed: back to the queue, and the broker may count it.
    Failed {
        /// The error. A spool keeps it beside the event.
        reason: String,
    },
    /// It failed too often: out of the queue, to where the broker puts rejected events.
    Rejected,
    /// It was not tried to the end for a reason that is not its own: back to the queue.
    Released,
}

/// Settles one delivery, once. Dropped unsettled it logs an error, unless its connection is gone,
/// when nothing is left that could be settled.
pub struct Receipt(Option<ReceiptKind>);

enum ReceiptKind {
    RabbitMq(rabbitmq::RabbitMqReceipt),
    Spool(spool::SpoolReceipt),
}

impl Receipt {
    fn new(kind: ReceiptKind) -> Self {
        Self(Some(kind))
    }

    /// The connection through which the event came.
    #[must_use]
    pub fn generation(&self) -> Option<Generation> {
        self.0.as_ref().map(|kind| match kind {
            ReceiptKind::RabbitMq(receipt) => receipt.generation(),
            ReceiptKind::Spool(receipt) => receipt.generation(),
        })
    }

    /// The event will be held for a while in which nothing is done for it: another one may come in its
    /// place. Resolves when the broker is asked for that.
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

    /// Tells the broker. For RabbitMQ, `Ok` means that the acknowledgement is on its way, or is
    /// deferred: when the connection that delivered the event is lost, its tag means nothing any more,
    /// and the verdict is applied when the broker delivers the event again. [`Source::close`] waits
    /// for that, up to a minute; what never came is in [`BrokerStats::unacknowledged`].
    ///
    /// # Errors
    /// [`SettleError::SessionLost`] when the source is closed, or the claim on a spool's file is
    /// another pilot's.
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

/// Where a queue is, and for RabbitMQ who we are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address<'a> {
    RabbitMq(&'a AmqpAddress),
    /// In a directory, as the subdirectory of its name.
    Spool(&'a Path),
}

/// Opens the queue that events go to which failed too often.
///
/// # Errors
/// As [`open_sources`].
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

/// What is where a queue should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueLook {
    /// Nothing. A pilot would make it.
    Missing,
    There {
        waiting: u64,
        /// How many take messages from it.
        consumers: u64,
    },
}

/// Looks at a queue, takes, sends and makes nothing, and leaves.
///
/// # Errors
/// As [`open_sources`], but the queue may be missing.
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
    /// From RabbitMQ, from several queues in turn where they share a connection.
    RabbitMq(rabbitmq::RabbitMqSource),
    Spool(spool::SpoolSource),
    /// From several brokers, in turn.
    Several(MultiSource),
}

impl Source {
    /// The next event; waits while there is none, and while the broker is away. Cancel-safe. After
    /// [`Source::stop`] it never resolves.
    ///
    /// # Errors
    /// The broker was away for too long. Receipts stay usable.
    pub async fn recv(&mut self) -> Result<Delivery, BrokerError> {
        match self {
            Self::RabbitMq(source) => source.recv().await,
            Self::Spool(source) => source.recv().await,
            Self::Several(sources) => sources.recv().await,
        }
    }

    /// Counts the time that queues are silent from now on, see [`Source::idle_left`].
    pub fn start_idle_clock(&mut self) {
        match self {
            Self::RabbitMq(source) => source.start_idle_clock(),
            // There is no connection that could be lost.
            Self::Spool(_) => {}
            Self::Several(sources) => sources.start_idle_clock(),
        }
    }

    /// What is left of `wait` before a queue that gave nothing may be called idle: time without a connection
    /// doesn't count, time on all connections since the clock was started does.
    #[must_use]
    pub fn idle_left(&self, wait: Duration) -> Duration {
        match self {
            Self::RabbitMq(source) => source.idle_left(wait),
            Self::Spool(_) => Duration::ZERO,
            Self::Several(sources) => sources.idle_left(wait),
        }
    }

    /// Takes no more events and gives back those that were taken ahead and not handed out.
    /// Receipts that were handed out stay usable, and their events are recognised when they come
    /// again. Idempotent; bounded in time.
    ///
    /// # Errors
    /// The broker does not answer; it takes the events back by itself when the connection ends.
    pub async fn stop(&mut self) -> Result<(), BrokerError> {
        match self {
            Self::RabbitMq(source) => source.stop().await,
            Self::Spool(source) => source.stop().await,
            Self::Several(sources) => sources.stop().await,
        }
    }

    /// Ends the connection in the order that loses no acknowledgement, after waiting for events that
    /// are done and were lost with a connection. To be called after all receipts are settled; bounded
    /// in time, by about three minutes at the very worst, and by seconds once the pilot is told to end. What fails is
    /// logged.
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
    /// Into RabbitMQ, each result into all queues that share the connection.
    RabbitMq(rabbitmq::RabbitMqSink),
    Spool(spool::SpoolSink),
    /// Into several brokers, each result into all.
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

    /// Publishes the result of the event of this name: a directory names its file after it, a message has
    /// no place for it. Resolves when the broker has confirmed the result, or the file is durably in place.
    /// Many may be under way at once; how many, and how many bytes, is bounded here, by waiting.
    ///
    /// # Errors
    /// [`PublishError::TooLarge`]: the result is not there, and never will be.
    /// [`PublishError::Unroutable`], [`PublishError::Nacked`], [`PublishError::Spool`]: its queue did not
    /// take it for as long as an outage is borne. [`PublishError::SessionLost`]: the broker was away for
    /// too long; the result may be there. Those are kept on disk to be sent by a later pilot.
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

    /// As [`Sink::publish_named`], with headers of the message. A directory has no place for them.
    ///
    /// # Errors
    /// Those of [`Sink::publish_named`].
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

    /// Ends the connection. Bounded in time. What fails is logged.
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
