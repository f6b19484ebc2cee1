//! Performs the decisions of [`super::state`]: waits for the next thing to happen, turns it into an event,
//! carries out the actions. Owns the receipts, the results on their way out, and the timers.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

use super::broker_defaults::warn_of_deletion;
use super::dead_letter::{DeadLetters, Disposition, NotPutAway};
use super::deadline::{Deadline, DeadlineStep};
use super::disk_floor::DiskFloor;
use super::events::{PilotAction, PilotEvent};
use super::lookahead::Lookahead;
use super::recorder::{Recorder, Settlement};
use super::set_aside::MAY_GO_AFTER;
use super::state::{Conclusion, LoopRules, PilotState, failure_of};
use super::task_set::{TaskHandle, TaskNews, TaskSet};
use super::{ProgressReporter, Queues};
use crate::broker::{
    BrokerError, Content, Delivery, OutagePolicy, PublishError, Receipt, ResultAcceptance,
    ResultAcceptanceWatch, SettleError, Sink, Source, Verdict,
};
use crate::ids::TaskId;
use crate::process::SuspendAwareTimer;
use crate::records::EventOutcome;
use crate::signals::{Signal, Signals};
use crate::task::{EventCopy, Leftover, TaskOutcome, TaskReport};

/// How long closing the queues may go on after the pilot was told to end.
const CLOSED_WITHIN: Duration = Duration::from_millis(4_500);
/// The least time for closing the queues, even if the pilot was told to end long before.
const CLOSED_AT_ONCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct LoopEnd {
    /// Counts, failures, and what ended the loop.
    pub conclusion: Conclusion,
}

/// Settings of the loop beyond its rules and queues.
#[derive(Debug)]
pub struct DriverOptions {
    /// The destination of events that failed too often.
    pub dead_letters: DeadLetters,
    /// When the pilot must end.
    pub wall_time: Option<Deadline>,
    /// The space that must stay free on the disk.
    pub disk_floor: Option<DiskFloor>,
}

struct InFlightEvent {
    receipt: Receipt,
    name: Option<OsString>,
    /// The event until its task starts or is made ready.
    content: Option<Content>,
    /// Its task until that starts; dropping it calls the task off.
    task: Option<TaskHandle>,
    /// The event once its task ended: it may become a dead letter.
    event: Option<EventCopy>,
    /// The files that its task left on the disk.
    leftover: Option<Leftover>,
    /// The bytes that these files took, known once they are removed.
    disk_bytes: Rc<Cell<Option<u64>>>,
}

/// The end of something that was under way.
enum Completion {
    Published(TaskId, Result<(), PublishError>),
    /// The task's files are removed as well; they took so many bytes on disk.
    Settled(TaskId, Result<(), SettleError>, Option<u64>),
    Rested(TaskId),
    PauseOver(TaskId),
    PutAway(TaskId, Result<Disposition, NotPutAway>),
    DiskLow(String),
    IntakeStopped(Box<Source>, Result<(), BrokerError>),
}

/// Why the loop woke up.
enum Wakeup {
    Signal(Signal),
    Done(Completion),
    Task(TaskNews),
    Delivered(Result<Delivery, BrokerError>),
    Idle,
    ResultAcceptance(ResultAcceptance),
    WallTime(DeadlineStep),
}

struct Driver<'a> {
    tasks: TaskSet,
    sink: Option<Sink>,
    /// Absent while the intake is being stopped.
    source: Option<Source>,
    held: HashMap<TaskId, InFlightEvent>,
    /// Events that wait for a slot, in order.
    prepared: VecDeque<TaskId>,
    /// Bounded by the window and the number of events that may be set aside: a publish, two pauses or a settlement for each held event, and one stop.
    under_way: FuturesUnordered<LocalBoxFuture<'static, Completion>>,
    /// How long the queue may be silent, and the timer for the rest of that time.
    idle: Option<(Duration, SuspendAwareTimer)>,
    outage_policy: OutagePolicy,
    result_acceptance: ResultAcceptanceWatch,
    lookahead: Lookahead,
    /// A change of it that the state doesn't know yet.
    new_lookahead: Option<u16>,
    progress_reporter: &'a ProgressReporter,
    recorder: &'a mut Recorder,
    dead_letters: DeadLetters,
    wall_time: Option<Deadline>,
}

