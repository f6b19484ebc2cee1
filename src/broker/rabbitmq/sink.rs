//! The pilot's handle of queues that results go to, and the path of one result: through a live connection,
//! again after each loss, and to the outbox when there is no hope.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::actor_thread;
use super::confirms::PendingConfirm;
use super::publisher::OutgoingMessage;
use super::reconnect::FirstConnection;
use super::sink_actor::{SinkActor, SinkConnection};
use crate::broker::body::SENDING_BYTES;
use crate::broker::outbox::{self, UnsentResult, WhenUndeliverable};
use crate::broker::refused_result::{NextTry, RefusedResult, RefusesSince};
use crate::broker::{
    Body, BrokerError, ConnectionState, Content, Endpoint, OutagePolicy, PublishError,
};
use crate::config::AmqpAddress;
use crate::ids::{Generation, QueueIndex};

/// The most results in flight. 100 are enough for the highest rate of one connection, 23,600 a second.
const PUBLISHES_MAX: u32 = 128;
/// Messages between the results and the actor; each result waits for its own.
const MESSAGES: usize = 16;
/// The deadline for the last confirms before closing. Each was already waited for by its event.
const LAST_CONFIRMS_WITHIN: Duration = Duration::from_secs(5);
/// The deadline for closing the connection.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);
/// A result that was lost with so many connections is given up once an outage of that length would be, though
/// others were confirmed meanwhile: it may be what ends the connections.
const LOST_WITH: u32 = 3;

/// Results to the queues that share a connection, each to all of them.
pub struct RabbitMqSink {
    pub(super) at: Endpoint,
    connection: watch::Receiver<SinkConnection>,
    messages: mpsc::Sender<OutgoingMessage>,
    /// Dropping this ends the actor at once.
    closing: oneshot::Sender<oneshot::Sender<()>>,
    slots: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// Since when each queue refuses results, by its index.
    refuses: Vec<RefusesSince>,
    outages: OutagePolicy,
}

impl RabbitMqSink {
    /// Connects, as patiently as `first` says.
    pub(super) async fn open(
        at: Endpoint,
        address: &AmqpAddress,
        outages: &OutagePolicy,
        first: FirstConnection,
    ) -> Result<Self, BrokerError> {
        let (messages, to_actor) = mpsc::channel(MESSAGES);
        let (closing, is_closing) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let (connection, connections) = watch::channel(SinkConnection::Down);
        let actor = SinkActor::new(
            at.clone(),
            address.clone(),
            outages.clone(),
            connection,
            (to_actor, is_closing),
            (first, ready),
        );
        actor_thread::spawn("amqp-out", &at, actor)?;
        let sink = Self {
            connection: connections,
            messages,
            closing,
            slots: Arc::new(Semaphore::new(PUBLISHES_MAX as usize)),
            bytes: outages.bodies().sending(),
            refuses: at.indices().map(|_| RefusesSince::default()).collect(),
            outages: outages.clone(),
            at,
        };
        let connected = is_ready.await;
        connected.unwrap_or_else(|_ended| Err(actor_thread::vanished(&sink.at)))?;
        Ok(sink)
    }

    /// Resolves when all queues have the result. If one fails, the event counts as not done: it is run again,
    /// and the other queues get its result twice.
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

