//! RabbitMQ through amqprs, which works well until something fails: then it may hang, panic, or
//! look alive while it isn't. Everything here is arranged so that it can be thrown away at that
//! moment.
//!
//! | file | what it is |
//! | --- | --- |
//! | `address` | the address as amqprs' arguments, TLS |
//! | `session` | a connection's life on its own thread and runtime; ended as a whole |
//! | `link` | one connection with one channel, a deadline on every step |
//! | `watch` | amqprs' callbacks, turned into signals |
//! | `consume`, `publish` | what runs in the two kinds of session |
//! | `confirms` | publishes that wait for their confirm |
//! | `refusal` | from text and codes to errors with names |
//!
//! A [`Source`] and a [`Sink`] each hold one session, over bounded channels. Any fault ends it,
//! and is then what every call returns. A session has a [`Generation`]; a delivery's tag is kept
//! with the channel into its own session and can't be sent through another, where it would
//! acknowledge somebody else's event.

use std::future::Future;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch as watched};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

mod address;
mod confirms;
mod consume;
mod link;
mod publish;
mod refusal;
mod session;
mod watch;

use self::confirms::{Confirms, Pending};
use self::consume::{Arrival, Consumer};
use self::link::Link;
use self::publish::Publisher;
use self::session::{End, Hold};
use super::{
    BrokerError, Content, Delivery, Direction, Place, PublishError, ReceiptKind, SettleError,
    Verdict,
};
use crate::config::AmqpAddress;
use crate::ids::{DeliveryTag, Generation};

/// RabbitMQ's `max_message_size`. One byte more closes the channel, after all were sent.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Results in flight; 100 are enough for the most that one connection gives, 23,600 a second.
const PUBLISHES_MAX: u32 = 128;
/// And their bytes: four of the largest.
const PUBLISH_BYTES_MAX: u32 = 64 * 1024 * 1024;

/// How often a broker that can't be reached is tried at the start, and until when.
const TRIES: u32 = 3;
const TRY_WITHIN: Duration = Duration::from_secs(20);

/// Stopping is one call to the server, closing up to two and the good-byes.
const STOP_WITHIN: Duration = Duration::from_secs(12);
const CLOSE_WITHIN: Duration = Duration::from_secs(25);
/// For the last confirms before closing; whoever cared has waited for them already.
const LAST_CONFIRMS_WITHIN: Duration = Duration::from_secs(5);

/// Events from a queue.
pub struct Source {
    hold: Hold,
    commands: mpsc::Sender<consume::Command>,
    arrivals: mpsc::Receiver<Arrival>,
}

