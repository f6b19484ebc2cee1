//! The pilot's end of queues that results go to, through all the sessions of its life. Talks to the
//! live session and to its [`Keeper`](super::keep) through channels. Apart from
//! [`publish`](super::publish), because that runs on the session's thread and this on the pilot's.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use super::confirms::Pending;
use super::publisher::{Message, PublisherCommand, PublisherHandle};
use super::sink_actor::{SinkActor, SinkConnection, SinkOrder};
use crate::broker::body::SENDING_BYTES;
use crate::broker::outage_policy::IN_A_HURRY;
use crate::broker::outbox::{self, UnsentResult, WhenUndeliverable};
use crate::broker::outlet::{NextTry, RefusedResult, RefusesSince};
use crate::broker::{
    Body, BrokerError, ConnectionState, Content, Endpoint, OutagePolicy, Patience, PublishError,
};
use crate::config::AmqpAddress;
use crate::ids::{Generation, QueueIndex};

/// Results in flight; 100 are enough for the most that one connection gives, 23,600 a second.
const PUBLISHES_MAX: u32 = 128;

/// For the last confirms before closing; whoever cared has waited for them already.
const LAST_CONFIRMS_WITHIN: Duration = Duration::from_secs(5);
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// Results into the queues that share a session, each into all.
pub struct RabbitMqSink {
    pub(super) at: Endpoint,
    line: watch::Receiver<SinkConnection>,
    orders: mpsc::Sender<SinkOrder>,
    slots: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// Since when each queue refuses results, by its index.
    refuses: Vec<RefusesSince>,
    outage_policy: OutagePolicy,
}

/// Whether the broker may have a result already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    No,
    Perhaps,
}

impl RabbitMqSink {
    /// Takes over the first session. To be called within a runtime.
    pub(super) fn start(
        at: &Endpoint,
        address: &AmqpAddress,
        session: PublisherHandle,
        outage_policy: &OutagePolicy,
    ) -> Self {
        let (orders, to_keeper) = mpsc::channel(1);
        let (keeper, line) =
            SinkActor::new(at.clone(), address.clone(), session, outage_policy.clone());
        tokio::spawn(keeper.run(to_keeper));
        Self {
            at: at.clone(),
            line,
            orders,
            slots: Arc::new(Semaphore::new(PUBLISHES_MAX as usize)),
            bytes: outage_policy.bodies().sending(),
            refuses: at.indices().map(|_| RefusesSince::default()).collect(),
            outage_policy: outage_policy.clone(),
        }
    }

