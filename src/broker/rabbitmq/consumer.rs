//! The session that takes events: what runs on its thread, and the handle by which it is held.
//! Talks to amqprs through a [`Link`] and to its [`Supervisor`](super::supervise) through channels.
//! Apart, because consuming and publishing fail in different ways and must not share a connection:
//! a broker short of memory stops reading from connections that publish, and acknowledgements would
//! get stuck there.
//!
//! All queues of a session share its channel: one round trip proves that all live, and a fault of one
//! ends the session of all. Each queue has a consumer, and with it a window, of its own. A window can't be
//! changed; for each event that is set aside there is one more consumer, of one event, until it is settled.
//! The event that the broker sends in the place of a settled one may then be one more than the window, until
//! the event of a consumer that was ended is settled.

use std::collections::HashMap;
use std::time::Duration;

use amqprs::channel::{
    BasicAckArguments, BasicNackArguments, BasicRejectArguments, ConsumerMessage,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::backoff::HasConnected;
use super::callbacks::ChannelEvent;
use super::connection::Connection;
use super::delivery::{Arrival, Origin};
use super::error_mapping;
use super::intake::{self, Purpose, QueueConsumer};
use super::session_thread::{self, SessionEnd, SessionThread};
use crate::broker::{BodyStore, BrokerError, Endpoint, StartSignal, Verdict};
use crate::config::AmqpAddress;
use crate::ids::{DeliveryTag, Generation, QueueIndex};

/// How often the server must prove that it lives and reads: catches sessions that only look open.
const LIVENESS_EVERY: Duration = Duration::from_secs(12);
/// How soon the server is asked whether it has read the acknowledgements: those under way when a
/// session is lost are in doubt.
const PROVE_AFTER: Duration = Duration::from_millis(200);
/// For handing one frame to amqprs' writer; it waits only when 8,192 frames wait already.
const WRITE_WITHIN: Duration = Duration::from_secs(8);

#[derive(Debug)]
pub(super) enum ConsumerEvent {
    Arrived(Arrival),
    /// The server has read this many settlements.
    Proven(u64),
    /// Asked by [`Command::Stop`]: no more events come.
    Stopped,
}

/// What the session can be told. An answer that never comes means that the session was lost.
#[derive(Debug)]
pub(super) enum ConsumerCommand {
    /// Settle one delivery of this session.
    Settle {
        tag: DeliveryTag,
        verdict: Verdict,
        done: Option<oneshot::Sender<()>>,
    },
    /// Take one more from this queue while this delivery is unsettled.
    SetAside {
        tag: DeliveryTag,
        queue: QueueIndex,
    },
    Stop,
    Close {
        done: oneshot::Sender<()>,
    },
}

/// The holder's side of a session that consumes. Dropping it ends the session at once.
#[derive(Debug)]
pub(super) struct ConsumerHandle {
    hold: SessionThread,
    /// Bounded by the windows: each event is settled once.
    commands: mpsc::UnboundedSender<ConsumerCommand>,
    /// Bounded by the windows, and a proof each [`PROVE_AFTER`].
    progress_reporter: mpsc::UnboundedReceiver<ConsumerEvent>,
    settled: u64,
}

impl ConsumerHandle {
    /// Connects and, with `leave`, starts to consume; `windows` says of each queue how many events are unsettled at
    /// most.
    pub(super) async fn open(
        at: Endpoint,
        address: AmqpAddress,
        windows: Vec<u16>,
        generation: Generation,
        mut start_signal: StartSignal,
        reached: HasConnected,
        bodies: BodyStore,
    ) -> Result<Self, BrokerError> {
        let (to_supervisor, progress_reporter) = mpsc::unbounded_channel();
        let (commands, to_session) = mpsc::unbounded_channel();
        let place = at.clone();
        let hold = session_thread::start(generation, &at, move |ready, mut owner| async move {
            let consumer = async {
                let mut link = Connection::open(&address, &place, "").await?;
                reached.note();
                tokio::select! {
                    biased;
                    signal = link.signals.recv() => {
                        let signal = signal.unwrap_or(ChannelEvent::Dropped);
                        return Err(error_mapping::of_signal(&signal, &link.at));
                    }
                    _ = &mut owner => return Err(abandoned(&link.at)),
                    () = start_signal.wait() => {}
                }
                Consumer::start(link, &windows, to_supervisor, bodies).await
            };
            match consumer.await {
                Ok(consumer) => {
                    // Nobody waits any more: the owner's signal ends it at once.
                    let _gone = ready.send(Ok(()));
                    consumer.run(to_session, owner).await
                }
                Err(error) => {
                    let _gone = ready.send(Err(error));
                    SessionEnd::Abandoned
                }
            }
        })
        .await?;
        Ok(Self {
            hold,
            commands,
            progress_reporter,
            settled: 0,
        })
    }

    pub(super) fn generation(&self) -> Generation {
        self.hold.generation
    }

    /// The number that the next settlement has in this session.
    pub(super) fn next_settlement(&self) -> u64 {
        self.settled + 1
    }

    /// Settles one delivery of this session. What `done` waits for is dropped when the session is.
    pub(super) fn settle(
        &mut self,
        tag: DeliveryTag,
        verdict: Verdict,
        done: Option<oneshot::Sender<()>>,
    ) {
        self.settled += 1;
        // A session that is gone says so in its next report.
        let _lost = self
            .commands
            .send(ConsumerCommand::Settle { tag, verdict, done });
    }

    /// Takes one more from the queue while this delivery of it is unsettled.
    pub(super) fn set_aside(&self, tag: DeliveryTag, queue: QueueIndex) {
        let _lost = self.commands.send(ConsumerCommand::SetAside { tag, queue });
    }

    /// Asks for [`Report::Stopped`].
    pub(super) fn stop(&self) {
        let _lost = self.commands.send(ConsumerCommand::Stop);
    }

    /// What comes next. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<ConsumerEvent, BrokerError> {
        tokio::select! {
            // Events of a dead session come again; running them now would run them twice.
            biased;
            error = self.hold.lost() => Err(error),
            Some(report) = self.progress_reporter.recv() => Ok(report),
        }
    }

    /// The last settlement that is known to have been read by the server.
    pub(super) fn last_proof(&mut self) -> Option<u64> {
        let mut last = None;
        while let Ok(report) = self.progress_reporter.try_recv() {
            if let ConsumerEvent::Proven(number) = report {
                last = Some(number);
            }
        }
        last
    }

    /// Ends it in the order that loses no acknowledgement.
    pub(super) async fn close(mut self, within: Duration) -> Result<(), BrokerError> {
        let (done, is_done) = oneshot::channel();
        let closing = async {
            self.commands.send(ConsumerCommand::Close { done }).is_ok() && is_done.await.is_ok()
        };
        match timeout(within, closing).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.hold.lost().await),
            Err(_elapsed) => Err(BrokerError::TimedOut {
                at: self.hold.at.clone(),
                step: "closing",
                after: within,
            }),
        }
    }
}

