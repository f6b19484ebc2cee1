//! One connection with one channel: opened, probed and closed with a deadline on every step.
//!
//! A connection that failed once is never used again: amqprs may panic, hang, or leave the channel in a state
//! that looks open. Instead, the actor ends it together with its runtime.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use amqprs::FieldTable;
use amqprs::channel::{BasicQosArguments, Channel, QueueDeclareArguments};
use amqprs::connection;
use amqprs::error::Error;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::timeout;

use super::address::{arguments, tls_connector};
use super::callbacks::{ChannelCallbacks, ChannelEvent, ConnectionCallbacks, SharedConfirms};
use super::confirms::Confirms;
use super::dial::{DialError, OPEN_WITHIN, dial};
use super::error_mapping::{self, OpenAttempt};
use super::token::{self, Renewal};
use super::unreached;
use crate::broker::{BrokerError, Direction, Endpoint, QueueLook};
use crate::config::AmqpAddress;
use crate::ids::QueueIndex;

/// The deadline for the server's answer to one call.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);
const CLOSE_WITHIN: Duration = Duration::from_secs(3);
/// How long to wait for the server's reason: amqprs returns its error before the callback has delivered that.
const REASON_WITHIN: Duration = Duration::from_millis(500);

/// A live connection, its one channel, and the events on them.
pub(super) struct Connection {
    pub(super) channel: Channel,
    pub(super) signals: UnboundedReceiver<ChannelEvent>,
    pub(super) at: Endpoint,
    /// Publishes on the channel that wait for their confirm.
    pub(super) confirms: SharedConfirms,
    amqp: connection::Connection,
    _renewal: Option<Renewal>,
}

/// The counts that the server reports for a queue.
struct QueueCounts {
    messages: u32,
    consumers: u32,
}

/// The finding of an earlier look at a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KnownQueue {
    Missing,
    /// The queue's arguments differ from a pilot's declaration, or the pilot may not declare queues.
    AsItIs,
}

impl KnownQueue {
    fn by(error: &BrokerError) -> Option<Self> {
        match error {
            BrokerError::NoQueue { .. } => Some(Self::Missing),
            BrokerError::Permission { .. } => Some(Self::AsItIs),
            BrokerError::ConnectionLost { detail, .. } if detail.contains("inequivalent arg") => {
                Some(Self::AsItIs)
            }
            _ => None,
        }
    }
}

impl Connection {
    /// Connects and opens the channel. Existing queues are used as they are, and missing ones declared.
    /// `publisher` marks the ids of messages, so that returned ones are recognised.
    pub(super) async fn open(
        address: &AmqpAddress,
        at: &Endpoint,
        publisher: &str,
    ) -> Result<Self, BrokerError> {
        let mut known = BTreeMap::new();
        loop {
            let mut link = Self::connect(address, at, publisher).await?;
            let Err((queue, error)) = link.find_or_declare(&known).await else {
                return Ok(link);
            };
            // The server has closed the channel over the error.
            let now = KnownQueue::by(&error).filter(|_| !known.contains_key(&queue));
            let Some(now) = now else { return Err(error) };
            known.insert(queue, now);
            link.hang_up().await;
        }
    }