/// Runs events until the queue is idle, a failure or a signal closes the intake, and everything
/// taken is settled.
pub(super) async fn run(
    rules: LoopRules,
    queues: Queues,
    tasks: TaskSet,
    signals: &mut Signals,
    progress_reporter: &ProgressReporter,
    recorder: &mut Recorder,
    extras: DriverOptions,
) -> LoopEnd {
    let Queues {
        source,
        sink,
        outage_policy,
    } = queues;
    let lookahead = Lookahead::new(rules.slots);
    let (mut state, first) = PilotState::new(rules);
    let mut driver = Driver {
        tasks,
        sink: Some(sink),
        source: Some(source),
        held: HashMap::new(),
        prepared: VecDeque::new(),
        under_way: FuturesUnordered::new(),
        idle: None,
        result_acceptance: outage_policy.result_acceptance(),
        lookahead,
        new_lookahead: None,
        outage_policy,
        progress_reporter,
        recorder,
        dead_letters: extras.dead_letters,
        wall_time: extras.wall_time,
    };
    if let Some(floor) = extras.disk_floor {
        driver.spawn_local(async move { Completion::DiskLow(floor.crossed().await) });
    }
    driver.perform_all(first);
    driver.tend(&state);
    while !state.is_over() {
        let woken = driver.next(&state, signals).await;
        if let (Wakeup::Idle, Some(later)) = (&woken, driver.still_idle()) {
            driver.idle = Some(later);
            continue;
        }
        if let Some(event) = driver.event_of(woken) {
            let actions = state.on_event(event);
            driver.perform_all(actions);
        }
        if let Some(events) = driver.new_lookahead.take() {
            let actions = state.on_event(PilotEvent::Lookahead(events.into()));
            driver.perform_all(actions);
        }
        driver.tend(&state);
        let running = u64::try_from(state.running()).unwrap_or(u64::MAX);
        progress_reporter.counts(state.tally(), running);
        progress_reporter.reconnects(driver.outage_policy.stats().reconnects);
    }
    progress_reporter.final_counts(state.tally());
    driver.tasks.let_go().await;
    driver.close(&mut state, signals).await;
    LoopEnd {
        conclusion: state.conclude(),
    }
}

