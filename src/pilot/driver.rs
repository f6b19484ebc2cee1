//! Performs what [`super::state`] decides: waits for whatever happens next, turns it into an event,
//! carries out the actions. Owns the receipts, the results on their way out, and the timers.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

use super::answers::{publication_of, warn_of_deletion};
use super::disk_floor::DiskFloor;
use super::events::{Action, Event, Outcome, Publication};
use super::ledger::{Ledger, Settlement};
use super::poison::{NotPutAway, Poison, PutAway};
use super::set_aside::MAY_GO_AFTER;
use super::state::{Conclusion, Rules, State};
use super::wall_time::{Limit, WallTime};
use super::{Queues, Reports};
use crate::broker::{
    BrokerError, Content, Delivery, Outlet, OutletWatch, PublishError, Receipt, Resilience,
    SettleError, Sink, Source, Verdict,
};
use crate::ids::TaskId;
use crate::process::{Countdown, WillSender};
use crate::records;
use crate::signals::{Signal, Signals};
use crate::task::{Keepsake, Leftover, Report, Runner, TaskEnd, Turn};

/// How the loop ended.
#[derive(Debug)]
pub struct Finished {
    /// Counts, failures, and what ended the loop.
    pub conclusion: Conclusion,
}

/// What the loop does beside its main work.
#[derive(Debug)]
pub struct Extras {
    /// Where events go that failed too often.
    pub poison: Poison,
    /// When the pilot must end.
    pub wall_time: Option<WallTime>,
    /// What must stay free on the disk.
    pub disk_floor: Option<DiskFloor>,
}

/// One taken and unsettled event.
struct Held {
    receipt: Receipt,
    /// What its queue calls it.
    name: Option<OsString>,
    /// The event until its task starts or is made ready, the result once it ended.
    content: Option<Content>,
    /// What tells a task that was made ready to start; dropped, that it won't be.
    turn: Option<oneshot::Sender<()>>,
    /// The event once its task ended: it may have to be put away.
    event: Option<Keepsake>,
    /// What its task left on the disk.
    leftover: Option<Leftover>,
    /// Which took so many bytes, once it is cleared away.
    disk_bytes: Rc<Cell<Option<u64>>>,
}

/// Something that was under way came to its end.
enum Done {
    Task(TaskId, Box<Report>),
    Published(TaskId, Result<(), PublishError>),
    /// And what the task left was cleared away, which took so many bytes on disk.
    Settled(TaskId, Result<(), SettleError>, Option<u64>),
    Rested(TaskId),
    PauseOver(TaskId),
    PutAway(TaskId, Result<PutAway, NotPutAway>),
    DiskLow(String),
    IntakeStopped(Box<Source>, Result<(), BrokerError>),
}

/// What the loop waited for.
enum Woken {
    Signal(Signal),
    Done(Done),
    Delivered(Result<Delivery, BrokerError>),
    Idle,
    Outlet(Outlet),
    WallTime(Limit),
}

struct Driver<'a> {
    runner: Rc<Runner>,
    sink: Sink,
    /// Absent while the intake is being stopped.
    source: Option<Source>,
    will: WillSender,
    held: HashMap<TaskId, Held>,
    /// Bounded by the window and by how many may be set aside: a task, a publish, two pauses or a settlement
    /// for each held event, and one stop.
    under_way: FuturesUnordered<LocalBoxFuture<'static, Done>>,
    /// How long the queue may be silent, and what is left of it.
    idle: Option<(Duration, Countdown)>,
    resilience: Resilience,
    outlet: OutletWatch,
    reports: &'a Reports,
    ledger: &'a mut Ledger,
    poison: Poison,
    wall_time: Option<WallTime>,
}

