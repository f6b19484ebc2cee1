//! The event loop's decisions: an event in, actions out. Synchronous, without I/O or a clock, so that every
//! rule about acknowledgements is tested without a process.
//!
//! The rules about an event:
//! - it is acknowledged only when its task succeeded and its result, if any, is confirmed;
//! - a failed one goes back to the queue: after a pause if it failed before, during which it takes no place
//!   from others; and if the failure closes the intake, only after the intake is closed, so that this pilot
//!   does not get it again;
//! - if the operator asked for dead letters, one that failed on its last allowed delivery, or would fail each
//!   time, becomes one, and only then leaves the queue. If it can't, it is given back, and the intake closes;
//! - while results are refused, no event is taken and no task is started. The results wait; if they can't be
//!   sent in time, their events are given back once the intake is closed;
//! - one that failed through no fault of its own or its task's is given back without a mark against it, and
//!   such a failure always closes the intake, because it would happen to every event here;
//! - in all other cases it goes back.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use nix::libc::SIGTERM;

use super::dead_letter::{Disposition, FailureNote, NotPutAway};
use super::deadline::DeadlineStep;
use super::events::{PilotAction, PilotEvent, Status};
use super::requeue_backoff;
use super::set_aside::{FailedEvents, SetAsideStep};
use crate::broker::{PublishError, ResultAcceptance, Verdict};
use crate::config::OnTaskError;
use crate::fault::{Failures, FaultClass, TaskError};
use crate::ids::TaskId;
use crate::process::ShutdownPhase;
use crate::stats::Tally;
use crate::task::TaskOutcome;

/// The part of the configuration that decisions need.
#[derive(Debug, Clone)]
pub struct LoopRules {
    /// How many tasks may run at once.
    pub slots: usize,
    /// How many unsettled events to hold at most, results on their way to the broker included, unless short
    /// tasks need more: [`PilotEvent::Lookahead`].
    pub window: usize,
    /// Whether further events are taken after a task failed.
    pub on_task_error: OnTaskError,
    /// Deliveries after which an event that fails each time is taken out of the queue. `None`: never.
    pub max_deliveries: Option<u64>,
    /// How long to wait for the first event.
    pub first_event_timeout: Duration,
    /// How long to wait for a further event while a slot is free.
    pub idle_timeout: Duration,
}

impl LoopRules {
    /// Whether an event with this failure becomes a dead letter.
    fn is_over(&self, error: &TaskError, earlier_deliveries: Option<u64>) -> bool {
        let was_last_try = self
            .max_deliveries
            .zip(earlier_deliveries)
            .is_some_and(|(max, earlier)| earlier.saturating_add(1) >= max);
        let is_in_vain = self.max_deliveries.is_some() && error.is_permanent();
        error.class().is_events_own() && (was_last_try || is_in_vain)
    }
}

#[derive(Debug)]
pub struct PilotState {
    rules: LoopRules,
    intake: IntakeState,
    result_acceptance: ResultAcceptance,
    shutdown: ShutdownPhase,
    signal: Option<i32>,
    tasks: HashMap<TaskId, EventStage>,
    /// Failed events that wait before they go back.
    failed_events: FailedEvents,
    /// How many events to hold beyond the slots, if that is more than the window.
    lookahead: usize,
    /// Events that wait for a slot, in order. Empty once the intake is closed.
    waiting: VecDeque<TaskId>,
    /// How often the broker delivered an event before, if it says so.
    earlier: HashMap<TaskId, Option<u64>>,
    disk_low: Option<String>,
    no_containers: Option<TaskError>,
    tally: Tally,
    failures: Failures,
    broken: Option<FaultClass>,
    fatal: Option<String>,
}

