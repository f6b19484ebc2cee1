//! The measurements of one container: what it cost and how it ended. Filled while it runs, so that a task
//! that fails half-way is measured up to there.

use std::time::{Duration, Instant};

use crate::process::{ChildExit, ExitStatus, Leftovers, Usage};

/// Filled step by step; `None` for steps not reached.
#[derive(Debug, Clone, Default)]
pub struct TaskMetrics {
    /// CPU time and the largest process.
    pub usage: Option<Usage>,
    /// How the container's first process ended.
    pub exit: Option<ExitStatus>,
    pub container_time: Option<Duration>,
    /// The most resident memory that the watchdog saw, in bytes.
    pub container_memory: Option<u64>,
    /// When the image's own code began; not known without a gate.
    pub began: Option<Instant>,
    /// Whether the container waited when its turn came.
    pub waited: Option<bool>,
    /// The size of the result in bytes.
    pub output_bytes: Option<u64>,
    /// Processes that survived a kill.
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
