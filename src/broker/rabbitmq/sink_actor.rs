//! The actor of the queues that results go to. It lives as long as its [`RabbitMqSink`](super::RabbitMqSink),
//! on a thread of its own, through all connections: a queue may be without results for hours and must be
//! reachable when one comes.
//!
//! Results come on one channel, which outlives the connections, and each names the connection to use. A
//! result that comes too late for its connection is dropped: its sender learns that it was not sent, and
//! waits for the next connection.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::actor_thread::{AfterConnection, ConnectionActor};
use super::callbacks::ChannelEvent;
use super::error_mapping::{self, in_mid_life};
use super::publisher::{OutgoingMessage, Publisher};
use super::reconnect::{BeforeTry, ConnectionLife, FirstConnection, Reconnect, Starting};
use crate::broker::{BrokerError, ConnectionState, Endpoint, OutagePolicy};
use crate::config::AmqpAddress;
use crate::ids::Generation;

/// The deadline for closing a connection.
const CLOSE_WITHIN: Duration = Duration::from_secs(8);
/// The deadline for closing, in a pilot that was told to end.
const CLOSE_IN_A_HURRY: Duration = Duration::from_secs(1);

/// The state of the connection, as results see it.
#[derive(Debug)]
pub(super) enum SinkConnection {
    Up(Generation),
    Down,
    /// No connection was healthy for the configured time. A later one is used nevertheless.
    GivenUp(BrokerError),
}

/// Resolves when the handle is closed, with a sender to report that the connection is closed; fails when the
/// handle is dropped.
type Closing = oneshot::Receiver<oneshot::Sender<()>>;

pub(super) struct SinkActor {
    at: Endpoint,
    address: AmqpAddress,
    outages: OutagePolicy,
    connection: watch::Sender<SinkConnection>,
    messages: mpsc::Receiver<OutgoingMessage>,
    closing: Closing,
    /// Set until results may come.
    starting: Option<Starting>,
    reconnect: Reconnect,
    pause: Duration,
    last_error: Option<BrokerError>,
    generation: Generation,
}

/// Why a connection is no longer served.
enum ServiceEnd {
    /// The handle was closed, or dropped (`None`).
    Closing(Option<oneshot::Sender<()>>),
    Lost(BrokerError),
}

impl From<BrokerError> for ServiceEnd {
    fn from(error: BrokerError) -> Self {
        Self::Lost(error)
    }
}

impl ConnectionActor for SinkActor {
    async fn serve_next(&mut self) -> AfterConnection {
        let mut publisher = match self.open().await {
            Ok(publisher) => publisher,
            // There is no connection to close; dropping the sender tells the handle.
            Err(ServiceEnd::Closing(_)) => return AfterConnection::End,
            Err(ServiceEnd::Lost(error)) => return self.not_opened(error),
        };
        self.connected();
        match self.serve(&mut publisher).await {
            ServiceEnd::Closing(done) => {
                if let Some(done) = done {
                    self.close(publisher).await;
                    let _gone = done.send(());
                }
                AfterConnection::End
            }
            ServiceEnd::Lost(error) => {
                let life = publisher.life();
                publisher.lose(&error);
                self.lost(error, life)
            }
        }
    }

    fn fail(&mut self, error: BrokerError) -> AfterConnection {
        if !matches!(
            self.closing.try_recv(),
            Err(oneshot::error::TryRecvError::Empty)
        ) {
            return AfterConnection::End;
        }
        while let Ok(message) = self.messages.try_recv() {
            drop(message);
        }
        let was_up = matches!(*self.connection.borrow(), SinkConnection::Up(_));
        let following = if was_up {
            let life = ConnectionLife {
                lasted: Duration::ZERO,
                work: 0,
            };
            self.lost(error, life)
        } else {
            self.not_opened(error)
        };
        self.give_up_when_due();
        following
    }
}

impl SinkActor {
    pub(super) fn new(
        at: Endpoint,
        address: AmqpAddress,
        outages: OutagePolicy,
        connection: watch::Sender<SinkConnection>,
        (messages, closing): (mpsc::Receiver<OutgoingMessage>, Closing),
        (first, ready): (FirstConnection, oneshot::Sender<Result<(), BrokerError>>),
    ) -> Self {
        Self {
            at,
            address,
            reconnect: Reconnect::within(outages.reconnect_within()),
            outages,
            connection,
            messages,
            closing,
            starting: Some(Starting::new(first, ready)),
            pause: Duration::ZERO,
            last_error: None,
            generation: Generation(0),
        }
    }

    /// Waits until a connection is due, and opens it.
    async fn open(&mut self) -> Result<Publisher, ServiceEnd> {
        let before = match &mut self.starting {
            Some(starting) => starting.before_try(),
            None => Some(BeforeTry::Pause(self.pause)),
        };
        if let Some(before) = before {
            self.meanwhile(before.over()).await?;
        }
        self.generation = Generation(self.generation.0 + 1);
        let (at, address) = (self.at.clone(), self.address.clone());
        let opening = async move { Publisher::open(&at, &address).await };
        Ok(self.meanwhile(opening).await??)
    }