/// Whether events are taken. Moves forward only.
#[derive(Debug)]
enum IntakeState {
    Open,
    /// The broker was asked to stop; verdicts that must not come back to us wait here.
    Stopping(Vec<(TaskId, Verdict)>),
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EventStage {
    /// Made ready, for the next free slot.
    Waiting,
    Running,
    Publishing,
    /// On its way to the dead letters.
    Leaving,
    /// Failed, and waits before it goes back.
    Pausing,
    Settling,
}

#[derive(Debug)]
pub struct Conclusion {
    pub tally: Tally,
    pub failures: Failures,
    /// The class of the first failure that was neither a task's nor an event's fault.
    pub broken: Option<FaultClass>,
    /// The error that ended the pilot early, if any.
    pub fatal: Option<String>,
    /// The message that the disk is too full, if that ended the pilot.
    pub disk_low: Option<String>,
    /// Why no container could be made for a further event.
    pub no_containers: Option<TaskError>,
    /// The first signal that the pilot got.
    pub signal: Option<i32>,
}

impl PilotState {
    /// The state of a connected pilot without an event, and its first actions.
    #[must_use]
    pub fn new(rules: LoopRules) -> (Self, Vec<PilotAction>) {
        let first = vec![
            PilotAction::Report(Status::AwaitingFirstMessage),
            PilotAction::StartIdleTimer(rules.first_event_timeout),
        ];
        let state = Self {
            rules,
            intake: IntakeState::Open,
            result_acceptance: ResultAcceptance::Takes,
            shutdown: ShutdownPhase::Run,
            signal: None,
            tasks: HashMap::new(),
            failed_events: FailedEvents::default(),
            lookahead: 0,
            waiting: VecDeque::new(),
            earlier: HashMap::new(),
            disk_low: None,
            no_containers: None,
            tally: Tally::default(),
            failures: Failures::default(),
            broken: None,
            fatal: None,
        };
        (state, first)
    }

    /// Whether to take another event now, to run it or to make it ready.
    #[must_use]
    pub fn wants_event(&self) -> bool {
        matches!(self.intake, IntakeState::Open)
            && self.result_acceptance == ResultAcceptance::Takes
            && self.places_taken() < self.window()
    }

    /// How many unsettled events to hold at most.
    fn window(&self) -> usize {
        self.rules.window.max(self.rules.slots + self.lookahead)
    }

    fn places_taken(&self) -> usize {
        self.tasks
            .len()
            .saturating_sub(self.failed_events.set_aside())
    }

    /// Whether another event could be started now.
    fn could_start(&self) -> bool {
        self.wants_event() && self.has_free_slot()
    }

    fn has_free_slot(&self) -> bool {
        self.running() < self.rules.slots
    }

    /// Whether a task may start now: not while results are refused, because its own would only wait, too.
    fn may_start(&self) -> bool {
        self.has_free_slot() && self.result_acceptance == ResultAcceptance::Takes
    }

    /// Whether results are taken, by the last report.
    #[must_use]
    pub fn result_acceptance(&self) -> ResultAcceptance {
        self.result_acceptance
    }

    #[must_use]
    pub fn running(&self) -> usize {
        self.tasks
            .values()
            .filter(|stage| **stage == EventStage::Running)
            .count()
    }

