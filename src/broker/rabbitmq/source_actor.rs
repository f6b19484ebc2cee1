//! Keeps the consuming sessions of queues that share them: replaces a lost one, recognises events that
//! are in hand when they come again, and settles each with the tag that is valid at that time. Talks to
//! sessions and to the [`Source`](super::Source)'s desk. Apart from the source, because events are to be
//! recognised while the pilot is busy with others, and after it stopped listening.
//!
//! While events are without an owner a new session asks their queue for so many more than the window, so
//! that they can come although others came first. After [`RECOVER_WITHIN`] no more of them are expected.
//! Queues that were stopped get a new session only for their sake, and what else comes with them waits
//! until then, to be given back once instead of over and over: each return brings an event closer to
//! the broker's delivery limit.

mod ending;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use self::ending::CLOSE_SESSION_WITHIN;
use super::backoff::{self, HasConnected};
use super::consumer::{ConsumerEvent, ConsumerHandle};
use super::delivery::Arrival;
use super::source::SharedState;
use super::unacked::{Recognition, SessionTag, Settling, UnackedId};
use crate::broker::{
    BrokerError, ConnectionState, Endpoint, OutagePolicy, Patience, StartSignal, Verdict,
};
use crate::config::AmqpAddress;
use crate::ids::Generation;

/// How long after a reconnection events that the broker took back are waited for. It notices the end
/// of the old connection up to three heartbeats, of 15 s, after us.
pub(super) const RECOVER_WITHIN: Duration = Duration::from_mins(1);
/// The same for a pilot that was told to end.
const RECOVER_IN_A_HURRY: Duration = Duration::from_secs(10);
/// How long closing may take in all.
pub(super) const CLOSE_WITHIN: Duration = Duration::from_secs(
    // A session that is lost while it is closed, one more, and its good-byes.
    2 * RECOVER_WITHIN.as_secs() + 2 * CLOSE_SESSION_WITHIN.as_secs(),
);
/// A session that ends sooner counts as a vain try.
const LIVED: Duration = Duration::from_secs(30);
/// RabbitMQ 4.0 deletes an event, or moves it to a dead-letter queue, after 20 deliveries.
const MANY_DELIVERIES: u64 = 15;

/// What the pilot's end asks for.
#[derive(Debug)]
pub(super) enum SourceOrder {
    /// Settle an event in hand. No answer means that its session was lost over it.
    Settle {
        entry: UnackedId,
        verdict: Verdict,
        done: oneshot::Sender<()>,
    },
    /// An event in hand is held beside those that the window is for.
    SetAside { entry: UnackedId },
    /// Hand out no more, give back what was not handed out.
    Stop { done: oneshot::Sender<()> },
    /// End, when all that is done is acknowledged, or won't be any more.
    Close { done: oneshot::Sender<()> },
}

type Opening = Pin<Box<dyn Future<Output = Result<ConsumerHandle, BrokerError>> + Send>>;

enum ConnectState {
    Up(ConsumerHandle),
    Opening(Opening),
    Pausing(Instant),
    /// There is nothing to be had from a session any more.
    Idle,
}

/// Whether events are wanted. Moves forward only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum IntakePhase {
    Open,
    /// Only events in hand are, to recognise them; the rest waits.
    Recovering,
    /// The session was asked to stop.
    Stopping,
    Stopped,
}

/// See the module.
pub(super) struct SourceActor {
    at: Endpoint,
    address: AmqpAddress,
    window: u16,
    desk: Arc<SharedState>,
    outage_policy: OutagePolicy,
    link: ConnectState,
    generation: Generation,
    intake: IntakePhase,
    wanted: bool,
    up_since: Instant,
    down_since: Instant,
    tried: u32,
    /// While events that were lost with a session may still come again.
    recover_until: Option<Instant>,
    stopping: Vec<oneshot::Sender<()>>,
    closing: Option<(oneshot::Sender<()>, Instant)>,
}