/// Runs events until the queue is idle, a failure or a signal closes the intake, and everything
/// taken is settled.
pub async fn run(
    rules: Rules,
    queues: Queues,
    runner: Rc<Runner>,
    signals: &mut Signals,
    reports: &Reports,
    ledger: &mut Ledger,
    extras: Extras,
) -> Finished {
    let Queues {
        source,
        sink,
        resilience,
    } = queues;
    let (mut state, first) = State::new(rules);
    let mut driver = Driver {
        runner,
        sink,
        source: Some(source),
        will: WillSender::new(),
        held: HashMap::new(),
        under_way: FuturesUnordered::new(),
        idle: None,
        outlet: resilience.outlet(),
        resilience,
        reports,
        ledger,
        poison: extras.poison,
        wall_time: extras.wall_time,
    };
    if let Some(floor) = extras.disk_floor {
        driver.go(async move { Done::DiskLow(floor.crossed().await) });
    }
    driver.perform_all(first);
    while !state.is_over() {
        let woken = driver.next(&state, signals).await;
        if let (Woken::Idle, Some(later)) = (&woken, driver.still_idle()) {
            driver.idle = Some(later);
            continue;
        }
        let event = driver.event_of(woken);
        let actions = state.on_event(event);
        driver.perform_all(actions);
        let running = u64::try_from(state.running()).unwrap_or(u64::MAX);
        reports.counts(state.tally(), running);
        reports.reconnects(driver.resilience.stats().reconnects);
    }
    reports.final_counts(state.tally());
    driver.sink.close().await;
    if let Some(source) = driver.source {
        source.close().await;
    }
    Finished {
        conclusion: state.conclude(),
    }
}