/// Results into a queue.
pub struct Sink {
    hold: Hold,
    commands: mpsc::Sender<publish::Command>,
    slots: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// A tag with the way into its own session.
pub(super) struct Receipt {
    tag: DeliveryTag,
    generation: Generation,
    commands: mpsc::Sender<consume::Command>,
}

pub(super) async fn open_source(
    queue: &str,
    address: &AmqpAddress,
    window: NonZeroU32,
) -> Result<Source, BrokerError> {
    let at = address::place(Direction::Incoming, queue, address);
    // AMQP's prefetch count has 16 bits.
    let window = u16::try_from(window.get()).unwrap_or(u16::MAX);
    with_retries(async |generation| Source::open(&at, address, window, generation).await).await
}

pub(super) async fn open_sink(queue: &str, address: &AmqpAddress) -> Result<Sink, BrokerError> {
    let at = address::place(Direction::Outgoing, queue, address);
    with_retries(async |generation| Sink::open(&at, address, generation).await).await
}

/// Each try is a session of its own.
async fn with_retries<T>(
    mut open: impl AsyncFnMut(Generation) -> Result<T, BrokerError>,
) -> Result<T, BrokerError> {
    let started = Instant::now();
    let mut generation = Generation(1);
    loop {
        let error = match open(generation).await {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        let pause = pause_after(generation, Uuid::new_v4().as_u128());
        let tried = generation.0;
        if !error.is_transient()
            || tried >= u64::from(TRIES)
            || started.elapsed() + pause >= TRY_WITHIN
        {
            return Err(error);
        }
        tracing::warn!(%error, tried, pause_ms = pause.as_millis(), "will try again");
        sleep(pause).await;
        generation = Generation(tried + 1);
    }
}

/// 1 s, 2 s …, each shortened by up to a half, so that a thousand pilots don't come at once.
fn pause_after(generation: Generation, random: u128) -> Duration {
    let tried = u32::try_from(generation.0.min(5)).unwrap_or(5);
    let longest = Duration::from_secs(1 << (tried - 1));
    let thousandths = 500 + u32::try_from(random % 501).unwrap_or(0);
    longest * thousandths / 1000
}

impl Source {
    async fn open(
        at: &Place,
        address: &AmqpAddress,
        window: u16,
        generation: Generation,
    ) -> Result<Self, BrokerError> {
        let (to_pilot, arrivals) = mpsc::channel(usize::from(window));
        let (commands, to_session) = mpsc::channel(usize::from(window) + 2);
        let (place, address) = (at.clone(), address.clone());
        let hold = session::start(generation, at, move |ready, owner| async move {
            let confirms = Arc::new(Mutex::new(Confirms::new(&place.queue, String::new())));
            let consumer = async {
                let link = Link::open(&address, &place, &confirms).await?;
                Consumer::start(link, window, to_pilot).await
            };
            match consumer.await {
                Ok(consumer) => {
                    // Nobody waits any more: the owner's signal ends it at once.
                    let _gone = ready.send(Ok(()));
                    consumer.run(to_session, owner).await
                }
                Err(error) => {
                    let _gone = ready.send(Err(error));
                    End::Abandoned
                }
            }
        })
        .await?;
        Ok(Self {
            hold,
            commands,
            arrivals,
        })
    }

    pub(super) async fn recv(&mut self) -> Result<Delivery, BrokerError> {
        let Self {
            hold,
            commands,
            arrivals,
        } = self;
        tokio::select! {
            // Events of a dead session come again; running them now would run them twice.
            biased;
            error = hold.lost() => Err(error),
            Some(arrival) = arrivals.recv() => {
                let Arrival { tag, body, earlier_deliveries } = arrival;
                let generation = hold.generation;
                let receipt = Receipt { tag, generation, commands: commands.clone() };
                Ok(Delivery {
                    content: Content::Frame(body),
                    earlier_deliveries,
                    receipt: super::Receipt::new(ReceiptKind::RabbitMq(receipt)),
                })
            }
        }
    }

    pub(super) async fn stop(&mut self) -> Result<(), BrokerError> {
        let stopping = async {
            let (done, is_done) = oneshot::channel();
            let sent = self
                .commands
                .send(consume::Command::Stop { done })
                .await
                .is_ok();
            if !sent || is_done.await.is_err() {
                return Err(self.hold.lost().await);
            }
            // The session has closed its end: what it had handed to us is all here.
            while let Some(Arrival { tag, .. }) = self.arrivals.recv().await {
                let generation = self.hold.generation;
                let receipt = Receipt {
                    tag,
                    generation,
                    commands: self.commands.clone(),
                };
                if receipt.settle(Verdict::Released).await.is_err() {
                    return Err(self.hold.lost().await);
                }
            }
            Ok(())
        };
        match timeout(STOP_WITHIN, stopping).await {
            Ok(stopped) => stopped,
            Err(_elapsed) => Err(BrokerError::TimedOut {
                at: self.hold.at.clone(),
                step: "giving events back",
                after: STOP_WITHIN,
            }),
        }
    }

    pub(super) async fn close(mut self) {
        if let Err(error) = self.stop().await {
            tracing::warn!(%error, "the incoming queue was not closed in order");
            return;
        }
        let (done, is_done) = oneshot::channel();
        let closing = async {
            self.commands
                .send(consume::Command::Close { done })
                .await
                .is_ok()
                && is_done.await.is_ok()
        };
        if !timeout(CLOSE_WITHIN, closing).await.unwrap_or(false) {
            let at = &self.hold.at;
            let error = self.hold.loss().map(|error| error.to_string());
            tracing::warn!(
                %at, error,
                "the incoming queue was not closed in order; the broker may deliver events again \
                 that are done"
            );
        }
    }
}

impl Receipt {
    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    pub(super) async fn settle(self, verdict: Verdict) -> Result<(), SettleError> {
        let (done, is_done) = oneshot::channel();
        let command = consume::Command::Settle {
            tag: self.tag,
            verdict,
            done,
        };
        self.commands
            .send(command)
            .await
            .map_err(|_closed| SettleError::SessionLost)?;
        is_done.await.map_err(|_dropped| SettleError::SessionLost)
    }

    pub(super) fn report_drop(self) {
        if self.commands.is_closed() {
            return;
        }
        let (delivery_tag, generation) = (self.tag.0, self.generation.0);
        tracing::error!(
            delivery_tag,
            generation,
            "a delivery was dropped unsettled; the broker holds its event until this pilot ends"
        );
    }
}

impl Sink {
    async fn open(
        at: &Place,
        address: &AmqpAddress,
        generation: Generation,
    ) -> Result<Self, BrokerError> {
        let (commands, to_session) = mpsc::channel(16);
        let (place, address) = (at.clone(), address.clone());
        let hold = session::start(generation, at, move |ready, owner| async move {
            let name = Uuid::new_v4().simple().to_string();
            let confirms = Arc::new(Mutex::new(Confirms::new(&place.queue, name)));
            let publisher = async {
                let link = Link::open(&address, &place, &confirms).await?;
                Publisher::start(link, Arc::clone(&confirms)).await
            };
            match publisher.await {
                Ok(publisher) => {
                    // Nobody waits any more: the owner's signal ends it at once.
                    let _gone = ready.send(Ok(()));
                    publisher.run(to_session, owner).await
                }
                Err(error) => {
                    let _gone = ready.send(Err(error));
                    End::Abandoned
                }
            }
        })
        .await?;
        let slots = Arc::new(Semaphore::new(PUBLISHES_MAX as usize));
        let bytes = Arc::new(Semaphore::new(PUBLISH_BYTES_MAX as usize));
        Ok(Self {
            hold,
            commands,
            slots,
            bytes,
        })
    }

    pub(super) fn publish(
        &self,
        content: Content,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + use<> + 'static {
        let (slots, bytes) = (Arc::clone(&self.slots), Arc::clone(&self.bytes));
        let (commands, lost) = (self.commands.clone(), self.hold.watch());
        async move {
            let Content::Frame(body) = content else {
                return Err(PublishError::WrongEncoding);
            };
            let size = body.len();
            if size > MESSAGE_BYTES_MAX {
                return Err(PublishError::TooLarge {
                    bytes: size,
                    limit: MESSAGE_BYTES_MAX,
                });
            }
            let weight = u32::try_from(size).unwrap_or(PUBLISH_BYTES_MAX);
            let closed = |_| PublishError::SessionLost {
                detail: "it was closed".into(),
            };
            let slot = slots.acquire_owned().await.map_err(closed)?;
            let room = bytes.acquire_many_owned(weight).await.map_err(closed)?;
            let (outcome, is_settled) = oneshot::channel();
            let pending = Pending {
                outcome,
                since: Instant::now(),
                bytes: size,
                permits: [slot, room],
            };
            let command = publish::Command::Publish { body, pending };
            if commands.send(command).await.is_ok()
                && let Ok(outcome) = is_settled.await
            {
                return outcome;
            }
            Err(session_lost(lost).await)
        }
    }

    pub(super) async fn close(self) {
        let all = self.slots.acquire_many(PUBLISHES_MAX);
        if timeout(LAST_CONFIRMS_WITHIN, all).await.is_err() {
            let at = &self.hold.at;
            tracing::warn!(%at, "closing although results wait for their confirm");
        }
        let (done, is_done) = oneshot::channel();
        let closing = async {
            self.commands
                .send(publish::Command::Close { done })
                .await
                .is_ok()
                && is_done.await.is_ok()
        };
        if !timeout(CLOSE_WITHIN, closing).await.unwrap_or(false) {
            let (at, error) = (
                &self.hold.at,
                self.hold.loss().map(|error| error.to_string()),
            );
            tracing::debug!(%at, error, "the outgoing queue was not closed in order");
        }
    }
}

/// The session has let go of a publish: it is ending, and about to say why.
async fn session_lost(mut lost: watched::Receiver<Option<BrokerError>>) -> PublishError {
    let detail = match lost.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(error)) => error.to_string(),
        Ok(None) | Err(_) => "it ended".to_owned(),
    };
    PublishError::SessionLost { detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_spread() {
        for (tried, least, most) in [(1, 500, 1_000), (2, 1_000, 2_000), (5, 8_000, 16_000)] {
            for random in [0, 1, 250, 499, u128::MAX] {
                let pause = pause_after(Generation(tried), random).as_millis();
                assert!((least..=most).contains(&pause), "{pause} after {tried}");
            }
        }
    }
}