enum ActorWakeup {
    Order(Option<SourceOrder>),
    Reported(Result<ConsumerEvent, BrokerError>),
    Opened(Result<ConsumerHandle, BrokerError>),
    Time,
}

impl SourceActor {
    pub(super) fn new(
        at: Endpoint,
        address: AmqpAddress,
        window: u16,
        desk: Arc<SharedState>,
        outage_policy: OutagePolicy,
        session: ConsumerHandle,
    ) -> Self {
        let generation = session.generation();
        let now = Instant::now();
        desk.with(|state| state.live = Some((generation, now)));
        outage_policy.note(&at, ConnectionState::Up);
        Self {
            at,
            address,
            window,
            desk,
            outage_policy,
            link: ConnectState::Up(session),
            generation,
            intake: IntakePhase::Open,
            wanted: true,
            up_since: now,
            down_since: now,
            tried: 0,
            recover_until: None,
            stopping: Vec::new(),
            closing: None,
        }
    }

    /// Until the source is closed or dropped.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<SourceOrder>) {
        let mut patience = self.outage_policy.patience();
        loop {
            let wake = self.wake_at();
            let woken = tokio::select! {
                biased;
                woken = reported(&mut self.link) => woken,
                order = orders.recv() => ActorWakeup::Order(order),
                Ok(()) = patience.changed() => ActorWakeup::Time,
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => ActorWakeup::Time,
            };
            match woken {
                ActorWakeup::Order(None) => return,
                ActorWakeup::Order(Some(order)) => self.obey(order),
                ActorWakeup::Reported(Ok(report)) => self.note(report),
                ActorWakeup::Reported(Err(error)) => self.lose(error),
                ActorWakeup::Opened(Ok(session)) => self.welcome(session),
                ActorWakeup::Opened(Err(error)) => self.try_later(error),
                ActorWakeup::Time => {}
            }
            self.look_at_the_clock();
            if self.is_ready_to_close() {
                match self.close().await {
                    Ok(()) => return,
                    Err(error) => self.lose(error),
                }
            }
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        let pause = match self.link {
            ConnectState::Pausing(until) => Some(until),
            _ => None,
        };
        let closing = self.closing.as_ref().map(|(_, until)| *until);
        [pause, self.recover_until, closing]
            .into_iter()
            .flatten()
            .min()
    }

    fn obey(&mut self, order: SourceOrder) {
        match order {
            SourceOrder::Settle {
                entry,
                verdict,
                done,
            } => self.settle(entry, verdict, Some(done)),
            SourceOrder::SetAside { entry } => self.set_aside(entry),
            SourceOrder::Stop { done } => {
                self.stopping.push(done);
                self.wanted = false;
            }
            SourceOrder::Close { done } => {
                self.wanted = false;
                let until = Instant::now() + RECOVER_WITHIN;
                self.closing = Some((done, until));
            }
        }
    }

    /// Where its session is lost, the next one's window makes room for it.
    fn set_aside(&mut self, entry: UnackedId) {
        let delivery = self.desk.with(|state| state.in_flight.delivery_of(entry));
        if let Some((owner, queue)) = delivery
            && let ConnectState::Up(session) = &self.link
            && session.generation() == owner.generation
            && self.intake == IntakePhase::Open
        {
            session.set_aside(owner.tag, queue);
        }
    }

    /// `done` is answered now when the settlement has to wait.
    fn settle(&mut self, entry: UnackedId, verdict: Verdict, done: Option<oneshot::Sender<()>>) {
        let number = match &self.link {
            ConnectState::Up(session) => session.next_settlement(),
            _ => 0,
        };
        let settling = self
            .desk
            .with(|state| state.in_flight.settle(entry, &verdict, number));
        match (settling, &mut self.link) {
            (Settling::Send(SessionTag { generation, tag }), ConnectState::Up(session))
                if session.generation() == generation =>
            {
                session.settle(tag, verdict, done);
            }
            (Settling::Deferred, _) => {
                tracing::info!(at = %self.at, "an event is done and will be acknowledged when it is delivered again");
                drop(done);
            }
            (Settling::Send(_) | Settling::GivenBackAlready, _) => drop(done),
        }
    }

