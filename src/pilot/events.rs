//! What can happen to the event loop ([`PilotEvent`]), and what it can decide to do ([`PilotAction`]).

use super::dead_letter::{Disposition, FailureNote, NotPutAway};
use super::deadline::DeadlineStep;
use crate::broker::{Content, PublishError, ResultAcceptance, Verdict};
use crate::ids::TaskId;
use crate::process::ShutdownPhase;
use crate::task::TaskOutcome;

use std::time::Duration;

#[derive(Debug)]
pub enum PilotEvent {
    /// The broker handed out an event; it is to be run as this task. If the broker says so, it did so
    /// this often before.
    Delivered(TaskId, Option<u64>),
    /// No event came for as long as a slot was free.
    IdleTimeout,
    /// The connection that events come from is gone.
    IntakeLost(String),
    /// The broker hands out no more events, and has back what it had sent ahead.
    IntakeStopped,
    /// A task's container ended and its files were read.
    TaskEnded(TaskId, TaskOutcome),
    /// The broker answered, or never will, for a task's result.
    Published(TaskId, Result<(), PublishError>),
    /// A task's event was settled, or can't be any more.
    Settled(TaskId),
    /// An event that is set aside has waited for long enough to go back early.
    Rested(TaskId),
    /// It has waited for as long as it was to.
    PauseOver(TaskId),
    /// An event that failed too often is a dead letter now, or could not become one.
    PutAway(TaskId, Result<Disposition, NotPutAway>),
    /// Results are refused for now, or taken again.
    ResultAcceptance(ResultAcceptance),
    /// The pilot's wall time comes to its end.
    WallTime(DeadlineStep),
    /// The disk is fuller than it may be.
    DiskLow(String),
    Signal(i32),
}

/// Something is to be done, in this order.
#[derive(Debug)]
#[cfg_attr(test, derive(PartialEq))]
pub enum PilotAction {
    Start(TaskId),
    /// Make everything ready for its container while others run: it waits for [`PilotAction::Start`].
    Prepare(TaskId),
    /// Never start it after all; answered by [`PilotEvent::TaskEnded`].
    CallOff(TaskId),
    /// Take no more events, give back what was sent ahead; answered by [`PilotEvent::IntakeStopped`].
    StopIntake,
    /// Send a task's result; answered by [`PilotEvent::Published`].
    Publish(TaskId, Content),
    /// Settle a task's event; answered by [`PilotEvent::Settled`].
    Settle(TaskId, Verdict),
    /// Hold a task's event for so long, beside those that the broker may send: [`PilotEvent::Rested`], if it
    /// takes longer than that, and [`PilotEvent::PauseOver`] follow.
    SetAside(TaskId, Duration),
    /// Put an event away that failed too often; answered by [`PilotEvent::PutAway`].
    PutAway(TaskId, FailureNote),
    /// Tell every running task.
    Tell(ShutdownPhase),
    /// Fire [`PilotEvent::IdleTimeout`] after this long, instead of when it was to fire before.
    StartIdleTimer(Duration),
    /// Do not fire [`PilotEvent::IdleTimeout`].
    StopIdleTimer,
    Report(Status),
}

/// The phases of a pilot's life, by the names that the services around it know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Started,
    RunningInitCommand,
    AwaitingFirstMessage,
    /// At least one event came.
    Tasking,
    /// No more events are taken; tasks still run.
    PendingRemainingTasks,
    Done,
    FatalError,
}

impl Status {
    /// The name as services know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Started => "Started",
            Self::RunningInitCommand => "RunningInitCommand",
            Self::AwaitingFirstMessage => "AwaitingFirstMessage",
            Self::Tasking => "Tasking",
            Self::PendingRemainingTasks => "PendingRemainingTasks",
            Self::Done => "Done",
            Self::FatalError => "FatalError",
        }
    }
}
