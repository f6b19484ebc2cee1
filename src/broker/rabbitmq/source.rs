//! The pilot's end of queues that events come from, through all the sessions of its life. Talks to
//! its [`Supervisor`](super::supervise) only. Apart from it, because that runs whether the pilot
//! looks or not.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::consumer::ConsumerHandle;
use super::prefetch::PrefetchBuffer;
use super::source_actor::{CLOSE_WITHIN, SourceActor, SourceOrder};
use super::unacked::{SessionTag, UnackedId, UnackedTable};
use crate::broker::{
    BrokerError, Content, Delivery, Endpoint, OutagePolicy, ReceiptKind, SettleError, Verdict,
};
use crate::config::AmqpAddress;
use crate::ids::Generation;

/// Stopping is one call to the server.
const STOP_WITHIN: Duration = Duration::from_secs(12);

/// What the two ends share. No await happens under its lock.
#[derive(Debug, Default)]
pub(super) struct SharedState {
    state: Mutex<SourceState>,
    changed: Notify,
}

#[derive(Debug, Default)]
pub(super) struct SourceState {
    /// Events that came and are not handed out yet. All of the live session.
    pub(super) ready: PrefetchBuffer,
    pub(super) in_flight: UnackedTable,
    /// The live session, and since when.
    pub(super) live: Option<(Generation, Instant)>,
    /// Why no more events are to be expected.
    pub(super) given_up: Option<BrokerError>,
}

impl SharedState {
    /// Changes the state and wakes whoever waits for an event.
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut SourceState) -> T) -> T {
        let changed = change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
        changed
    }
}

/// Events from the queues that share a session.
pub struct RabbitMqSource {
    at: Endpoint,
    desk: Arc<SharedState>,
    orders: mpsc::Sender<SourceOrder>,
    stopped: bool,
}

/// An event in hand, whichever delivery stands for it.
pub(in crate::broker) struct RabbitMqReceipt {
    entry: UnackedId,
    generation: Generation,
    orders: mpsc::Sender<SourceOrder>,
}

impl RabbitMqSource {
    /// Takes over the first session. To be called within a runtime.
    pub(super) fn start(
        at: &Endpoint,
        address: &AmqpAddress,
        window: u16,
        session: ConsumerHandle,
        outage_policy: &OutagePolicy,
    ) -> Self {
        let desk = Arc::new(SharedState::default());
        // A full channel makes whoever settles wait; the supervisor never waits for them.
        let (orders, to_supervisor) = mpsc::channel(64);
        let supervisor = SourceActor::new(
            at.clone(),
            address.clone(),
            window,
            Arc::clone(&desk),
            outage_policy.clone(),
            session,
        );
        tokio::spawn(supervisor.run(to_supervisor));
        Self {
            at: at.clone(),
            desk,
            orders,
            stopped: false,
        }
    }

    pub(in crate::broker) async fn recv(&mut self) -> Result<Delivery, BrokerError> {
        if self.stopped {
            return std::future::pending().await;
        }
        loop {
            let changed = self.desk.changed.notified();
            if let Some(next) = self.take() {
                return next;
            }
            changed.await;
        }
    }

    /// The next event, which is in hand from now on.
    fn take(&self) -> Option<Result<Delivery, BrokerError>> {
        let mut state = self
            .desk
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = &state.given_up {
            return Some(Err(error.clone()));
        }
        let (generation, _) = state.live?;
        let (fingerprint, arrival) = state.ready.pop()?;
        let owner = SessionTag {
            generation,
            tag: arrival.tag,
        };
        let entry = state.in_flight.enter(fingerprint, owner, arrival.flag);
        let receipt = RabbitMqReceipt {
            entry,
            generation,
            orders: self.orders.clone(),
        };
        Some(Ok(Delivery {
            name: None,
            content: Content::Frame(arrival.body),
            earlier_deliveries: arrival.earlier_deliveries,
            receipt: crate::broker::Receipt::new(ReceiptKind::RabbitMq(receipt)),
        }))
    }

    /// When a queue that gave nothing for `wait` may be called idle, if that is later than now: the
    /// time in which the broker was away tells nothing.
    pub(in crate::broker) fn idle_not_before(&self, wait: Duration) -> Option<Instant> {
        let state = self
            .desk
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let since = state.live.map_or(now, |(_, since)| since);
        Some(since + wait).filter(|end| *end > now)
    }

    pub(in crate::broker) async fn stop(&mut self) -> Result<(), BrokerError> {
        self.stopped = true;
        let (done, is_done) = oneshot::channel();
        let stopping = async {
            if self.orders.send(SourceOrder::Stop { done }).await.is_ok() {
                // Its end without an answer is that of the runtime.
                let _gone = is_done.await;
            }
        };
        timeout(STOP_WITHIN, stopping)
            .await
            .map_err(|_elapsed| BrokerError::TimedOut {
                at: self.at.clone(),
                step: "giving events back",
                after: STOP_WITHIN,
            })
    }

    pub(in crate::broker) async fn close(mut self) {
        if let Err(error) = self.stop().await {
            tracing::warn!(%error, "the incoming queue did not stop in order");
        }
        let (done, is_done) = oneshot::channel();
        let closing = async {
            self.orders.send(SourceOrder::Close { done }).await.is_ok() && is_done.await.is_ok()
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

    /// Resolves when the order is given.
    pub(in crate::broker) fn set_aside(&self) -> impl Future<Output = ()> + Send + use<> + 'static {
        let (orders, entry) = (self.orders.clone(), self.entry);
        async move {
            // Closed: nothing more is to come.
            let _closed = orders.send(SourceOrder::SetAside { entry }).await;
        }
    }

    pub(in crate::broker) async fn settle(self, verdict: Verdict) -> Result<(), SettleError> {
        let (done, is_done) = oneshot::channel();
        let order = SourceOrder::Settle {
            entry: self.entry,
            verdict,
            done,
        };
        self.orders
            .send(order)
            .await
            .map_err(|_closed| SettleError::SessionLost)?;
        // No answer: the session was lost over it, and the event is settled when it comes again.
        let _deferred = is_done.await;
        Ok(())
    }

    pub(in crate::broker) fn report_drop(self) {
        if self.orders.is_closed() {
            return;
        }
        let (entry, generation) = (self.entry, self.generation.0);
        tracing::error!(
            ?entry,
            generation,
            "a delivery was dropped unsettled; the broker holds its event until this pilot ends"
        );
    }
}