    fn note(&mut self, report: ConsumerEvent) {
        match report {
            ConsumerEvent::Arrived(arrival) => self.arrived(arrival),
            ConsumerEvent::Proven(number) => self.desk.with(|state| state.in_flight.proven(number)),
            ConsumerEvent::Stopped => {
                self.intake = IntakePhase::Stopped;
                self.release_ready();
            }
        }
    }

    fn arrived(&mut self, arrival: Arrival) {
        let deliveries = arrival.earlier_deliveries.unwrap_or(0);
        let queue = arrival.queue;
        let fingerprint = arrival.fingerprint;
        let owner = SessionTag {
            generation: self.generation,
            tag: arrival.tag,
        };
        let flag = arrival.flag;
        let recognised = self.desk.with(|state| {
            let recognised = state.in_flight.recognise(fingerprint, owner, flag);
            if recognised == Recognition::New {
                state.ready.push(fingerprint, arrival);
            }
            recognised
        });
        match recognised {
            Recognition::New => {
                if self.intake == IntakePhase::Stopped {
                    self.release_ready();
                }
                return;
            }
            Recognition::Running => {
                tracing::info!(at = %self.at.only(queue), "an event whose task runs here was delivered again: it is not started again");
            }
            Recognition::Settled(entry, verdict) => {
                tracing::info!(at = %self.at.only(queue), "an event that is done was delivered again, and is acknowledged");
                self.settle(entry, verdict, None);
            }
        }
        self.outage_policy.count(|stats| stats.adopted += 1);
        if deliveries >= MANY_DELIVERIES {
            tracing::warn!(
                at = %self.at.only(queue), deliveries,
                "an event was delivered so often that the broker may drop it soon; set the policies \
                 `delivery-limit` and `consumer-timeout` on the queue"
            );
        }
    }

    /// Gives back what was not handed out.
    fn release_ready(&mut self) {
        let ConnectState::Up(session) = &mut self.link else {
            return;
        };
        for (_, arrival) in self.desk.with(|state| state.ready.take()) {
            session.settle(arrival.tag, Verdict::Released, None);
        }
    }

    fn lose(&mut self, error: BrokerError) {
        let proof = match &mut self.link {
            ConnectState::Up(session) => session.last_proof(),
            _ => None,
        };
        // Ends the session's runtime, with all that it may still hold.
        self.link = ConnectState::Idle;
        let (in_hand, in_doubt) = self.desk.with(|state| {
            if let Some(number) = proof {
                state.in_flight.proven(number);
            }
            let in_doubt = state.in_flight.session_lost();
            drop(state.ready.take());
            state.live = None;
            (state.in_flight.ownerless(), in_doubt)
        });
        self.doubt(in_doubt);
        tracing::warn!(%error, in_hand, in_doubt, "the incoming queue's session is lost; tasks run on");
        // Each loss brings every event in hand closer to the broker's delivery limit.
        let lived = self.up_since.elapsed();
        self.tried = if lived >= LIVED {
            0
        } else {
            self.tried.saturating_add(1)
        };
        self.down_since = Instant::now();
        self.recover_until = None;
        if self.intake > IntakePhase::Open {
            self.intake = IntakePhase::Recovering;
        }
        self.retry(error);
    }

    /// So many events are done and may be run again, here or elsewhere.
    pub(super) fn doubt(&self, events: u64) {
        self.outage_policy
            .count(|stats| stats.unacknowledged += events);
    }

