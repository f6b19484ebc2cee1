//! The input of the event loop ([`PilotEvent`]) and its decisions ([`PilotAction`]).

use super::dead_letter::{Disposition, FailureNote, NotPutAway};
use super::deadline::DeadlineStep;
use crate::broker::{Content, PublishError, ResultAcceptance, Verdict};
use crate::fault::TaskError;
use crate::ids::TaskId;
use crate::process::ShutdownPhase;
use crate::task::TaskOutcome;

use std::time::Duration;

#[derive(Debug)]
pub enum PilotEvent {
    /// The broker delivered an event, to be run as this task. The number counts earlier deliveries, if the
    /// broker tells.
    Delivered(TaskId, Option<u64>),
    /// No event came for as long as a slot was free.
    IdleTimeout,
    /// The connection to the incoming queues is gone.
    IntakeLost(String),
    /// The broker delivers no more events, and has prefetched ones back.
    IntakeStopped,
    /// A task's container ended and its files were read.
    TaskEnded(TaskId, TaskOutcome),
    /// Containers can't be made here any more. No event has failed by that.
    NoContainers(TaskError),
    /// The broker answered for a task's result, or never will.
    Published(TaskId, Result<(), PublishError>),
    /// A task's event was settled, or can't be any more.
    Settled(TaskId),
    /// An event that is set aside has waited for long enough to go back early.
    Rested(TaskId),
    /// The pause of an event that is set aside is over.
    PauseOver(TaskId),
    /// An event that failed too often is a dead letter now, or could not become one.
    PutAway(TaskId, Result<Disposition, NotPutAway>),
    /// Results are refused for now, or taken again.
    ResultAcceptance(ResultAcceptance),
    /// So many events are to be held beyond the slots, if that is more than the window.
    Lookahead(usize),
    /// The pilot's wall time is about to end.
    WallTime(DeadlineStep),
    /// Too little space is free on the disk.
    DiskLow(String),
    Signal(i32),
}

/// An action for the driver, which performs them in order.
#[derive(Debug)]
#[cfg_attr(test, derive(PartialEq))]
pub enum PilotAction {
    Start(TaskId),
    /// Make a task ready while others run; its container waits for [`PilotAction::Start`].
    Prepare(TaskId),
    /// Don't start a task that was made ready; answered by [`PilotEvent::TaskEnded`].
    CallOff(TaskId),
    /// Take no more events, give back prefetched ones; answered by [`PilotEvent::IntakeStopped`].
    StopIntake,
    /// Send a task's result; answered by [`PilotEvent::Published`].
    Publish(TaskId, Content),
    /// Settle a task's event; answered by [`PilotEvent::Settled`].
    Settle(TaskId, Verdict),
    /// Hold a task's event for this long, outside the window. [`PilotEvent::Rested`] follows if the pause is
    /// long enough for it, then [`PilotEvent::PauseOver`].
    SetAside(TaskId, Duration),
    /// Put an event away that failed too often; answered by [`PilotEvent::PutAway`].
    PutAway(TaskId, FailureNote),
    /// Tell every running task.
    Tell(ShutdownPhase),
    /// Fire [`PilotEvent::IdleTimeout`] after this long; replaces a timer that is running.
    StartIdleTimer(Duration),
    /// Do not fire [`PilotEvent::IdleTimeout`].
    StopIdleTimer,
    Report(Status),
}

/// The phases of a pilot's life, by the names that services know.
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
