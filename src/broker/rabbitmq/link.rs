//! One connection with one channel on it: opened, probed and closed with a deadline on every step.
//! Talks to amqprs. Apart, because consuming and publishing need the same of it.
//!
//! A link that once failed is never used again: amqprs may panic, hang, or leave the channel in a
//! state that looks open. Whoever holds it ends its session instead.

use std::future::Future;
use std::time::{Duration, SystemTime};

use amqprs::FieldTable;
use amqprs::channel::{BasicQosArguments, Channel, QueueDeclareArguments};
use amqprs::connection::Connection;
use amqprs::error::Error;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::{Instant, timeout};

use super::refusal::{self, Attempt};
use super::token::{self, Renewal};
use super::watch::{ChannelWatch, ConnectionWatch, SharedConfirms, Signal};
use crate::broker::{BrokerError, Place};
use crate::config::AmqpAddress;

/// For resolving, connecting, TLS and the handshake together. amqprs itself would wait for
/// minutes.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// For one question to the server and its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);
/// For saying good-bye.
const CLOSE_WITHIN: Duration = Duration::from_secs(3);
/// amqprs' error comes before the callback has told the server's reason.
const REASON_WITHIN: Duration = Duration::from_millis(500);

/// A live connection, its one channel, and what happens to them.
pub(super) struct Link {
    pub(super) channel: Channel,
    pub(super) signals: UnboundedReceiver<Signal>,
    pub(super) at: Place,
    connection: Connection,
    _renewal: Option<Renewal>,
}

impl Link {
    /// Connects, opens the channel, and declares the queue.
    pub(super) async fn open(
        address: &AmqpAddress,
        at: &Place,
        confirms: &SharedConfirms,
    ) -> Result<Self, BrokerError> {
        let secret = token::current(address, at).await;
        let arguments = super::address::arguments(address, &secret, at)?;
        let started = Instant::now();
        let timed_out = || BrokerError::TimedOut {
            at: at.clone(),
            step: "connecting",
            after: OPEN_WITHIN,
        };
        let connection = timeout(OPEN_WITHIN, Connection::open(&arguments))
            .await
            .map_err(|_elapsed| timed_out())?
            .map_err(|error| {
                let attempt = Attempt {
                    address,
                    secret: &secret,
                    took: started.elapsed(),
                    ended: SystemTime::now(),
                };
                refusal::of_open(&error, &attempt, at)
            })?;

        let (sender, signals) = mpsc::unbounded_channel();
        let watch = ConnectionWatch::new(sender.clone(), confirms.clone());
        let opened = async {
            connection.register_callback(watch).await?;
            let channel = connection.open_channel(None).await?;
            channel
                .register_callback(ChannelWatch::new(sender, confirms.clone()))
                .await?;
            Ok(channel)
        };
        let channel = match timeout(ANSWER_WITHIN, opened).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => {
                let error: Error = error;
                let detail = error.to_string();
                return Err(BrokerError::CutOff {
                    at: at.clone(),
                    detail,
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
        let mut link = Self {
            channel,
            signals,
            at: at.clone(),
            _renewal: Renewal::of(&connection, address, secret, at),
            connection,
        };
        link.declare().await?;
        Ok(link)
    }

    async fn declare(&mut self) -> Result<(), BrokerError> {
        let mut quorum = FieldTable::new();
        quorum.insert(
            "x-queue-type".try_into().expect("it is short"),
            "quorum".into(),
        );
        let arguments = QueueDeclareArguments::durable_client_named(&self.at.queue)
            .arguments(quorum)
            .finish();
        let channel = self.channel.clone();
        self.ask("declaring the queue", channel.queue_declare(arguments))
            .await
            .map(|_| ())
    }

    /// Limits what the server sends ahead. Also the round trip that proves that the server lives
    /// and has read everything that was sent before it on this channel.
    pub(super) async fn limit(&mut self, window: u16) -> Result<(), BrokerError> {
        let channel = self.channel.clone();
        self.ask(
            "a round trip",
            channel.basic_qos(BasicQosArguments::new(0, window, false)),
        )
        .await
    }

    /// One synchronous call, with the server's own reason when it refuses. Takes `&mut self`
    /// because two at once on a channel make amqprs panic.
    pub(super) async fn ask<T>(
        &mut self,
        step: &'static str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, BrokerError> {
        match timeout(ANSWER_WITHIN, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.reason(&error.to_string()).await),
            Err(_elapsed) => Err(BrokerError::TimedOut {
                at: self.at.clone(),
                step,
                after: ANSWER_WITHIN,
            }),
        }
    }

    /// Why the link failed, best told by the server.
    async fn reason(&mut self, fallback: &str) -> BrokerError {
        let told = async {
            while let Some(signal) = self.signals.recv().await {
                if signal != Signal::Dropped {
                    return Some(signal);
                }
            }
            None
        };
        match timeout(REASON_WITHIN, told).await {
            Ok(Some(signal)) => refusal::of_signal(&signal, &self.at),
            _ => BrokerError::ConnectionLost {
                at: self.at.clone(),
                detail: fallback.to_owned(),
            },
        }
    }

    /// Channel, then connection. Everything worth a round trip must be proven before.
    pub(super) async fn close(self) {
        let Self {
            channel,
            connection,
            at,
            ..
        } = self;
        for (what, outcome) in [
            ("channel", timeout(CLOSE_WITHIN, channel.close()).await),
            (
                "connection",
                timeout(CLOSE_WITHIN, connection.close()).await,
            ),
        ] {
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%at, what, %error, "not closed in order"),
                Err(_elapsed) => tracing::debug!(%at, what, "no answer to closing"),
            }
        }
    }
}