    /// Resolves when the last queue has it. When one does not, the event is as good as not done: it
    /// will be run again, and the other queues get its result twice.
    pub(in crate::broker) fn publish(
        &self,
        content: Content,
        headers: &[(&'static str, String)],
    ) -> impl Future<Output = Result<(), PublishError>> + Send + use<> + 'static {
        let frame = match content {
            Content::Frame(body) => Ok(body),
            Content::File(..) => Err(PublishError::WrongEncoding),
        };
        let publishing = frame.map(|body| {
            let queues = self.at.indices();
            join_all(queues.map(|queue| {
                let headers = headers.to_vec();
                self.publish_to(queue, body.clone(), headers, WhenUndeliverable::Keep)
            }))
        });
        async move { publishing?.await.into_iter().collect() }
    }

    /// The same to one of the queues. After an outage only those are sent again that the broker did not
    /// confirm. One that the queue does not take for now is sent again, unless it is on disk already.
    pub(super) fn publish_to(
        &self,
        queue: QueueIndex,
        body: Body,
        headers: Vec<(&'static str, String)>,
        otherwise: WhenUndeliverable,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + use<> + 'static {
        let (slots, bytes) = (Arc::clone(&self.slots), Arc::clone(&self.bytes));
        let (mut line, outage_policy) = (self.line.clone(), self.outage_policy.clone());
        let at = self.at.clone();
        let refuses = self.refuses.get(queue.0).cloned().unwrap_or_default();
        async move {
            let size = usize::try_from(body.len()).unwrap_or(usize::MAX);
            // One byte more would close the channel, after all of them were sent.
            let limit = outage_policy.message_limit().bytes();
            if size > limit {
                return Err(PublishError::TooLarge { bytes: size, limit });
            }
            let permits = tokio::select! {
                biased;
                permits = room_for(size, slots, bytes) => permits?,
                // Those before it wait for a broker that confirms nothing.
                () = patience_ends(&outage_policy) => {
                    if otherwise == WhenUndeliverable::Keep {
                        outbox::keep(&at, queue, message(body), &outage_policy).await;
                    }
                    let detail = "the pilot had to end before it could be sent".into();
                    return Err(PublishError::SessionLost { detail });
                }
            };
            let mut tried = Generation(0);
            let mut sent = Sent::No;
            let mut waiting: Option<Refused> = None;
            loop {
                let (generation, commands) = match live(&mut line, tried).await {
                    Ok(session) => session,
                    Err(detail) => {
                        if otherwise == WhenUndeliverable::Keep {
                            outbox::keep(&at, queue, message(body), &outage_policy).await;
                        }
                        return Err(PublishError::SessionLost { detail });
                    }
                };
                if sent == Sent::Perhaps {
                    outage_policy.count(|stats| stats.published_again += 1);
                }
                let before = std::mem::replace(&mut tried, generation);
                let (outcome, is_settled) = oneshot::channel();
                let pending = Pending {
                    queue,
                    outcome,
                    since: Instant::now(),
                    bytes: size,
                    permits: Some(Arc::clone(&permits)),
                };
                let command = PublisherCommand::Publish(Message {
                    body: body.clone(),
                    headers: headers.clone(),
                    pending,
                });
                if commands.send(command).await.is_err() {
                    continue;
                }
                let settled = tokio::select! {
                    biased;
                    settled = is_settled => settled,
                    () = patience_ends(&outage_policy) => {
                        if otherwise == WhenUndeliverable::Keep {
                            outbox::keep(&at, queue, message(body), &outage_policy).await;
                        }
                        let detail = "the pilot had to end before the broker confirmed".into();
                        return Err(PublishError::SessionLost { detail });
                    }
                };
                match settled {
                    Ok(Err(PublishError::SessionLost { .. })) => sent = Sent::Perhaps,
                    Ok(Err(
                        error @ (PublishError::Nacked { .. } | PublishError::Unroutable { .. }),
                    )) if otherwise == WhenUndeliverable::Keep => {
                        sent = Sent::No;
                        if matches!(error, PublishError::Nacked { .. }) {
                            // The session is as good as before. After a return only the next one will
                            // do, which declares the queue again.
                            tried = before;
                        }
                        let waiting = waiting.get_or_insert_with(|| {
                            Refused::new(&at, queue, &refuses, &line, &outage_policy)
                        });
                        if waiting.next_try(&error).await == NextTry::None {
                            outbox::keep(&at, queue, message(body), &outage_policy).await;
                            return Err(error);
                        }
                    }
                    Ok(outcome) => {
                        if outcome.is_ok() {
                            refuses.takes();
                        }
                        if let Err(PublishError::TooLarge { limit, .. }) = outcome {
                            outage_policy.message_limit().lower(limit);
                        }
                        return outcome;
                    }
                    Err(_was_not_sent) => {}
                }
            }
        }
    }

    pub(in crate::broker) async fn close(self) {
        let all = self.slots.acquire_many(PUBLISHES_MAX);
        if timeout(LAST_CONFIRMS_WITHIN, all).await.is_err() {
            tracing::warn!(at = %self.at, "closing although results wait for their confirm");
        }
        let (done, is_done) = oneshot::channel();
        let closing = async {
            if self.orders.send(SinkOrder::Close { done }).await.is_ok() {
                // The keeper logs what it could not do.
                let _gone = is_done.await;
            }
        };
        if timeout(CLOSE_WITHIN, closing).await.is_err() {
            tracing::debug!(at = %self.at, "the outgoing queue was not closed in order");
        }
    }
}

/// Waits until so much more may be on its way.
async fn room_for(
    size: usize,
    slots: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
) -> Result<Arc<[OwnedSemaphorePermit; 2]>, PublishError> {
    let weight = u32::try_from(size).unwrap_or(SENDING_BYTES);
    let closed = |_| PublishError::SessionLost {
        detail: "it was closed".into(),
    };
    let slot = slots.acquire_owned().await.map_err(closed)?;
    let room = bytes.acquire_many_owned(weight.min(SENDING_BYTES));
    Ok(Arc::new([slot, room.await.map_err(closed)?]))
}

/// A result that is to be kept.
fn message(body: Body) -> UnsentResult {
    UnsentResult { file: None, body }
}

/// A result that was refused, also for whoever looks at the state of the queues.
struct Refused<'a> {
    all: &'a Endpoint,
    at: Endpoint,
    result: RefusedResult,
    since: RefusesSince,
    line: watch::Receiver<SinkConnection>,
    outage_policy: &'a OutagePolicy,
}

impl<'a> Refused<'a> {
    fn new(
        all: &'a Endpoint,
        queue: QueueIndex,
        since: &RefusesSince,
        line: &watch::Receiver<SinkConnection>,
        outage_policy: &'a OutagePolicy,
    ) -> Self {
        Self {
            all,
            at: all.only(queue),
            result: RefusedResult::new(outage_policy),
            since: since.clone(),
            line: line.clone(),
            outage_policy,
        }
    }

    async fn next_try(&mut self, error: &PublishError) -> NextTry {
        let state = ConnectionState::Down(error.to_string());
        self.outage_policy.note(self.all, state);
        self.result.next_try(&self.at, &self.since, error).await
    }
}

impl Drop for Refused<'_> {
    fn drop(&mut self) {
        if !self.since.refuses() && matches!(*self.line.borrow(), SinkConnection::Up(..)) {
            self.outage_policy.note(self.all, ConnectionState::Up);
        }
    }
}

/// The live session, if it is a later one than `tried`; waits for it as long as there is hope.
async fn live(
    line: &mut watch::Receiver<SinkConnection>,
    tried: Generation,
) -> Result<(Generation, mpsc::Sender<PublisherCommand>), String> {
    let settled = line.wait_for(|line| match line {
        SinkConnection::Up(generation, _) => *generation > tried,
        SinkConnection::Down => false,
        SinkConnection::GivenUp(_) => true,
    });
    match settled.await.as_deref() {
        Ok(SinkConnection::Up(generation, commands)) => Ok((*generation, commands.clone())),
        Ok(SinkConnection::GivenUp(error)) => Err(given_up(error)),
        Ok(SinkConnection::Down) | Err(_) => Err("it was closed".into()),
    }
}

/// When a pilot that was told to end has waited enough for a confirm.
async fn patience_ends(outage_policy: &OutagePolicy) {
    let mut patience = outage_policy.patience();
    // The sender lives as long as `resilience`.
    drop(patience.wait_for(|now| *now == Patience::Short).await);
    sleep(IN_A_HURRY).await;
}

fn given_up(error: &BrokerError) -> String {
    format!("{error}; waited for it as long as EWMS_PILOT_BROKER_RECONNECT_TIMEOUT says")
}
