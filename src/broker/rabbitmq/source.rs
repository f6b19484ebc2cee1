//! The pilot's handle of queues that events come from, which shares its state with the
//! [actor](super::source_actor).

use std::future::Future;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::actor_thread;
use super::source_actor::{CLOSE_WITHIN, SourceActor, SourceOrder};
use super::source_state::{SharedState, SourceState};
use super::unacked::UnackedId;
use crate::broker::{
    BrokerError, Content, Delivery, Endpoint, OutagePolicy, ReceiptKind, SettleError, StartSignal,
    Verdict,
};
use crate::config::AmqpAddress;
use crate::ids::Generation;

/// The deadline for stopping, which is one call to the server.
const STOP_WITHIN: Duration = Duration::from_secs(12);
/// Settlements wait while the channel is full; the actor never waits for them.
const ORDERS: usize = 64;
/// How long a new connection has for its first event before its silence counts.
const FIRST_EVENT_WITHIN: Duration = Duration::from_secs(1);

/// Events from the queues that share a connection.
pub struct RabbitMqSource {
    at: Endpoint,
    shared: Arc<SharedState>,
    orders: mpsc::Sender<SourceOrder>,
    outages: OutagePolicy,
    stopped: bool,
    /// The value of [`SourceState::connected_for`] when the idle clock was started.
    idle_from: Duration,
}

/// An event in hand. The delivery that stands for it may change.
pub(in crate::broker) struct RabbitMqReceipt {
    event: UnackedId,
    generation: Generation,
    orders: mpsc::Sender<SourceOrder>,
    outages: OutagePolicy,
}

impl RabbitMqSource {
    /// Connects. Starts to consume once `start` allows it.
    pub(super) async fn open(
        at: Endpoint,
        address: &AmqpAddress,
        window: NonZeroU32,
        outages: &OutagePolicy,
        start: &StartSignal,
    ) -> Result<Self, BrokerError> {
        let shared = Arc::new(SharedState::default());
        let (orders, to_actor) = mpsc::channel(ORDERS);
        let (ready, is_ready) = oneshot::channel();
        // AMQP's prefetch count has 16 bits.
        let window = u16::try_from(window.get()).unwrap_or(u16::MAX);
        let actor = SourceActor::new(
            at.clone(),
            (address.clone(), window),
            Arc::clone(&shared),
            outages.clone(),
            to_actor,
            (start.clone(), ready),
        );
        actor_thread::spawn("amqp-in", &at, actor)?;
        // If `open` is cancelled, dropping this ends the actor.
        let source = Self {
            at,
            shared,
            orders,
            outages: outages.clone(),
            stopped: false,
            idle_from: Duration::ZERO,
        };
        let ready = is_ready.await;
        ready.unwrap_or_else(|_ended| Err(actor_thread::vanished(&source.at)))?;
        Ok(source)
    }

    pub(in crate::broker) async fn recv(&mut self) -> Result<Delivery, BrokerError> {
        if self.stopped {
            return std::future::pending().await;
        }
        loop {
            let news = self.shared.news();
            if let Some(next) = self.take() {
                return next;
            }
            news.await;
        }
    }

    /// Takes the next event, which is in hand from now on.
    fn take(&self) -> Option<Result<Delivery, BrokerError>> {
        let taken = self.shared.with(SourceState::take)?;
        Some(taken.map(|taken| {
            let receipt = RabbitMqReceipt {
                event: taken.event,
                generation: taken.generation,
                orders: self.orders.clone(),
                outages: self.outages.clone(),
            };
            Delivery {
                name: None,
                content: Content::Frame(taken.body),
                earlier_deliveries: taken.arrival.earlier_deliveries,
                receipt: crate::broker::Receipt::new(ReceiptKind::RabbitMq(receipt)),
            }
        }))
    }

    /// See [`Source::start_idle_clock`](crate::broker::Source::start_idle_clock).
    pub(in crate::broker) fn start_idle_clock(&mut self) {
        self.idle_from = self.shared.with(|state| state.connected_for());
    }