    fn try_later(&mut self, error: BrokerError) {
        self.tried = self.tried.saturating_add(1);
        let down_secs = self.down_since.elapsed().as_secs();
        tracing::warn!(%error, down_secs, tried = self.tried, "the incoming queue can't be reached yet");
        self.retry(error);
    }

    fn retry(&mut self, error: BrokerError) {
        let limit = self.outage_policy.reconnect_within();
        let note = |state| self.outage_policy.note(&self.at, state);
        note(ConnectionState::Down(error.to_string()));
        let is_hopeless = matches!(error, BrokerError::Unusable { .. });
        if self.wanted && (is_hopeless || self.down_since.elapsed() >= limit) {
            self.wanted = false;
            note(ConnectionState::GivenUp(error.to_string()));
            // Tasks that run may still be acknowledged, if it comes back in their time.
            self.desk.with(|state| state.given_up = Some(error));
        }
        self.link = if !self.wanted && self.desk.with(|state| state.in_flight.is_empty()) {
            ConnectState::Idle
        } else {
            ConnectState::Pausing(Instant::now() + backoff::pause_after(self.tried))
        };
    }

    fn open(&mut self) {
        self.generation = Generation(self.generation.0 + 1);
        let window = |ownerless| {
            let more = u16::try_from(ownerless).unwrap_or(u16::MAX);
            self.window.saturating_add(more)
        };
        let windows = self.desk.with(|state| {
            let queues = self.at.indices();
            let ownerless = queues.map(|queue| state.in_flight.ownerless_of(queue));
            ownerless.map(window).collect()
        });
        let (at, address) = (self.at.clone(), self.address.clone());
        let opening = ConsumerHandle::open(
            at,
            address,
            windows,
            self.generation,
            StartSignal::given(),
            HasConnected::default(),
            self.outage_policy.bodies().clone(),
        );
        self.link = ConnectState::Opening(Box::pin(opening));
    }

    fn welcome(&mut self, session: ConsumerHandle) {
        let now = Instant::now();
        let (generation, down_secs) = (self.generation, self.down_since.elapsed().as_secs());
        tracing::info!(at = %self.at, generation = generation.0, down_secs, "the incoming queue is back");
        self.outage_policy.count(|stats| stats.reconnects += 1);
        self.outage_policy.note(&self.at, ConnectionState::Up);
        self.link = ConnectState::Up(session);
        self.up_since = now;
        self.recover_until = Some(now + RECOVER_WITHIN);
        self.desk.with(|state| state.live = Some((generation, now)));
    }

    fn look_at_the_clock(&mut self) {
        let now = Instant::now();
        if matches!(self.link, ConnectState::Pausing(until) if until <= now) {
            self.open();
        }
        if let Some(until) = self.recover_until {
            let is_over = until <= now;
            if is_over || self.desk.with(|state| state.in_flight.ownerless()) == 0 {
                self.recover_until = None;
            }
            if is_over {
                self.doubt(self.desk.with(|state| state.in_flight.end_doubts()));
            }
        }
        if !self.wanted {
            self.stop_intake();
            if self.intake >= IntakePhase::Stopped
                || !matches!(self.link, ConnectState::Up(_))
                || self.recover_until.is_some()
            {
                for done in self.stopping.drain(..) {
                    // Whoever asked may have stopped waiting.
                    let _gone = done.send(());
                }
            }
        }
        if let Some((_, until)) = &mut self.closing
            && *self.outage_policy.patience().borrow() == Patience::Short
        {
            *until = (*until).min(now + RECOVER_IN_A_HURRY);
        }
    }
}

/// The next that comes from the link.
async fn reported(link: &mut ConnectState) -> ActorWakeup {
    match link {
        ConnectState::Up(session) => ActorWakeup::Reported(session.next().await),
        ConnectState::Opening(opening) => ActorWakeup::Opened(opening.await),
        ConnectState::Pausing(_) | ConnectState::Idle => std::future::pending().await,
    }
}
