//! The actor of the queues that events come from. It lives as long as its
//! [`RabbitMqSource`](super::RabbitMqSource) and the receipts of that, on a thread of its own, through all
//! connections: it makes each connection, recognises events in hand when they come again, and settles each
//! with the tag that is valid at that time.
//!
//! Orders come on one channel, which outlives the connections. An acknowledgement takes two messages: the
//! order and its answer.
//!
//! When events have lost their delivery with a connection, the next connection raises the window of their
//! queue by their number, so that they can come although others came first. After [`RECOVER_WITHIN`] they are
//! no longer expected. Queues that were stopped get a new connection only for the sake of such events. Other
//! events that come with it are held until then, and given back once instead of over and over: each return
//! brings an event closer to the broker's delivery limit.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::actor_thread::{AfterConnection, ConnectionActor};
use super::callbacks::ChannelEvent;
use super::connection::Connection;
use super::consumer::{ConsumedMessage, Consumer, next_message};
use super::error_mapping::in_mid_life;
use super::prefetch::{QueueKind, ReceivedEvent};
use super::reconnect::{BeforeTry, ConnectionLife, FirstConnection, Reconnect, Starting};
use super::source_state::SharedState;
use super::unacked::{Recognition, SessionTag, Settling, UnackedId};
use crate::broker::{
    Body, BrokerError, ConnectionState, Endpoint, OutagePolicy, StartSignal, Verdict,
};
use crate::config::AmqpAddress;
use crate::ids::Generation;

/// How long after a reconnection the events that the broker took back are waited for. The broker notices the
/// end of the old connection up to three heartbeats, of 15 s each, after the pilot.
const RECOVER_WITHIN: Duration = Duration::from_mins(1);
/// The deadline for closing one connection: four calls to the server.
const CLOSE_CONNECTION_WITHIN: Duration = Duration::from_secs(25);
/// The deadline for closing, in a pilot that was told to end.
const CLOSE_IN_A_HURRY: Duration = Duration::from_secs(1);
/// The longest time for closing: a connection that is lost while it is closed, one more, and closing that.
pub(super) const CLOSE_WITHIN: Duration =
    Duration::from_secs(2 * RECOVER_WITHIN.as_secs() + 2 * CLOSE_CONNECTION_WITHIN.as_secs());
/// RabbitMQ 4.0 deletes an event, or moves it to a dead-letter queue, after 20 deliveries.
const MANY_DELIVERIES: u64 = 15;

/// An order of the pilot.
#[derive(Debug)]
pub(super) enum SourceOrder {
    /// Settles an event in hand. If there is no answer, the connection was lost meanwhile.
    Settle {
        event: UnackedId,
        verdict: Verdict,
        done: oneshot::Sender<()>,
    },
    /// Holds an event in hand outside the window.
    SetAside { event: UnackedId },
    /// Hands out no more events, and gives back those that were not handed out.
    Stop { done: oneshot::Sender<()> },
    /// Ends the actor once every event that is done is acknowledged, or can't be any more.
    Close { done: oneshot::Sender<()> },
}

/// Whether events are wanted. Moves forward only, except for a loss while stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum IntakePhase {
    Open,
    /// Only events in hand are wanted, to recognise them; other events are held.
    Recovering,
    Stopped,
}

/// Why a connection is no longer served.
enum ServiceEnd {
    /// No other connection is wanted.
    Closed,
    Lost(BrokerError),
}

impl From<BrokerError> for ServiceEnd {
    fn from(error: BrokerError) -> Self {
        Self::Lost(error)
    }
}

/// A requested end.
struct Closing {
    done: oneshot::Sender<()>,
    began: Instant,
    /// The latest end, even if acknowledgements are owed.
    until: Instant,
}