    /// Runs `work`. Drops results that come meanwhile; their senders wait for the next connection.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Result<T, ServiceEnd> {
        let mut work = pin!(work);
        loop {
            let give_up_at = self.give_up_at();
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                closing = &mut self.closing => return Err(ServiceEnd::Closing(closing.ok())),
                Some(message) = self.messages.recv() => drop(message),
                () = sleep_until(give_up_at.unwrap_or_else(Instant::now)), if give_up_at.is_some() => {
                    self.give_up_when_due();
                }
            }
        }
    }

    async fn serve(&mut self, publisher: &mut Publisher) -> ServiceEnd {
        loop {
            let late_at = publisher.late_at();
            let step = tokio::select! {
                biased;
                event = publisher.connection.signals.recv() => {
                    let event = event.unwrap_or(ChannelEvent::Dropped);
                    Err(error_mapping::of_signal(&event, &self.at))
                }
                closing = &mut self.closing => return ServiceEnd::Closing(closing.ok()),
                done = publisher.waiting.done() => publisher.go_on(done).await,
                Some(message) = self.messages.recv(), if publisher.waiting.is_nothing() => {
                    // A message for an earlier connection, or whose sender stopped waiting, is dropped.
                    if message.generation == self.generation && !message.pending.outcome.is_closed() {
                        publisher.send(message).await
                    } else {
                        Ok(())
                    }
                }
                () = sleep_until(late_at) => publisher.look_for_late_confirms(),
                () = all_else_is_ready(&mut self.starting) => {
                    self.started();
                    Ok(())
                }
            };
            if let Err(error) = step {
                return ServiceEnd::Lost(error);
            }
        }
    }

    fn connected(&mut self) {
        self.connection
            .send_replace(SinkConnection::Up(self.generation));
        if let Some(starting) = &mut self.starting {
            starting.reached();
            return;
        }
        // Counted before the connection is reported as up.
        self.outages.count(|stats| stats.reconnects += 1);
        self.outages.note(&self.at, ConnectionState::Up);
        let generation = self.generation.0;
        let down_secs = self.reconnect.unhealthy_for().as_secs();
        tracing::info!(at = %self.at, generation, down_secs, "the outgoing queue is back");
    }

    /// Reports the start as done: the first connection is open, and everything else ready.
    fn started(&mut self) {
        if let Some(starting) = self.starting.take() {
            self.outages.note(&self.at, ConnectionState::Up);
            starting.succeeded();
        }
    }

    fn lost(&mut self, error: BrokerError, life: ConnectionLife) -> AfterConnection {
        let error = in_mid_life(error);
        self.connection.send_replace(SinkConnection::Down);
        if self.starting.is_some() {
            return self.not_opened(error);
        }
        tracing::warn!(%error, "the outgoing queue's session is lost; results wait");
        self.pause = self.reconnect.lost(life);
        self.down(error);
        AfterConnection::NextConnection
    }

    fn not_opened(&mut self, error: BrokerError) -> AfterConnection {
        if let Some(starting) = self.starting.take() {
            self.starting = starting.failed(error);
            return match self.starting {
                Some(_) => AfterConnection::NextConnection,
                None => AfterConnection::End,
            };
        }
        self.pause = self.reconnect.failed();
        let down_secs = self.reconnect.unhealthy_for().as_secs();
        let tried = self.reconnect.attempts();
        tracing::warn!(%error, down_secs, tried, "the outgoing queue can't be reached yet");
        self.down(error);
        AfterConnection::NextConnection
    }

    fn down(&mut self, error: BrokerError) {
        let state = ConnectionState::Down(error.to_string());
        self.outages.note(&self.at, state);
        self.last_error = Some(error);
    }

    /// When to give up the broker; `None` if that was reported already.
    fn give_up_at(&self) -> Option<Instant> {
        let is_given_up = matches!(*self.connection.borrow(), SinkConnection::GivenUp(_));
        let end = self.reconnect.give_up_at();
        end.filter(|_| !is_given_up && self.starting.is_none())
    }

    fn give_up_when_due(&mut self) {
        if self.give_up_at().is_some_and(|end| end <= Instant::now())
            && let Some(error) = self.last_error.clone()
        {
            let state = ConnectionState::GivenUp(error.to_string());
            self.outages.note(&self.at, state);
            self.connection.send_replace(SinkConnection::GivenUp(error));
        }
    }

    async fn close(&mut self, publisher: Publisher) {
        let in_a_hurry = self.outages.told_to_end_since().is_some();
        let within = if in_a_hurry {
            CLOSE_IN_A_HURRY
        } else {
            CLOSE_WITHIN
        };
        if timeout(within, publisher.close()).await.is_err() {
            tracing::debug!(at = %self.at, "the outgoing queue was not closed in order");
        }
    }
}

/// Resolves when everything but the brokers is ready; never if the start is done.
async fn all_else_is_ready(starting: &mut Option<Starting>) {
    match starting {
        Some(starting) => starting.all_else_is_ready().await,
        None => std::future::pending().await,
    }
}