    /// Publishes to one of the queues. After an outage, only results that the broker did not confirm are sent
    /// again. A result that the queue refuses for now is sent again, unless it is on disk already.
    pub(super) fn publish_to(
        &self,
        queue: QueueIndex,
        body: Body,
        headers: Vec<(&'static str, String)>,
        when_undeliverable: WhenUndeliverable,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + use<> + 'static {
        let result = OutgoingResult {
            at: self.at.clone(),
            queue,
            body,
            headers,
            when_undeliverable,
            connection: self.connection.clone(),
            messages: self.messages.clone(),
            refuses: self.refuses.get(queue.0).cloned().unwrap_or_default(),
            outages: self.outages.clone(),
            tried: Generation(0),
            sent: SendState::No,
            losses: None,
        };
        let (slots, bytes) = (Arc::clone(&self.slots), Arc::clone(&self.bytes));
        async move { result.deliver(slots, bytes).await }
    }

    pub(in crate::broker) async fn close(self) {
        let all = timeout(LAST_CONFIRMS_WITHIN, self.slots.acquire_many(PUBLISHES_MAX));
        let confirmed = tokio::select! {
            biased;
            confirmed = all => confirmed.is_ok(),
            () = self.outages.short_wait_over() => false,
        };
        if !confirmed {
            tracing::warn!(at = %self.at, "closing although results wait for their confirm");
        }
        let (done, is_done) = oneshot::channel();
        // The actor logs its failures.
        let _gone = self.closing.send(done);
        if timeout(CLOSE_WITHIN, is_done).await.is_err() {
            tracing::debug!(at = %self.at, "the outgoing queue was not closed in order");
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendState {
    No,
    Perhaps,
}

type Permits = Arc<[OwnedSemaphorePermit; 2]>;

/// One result on its way to one queue.
struct OutgoingResult {
    at: Endpoint,
    queue: QueueIndex,
    body: Body,
    headers: Vec<(&'static str, String)>,
    when_undeliverable: WhenUndeliverable,
    connection: watch::Receiver<SinkConnection>,
    messages: mpsc::Sender<OutgoingMessage>,
    refuses: RefusesSince,
    outages: OutagePolicy,
    /// The latest connection that the result was tried on.
    tried: Generation,
    sent: SendState,
    /// The number of connections lost while it waited for its confirm, and the time of the first loss.
    losses: Option<(u32, Instant)>,
}

impl OutgoingResult {
    async fn deliver(
        mut self,
        slots: Arc<Semaphore>,
        bytes: Arc<Semaphore>,
    ) -> Result<(), PublishError> {
        let size = usize::try_from(self.body.len()).unwrap_or(usize::MAX);
        // A larger message would close the channel, after all its bytes were sent.
        let limit = self.outages.message_limit().bytes();
        if size > limit {
            return Err(PublishError::TooLarge { bytes: size, limit });
        }
        let mut must_end = pin!(self.outages.short_wait_over());
        let permits = tokio::select! {
            biased;
            permits = room_for(size, slots, bytes) => permits?,
            // Results ahead of this one may wait for a broker that confirms nothing.
            () = &mut must_end => {
                return self.keep("the pilot had to end before it could be sent".into()).await;
            }
        };
        let mut refused: Option<RefusedWait> = None;
        loop {
            let before = self.tried;
            let outcome = tokio::select! {
                biased;
                outcome = self.send(size, &permits) => outcome,
                () = &mut must_end => {
                    let detail = "the pilot had to end before the broker confirmed";
                    return self.keep(detail.into()).await;
                }
            };
            match outcome {
                SendOutcome::NotSent => {}
                SendOutcome::Hopeless(detail) => return self.keep(detail).await,
                SendOutcome::Answered(Err(PublishError::SessionLost { detail })) => {
                    self.sent = SendState::Perhaps;
                    if self.is_lost_too_often() {
                        return self.keep(detail).await;
                    }
                }
                SendOutcome::Answered(Err(
                    error @ (PublishError::Nacked { .. } | PublishError::Unroutable { .. }),
                )) if self.when_undeliverable == WhenUndeliverable::Keep => {
                    (self.sent, self.losses) = (SendState::No, None);
                    if matches!(error, PublishError::Nacked { .. }) {
                        // The connection can be used again. After a return only the next one can, since it
                        // declares the queue again.
                        self.tried = before;
                    }
                    let refused = refused.get_or_insert_with(|| RefusedWait::new(&self));
                    if refused.next_try(&error).await == NextTry::None {
                        self.store().await;
                        return Err(error);
                    }
                }
                SendOutcome::Answered(outcome) => return self.finished(outcome),
            }
        }
    }

    /// Sends the result once through the live connection, and waits for the broker's answer.
    async fn send(&mut self, bytes: usize, permits: &Permits) -> SendOutcome {
        let generation = match self.next_connection().await {
            Ok(generation) => generation,
            Err(detail) => return SendOutcome::Hopeless(detail),
        };
        if self.sent == SendState::Perhaps {
            self.outages.count(|stats| stats.published_again += 1);
        }
        self.tried = generation;
        let (outcome, answered) = oneshot::channel();
        let message = OutgoingMessage {
            generation,
            body: self.body.clone(),
            headers: self.headers.clone(),
            pending: PendingConfirm {
                queue: self.queue,
                outcome,
                since: Instant::now(),
                bytes,
                permits: Some(Arc::clone(permits)),
            },
        };
        if self.messages.send(message).await.is_err() {
            return SendOutcome::NotSent;
        }
        match answered.await {
            Ok(outcome) => SendOutcome::Answered(outcome),
            Err(_was_dropped) => SendOutcome::NotSent,
        }
    }

    /// The live connection, if it is newer than the last one tried; waits for one as long as there is hope.
    async fn next_connection(&mut self) -> Result<Generation, String> {
        let tried = self.tried;
        let settled = self.connection.wait_for(|connection| match connection {
            SinkConnection::Up(generation) => *generation > tried,
            SinkConnection::Down => false,
            SinkConnection::GivenUp(_) => true,
        });
        match settled.await.as_deref() {
            Ok(SinkConnection::Up(generation)) => Ok(*generation),
            Ok(SinkConnection::GivenUp(error)) => Err(format!(
                "{error}; waited for it as long as EWMS_PILOT_BROKER_RECONNECT_TIMEOUT says"
            )),
            Ok(SinkConnection::Down) | Err(_) => Err("it was closed".into()),
        }
    }

    /// Counts a connection that was lost before it confirmed.
    fn is_lost_too_often(&mut self) -> bool {
        let (times, since) = self.losses.get_or_insert_with(|| (0, Instant::now()));
        *times += 1;
        *times >= LOST_WITH && since.elapsed() >= self.outages.reconnect_within()
    }

    fn finished(&self, outcome: Result<(), PublishError>) -> Result<(), PublishError> {
        if outcome.is_ok() {
            self.refuses.takes();
        }
        if let Err(PublishError::TooLarge { limit, .. }) = outcome {
            self.outages.message_limit().lower(limit);
        }
        outcome
    }

    async fn keep(&self, detail: String) -> Result<(), PublishError> {
        if self.when_undeliverable == WhenUndeliverable::Keep {
            self.store().await;
        }
        Err(PublishError::SessionLost { detail })
    }

    async fn store(&self) {
        let result = UnsentResult {
            file: None,
            body: self.body.clone(),
        };
        outbox::keep(&self.at, self.queue, result, &self.outages).await;
    }
}

/// The outcome of one try to send a result.
enum SendOutcome {
    /// The connection ended before the message was sent.
    NotSent,
    Answered(Result<(), PublishError>),
    /// There is no connection, and none is expected any more.
    Hopeless(String),
}

/// Waits for the permits of a result of `size` bytes.
async fn room_for(
    size: usize,
    slots: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
) -> Result<Permits, PublishError> {
    let weight = u32::try_from(size).unwrap_or(SENDING_BYTES);
    let closed = |_| PublishError::SessionLost {
        detail: "it was closed".into(),
    };
    let slot = slots.acquire_owned().await.map_err(closed)?;
    let room = bytes.acquire_many_owned(weight.min(SENDING_BYTES));
    Ok(Arc::new([slot, room.await.map_err(closed)?]))
}

/// The wait of a refused result. While it lasts, the queue's status shows the refusal.
struct RefusedWait {
    all: Endpoint,
    at: Endpoint,
    result: RefusedResult,
    since: RefusesSince,
    connection: watch::Receiver<SinkConnection>,
    outages: OutagePolicy,
}

impl RefusedWait {
    fn new(result: &OutgoingResult) -> Self {
        Self {
            all: result.at.clone(),
            at: result.at.only(result.queue),
            result: RefusedResult::new(&result.outages),
            since: result.refuses.clone(),
            connection: result.connection.clone(),
            outages: result.outages.clone(),
        }
    }

    async fn next_try(&mut self, error: &PublishError) -> NextTry {
        let state = ConnectionState::Down(error.to_string());
        self.outages.note(&self.all, state);
        self.result.next_try(&self.at, &self.since, error).await
    }
}

impl Drop for RefusedWait {
    fn drop(&mut self) {
        if !self.since.refuses() && matches!(*self.connection.borrow(), SinkConnection::Up(_)) {
            self.outages.note(&self.all, ConnectionState::Up);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;
    use crate::broker::Direction;

    const LIMIT: Duration = Duration::from_mins(15);
    /// How long each connection lives.
    const LIFE: Duration = Duration::from_mins(1);

    /// Other results are confirmed on the same connections, so none of these counts as an outage.
    #[tokio::test(start_paused = true)]
    async fn a_result_that_is_lost_with_one_connection_after_the_other_is_given_up() {
        let (connection, connections) = watch::channel(SinkConnection::Up(Generation(1)));
        let (messages, mut to_actor) = mpsc::channel::<OutgoingMessage>(MESSAGES);
        let result = OutgoingResult {
            at: Endpoint {
                direction: Direction::Outgoing,
                address: "mq:5672".into(),
                queues: vec!["results".into()],
            },
            queue: QueueIndex(0),
            body: b"1".to_vec().into(),
            headers: Vec::new(),
            when_undeliverable: WhenUndeliverable::Forget,
            connection: connections,
            messages,
            refuses: RefusesSince::default(),
            outages: OutagePolicy::new(LIMIT, "unsent".into()),
            tried: Generation(0),
            sent: SendState::No,
            losses: None,
        };
        let losing = async {
            while let Some(message) = to_actor.recv().await {
                sleep(LIFE).await;
                let detail = "it ended without a word".to_owned();
                let lost = PublishError::SessionLost { detail };
                message.pending.outcome.send(Err(lost)).expect("it waits");
                let next = Generation(message.generation.0 + 1);
                connection.send_replace(SinkConnection::Up(next));
            }
        };
        let [slots, bytes] = [1, 8].map(|permits| Arc::new(Semaphore::new(permits)));
        let began = Instant::now();
        let delivering = timeout(10 * LIMIT, result.deliver(slots, bytes));
        let (outcome, ()) = tokio::join!(delivering, losing);
        assert!(matches!(outcome, Ok(Err(PublishError::SessionLost { .. }))));
        assert_eq!(began.elapsed(), LIMIT + LIFE);
    }
}