impl Driver<'_> {
    /// Waits; decides nothing. Every future here may be dropped at any await.
    async fn next(&mut self, state: &State, signals: &mut Signals) -> Woken {
        let idle = self.idle.as_mut().map(|(_, countdown)| countdown);
        let limit = self.wall_time.as_ref().and_then(|wall| {
            let (at, limit) = wall.next(self.ledger.runtimes().slowest())?;
            Some((Instant::from_std(at), limit))
        });
        let source = self.source.as_mut().filter(|_| state.wants_event());
        tokio::select! {
            biased;
            signal = signals.recv() => Woken::Signal(signal),
            Some(done) = self.under_way.next() => Woken::Done(done),
            limit = reached(limit) => Woken::WallTime(limit),
            outlet = self.outlet.differs_from(state.outlet()) => Woken::Outlet(outlet),
            delivery = receive(source) => Woken::Delivered(delivery),
            () = over(idle) => Woken::Idle,
        }
    }

    /// What is left of the idle time, if it was not over when its timer fired: while the broker is
    /// away nothing can come.
    fn still_idle(&self) -> Option<(Duration, Countdown)> {
        let (wait, _) = self.idle.as_ref()?;
        let end = self.source.as_ref()?.idle_not_before(*wait)?;
        let left = end.saturating_duration_since(Instant::now());
        Some((*wait, Countdown::new(left)))
    }

    /// Keeps what an event carries and says what it means.
    fn event_of(&mut self, woken: Woken) -> Event {
        match woken {
            Woken::Signal(signal) => {
                warn!(signal = signal.name(), "signal received");
                Event::Signal(signal.number())
            }
            Woken::Idle => {
                info!("no event came for as long as configured: taking no more");
                Event::IdleTimeout
            }
            Woken::Outlet(outlet) => {
                match outlet {
                    Outlet::Refuses => warn!("results are refused: no further event is taken"),
                    Outlet::Takes => info!("no result waits any more that was refused"),
                }
                Event::Outlet(outlet)
            }
            Woken::Delivered(Ok(delivery)) => {
                let id = TaskId::random();
                self.ledger.received(id, &delivery);
                let Delivery {
                    content,
                    name,
                    receipt,
                    earlier_deliveries,
                } = delivery;
                warn_of_deletion(id, earlier_deliveries);
                self.held.insert(
                    id,
                    Held {
                        receipt,
                        name,
                        content: Some(content),
                        turn: None,
                        event: None,
                        leftover: None,
                        disk_bytes: Rc::default(),
                    },
                );
                Event::Delivered(id, earlier_deliveries)
            }
            Woken::WallTime(limit) => {
                if let Some(wall_time) = &mut self.wall_time {
                    wall_time.passed(limit);
                }
                warn!(?limit, "the pilot's wall time comes to its end");
                Event::WallTime(limit)
            }
            Woken::Delivered(Err(error)) => {
                error!(%error, "no more events can be taken");
                Event::IntakeLost(error.to_string())
            }
            Woken::Done(done) => self.event_of_done(done),
        }
    }

    fn event_of_done(&mut self, done: Done) -> Event {
        match done {
            Done::Task(id, report) => {
                self.ledger.ended(id, &report);
                Event::TaskEnded(id, self.outcome_of(id, *report))
            }
            Done::Published(id, result) => {
                let publication = publication_of(id, result);
                match &publication {
                    Publication::Confirmed => self.ledger.published(id),
                    Publication::Refused(error) => self.ledger.failed(id, error),
                    Publication::Lost(_) => {}
                }
                Event::Published(id, publication)
            }
            Done::PutAway(id, result) => {
                match &result {
                    Ok(PutAway::DeadLettered) => {
                        self.ledger.decided(id, records::Outcome::DeadLettered);
                    }
                    Ok(PutAway::Kept) => self.ledger.decided(id, records::Outcome::Rejected),
                    Err(error) => {
                        error!(task_id = %id, %error, "an event that failed too often could not be put away: it stays in its queue");
                    }
                }
                Event::PutAway(id, result)
            }
            Done::Rested(id) => Event::Rested(id),
            Done::PauseOver(id) => Event::PauseOver(id),
            Done::DiskLow(reason) => {
                error!(reason, "no more events are taken, tasks are told to end");
                Event::DiskLow(reason)
            }
            Done::Settled(id, result, disk_bytes) => {
                self.ledger.cleared(id, disk_bytes);
                self.ledger.settled(
                    id,
                    match &result {
                        Ok(()) => Settlement::Told,
                        Err(_) => Settlement::Lost,
                    },
                );
                if let Err(error) = result {
                    error!(task_id = %id, %error, "an event could not be settled: the broker will deliver it again");
                }
                Event::Settled(id)
            }
            Done::IntakeStopped(source, result) => {
                if let Err(error) = result {
                    warn!(%error, "the intake did not stop in order: the broker takes back what it sent ahead");
                }
                self.source = Some(*source);
                Event::IntakeStopped
            }
        }
    }

    fn outcome_of(&mut self, id: TaskId, report: Report) -> Outcome {
        let (content, outcome) = match report.end {
            TaskEnd::Output(content) => (Some(content), Outcome::Output),
            TaskEnd::NoOutput => (None, Outcome::NoOutput),
            TaskEnd::Failed(error) => (None, Outcome::Failed(error)),
            TaskEnd::Interrupted => (None, Outcome::Interrupted),
        };
        if let Some(held) = self.held.get_mut(&id) {
            held.event = Some(report.event);
            held.leftover = Some(report.leftover);
            held.content = content;
        }
        outcome
    }

    fn perform_all(&mut self, actions: Vec<Action>) {
        for action in actions {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Start(id) => {
                self.ledger.started(id);
                match self.held.get_mut(&id).and_then(|held| held.turn.take()) {
                    // It waits for this, whatever its files came to.
                    Some(turn) => drop(turn.send(())),
                    None => self.run(id, Turn::Now),
                }
            }
            Action::Prepare(id) => {
                let (turn, its_turn) = oneshot::channel();
                if let Some(held) = self.held.get_mut(&id) {
                    held.turn = Some(turn);
                }
                self.run(id, Turn::Later(its_turn));
            }
            Action::CallOff(id) => {
                if let Some(held) = self.held.get_mut(&id) {
                    held.turn = None;
                }
            }
            Action::Publish(id) => {
                let Some(content) = self.take_content(id) else {
                    return;
                };
                let confirmed = self.sink.publish_named(content, self.name_of(id));
                self.go(async move { Done::Published(id, confirmed.await) });
            }
            Action::Settle(id, verdict) => {
                let Some(held) = self.held.remove(&id) else {
                    return;
                };
                match verdict {
                    Verdict::Done => self.ledger.decided(id, records::Outcome::Done),
                    Verdict::Failed { .. } => self.ledger.decided(id, records::Outcome::Failed),
                    Verdict::Released => self.ledger.decided(id, records::Outcome::GivenBack),
                    Verdict::Rejected => {}
                }
                let settled = held.receipt.settle(verdict);
                // Not before: its result is out, or there is none.
                let cleared = cleared(held.leftover, held.disk_bytes);
                self.go(async move {
                    let (result, disk_bytes) = tokio::join!(settled, cleared);
                    Done::Settled(id, result, disk_bytes)
                });
            }
            Action::SetAside(id, pause) => {
                let Some(held) = self.held.get_mut(&id) else {
                    return;
                };
                // Its files are told of now: the pilot may end before it goes back.
                self.ledger.decided(id, records::Outcome::Failed);
                let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                info!(task_id = %id, pause_ms, "an event that failed before waits before it goes back");
                let set_aside = held.receipt.set_aside();
                let cleared = cleared(held.leftover.take(), Rc::clone(&held.disk_bytes));
                self.go(async move {
                    let waiting = async {
                        set_aside.await;
                        sleep(pause).await;
                    };
                    tokio::join!(waiting, cleared);
                    Done::PauseOver(id)
                });
                if pause > MAY_GO_AFTER {
                    self.go(async move {
                        sleep(MAY_GO_AFTER).await;
                        Done::Rested(id)
                    });
                }
            }
            Action::PutAway(id, obituary) => {
                let Some(event) = self.held.get_mut(&id).and_then(|held| held.event.take()) else {
                    return;
                };
                let poison = self.poison.clone();
                self.go(
                    async move { Done::PutAway(id, poison.put_away(id, event, obituary).await) },
                );
            }
            Action::StopIntake => {
                self.ledger.intake_closed();
                let Some(mut source) = self.source.take() else {
                    return;
                };
                self.go(async move {
                    let result = source.stop().await;
                    Done::IntakeStopped(Box::new(source), result)
                });
            }
            Action::Tell(will) => {
                self.resilience.hurry();
                self.will.advance(will);
            }
            Action::StartIdleTimer(wait) => self.idle = Some((wait, Countdown::new(wait))),
            Action::StopIdleTimer => self.idle = None,
            Action::Report(status) => self.reports.status(status),
        }
    }

    fn run(&mut self, id: TaskId, turn: Turn) {
        let Some(content) = self.take_content(id) else {
            return;
        };
        let runner = Rc::clone(&self.runner);
        let will = self.will.subscribe();
        self.go(async move { Done::Task(id, Box::new(runner.run(id, content, turn, will).await)) });
    }

    fn name_of(&self, id: TaskId) -> Option<OsString> {
        self.held.get(&id)?.name.clone()
    }

    fn take_content(&mut self, id: TaskId) -> Option<Content> {
        self.held.get_mut(&id).and_then(|held| held.content.take())
    }

    fn go(&self, work: impl Future<Output = Done> + 'static) {
        self.under_way.push(Box::pin(work));
    }
}

/// Clears away what a task left, unless that is done, and gives what it took on disk.
async fn cleared(leftover: Option<Leftover>, disk_bytes: Rc<Cell<Option<u64>>>) -> Option<u64> {
    if let Some(leftover) = leftover {
        disk_bytes.set(leftover.clear().await);
    }
    disk_bytes.get()
}

/// The next delivery, or never while no event is wanted.
async fn receive(source: Option<&mut Source>) -> Result<Delivery, BrokerError> {
    match source {
        Some(source) => source.recv().await,
        None => std::future::pending().await,
    }
}

/// The end of a time limit, or never where there is none.
async fn over(limit: Option<&mut Countdown>) {
    match limit {
        Some(limit) => limit.over().await,
        None => std::future::pending().await,
    }
}

/// When the limit is reached, or never.
async fn reached(limit: Option<(Instant, Limit)>) -> Limit {
    match limit {
        Some((at, limit)) => {
            sleep_until(at).await;
            limit
        }
        None => std::future::pending().await,
    }
}