/// A session that consumes, on its own thread.
struct Consumer {
    link: Connection,
    /// For the round trips: any number would do, as each consumer keeps the one that it was started with.
    window: u16,
    /// None after the stop.
    intakes: Vec<QueueConsumer>,
    /// Deliveries that are set aside, one more consumer being there for each.
    aside: HashMap<DeliveryTag, QueueIndex>,
    bodies: BodyStore,
    progress_reporter: mpsc::UnboundedSender<ConsumerEvent>,
    settled: u64,
    proven: u64,
    prove_at: Instant,
}

impl Consumer {
    async fn start(
        mut link: Connection,
        windows: &[u16],
        progress_reporter: mpsc::UnboundedSender<ConsumerEvent>,
        bodies: BodyStore,
    ) -> Result<Self, BrokerError> {
        let mut intakes = Vec::new();
        for (queue, &window) in link.at.indices().zip(windows) {
            intakes.push(QueueConsumer::start(&mut link, queue, window, Purpose::Window).await?);
        }
        Ok(Self {
            link,
            window: windows.iter().copied().max().unwrap_or_default(),
            intakes,
            aside: HashMap::new(),
            bodies,
            progress_reporter,
            settled: 0,
            proven: 0,
            prove_at: Instant::now(),
        })
    }

    /// Serves until the session ends.
    async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<ConsumerCommand>,
        mut owner: oneshot::Receiver<()>,
    ) -> SessionEnd {
        let mut liveness = interval(LIVENESS_EVERY);
        liveness.set_missed_tick_behavior(MissedTickBehavior::Delay);
        liveness.reset();
        loop {
            let unproven = self.proven < self.settled;
            let step = tokio::select! {
                biased;
                signal = self.link.signals.recv() => {
                    Err(self.fault(&signal.unwrap_or(ChannelEvent::Dropped)))
                }
                _ = &mut owner => return SessionEnd::Abandoned,
                Some(command) = commands.recv() => match command {
                    ConsumerCommand::Settle { tag, verdict, done } => {
                        self.settle(tag, &verdict).await.map(|()| done.map_or((), answer))
                    }
                    ConsumerCommand::SetAside { tag, queue } => self.set_aside(tag, queue).await,
                    ConsumerCommand::Stop => self.stop().await.map(|()| self.report(ConsumerEvent::Stopped)),
                    ConsumerCommand::Close { done } => {
                        return match self.close().await {
                            Ok(()) => {
                                answer(done);
                                SessionEnd::Closed
                            }
                            Err(error) => SessionEnd::Lost(error),
                        };
                    }
                },
                (queue, message) = intake::next(&mut self.intakes) => self.hand_over(queue, message),
                () = sleep_until(self.prove_at), if unproven => self.prove().await,
                _ = liveness.tick() => self.prove().await,
            };
            if let Err(error) = step {
                return SessionEnd::Lost(error);
            }
        }
    }

    /// The server lives, and has read all that was sent to it.
    async fn prove(&mut self) -> Result<(), BrokerError> {
        self.link.limit(self.window).await?;
        if self.proven < self.settled {
            self.proven = self.settled;
            self.report(ConsumerEvent::Proven(self.proven));
        }
        Ok(())
    }

    fn report(&self, report: ConsumerEvent) {
        // Whoever held the session is gone; the owner's signal follows.
        let _gone = self.progress_reporter.send(report);
    }

    /// What the server did, and to which queue, when it says so.
    fn fault(&self, signal: &ChannelEvent) -> BrokerError {
        let cancelled = match signal {
            ChannelEvent::ConsumerCancelled(consumer) => {
                let mut intakes = self.intakes.iter();
                intakes.find(|intake| intake.is(consumer))
            }
            ChannelEvent::Closed { .. } | ChannelEvent::Returned | ChannelEvent::Dropped => None,
        };
        match cancelled {
            Some(intake) => error_mapping::of_signal(signal, &self.link.at.only(intake.queue)),
            None => error_mapping::of_signal(signal, &self.link.at),
        }
    }

    fn hand_over(
        &self,
        queue: QueueIndex,
        message: Option<ConsumerMessage>,
    ) -> Result<(), BrokerError> {
        let Some(arrival) = message.and_then(|message| Arrival::of(message, queue, &self.bodies))
        else {
            return Err(BrokerError::ConnectionLost {
                at: self.link.at.only(queue),
                detail: "the consumer ended without a word".into(),
            });
        };
        if arrival.origin == Origin::Stream {
            return Err(BrokerError::Unusable {
                at: self.link.at.only(queue),
                why: "it is a stream, out of which no event is ever taken".into(),
            });
        }
        self.report(ConsumerEvent::Arrived(arrival));
        Ok(())
    }

    async fn set_aside(&mut self, tag: DeliveryTag, queue: QueueIndex) -> Result<(), BrokerError> {
        if self.intakes.is_empty() || self.aside.insert(tag, queue).is_some() {
            return Ok(());
        }
        let more = QueueConsumer::start(&mut self.link, queue, 1, Purpose::SetAside).await?;
        self.intakes.push(more);
        Ok(())
    }

    /// Ends one of the consumers that are there for events set aside: that of the delivery which is about to
    /// be settled, so that nothing comes in its place, else one that holds nothing, else any.
    async fn take_one_less(
        &mut self,
        tag: DeliveryTag,
        queue: QueueIndex,
    ) -> Result<(), BrokerError> {
        let ranks = self.intakes.iter().enumerate();
        let least = ranks
            .filter_map(|(place, intake)| Some((intake.rank(queue, tag)?, place)))
            .min();
        let Some((_, place)) = least else {
            return Ok(());
        };
        let intake = self.intakes.swap_remove(place);
        for message in intake.stop(&mut self.link).await? {
            self.hand_over(queue, Some(message))?;
        }
        Ok(())
    }

    async fn settle(&mut self, tag: DeliveryTag, verdict: &Verdict) -> Result<(), BrokerError> {
        if let Some(queue) = self.aside.remove(&tag) {
            self.take_one_less(tag, queue).await?;
        }
        for intake in &mut self.intakes {
            intake.settled(tag);
        }
        if self.proven == self.settled {
            self.prove_at = Instant::now() + PROVE_AFTER;
        }
        self.settled += 1;
        let channel = &self.link.channel;
        let sent = timeout(WRITE_WITHIN, async {
            match verdict {
                Verdict::Done => {
                    channel
                        .basic_ack(BasicAckArguments::new(tag.0, false))
                        .await
                }
                Verdict::Failed { .. } => {
                    channel
                        .basic_reject(BasicRejectArguments::new(tag.0, true))
                        .await
                }
                Verdict::Rejected => {
                    channel
                        .basic_reject(BasicRejectArguments::new(tag.0, false))
                        .await
                }
                Verdict::Released => {
                    channel
                        .basic_nack(BasicNackArguments::new(tag.0, false, true))
                        .await
                }
            }
        });
        let at = || self.link.at.clone();
        match sent.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(BrokerError::ConnectionLost {
                at: at(),
                detail: error.to_string(),
            }),
            Err(_elapsed) => Err(BrokerError::TimedOut {
                at: at(),
                step: "sending an acknowledgement",
                after: WRITE_WITHIN,
            }),
        }
    }

    async fn stop(&mut self) -> Result<(), BrokerError> {
        for intake in std::mem::take(&mut self.intakes) {
            let queue = intake.queue;
            for message in intake.stop(&mut self.link).await? {
                self.hand_over(queue, Some(message))?;
            }
        }
        Ok(())
    }

    async fn close(mut self) -> Result<(), BrokerError> {
        self.stop().await?;
        // Without this round trip up to 60 % of 100 acknowledgements just sent were lost.
        self.link.limit(self.window).await?;
        self.link.close().await;
        Ok(())
    }
}

/// Nobody is there to be told.
fn abandoned(at: &Endpoint) -> BrokerError {
    BrokerError::ConnectionLost {
        at: at.clone(),
        detail: "nobody waits for it any more".into(),
    }
}

fn answer(done: oneshot::Sender<()>) {
    // Whoever asked may have stopped waiting.
    let _gone = done.send(());
}