impl Driver<'_> {
    /// Closes the queues. Acknowledgements may still be owed, for minutes; a signal and the wall time end that soon.
    async fn close(mut self, state: &mut PilotState, signals: &mut Signals) {
        let began = Instant::now();
        let (sink, source) = (self.sink.take(), self.source.take());
        let closing = async {
            let source_closed = async {
                if let Some(source) = source {
                    source.close().await;
                }
            };
            let sink_closed = async {
                if let Some(sink) = sink {
                    sink.close().await;
                }
            };
            tokio::join!(source_closed, sink_closed)
        };
        let mut closing = pin!(closing);
        loop {
            let must_end = self.outage_policy.told_to_end_since();
            let end = must_end.map(|told| (told + CLOSED_WITHIN).max(began + CLOSED_AT_ONCE));
            let woken = tokio::select! {
                biased;
                _closed = &mut closing => return,
                signal = signals.recv() => Wakeup::Signal(signal),
                limit = reached(self.deadline()) => Wakeup::WallTime(limit),
                () = sleep_until(end.unwrap_or(began)), if end.is_some() => {
                    warn!("the queues are left unclosed: the pilot must end");
                    return;
                }
            };
            let Some(event) = self.event_of(woken) else {
                continue;
            };
            let is_second = must_end.is_some() && matches!(event, PilotEvent::Signal(_));
            let actions = state.on_event(event);
            self.perform_all(actions);
            if is_second {
                return;
            }
        }
    }

    fn deadline(&self) -> Option<(Instant, DeadlineStep)> {
        let (at, limit) = self.wall_time.as_ref()?.next(self.recorder.slowest())?;
        Some((Instant::from_std(at), limit))
    }

    /// Waits and decides nothing. Every future here is cancel-safe.
    async fn next(&mut self, state: &PilotState, signals: &mut Signals) -> Wakeup {
        let limit = self.deadline();
        let idle = self.idle.as_mut().map(|(_, countdown)| countdown);
        let may_take = state.wants_event() && self.tasks.may_take_event();
        let source = self.source.as_mut().filter(|_| may_take);
        tokio::select! {
            biased;
            signal = signals.recv() => Wakeup::Signal(signal),
            Some(done) = self.under_way.next() => Wakeup::Done(done),
            news = self.tasks.next() => Wakeup::Task(news),
            limit = reached(limit) => Wakeup::WallTime(limit),
            result_acceptance = self.result_acceptance.differs_from(state.result_acceptance()) => Wakeup::ResultAcceptance(result_acceptance),
            delivery = receive(source) => Wakeup::Delivered(delivery),
            () = over(idle) => Wakeup::Idle,
        }
    }

    /// The rest of the idle time, if its timer fired early: time without a connection doesn't count, because
    /// no event can come then.
    fn still_idle(&self) -> Option<(Duration, SuspendAwareTimer)> {
        let (wait, _) = self.idle.as_ref()?;
        if !self.tasks.may_take_event() {
            return Some((*wait, SuspendAwareTimer::new(*wait)));
        }
        let left = self.source.as_ref()?.idle_left(*wait);
        (!left.is_zero()).then(|| (*wait, SuspendAwareTimer::new(left)))
    }

    /// Turns a wake-up into an event for the state, if it is one, and keeps the delivery or source that came with
    /// it.
    fn event_of(&mut self, woken: Wakeup) -> Option<PilotEvent> {
        Some(match woken {
            Wakeup::Signal(signal) => {
                warn!(signal = signal.name(), "signal received");
                PilotEvent::Signal(signal.number())
            }
            Wakeup::Idle => {
                info!("no event came for as long as configured: taking no more");
                PilotEvent::IdleTimeout
            }
            Wakeup::ResultAcceptance(result_acceptance) => {
                match result_acceptance {
                    ResultAcceptance::Refuses => {
                        warn!("results are refused: no further event is taken");
                    }
                    ResultAcceptance::Takes => info!("no result waits any more that was refused"),
                }
                PilotEvent::ResultAcceptance(result_acceptance)
            }
            Wakeup::Delivered(Ok(delivery)) => {
                let (id, task) = self.tasks.next_task();
                self.recorder.received(id, &delivery);
                let Delivery {
                    content,
                    name,
                    receipt,
                    earlier_deliveries,
                } = delivery;
                warn_of_deletion(id, earlier_deliveries);
                self.held.insert(
                    id,
                    InFlightEvent {
                        receipt,
                        name,
                        content: Some(content),
                        task: Some(task),
                        event: None,
                        leftover: None,
                        disk_bytes: Rc::default(),
                    },
                );
                PilotEvent::Delivered(id, earlier_deliveries)
            }
            Wakeup::WallTime(limit) => {
                if let Some(wall_time) = &mut self.wall_time {
                    wall_time.passed(limit);
                }
                warn!(?limit, "the pilot's wall time comes to its end");
                PilotEvent::WallTime(limit)
            }
            Wakeup::Delivered(Err(error)) => {
                error!(%error, "no more events can be taken");
                PilotEvent::IntakeLost(error.to_string())
            }
            Wakeup::Done(done) => self.event_of_done(done),
            Wakeup::Task(TaskNews::Ended(id, report)) => {
                self.recorder.ended(id, &report);
                self.follow_lookahead(&report);
                PilotEvent::TaskEnded(id, self.outcome_of(id, *report))
            }
            Wakeup::Task(TaskNews::NoContainers(error)) => {
                error!(error = %error.repr(), "containers can't be made here: no more events are taken");
                PilotEvent::NoContainers(error)
            }
            Wakeup::Task(TaskNews::Waiting) => return None,
        })
    }

    /// Makes containers wait for events, and lets them go.
    fn tend(&mut self, state: &PilotState) {
        let Self {
            tasks,
            held,
            prepared,
            ..
        } = self;
        prepared.retain(|id| held.get(id).is_some_and(|held| held.task.is_some()));
        // In order: the first to start needs its container first.
        let mut waiting: Vec<(usize, &mut TaskHandle)> = held
            .iter_mut()
            .filter_map(|(id, held)| {
                let place = prepared.iter().position(|prepared| prepared == id)?;
                Some((place, held.task.as_mut()?))
            })
            .collect();
        waiting.sort_by_key(|(place, _)| *place);
        let handles = waiting.into_iter().map(|(_, handle)| handle);
        tasks.tend(state.running(), state.takes_events(), handles);
    }

    fn event_of_done(&mut self, done: Completion) -> PilotEvent {
        match done {
            Completion::Published(id, result) => {
                match &result {
                    Ok(()) => self.recorder.published(id),
                    Err(error) => self.not_published(id, error),
                }
                PilotEvent::Published(id, result)
            }
            Completion::PutAway(id, result) => {
                match &result {
                    Ok(Disposition::DeadLettered) => {
                        self.recorder.decided(id, EventOutcome::DeadLettered);
                    }
                    Ok(Disposition::Kept) => {
                        self.recorder.decided(id, EventOutcome::Rejected);
                    }
                    Err(error) => {
                        error!(task_id = %id, %error, "an event that failed too often could not be put away: it stays in its queue");
                    }
                }
                PilotEvent::PutAway(id, result)
            }
            Completion::Rested(id) => PilotEvent::Rested(id),
            Completion::PauseOver(id) => PilotEvent::PauseOver(id),
            Completion::DiskLow(reason) => {
                error!(reason, "no more events are taken, tasks are told to end");
                PilotEvent::DiskLow(reason)
            }
            Completion::Settled(id, result, disk_bytes) => {
                self.recorder.cleared(id, disk_bytes);
                self.recorder.settled(
                    id,
                    match &result {
                        Ok(()) => Settlement::Told,
                        Err(_) => Settlement::Lost,
                    },
                );
                if let Err(error) = result {
                    error!(task_id = %id, %error, "an event could not be settled: the broker will deliver it again");
                }
                PilotEvent::Settled(id)
            }
            Completion::IntakeStopped(source, result) => {
                if let Err(error) = result {
                    warn!(%error, "the intake did not stop in order: the broker takes back what it sent ahead");
                }
                self.source = Some(*source);
                PilotEvent::IntakeStopped
            }
        }
    }

    fn follow_lookahead(&mut self, report: &TaskReport) {
        let Some(source) = &self.source else { return };
        // An event that can't be decoded is no task, however soon it is over.
        if matches!(report.outcome, TaskOutcome::Interrupted) || report.trace.began.is_none() {
            return;
        }
        let round_trip = source.round_trip();
        if let Some(events) = self.lookahead.task_ended(report.wall, round_trip) {
            let round_trip_ms = round_trip.unwrap_or_default().as_millis();
            if events == 0 {
                info!(round_trip_ms, "no event is held ahead of its slot any more");
            } else {
                info!(
                    events,
                    round_trip_ms,
                    "events are held ahead of their slots, as the broker is far away"
                );
            }
            source.look_ahead(events);
            self.new_lookahead = Some(events);
        }
    }

    fn outcome_of(&mut self, id: TaskId, report: TaskReport) -> TaskOutcome {
        if let Some(held) = self.held.get_mut(&id) {
            held.event = Some(report.event);
            held.leftover = Some(report.leftover);
        }
        report.outcome
    }

    fn not_published(&mut self, id: TaskId, error: &PublishError) {
        match failure_of(error) {
            None => error!(task_id = %id, %error, "a result was not confirmed"),
            Some(failure) => {
                if matches!(error, PublishError::Unreadable { .. }) {
                    error!(task_id = %id, %error, "a result is lost");
                } else {
                    error!(task_id = %id, %error, "the broker refused a result");
                }
                self.recorder.failed(id, &failure);
            }
        }
    }

    fn perform_all(&mut self, actions: Vec<PilotAction>) {
        for action in actions {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: PilotAction) {
        match action {
            PilotAction::Start(id) => {
                let Some(held) = self.held.get_mut(&id) else {
                    return;
                };
                if let Some(task) = held.task.take() {
                    let gpus = self.tasks.start(task, held.content.take());
                    self.recorder.started(id, &gpus);
                }
            }
            PilotAction::Prepare(id) => {
                let Some(held) = self.held.get_mut(&id) else {
                    return;
                };
                if let (Some(task), Some(content)) = (&mut held.task, held.content.take()) {
                    TaskSet::prepare(task, content);
                    self.prepared.push_back(id);
                }
            }
            PilotAction::CallOff(id) => {
                if let Some(held) = self.held.get_mut(&id) {
                    held.task = None;
                }
            }
            PilotAction::Publish(id, content) => {
                let Some(sink) = &self.sink else {
                    return;
                };
                let confirmed = sink.publish_named(content, self.name_of(id));
                self.spawn_local(async move { Completion::Published(id, confirmed.await) });
            }
            PilotAction::Settle(id, verdict) => {
                let Some(held) = self.held.remove(&id) else {
                    return;
                };
                match verdict {
                    Verdict::Done => self.recorder.decided(id, EventOutcome::Done),
                    Verdict::Failed { .. } => {
                        self.recorder.decided(id, EventOutcome::Failed);
                    }
                    Verdict::Released => {
                        self.recorder.decided(id, EventOutcome::GivenBack);
                    }
                    Verdict::Rejected => {}
                }
                let settled = held.receipt.settle(verdict);
                // Not earlier: only now is the result sent, or known not to exist.
                let cleared = cleared(held.leftover, held.disk_bytes);
                self.spawn_local(async move {
                    let (result, disk_bytes) = tokio::join!(settled, cleared);
                    Completion::Settled(id, result, disk_bytes)
                });
            }
            PilotAction::SetAside(id, pause) => self.set_aside(id, pause),
            PilotAction::PutAway(id, failure_note) => {
                let Some(event) = self.held.get_mut(&id).and_then(|held| held.event.take()) else {
                    return;
                };
                let dead_letters = self.dead_letters.clone();
                self.spawn_local(async move {
                    Completion::PutAway(id, dead_letters.dispose(id, event, failure_note).await)
                });
            }
            PilotAction::StopIntake => {
                self.recorder.intake_closed();
                let Some(mut source) = self.source.take() else {
                    return;
                };
                self.spawn_local(async move {
                    let result = source.stop().await;
                    Completion::IntakeStopped(Box::new(source), result)
                });
            }
            PilotAction::Tell(shutdown) => {
                self.outage_policy.shorten_waits();
                self.tasks.tell(shutdown);
            }
            PilotAction::StartIdleTimer(wait) => self.start_idle_timer(wait),
            PilotAction::StopIdleTimer => self.idle = None,
            PilotAction::Report(status) => self.progress_reporter.status(status),
        }
    }

    fn set_aside(&mut self, id: TaskId, pause: Duration) {
        let Some(held) = self.held.get_mut(&id) else {
            return;
        };
        // Recorded now: the pilot may end before the event goes back.
        self.recorder.decided(id, EventOutcome::Failed);
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        info!(task_id = %id, pause_ms, "an event that failed before waits before it goes back");
        let set_aside = held.receipt.set_aside();
        let cleared = cleared(held.leftover.take(), Rc::clone(&held.disk_bytes));
        self.spawn_local(async move {
            let waiting = async {
                set_aside.await;
                sleep(pause).await;
            };
            tokio::join!(waiting, cleared);
            Completion::PauseOver(id)
        });
        if pause > MAY_GO_AFTER {
            self.spawn_local(async move {
                sleep(MAY_GO_AFTER).await;
                Completion::Rested(id)
            });
        }
    }

    fn start_idle_timer(&mut self, wait: Duration) {
        if let Some(source) = &mut self.source {
            source.start_idle_clock();
        }
        self.idle = Some((wait, SuspendAwareTimer::new(wait)));
    }

    fn name_of(&self, id: TaskId) -> Option<OsString> {
        self.held.get(&id)?.name.clone()
    }

    fn spawn_local(&self, work: impl Future<Output = Completion> + 'static) {
        self.under_way.push(Box::pin(work));
    }
}

/// Removes the files that a task left, unless that is done, and returns the bytes that they took on disk.
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
async fn over(limit: Option<&mut SuspendAwareTimer>) {
    match limit {
        Some(limit) => limit.over().await,
        None => std::future::pending().await,
    }
}

/// When the limit is reached, or never.
async fn reached(limit: Option<(Instant, DeadlineStep)>) -> DeadlineStep {
    match limit {
        Some((at, limit)) => {
            sleep_until(at).await;
            limit
        }
        None => std::future::pending().await,
    }
}