pub(super) struct SourceActor {
    at: Endpoint,
    address: AmqpAddress,
    window: u16,
    shared: Arc<SharedState>,
    outages: OutagePolicy,
    orders: mpsc::Receiver<SourceOrder>,
    /// Allows the first connection to take events.
    start: StartSignal,
    /// Set until the first connection consumes.
    starting: Option<Starting>,
    reconnect: Reconnect,
    pause: Duration,
    last_error: Option<BrokerError>,
    generation: Generation,
    intake: IntakePhase,
    wanted: bool,
    /// Set while events that were lost with a connection may still come again.
    recover_until: Option<Instant>,
    stopping: Vec<oneshot::Sender<()>>,
    closing: Option<Closing>,
}

enum ActorWakeup {
    Order(Option<SourceOrder>),
    Fault(ChannelEvent),
    Message(Box<ConsumedMessage>),
    Spilled(ReceivedEvent, Body),
    ProofDue,
    Time,
}

impl ConnectionActor for SourceActor {
    async fn serve_next(&mut self) -> AfterConnection {
        let mut consumer = match self.open().await {
            Ok(consumer) => consumer,
            Err(ServiceEnd::Closed) => return AfterConnection::End,
            Err(ServiceEnd::Lost(error)) => return self.not_opened(error),
        };
        self.connected();
        match self.serve(&mut consumer).await {
            Ok(()) => {
                let life = consumer.life();
                match self.close(consumer).await {
                    Ok(()) => AfterConnection::End,
                    Err(error) => self.lost(error, life),
                }
            }
            Err(ServiceEnd::Closed) => AfterConnection::End,
            Err(ServiceEnd::Lost(error)) => self.lost(error, consumer.life()),
        }
    }

    fn fail(&mut self, error: BrokerError) -> AfterConnection {
        // There is nothing to wait for, so orders are answered between two tries.
        loop {
            match self.orders.try_recv() {
                Ok(order) => self.obey_unconnected(order),
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => return AfterConnection::End,
            }
        }
        self.look_at_the_clock_unconnected();
        if self.is_ready_to_close_unconnected() {
            self.finish_closing();
            return AfterConnection::End;
        }
        if self.shared.with(|state| state.is_connected()) {
            let life = ConnectionLife {
                lasted: Duration::ZERO,
                work: 0,
            };
            self.lost(error, life)
        } else {
            self.not_opened(error)
        }
    }
}

impl SourceActor {
    pub(super) fn new(
        at: Endpoint,
        (address, window): (AmqpAddress, u16),
        shared: Arc<SharedState>,
        outages: OutagePolicy,
        orders: mpsc::Receiver<SourceOrder>,
        (start, ready): (StartSignal, oneshot::Sender<Result<(), BrokerError>>),
    ) -> Self {
        let first = FirstConnection::of_pilot(&start, outages.reconnect_within());
        Self {
            at,
            address,
            window,
            shared,
            reconnect: Reconnect::within(outages.reconnect_within()),
            outages,
            orders,
            start,
            starting: Some(Starting::new(first, ready)),
            pause: Duration::ZERO,
            last_error: None,
            generation: Generation(0),
            intake: IntakePhase::Open,
            wanted: true,
            recover_until: None,
            stopping: Vec::new(),
            closing: None,
        }
    }

    /// Waits until a connection is due, and opens it.
    async fn open(&mut self) -> Result<Consumer, ServiceEnd> {
        if !self.wanted && self.shared.with(|state| state.unacked.is_empty()) {
            // A connection would be of no use. Orders are still answered.
            self.meanwhile(pending::<()>()).await?;
        }
        let before = match &mut self.starting {
            Some(starting) => starting.before_try(),
            None => Some(BeforeTry::Pause(self.pause)),
        };
        if let Some(before) = before {
            self.meanwhile(before.over()).await?;
        }
        self.generation = Generation(self.generation.0 + 1);
        let (address, at) = (self.address.clone(), self.at.clone());
        let connecting = async move { Connection::open(&address, &at, "").await };
        let mut connection = self.meanwhile(connecting).await??;
        let start = self.starting.as_mut().map(|starting| {
            starting.reached();
            self.start.clone()
        });
        let windows = self.windows();
        let starting = async move {
            if let Some(mut start) = start {
                tokio::select! {
                    biased;
                    event = connection.signals.recv() => {
                        let event = event.unwrap_or(ChannelEvent::Dropped);
                        return Err(super::error_mapping::of_signal(&event, &connection.at));
                    }
                    () = start.wait() => {}
                }
            }
            Consumer::start(connection, &windows).await
        };
        Ok(self.meanwhile(starting).await??)
    }