    async fn connect(
        address: &AmqpAddress,
        at: &Endpoint,
        publisher: &str,
    ) -> Result<Self, BrokerError> {
        let secret = token::current(address, at).await;
        let tls = tls_connector(address, at).await?;
        let mut arguments = arguments(address, &secret, at, tls)?;
        let connection = match dial(&mut arguments, address).await {
            Ok(connection) => connection,
            Err(DialError::Failed { error, took }) => {
                let attempt = OpenAttempt {
                    address,
                    secret: &secret,
                    took,
                    ended: SystemTime::now(),
                };
                return Err(error_mapping::of_open(&error, &attempt, at));
            }
            Err(DialError::Unreached(list)) => {
                let proxy = address.client.proxy.as_deref();
                return Err(unreached::error(list, proxy, OPEN_WITHIN, at.clone()));
            }
        };

        // A table for each connection: one that was given up still reports to its own, late.
        let confirms = Arc::new(Mutex::new(Confirms::new(at, publisher.to_owned())));
        let (sender, mut signals) = mpsc::unbounded_channel();
        let watch = ConnectionCallbacks::new(sender.clone(), Arc::clone(&confirms));
        let opened = async {
            connection.register_callback(watch).await?;
            let channel = connection.open_channel(None).await?;
            channel
                .register_callback(ChannelCallbacks::new(sender, Arc::clone(&confirms)))
                .await?;
            Ok(channel)
        };
        let channel = match timeout(ANSWER_WITHIN, opened).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => {
                let error: Error = error;
                let detail = error.to_string();
                return Err(match told(&mut signals).await {
                    Some(signal) => error_mapping::of_signal(&signal, at),
                    None => BrokerError::CutOff {
                        at: at.clone(),
                        detail,
                    },
                });
            }
            Err(_elapsed) => {
                let (step, after) = ("opening a channel", ANSWER_WITHIN);
                return Err(BrokerError::TimedOut {
                    at: at.clone(),
                    step,
                    after,
                });
            }
        };
        Ok(Self {
            channel,
            signals,
            at: at.clone(),
            confirms,
            _renewal: Renewal::of(&connection, address, secret, at),
            amqp: connection,
        })
    }

    /// Finds or declares the queues. Operators own their queues: an existing one is used whatever its type
    /// and arguments, and needs no permission to configure. Only a stream can't be used, since events that a
    /// pilot takes would stay in it. The server tells that only to a client that declares the queue with
    /// other arguments; otherwise its messages do, see [`QueueKind`](super::prefetch::QueueKind).
    async fn find_or_declare(
        &mut self,
        known: &BTreeMap<QueueIndex, KnownQueue>,
    ) -> Result<(), (QueueIndex, BrokerError)> {
        for queue in self.at.indices() {
            let mut done = match known.get(&queue) {
                Some(KnownQueue::Missing) => self.declare(queue).await,
                Some(KnownQueue::AsItIs) | None => self.find(queue).await.map(drop),
            };
            if done.is_ok()
                && self.at.direction == Direction::Incoming
                && !known.contains_key(&queue)
            {
                done = self.declare(queue).await;
            }
            done.map_err(|error| (queue, error))?;
        }
        Ok(())
    }

    /// Looks for the queue without declaring it. The server closes the channel if it is missing.
    async fn find(&mut self, queue: QueueIndex) -> Result<QueueCounts, BrokerError> {
        let arguments = QueueDeclareArguments::new(self.at.name(queue))
            .passive(true)
            .finish();
        let (channel, at) = (self.channel.clone(), self.at.only(queue));
        let asking = channel.queue_declare(arguments);
        let answer = self.ask_at(&at, "looking for the queue", asking).await?;
        let (messages, consumers) =
            answer.map_or((0, 0), |(_, messages, consumers)| (messages, consumers));
        Ok(QueueCounts {
            messages,
            consumers,
        })
    }

    async fn declare(&mut self, queue: QueueIndex) -> Result<(), BrokerError> {
        let mut quorum = FieldTable::new();
        quorum.insert(
            "x-queue-type".try_into().expect("it is short"),
            "quorum".into(),
        );
        let arguments = QueueDeclareArguments::durable_client_named(self.at.name(queue))
            .arguments(quorum)
            .finish();
        let (channel, at) = (self.channel.clone(), self.at.only(queue));
        let declaring = channel.queue_declare(arguments);
        self.ask_at(&at, "declaring the queue", declaring)
            .await
            .map(drop)
    }

    /// Sets how many unacknowledged messages each consumer that is started after this may have. Also serves
    /// as the round trip that proves that the server lives and has read everything sent before on this
    /// channel.
    pub(super) async fn limit(&mut self, window: u16) -> Result<(), BrokerError> {
        let channel = self.channel.clone();
        let arguments = BasicQosArguments::new(0, window, false);
        self.ask("a round trip", channel.basic_qos(arguments)).await
    }

    /// One synchronous call; the error gives the server's own reason. Takes `&mut self` because two calls at
    /// once on a channel make amqprs panic.
    pub(super) async fn ask<T>(
        &mut self,
        step: &'static str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, BrokerError> {
        let at = self.at.clone();
        self.ask_at(&at, step, call).await
    }

    /// As [`ask`](Self::ask), for one of the queues.
    pub(super) async fn ask_at<T>(
        &mut self,
        at: &Endpoint,
        step: &'static str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, BrokerError> {
        match timeout(ANSWER_WITHIN, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.reason(at, &error.to_string()).await),
            Err(_elapsed) => Err(BrokerError::TimedOut {
                at: at.clone(),
                step,
                after: ANSWER_WITHIN,
            }),
        }
    }

    /// The reason for a failure: the server's if there is one, else `fallback`.
    async fn reason(&mut self, at: &Endpoint, fallback: &str) -> BrokerError {
        match told(&mut self.signals).await {
            Some(signal) => error_mapping::of_signal(&signal, at),
            None => BrokerError::ConnectionLost {
                at: at.clone(),
                detail: fallback.to_owned(),
            },
        }
    }

    /// Closes a connection whose channel the server has closed.
    async fn hang_up(self) {
        if timeout(CLOSE_WITHIN, self.amqp.close()).await.is_err() {
            tracing::debug!(at = %self.at, "no answer to closing");
        }
    }

    /// Closes the channel, then the connection. Anything worth a round trip must be proven before.
    pub(super) async fn close(self) {
        let Self {
            channel, amqp, at, ..
        } = self;
        for (what, outcome) in [
            ("channel", timeout(CLOSE_WITHIN, channel.close()).await),
            ("connection", timeout(CLOSE_WITHIN, amqp.close()).await),
        ] {
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%at, what, %error, "not closed in order"),
                Err(_elapsed) => tracing::debug!(%at, what, "no answer to closing"),
            }
        }
    }
}

/// The server's reason for the end of a connection, if it gives one in time.
async fn told(signals: &mut UnboundedReceiver<ChannelEvent>) -> Option<ChannelEvent> {
    let told = async {
        while let Some(signal) = signals.recv().await {
            if signal != ChannelEvent::Dropped {
                return Some(signal);
            }
        }
        None
    };
    timeout(REASON_WITHIN, told).await.ok().flatten()
}

/// Looks at a queue over a connection of its own.
pub(super) async fn look(address: &AmqpAddress, at: &Endpoint) -> Result<QueueLook, BrokerError> {
    let mut link = Connection::connect(address, at, "").await?;
    match link.find(QueueIndex(0)).await {
        Ok(QueueCounts {
            messages,
            consumers,
        }) => {
            link.close().await;
            Ok(QueueLook::There {
                waiting: u64::from(messages),
                consumers: u64::from(consumers),
            })
        }
        Err(BrokerError::NoQueue { .. }) => {
            link.hang_up().await;
            Ok(QueueLook::Missing)
        }
        Err(error) => Err(error),
    }
}