    /// Whether events are taken.
    #[must_use]
    pub fn takes_events(&self) -> bool {
        matches!(self.intake, IntakeState::Open)
    }

    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.intake, IntakeState::Stopped) && self.tasks.is_empty()
    }

    /// The outcome of the loop.
    #[must_use]
    pub fn conclude(self) -> Conclusion {
        Conclusion {
            tally: self.tally,
            failures: self.failures,
            broken: self.broken,
            fatal: self.fatal,
            disk_low: self.disk_low,
            no_containers: self.no_containers,
            signal: self.signal,
        }
    }

    /// Decides what to do about an event. One about a task that isn't in the matching stage changes nothing.
    pub fn on_event(&mut self, event: PilotEvent) -> Vec<PilotAction> {
        let mut actions = Vec::new();
        match event {
            PilotEvent::Delivered(id, earlier) => self.delivered(id, earlier, &mut actions),
            PilotEvent::IdleTimeout | PilotEvent::WallTime(DeadlineStep::NoMoreTasks) => {
                self.stop_intake(&mut actions);
            }
            PilotEvent::IntakeLost(reason) => {
                self.fatal.get_or_insert(reason);
                self.stop_intake(&mut actions);
            }
            PilotEvent::IntakeStopped => self.intake_stopped(&mut actions),
            PilotEvent::TaskEnded(id, outcome) => self.task_ended(id, outcome, &mut actions),
            PilotEvent::NoContainers(error) => {
                self.broken.get_or_insert(error.class());
                self.no_containers.get_or_insert(error);
                self.stop_intake(&mut actions);
            }
            PilotEvent::Published(id, result) => self.published(id, result, &mut actions),
            PilotEvent::Settled(id) => self.settled(id, &mut actions),
            PilotEvent::ResultAcceptance(result_acceptance) => {
                self.result_acceptance_changed(result_acceptance, &mut actions);
            }
            PilotEvent::Lookahead(events) => self.look_ahead(events, &mut actions),
            PilotEvent::Rested(id) => {
                let steps = self.failed_events.rested(id);
                self.take_steps(steps, &mut actions);
            }
            PilotEvent::PauseOver(id) => {
                let steps = self.failed_events.pause_over(id);
                self.take_steps(steps, &mut actions);
            }
            PilotEvent::PutAway(id, result) => self.dispose(id, result, &mut actions),
            PilotEvent::WallTime(DeadlineStep::TellTasks) => {
                self.end_tasks(ShutdownPhase::Terminate(SIGTERM), &mut actions);
            }
            PilotEvent::WallTime(DeadlineStep::KillTasks) => {
                self.end_tasks(ShutdownPhase::Kill, &mut actions);
            }
            PilotEvent::DiskLow(reason) => {
                self.disk_low.get_or_insert(reason);
                self.end_tasks(ShutdownPhase::Terminate(SIGTERM), &mut actions);
            }
            PilotEvent::Signal(signal) => {
                self.signal.get_or_insert(signal);
                let next = match self.shutdown {
                    ShutdownPhase::Run => ShutdownPhase::Terminate(signal),
                    ShutdownPhase::Terminate(_) | ShutdownPhase::Kill => ShutdownPhase::Kill,
                };
                self.end_tasks(next, &mut actions);
            }
        }
        actions
    }

    /// Phases move forward only.
    fn end_tasks(&mut self, shutdown: ShutdownPhase, actions: &mut Vec<PilotAction>) {
        self.shutdown = match (self.shutdown, shutdown) {
            (ShutdownPhase::Run, next)
            | (ShutdownPhase::Terminate(_), next @ ShutdownPhase::Kill) => next,
            (now, _) => now,
        };
        self.stop_intake(actions);
        actions.push(PilotAction::Tell(self.shutdown));
    }

    fn delivered(&mut self, id: TaskId, earlier: Option<u64>, actions: &mut Vec<PilotAction>) {
        self.tally.received += 1;
        self.earlier.insert(id, earlier);
        if !matches!(self.intake, IntakeState::Open) {
            self.released(id, actions);
            return;
        }
        if self.tally.received == 1 {
            actions.push(PilotAction::Report(Status::Tasking));
        }
        if self.may_start() {
            self.start(id, actions);
        } else {
            self.tasks.insert(id, EventStage::Waiting);
            self.waiting.push_back(id);
            actions.push(PilotAction::Prepare(id));
        }
        actions.push(if self.could_start() {
            PilotAction::StartIdleTimer(self.rules.idle_timeout)
        } else {
            PilotAction::StopIdleTimer
        });
    }

    fn start(&mut self, id: TaskId, actions: &mut Vec<PilotAction>) {
        self.tally.started += 1;
        self.tasks.insert(id, EventStage::Running);
        actions.push(PilotAction::Start(id));
    }

    fn task_ended(&mut self, id: TaskId, outcome: TaskOutcome, actions: &mut Vec<PilotAction>) {
        let could_start = self.could_start();
        if !self.advance(id, EventStage::Running, EventStage::Publishing)
            && !self.advance(id, EventStage::Waiting, EventStage::Publishing)
        {
            return;
        }
        match outcome {
            TaskOutcome::Output(result) => actions.push(PilotAction::Publish(id, result)),
            TaskOutcome::NoOutput => {
                self.tally.no_output += 1;
                self.succeeded(id, actions);
            }
            TaskOutcome::Failed(error) => self.failed(id, &error, actions),
            TaskOutcome::Interrupted => self.released(id, actions),
        }
        self.start_next(actions);
        self.restart_idle_timer(could_start, actions);
    }

    fn start_next(&mut self, actions: &mut Vec<PilotAction>) {
        if self.may_start()
            && let Some(next) = self.waiting.pop_front()
        {
            self.start(next, actions);
        }
    }

    /// While results are refused, no event is asked for, so the idle timer stops.
    fn result_acceptance_changed(
        &mut self,
        result_acceptance: ResultAcceptance,
        actions: &mut Vec<PilotAction>,
    ) {
        let could_start = self.could_start();
        self.result_acceptance = result_acceptance;
        match result_acceptance {
            ResultAcceptance::Refuses if could_start => actions.push(PilotAction::StopIdleTimer),
            ResultAcceptance::Refuses => {}
            ResultAcceptance::Takes => {
                while self.may_start() && !self.waiting.is_empty() {
                    self.start_next(actions);
                }
                self.restart_idle_timer(could_start, actions);
            }
        }
    }

    fn look_ahead(&mut self, events: usize, actions: &mut Vec<PilotAction>) {
        let could_start = self.could_start();
        self.lookahead = events;
        if could_start && !self.could_start() {
            actions.push(PilotAction::StopIdleTimer);
        }
        self.restart_idle_timer(could_start, actions);
    }

    fn settled(&mut self, id: TaskId, actions: &mut Vec<PilotAction>) {
        let could_start = self.could_start();
        self.tasks.remove(&id);
        self.earlier.remove(&id);
        self.restart_idle_timer(could_start, actions);
    }

    /// The idle time runs only while an event could be started.
    fn restart_idle_timer(&self, could_start: bool, actions: &mut Vec<PilotAction>) {
        if !could_start && self.could_start() {
            actions.push(PilotAction::StartIdleTimer(self.rules.idle_timeout));
        }
    }

    fn published(
        &mut self,
        id: TaskId,
        result: Result<(), PublishError>,
        actions: &mut Vec<PilotAction>,
    ) {
        if self.tasks.get(&id) != Some(&EventStage::Publishing) {
            return;
        }
        let Err(error) = result else {
            self.tally.published += 1;
            self.succeeded(id, actions);
            return;
        };
        if let Some(error) = failure_of(&error) {
            let could_start = self.could_start();
            self.failed(id, &error, actions);
            self.restart_idle_timer(could_start, actions);
        } else {
            self.fatal.get_or_insert(error.to_string());
            self.stop_intake(actions);
            self.released(id, actions);
        }
    }

    fn succeeded(&mut self, id: TaskId, actions: &mut Vec<PilotAction>) {
        self.tally.succeeded += 1;
        self.tasks.insert(id, EventStage::Settling);
        actions.push(PilotAction::Settle(id, Verdict::Done));
    }

    fn failed(&mut self, id: TaskId, error: &TaskError, actions: &mut Vec<PilotAction>) {
        self.tally.failed += 1;
        let class = error.class();
        if !class.is_events_own() {
            self.broken.get_or_insert(class);
        }
        let verdict = if class.is_events_own() {
            Verdict::Failed {
                reason: error.repr(),
            }
        } else {
            Verdict::Released
        };
        if self.closes_intake(error) {
            self.stop_intake(actions);
        }
        self.failures.record(error);
        let earlier = self.earlier.get(&id).copied().flatten();
        if self.rules.is_over(error, earlier) {
            // No pilot gets it again, so it need not wait for the intake to close.
            self.tasks.insert(id, EventStage::Leaving);
            let (error, deliveries) = (error.clone(), earlier.unwrap_or(0).saturating_add(1));
            actions.push(PilotAction::PutAway(id, FailureNote { error, deliveries }));
        } else {
            self.give_back(id, verdict, actions);
        }
    }

    fn dispose(
        &mut self,
        id: TaskId,
        result: Result<Disposition, NotPutAway>,
        actions: &mut Vec<PilotAction>,
    ) {
        if self.tasks.get(&id) != Some(&EventStage::Leaving) {
            return;
        }
        let verdict = match result {
            Ok(Disposition::DeadLettered) => {
                self.tally.dead_lettered += 1;
                Verdict::Done
            }
            Ok(Disposition::Kept) => {
                self.tally.rejected += 1;
                Verdict::Rejected
            }
            Err(error) => {
                // Another run would fail as well, and the broker would delete the event in the end.
                if let NotPutAway::Refused(reason) = error {
                    self.fatal.get_or_insert(reason);
                }
                self.stop_intake(actions);
                self.give_back(id, Verdict::Released, actions);
                return;
            }
        };
        self.tasks.insert(id, EventStage::Settling);
        actions.push(PilotAction::Settle(id, verdict));
    }

    fn released(&mut self, id: TaskId, actions: &mut Vec<PilotAction>) {
        self.tally.given_back += 1;
        self.give_back(id, Verdict::Released, actions);
    }

    /// Settles at once, or, while the intake is closing, once it is closed.
    fn give_back(&mut self, id: TaskId, verdict: Verdict, actions: &mut Vec<PilotAction>) {
        let earlier = self.earlier.get(&id).copied().flatten();
        let pause = requeue_backoff::before(&verdict, earlier);
        match &mut self.intake {
            IntakeState::Open if !pause.is_zero() => {
                self.tasks.insert(id, EventStage::Pausing);
                let steps = self.failed_events.add(id, verdict, pause);
                self.take_steps(steps, actions);
                return;
            }
            IntakeState::Stopping(held) => held.push((id, verdict)),
            IntakeState::Open | IntakeState::Stopped => {
                actions.push(PilotAction::Settle(id, verdict));
            }
        }
        self.tasks.insert(id, EventStage::Settling);
    }

    /// An event that is set aside makes room in the window, so that the queue's silence counts again.
    fn take_steps(&mut self, steps: Vec<SetAsideStep>, actions: &mut Vec<PilotAction>) {
        for step in steps {
            match step {
                SetAsideStep::SetAside(id, pause) => actions.push(PilotAction::SetAside(id, pause)),
                SetAsideStep::GoBack(id, verdict) => {
                    self.tasks.insert(id, EventStage::Settling);
                    actions.push(PilotAction::Settle(id, verdict));
                }
            }
        }
    }

    fn closes_intake(&self, error: &TaskError) -> bool {
        if !error.class().is_events_own() {
            return true;
        }
        match &self.rules.on_task_error {
            OnTaskError::Continue => false,
            OnTaskError::StopListening { except } => {
                !error.names().iter().any(|name| except.contains(*name))
            }
        }
    }

    fn stop_intake(&mut self, actions: &mut Vec<PilotAction>) {
        if matches!(self.intake, IntakeState::Open) {
            let held = self.failed_events.take_all().collect::<Vec<_>>();
            for (id, _) in &held {
                self.tasks.insert(*id, EventStage::Settling);
            }
            self.intake = IntakeState::Stopping(held);
            actions.push(PilotAction::StopIdleTimer);
            // Services expect this status even if no task remains. A pilot without an event skips it, unless
            // it was told to stop: then this is its last status.
            if self.tally.received > 0 || self.signal.is_some() {
                actions.push(PilotAction::Report(Status::PendingRemainingTasks));
            }
            actions.push(PilotAction::StopIntake);
            actions.extend(self.waiting.drain(..).map(PilotAction::CallOff));
        }
    }

    fn intake_stopped(&mut self, actions: &mut Vec<PilotAction>) {
        if let IntakeState::Stopping(held) =
            std::mem::replace(&mut self.intake, IntakeState::Stopped)
        {
            actions.extend(
                held.into_iter()
                    .map(|(id, verdict)| PilotAction::Settle(id, verdict)),
            );
        }
    }

    /// Moves a task from one stage to the next; false if it isn't in `from`.
    fn advance(&mut self, id: TaskId, from: EventStage, to: EventStage) -> bool {
        match self.tasks.get_mut(&id) {
            Some(stage) if *stage == from => {
                *stage = to;
                true
            }
            _ => false,
        }
    }
}

/// The failure of a task whose result the broker can't take, however often it is sent. `None` if the broker
/// was away or refused the result, for as long as an outage may last.
pub(super) fn failure_of(error: &PublishError) -> Option<TaskError> {
    match error {
        PublishError::SessionLost { .. }
        | PublishError::Unroutable { .. }
        | PublishError::Nacked { .. }
        | PublishError::Spool { .. } => None,
        PublishError::WrongEncoding => Some(TaskError::Publish {
            message: error.to_string(),
            class: FaultClass::Broker,
        }),
        PublishError::Unreadable { .. } => Some(TaskError::Os(error.to_string())),
        PublishError::TooLarge { bytes, limit } => Some(TaskError::ResultTooLarge {
            bytes: *bytes,
            limit: *limit,
        }),
    }
}

#[cfg(test)]
mod tests;