    /// The most unsettled events of each queue: the window, and the events that are expected to come again.
    fn windows(&self) -> Vec<u16> {
        let of = |ownerless| {
            let more = u16::try_from(ownerless).unwrap_or(u16::MAX);
            self.window.saturating_add(more)
        };
        self.shared.with(|state| {
            let queues = self.at.indices();
            queues
                .map(|queue| of(state.unacked.ownerless_of(queue)))
                .collect()
        })
    }

    /// Runs `work`, and obeys orders meanwhile.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Result<T, ServiceEnd> {
        let mut work = pin!(work);
        let mut told = self.outages.told_to_end();
        loop {
            let wake = self.wake_at(self.give_up_at());
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                order = self.orders.recv() => match order {
                    Some(order) => self.obey_unconnected(order),
                    None => return Err(ServiceEnd::Closed),
                },
                Ok(()) = told.changed() => {}
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
            self.look_at_the_clock_unconnected();
            if self.is_ready_to_close_unconnected() {
                self.finish_closing();
                return Err(ServiceEnd::Closed);
            }
        }
    }

    /// Serves a connection until it is to be closed.
    async fn serve(&mut self, consumer: &mut Consumer) -> Result<(), ServiceEnd> {
        let mut told = self.outages.told_to_end();
        loop {
            let wake = self.wake_at(None);
            let prove_at = consumer.prove_at();
            let woken = tokio::select! {
                biased;
                // Events of a dead connection come again; to run them now would run them twice.
                event = consumer.connection.signals.recv() => {
                    ActorWakeup::Fault(event.unwrap_or(ChannelEvent::Dropped))
                }
                order = self.orders.recv() => ActorWakeup::Order(order),
                (arrival, body) = spilled(&mut consumer.spilling) => ActorWakeup::Spilled(arrival, body),
                message = next_message(&mut consumer.subscriptions, &mut consumer.backlog),
                    if consumer.spilling.is_none() => ActorWakeup::Message(Box::new(message)),
                () = sleep_until(prove_at) => ActorWakeup::ProofDue,
                Ok(()) = told.changed() => ActorWakeup::Time,
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    ActorWakeup::Time
                }
            };
            match woken {
                ActorWakeup::Order(None) => return Err(ServiceEnd::Closed),
                ActorWakeup::Order(Some(order)) => self.obey(order, consumer).await?,
                ActorWakeup::Fault(event) => return Err(consumer.fault(&event).into()),
                ActorWakeup::Message(message) => self.arrived(*message, consumer).await?,
                ActorWakeup::Spilled(arrival, body) => {
                    consumer.spilling = None;
                    self.shared.hand_out(arrival, body);
                }
                ActorWakeup::ProofDue => {
                    let number = consumer.prove().await?;
                    self.shared.with(|state| {
                        state.unacked.proven(number);
                        consumer
                            .round_trip()
                            .map(|took| state.round_trip_took(took))
                    });
                }
                ActorWakeup::Time => {}
            }
            self.look_at_the_clock(consumer).await?;
            if self.is_ready_to_close() {
                return Ok(());
            }
        }
    }

    fn wake_at(&self, give_up_at: Option<Instant>) -> Option<Instant> {
        let closing = self.closing.as_ref().map(|closing| closing.until);
        [give_up_at, self.recover_until, closing]
            .into_iter()
            .flatten()
            .min()
    }

    /// When to give up waiting for events; `None` if none are awaited.
    fn give_up_at(&self) -> Option<Instant> {
        let is_hoped_for = self.wanted && self.starting.is_none();
        self.reconnect.give_up_at().filter(|_| is_hoped_for)
    }

    async fn obey(
        &mut self,
        order: SourceOrder,
        consumer: &mut Consumer,
    ) -> Result<(), BrokerError> {
        match order {
            SourceOrder::Settle {
                event,
                verdict,
                done,
            } => {
                self.settle(event, &verdict, consumer).await?;
                answer(done);
            }
            SourceOrder::SetAside { event } => {
                let delivery = self.shared.with(|state| state.unacked.delivery_of(event));
                // If the event's connection is lost, the next one's window makes room for it.
                if let Some((owner, queue)) = delivery
                    && self.intake == IntakePhase::Open
                {
                    consumer.set_aside(owner.tag, queue).await?;
                }
            }
            SourceOrder::Stop { .. } | SourceOrder::Close { .. } => self.obey_unconnected(order),
        }
        Ok(())
    }

    /// Obeys an order without a server.
    fn obey_unconnected(&mut self, order: SourceOrder) {
        match order {
            SourceOrder::Settle { event, verdict, .. } => {
                let settling = self
                    .shared
                    .with(|state| state.unacked.settle(event, &verdict, 0));
                self.say_if_deferred(&settling);
            }
            SourceOrder::SetAside { .. } => {}
            SourceOrder::Stop { done } => {
                self.stopping.push(done);
                self.wanted = false;
            }
            SourceOrder::Close { done } => {
                self.wanted = false;
                let began = Instant::now();
                let until = began + RECOVER_WITHIN;
                self.closing = Some(Closing { done, began, until });
            }
        }
    }

    async fn settle(
        &mut self,
        event: UnackedId,
        verdict: &Verdict,
        consumer: &mut Consumer,
    ) -> Result<(), BrokerError> {
        let number = consumer.next_settlement();
        let settling = self
            .shared
            .with(|state| state.unacked.settle(event, verdict, number));
        self.say_if_deferred(&settling);
        match settling {
            Settling::Send(SessionTag { generation, tag }) if generation == self.generation => {
                consumer.settle(tag, verdict).await
            }
            Settling::Send(_) | Settling::Deferred | Settling::GivenBackAlready => Ok(()),
        }
    }

    fn say_if_deferred(&self, settling: &Settling) {
        if *settling == Settling::Deferred {
            tracing::info!(at = %self.at, "an event is done and will be acknowledged when it is delivered again");
        }
    }

    async fn arrived(
        &mut self,
        (queue, message): ConsumedMessage,
        consumer: &mut Consumer,
    ) -> Result<(), BrokerError> {
        let at = || self.at.only(queue);
        let Some((arrival, body)) = message.and_then(|message| ReceivedEvent::of(message, queue))
        else {
            return Err(BrokerError::ConnectionLost {
                at: at(),
                detail: "the consumer ended without a word".into(),
            });
        };
        if arrival.origin == QueueKind::Stream {
            return Err(BrokerError::Unusable {
                at: at(),
                why: "it is a stream, out of which no event is ever taken".into(),
            });
        }
        let tag = SessionTag {
            generation: self.generation,
            tag: arrival.tag,
        };
        let (fingerprint, flag) = (arrival.fingerprint, arrival.flag);
        let recognition = self
            .shared
            .with(|state| state.unacked.recognise(fingerprint, tag, flag));
        match recognition {
            Recognition::New if self.intake == IntakePhase::Stopped => {
                return consumer.settle(arrival.tag, &Verdict::Released).await;
            }
            Recognition::New => {
                match self.outages.bodies().keep_in_memory(body) {
                    Ok(body) => self.shared.hand_out(arrival, body),
                    Err(body) => {
                        // Only one body is written at a time: no message is read meanwhile.
                        let spilling = self.outages.bodies().keep_on_disk(body);
                        consumer.spilling = Some((arrival, Box::pin(spilling)));
                    }
                }
                return Ok(());
            }
            Recognition::Running => {
                tracing::info!(at = %at(), "an event whose task runs here was delivered again: it is not started again");
            }
            Recognition::Settled(event, verdict) => {
                tracing::info!(at = %at(), "an event that is done was delivered again, and is acknowledged");
                self.settle(event, &verdict, consumer).await?;
            }
        }
        self.outages.count(|stats| stats.adopted += 1);
        let deliveries = arrival.earlier_deliveries.unwrap_or(0);
        if deliveries >= MANY_DELIVERIES {
            tracing::warn!(
                at = %self.at.only(queue), deliveries,
                "an event was delivered so often that the broker may drop it soon; set the policies \
                 `delivery-limit` and `consumer-timeout` on the queue"
            );
        }
        Ok(())
    }

    fn connected(&mut self) {
        let now = Instant::now();
        let generation = self.generation;
        if self.starting.is_none() {
            // Counted before the connection is reported as up.
            self.outages.count(|stats| stats.reconnects += 1);
        }
        self.outages.note(&self.at, ConnectionState::Up);
        self.shared.with(|state| state.connected(generation));
        if let Some(starting) = self.starting.take() {
            starting.succeeded();
            return;
        }
        let down_secs = self.reconnect.unhealthy_for().as_secs();
        tracing::info!(at = %self.at, generation = generation.0, down_secs, "the incoming queue is back");
        self.recover_until = Some(now + RECOVER_WITHIN);
    }

    fn lost(&mut self, error: BrokerError, life: ConnectionLife) -> AfterConnection {
        let error = in_mid_life(error);
        let (in_hand, in_doubt) = self.shared.with(|state| {
            let in_doubt = state.unacked.session_lost();
            state.disconnected();
            (state.unacked.ownerless(), in_doubt)
        });
        self.doubt(in_doubt);
        tracing::warn!(%error, in_hand, in_doubt, "the incoming queue's session is lost; tasks run on");
        self.recover_until = None;
        if self.intake > IntakePhase::Open {
            self.intake = IntakePhase::Recovering;
        }
        // Each loss brings every event in hand closer to the broker's delivery limit.
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
        tracing::warn!(%error, down_secs, tried, "the incoming queue can't be reached yet");
        self.down(error);
        AfterConnection::NextConnection
    }

    fn down(&mut self, error: BrokerError) {
        let state = ConnectionState::Down(error.to_string());
        self.outages.note(&self.at, state);
        let is_hopeless = matches!(error, BrokerError::Unusable { .. });
        self.last_error = Some(error);
        if is_hopeless && self.wanted {
            self.give_up();
        }
    }

    /// Stops expecting events. Running tasks may still be acknowledged, if the broker comes back in time.
    fn give_up(&mut self) {
        let error = self.last_error.clone();
        let error = error.unwrap_or_else(|| super::actor_thread::vanished(&self.at));
        self.wanted = false;
        let state = ConnectionState::GivenUp(error.to_string());
        self.outages.note(&self.at, state);
        self.shared.give_up(error);
    }

    /// Counts events that are done and may be run again, here or elsewhere.
    fn doubt(&self, events: u64) {
        self.outages.count(|stats| stats.unacknowledged += events);
    }

    async fn look_at_the_clock(&mut self, consumer: &mut Consumer) -> Result<(), BrokerError> {
        self.end_recovery();
        self.shorten_closing();
        if self.wanted {
            let lookahead = self.shared.with(|state| state.lookahead);
            return consumer.look_ahead(lookahead).await;
        }
        match (self.intake, self.recover_until) {
            (IntakePhase::Stopped, _) => {}
            (_, Some(_)) => self.intake = IntakePhase::Recovering,
            (_, None) => self.stop_intake(consumer).await?,
        }
        self.say_stopped();
        Ok(())
    }

    fn look_at_the_clock_unconnected(&mut self) {
        if self.give_up_at().is_some_and(|end| end <= Instant::now()) {
            self.give_up();
        }
        self.end_recovery();
        self.shorten_closing();
        if !self.wanted {
            self.intake = self.intake.max(IntakePhase::Recovering);
            self.say_stopped();
        }
    }

    fn end_recovery(&mut self) {
        let Some(until) = self.recover_until else {
            return;
        };
        let is_over = until <= Instant::now();
        if is_over || self.shared.with(|state| state.unacked.ownerless()) == 0 {
            self.recover_until = None;
        }
        if is_over {
            self.doubt(self.shared.with(|state| state.unacked.end_doubts()));
        }
    }

    /// Shortens the closing in a pilot that was told to end.
    fn shorten_closing(&mut self) {
        if let Some(closing) = &mut self.closing
            && let Some(end) = self.outages.short_wait_ends(closing.began)
        {
            closing.until = closing.until.min(end);
        }
    }

    /// Ends the consumers, and gives back the events that were not handed out.
    async fn stop_intake(&mut self, consumer: &mut Consumer) -> Result<(), BrokerError> {
        self.intake = IntakePhase::Stopped;
        consumer.stop().await?;
        while let Some(message) = consumer.backlog.pop_front() {
            self.arrived(message, consumer).await?;
        }
        self.release_prefetched(consumer).await
    }

    async fn release_prefetched(&mut self, consumer: &mut Consumer) -> Result<(), BrokerError> {
        let spilling = consumer.spilling.take().map(|(arrival, _)| arrival);
        let prefetched = self.shared.with(|state| state.prefetched.take());
        for arrival in prefetched.chain(spilling) {
            consumer.settle(arrival.tag, &Verdict::Released).await?;
        }
        Ok(())
    }

    fn say_stopped(&mut self) {
        for done in self.stopping.drain(..) {
            answer(done);
        }
    }

    /// Whether waiting any longer would gain nothing.
    fn is_ready_to_close(&self) -> bool {
        self.closing.is_some() && self.intake == IntakePhase::Stopped
            || self.is_ready_to_close_unconnected()
    }

    fn is_ready_to_close_unconnected(&self) -> bool {
        self.is_late_to_close() || self.closing.is_some() && self.owed() == 0
    }

    fn is_late_to_close(&self) -> bool {
        let closing = self.closing.as_ref();
        closing.is_some_and(|closing| closing.until <= Instant::now())
    }

    fn owed(&self) -> usize {
        self.shared.with(|state| state.unacked.owed())
    }

    async fn close(&mut self, mut consumer: Consumer) -> Result<(), BrokerError> {
        let within = if self.outages.told_to_end_since().is_some() {
            CLOSE_IN_A_HURRY
        } else {
            CLOSE_CONNECTION_WITHIN
        };
        let closing = async {
            self.release_prefetched(&mut consumer).await?;
            consumer.close().await
        };
        let closed = timeout(within, closing).await.unwrap_or_else(|_elapsed| {
            Err(BrokerError::TimedOut {
                at: self.at.clone(),
                step: "closing",
                after: within,
            })
        });
        if let Err(error) = closed {
            if !self.is_late_to_close() && self.outages.told_to_end_since().is_none() {
                return Err(error);
            }
            let error = in_mid_life(error);
            tracing::warn!(%error, "the incoming queue was not closed in order");
            self.doubt(self.shared.with(|state| state.unacked.session_lost()));
        }
        self.finish_closing();
        Ok(())
    }

    fn finish_closing(&mut self) {
        let owed = self.owed();
        if owed > 0 {
            tracing::warn!(
                at = %self.at, events = owed,
                "events are done but could not be acknowledged: they will be delivered again, and \
                 their outputs may be there twice"
            );
            self.doubt(u64::try_from(owed).unwrap_or(u64::MAX));
        }
        if let Some(closing) = self.closing.take() {
            answer(closing.done);
        }
    }
}

/// The event whose body is being written to disk, when that is done; never resolves if there is none.
async fn spilled(spilling: &mut super::consumer::Spilling) -> (ReceivedEvent, Body) {
    match spilling {
        Some((arrival, body)) => {
            let body = body.await;
            (arrival.clone(), body)
        }
        None => pending().await,
    }
}

fn answer(done: oneshot::Sender<()>) {
    // The caller may have stopped waiting.
    let _gone = done.send(());
}
