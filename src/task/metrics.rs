//! The measurements of one container: what it cost and how it ended. Filled while it runs, so that a task
//! that fails half-way has as much of it as one that succeeds.

use std::time::Duration;

use crate::process::{ChildExit, ExitStatus, Leftovers, Usage};

/// Filled bit by bit; `None` is what never happened.
#[derive(Debug, Clone, Default)]
pub struct TaskMetrics {
    /// CPU time and the largest process.
    pub usage: Option<Usage>,
    /// How the container's first process ended.
    pub exit: Option<ExitStatus>,
    pub container_time: Option<Duration>,
    /// The most resident memory that the guard saw.
    pub container_memory: Option<u64>,
    /// Bytes of the result.
    pub output_bytes: Option<u64>,
    /// Processes of it that a kill did not end.
    pub survivors: usize,
}

impl TaskMetrics {
    pub(super) fn ended(&mut self, ended: &ChildExit) {
        self.usage = Some(ended.usage);
        self.exit = Some(ended.exit);
        self.container_time = Some(ended.wall);
        self.survivors = match &ended.leftovers {
            Leftovers::Survive(pids) => pids.len(),
            Leftovers::None | Leftovers::Swept => 0,
        };
    }
}
