//! Keeps a publishing session up: replaces a lost one, and says when there is no hope. Talks to
//! sessions, and to the [`Sink`](super::Sink)'s publishes through a watched value. Apart from the
//! sink, because a queue may be without publishes for hours and must be there when one comes.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::backoff;
use super::publisher::{PublisherCommand, PublisherHandle};
use crate::broker::outage_policy::IN_A_HURRY;
use crate::broker::{BrokerError, ConnectionState, Endpoint, OutagePolicy, Patience};
use crate::config::AmqpAddress;
use crate::ids::Generation;

const CLOSE_WITHIN: Duration = Duration::from_secs(8);
/// A session that ends sooner counts as a vain try.
const LIVED: Duration = Duration::from_secs(30);

/// The state of the connection, for publishes.
#[derive(Debug)]
pub(super) enum SinkConnection {
    Up(Generation, mpsc::Sender<PublisherCommand>),
    /// Wait.
    Down,
    /// There was no connection, or none that took results, for as long as was configured. A later
    /// one is used nevertheless.
    GivenUp(BrokerError),
}

/// What the pilot's end asks for.
#[derive(Debug)]
pub(super) enum SinkOrder {
    /// End the session in order.
    Close { done: oneshot::Sender<()> },
}

/// See the module.
pub(super) struct SinkActor {
    at: Endpoint,
    address: AmqpAddress,
    session: PublisherHandle,
    line: watch::Sender<SinkConnection>,
    outage_policy: OutagePolicy,
}

impl SinkActor {
    pub(super) fn new(
        at: Endpoint,
        address: AmqpAddress,
        session: PublisherHandle,
        outage_policy: OutagePolicy,
    ) -> (Self, watch::Receiver<SinkConnection>) {
        let (line, lines) = watch::channel(up(&session));
        outage_policy.note(&at, ConnectionState::Up);
        let keeper = Self {
            at,
            address,
            session,
            line,
            outage_policy,
        };
        (keeper, lines)
    }

    /// Until the sink is closed or dropped.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<SinkOrder>) {
        let mut tried = 0;
        // Since when the broker lets us connect but takes no result.
        let mut denied_since = None;
        loop {
            let since = Instant::now();
            let error = tokio::select! {
                biased;
                order = orders.recv() => {
                    if let Some(SinkOrder::Close { done }) = order {
                        self.session.close(CLOSE_WITHIN).await;
                        // Whoever asked may have stopped waiting.
                        let _gone = done.send(());
                    }
                    return;
                }
                error = self.session.hold.lost() => error,
            };
            let lived = since.elapsed() >= LIVED;
            tried = if lived { 0 } else { tried + 1 };
            denied_since = match error {
                BrokerError::Permission { .. } => {
                    let earlier = denied_since.filter(|_| !lived);
                    Some(earlier.unwrap_or_else(Instant::now))
                }
                _ => None,
            };
            tracing::warn!(%error, "the outgoing queue's session is lost; results wait");
            self.line.send_replace(SinkConnection::Down);
            self.note(ConnectionState::Down(error.to_string()));
            tokio::select! {
                biased;
                // Nothing is there that could be closed in order: dropping `done` says so.
                _ = orders.recv() => return,
                session = self.reopen(error, &mut tried, denied_since) => self.session = session,
            }
            self.line.send_replace(up(&self.session));
            self.note(ConnectionState::Up);
        }
    }

    fn note(&self, state: ConnectionState) {
        self.outage_policy.note(&self.at, state);
    }

    async fn reopen(
        &self,
        mut error: BrokerError,
        tried: &mut u32,
        denied_since: Option<Instant>,
    ) -> PublisherHandle {
        let down_since = Instant::now();
        let mut generation = self.session.hold.generation.0;
        let mut patience = self.outage_policy.patience();
        let useless_since = denied_since.unwrap_or(down_since);
        let mut give_up_at = useless_since + self.outage_policy.reconnect_within();
        loop {
            generation += 1;
            let pause = backoff::pause_after(*tried);
            let opening = async {
                sleep(pause).await;
                PublisherHandle::open(
                    self.at.clone(),
                    self.address.clone(),
                    Generation(generation),
                )
                .await
            };
            let mut opening = std::pin::pin!(opening);
            let opened = loop {
                let is_given_up = matches!(*self.line.borrow(), SinkConnection::GivenUp(_));
                tokio::select! {
                    biased;
                    opened = &mut opening => break opened,
                    Ok(now) = patience.wait_for(|now| *now == Patience::Short),
                        if give_up_at > Instant::now() + IN_A_HURRY =>
                    {
                        drop(now);
                        give_up_at = Instant::now() + IN_A_HURRY;
                    }
                    () = sleep_until(give_up_at), if !is_given_up => {
                        self.line.send_replace(SinkConnection::GivenUp(error.clone()));
                        self.note(ConnectionState::GivenUp(error.to_string()));
                    }
                }
            };
            match opened {
                Ok(session) => {
                    let down_secs = down_since.elapsed().as_secs();
                    tracing::info!(at = %self.at, generation, down_secs, "the outgoing queue is back");
                    self.outage_policy.count(|stats| stats.reconnects += 1);
                    return session;
                }
                Err(failed) => {
                    *tried = tried.saturating_add(1);
                    let down_secs = down_since.elapsed().as_secs();
                    tracing::warn!(error = %failed, down_secs, tried, "the outgoing queue can't be reached yet");
                    self.note(ConnectionState::Down(failed.to_string()));
                    error = failed;
                }
            }
        }
    }
}

fn up(session: &PublisherHandle) -> SinkConnection {
    SinkConnection::Up(session.hold.generation, session.commands.clone())
}