    /// See [`Source::idle_left`](crate::broker::Source::idle_left).
    pub(in crate::broker) fn idle_left(&self, wait: Duration) -> Duration {
        let (connected, live) = self
            .shared
            .with(|state| (state.connected_for(), state.live));
        let left = wait.saturating_sub(connected.saturating_sub(self.idle_from));
        let lived = live.map(|(_, since)| since.elapsed()).unwrap_or_default();
        left.max(FIRST_EVENT_WITHIN.min(wait).saturating_sub(lived))
    }

    /// See [`Source::round_trip`](crate::broker::Source::round_trip).
    pub(in crate::broker) fn round_trip(&self) -> Option<Duration> {
        self.shared.with(|state| state.round_trip())
    }

    /// See [`Source::look_ahead`](crate::broker::Source::look_ahead). The actor sees it at its next order.
    pub(in crate::broker) fn look_ahead(&self, events: u16) {
        self.shared.with(|state| state.lookahead = events);
    }

    pub(in crate::broker) async fn stop(&mut self) -> Result<(), BrokerError> {
        self.stopped = true;
        let (done, is_done) = oneshot::channel();
        let stopping = async {
            if self.orders.send(SourceOrder::Stop { done }).await.is_ok() {
                // Without an answer, the actor has ended.
                let _gone = is_done.await;
            }
        };
        let began = Instant::now();
        let stopped = tokio::select! {
            biased;
            stopped = timeout(STOP_WITHIN, stopping) => stopped.is_ok(),
            () = self.outages.short_wait_over() => false,
        };
        if stopped {
            return Ok(());
        }
        Err(BrokerError::TimedOut {
            at: self.at.clone(),
            step: "giving events back",
            after: began.elapsed(),
        })
    }

    pub(in crate::broker) async fn close(mut self) {
        if let Err(error) = self.stop().await {
            tracing::warn!(%error, "the incoming queue did not stop in order");
        }
        let (done, is_done) = oneshot::channel();
        let closing = async {
            let ordered = self.orders.send(SourceOrder::Close { done }).await;
            ordered.is_ok() && is_done.await.is_ok()
        };
        if !timeout(CLOSE_WITHIN, closing).await.unwrap_or(false) {
            tracing::warn!(
                at = %self.at,
                "the incoming queue was not closed in order; the broker may deliver events again \
                 that are done"
            );
        }
    }
}

impl RabbitMqReceipt {
    pub(in crate::broker) fn generation(&self) -> Generation {
        self.generation
    }

    /// Resolves when the order is sent.
    pub(in crate::broker) fn set_aside(&self) -> impl Future<Output = ()> + Send + use<> + 'static {
        let (orders, event) = (self.orders.clone(), self.event);
        async move {
            // If the channel is closed, no further event comes.
            let _closed = orders.send(SourceOrder::SetAside { event }).await;
        }
    }

    pub(in crate::broker) async fn settle(self, verdict: Verdict) -> Result<(), SettleError> {
        let (done, is_done) = oneshot::channel();
        let order = SourceOrder::Settle {
            event: self.event,
            verdict,
            done,
        };
        let mut must_end = pin!(self.outages.short_wait_over());
        tokio::select! {
            biased;
            sent = self.orders.send(order) => sent.map_err(|_closed| SettleError::SessionLost)?,
            () = &mut must_end => return Err(SettleError::SessionLost),
        }
        // Without an answer, the connection was lost meanwhile, and the event is settled when it comes again.
        // A pilot that was told to end does not wait for the answer, since the server may be silent.
        tokio::select! {
            biased;
            _deferred = is_done => {}
            () = must_end => {}
        }
        Ok(())
    }

    pub(in crate::broker) fn report_drop(self) {
        if self.orders.is_closed() {
            return;
        }
        let (event, generation) = (self.event, self.generation.0);
        tracing::error!(
            ?event,
            generation,
            "a delivery was dropped unsettled; the broker holds its event until this pilot ends"
        );
    }
}
