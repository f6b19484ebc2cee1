//! Ends a task that takes too much memory or makes no progress. A task that can't be measured keeps running:
//! a watchdog must not fail a healthy task.

use std::convert::Infallible;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nix::libc::SIGTERM;
use tokio::sync::{oneshot, watch};
use tokio::time::sleep;
use tracing::warn;

use super::active_containers::ActiveContainer;
use super::output_capture::BytesWritten;
use super::process_tree::{self, Pid};
use super::shared_look::SharedLook;
use crate::blocking;
use crate::fault::TaskError;
use crate::process::{ShutdownPhase, ShutdownSender};

/// The interval between looks at memory.
const MEMORY_PACE: Duration = Duration::from_millis(500);
/// The longest interval between looks at progress. A tenth of the allowed stall is enough.
const STALL_PACE: Duration = Duration::from_secs(10);
/// CPU time below this fraction of the allowed stall is no progress: the runtime's own processes wake up now
/// and then.
const PROGRESS_PART: u64 = 1000;

/// The limits whose breach ends a task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResourceLimits {
    /// Resident bytes of its container.
    pub memory: Option<u64>,
    /// Time without progress.
    pub stall: Option<Duration>,
}

/// The signs of progress that aren't in `/proc`.
#[derive(Debug)]
pub(super) struct ProgressSources {
    /// The container's first process, once it is started.
    pub(super) leader: oneshot::Receiver<Pid>,
    /// The bytes that its outputs had so far.
    pub(super) outputs: [BytesWritten; 2],
    pub(super) outfile: Option<PathBuf>,
}

impl ResourceLimits {
    /// Watches until a limit is breached, then ends the task and returns the error; never returns otherwise.
    /// Stores the most memory seen in `peak`, and reports the container's first process to `entered`.
    pub(super) async fn watch(
        self,
        signs: ProgressSources,
        entered: &ActiveContainer,
        look: &SharedLook,
        shutdown: &ShutdownSender,
        peak: &mut Option<u64>,
    ) -> TaskError {
        let Ok(leader) = signs.leader.await else {
            // The container was not started; the caller reports that.
            return std::future::pending().await;
        };
        entered.found(leader);
        let Some(pace) = self.pace() else {
            return std::future::pending().await;
        };
        let look = look.join();
        let mut progress = IdleTracker::default();
        loop {
            sleep(pace).await;
            // Half the interval, so that tasks that began at different times share most looks.
            let Some(process_table) = look.no_older_than(pace / 2).await else {
                continue;
            };
            let limit = self.memory.unwrap_or(u64::MAX);
            let outfile = signs.outfile.clone();
            let measure = move || {
                let process_tree = process_table.below(leader);
                let memory = process_tree.memory(limit);
                let outfile = outfile.and_then(|path| fs::metadata(path).ok());
                (
                    process_tree.ticks,
                    memory,
                    outfile.map_or(0, |found| found.len()),
                )
            };
            let Ok((ticks, memory, outfile)) = blocking::start(measure).await else {
                continue;
            };
            if let Some(limit) = self.memory {
                *peak = Some(peak.unwrap_or(0).max(memory));
                if memory > limit {
                    warn!(memory, limit, "a task uses too much memory: it is killed");
                    // Killed at once, because it would take more memory during a grace period.
                    shutdown.advance(ShutdownPhase::Kill);
                    return TaskError::Memory { limit };
                }
            }
            if let Some(stall) = self.stall {
                let output = signs.outputs.iter().map(BytesWritten::bytes).sum::<u64>() + outfile;
                if progress.idle_for(ticks, output, pace, stall) >= stall {
                    warn!(stall_secs = stall.as_secs(), "a task stalls: it is ended");
                    shutdown.advance(ShutdownPhase::Terminate(SIGTERM));
                    return TaskError::Stalled { after: stall };
                }
            }
        }
    }

    fn pace(self) -> Option<Duration> {
        let memory = self.memory.map(|_| MEMORY_PACE);
        let stall = self.stall.map(|stall| (stall / 10).min(STALL_PACE));
        memory.into_iter().chain(stall).min()
    }
}

/// The last values seen to grow, and the time since. Counted in looks and not by the clock: a suspension of
/// the pilot, and of its tasks with it, is no stall.
#[derive(Debug, Default)]
struct IdleTracker {
    ticks: u64,
    output: u64,
    idle: Duration,
}

impl IdleTracker {
    fn idle_for(&mut self, ticks: u64, output: u64, pace: Duration, stall: Duration) -> Duration {
        let enough = (stall.as_secs() * process_tree::ticks_per_second() / PROGRESS_PART).max(2);
        // Fewer ticks mean that a process ended, which is activity too.
        let worked = ticks < self.ticks || ticks - self.ticks >= enough;
        if worked || output != self.output {
            *self = Self {
                ticks,
                output,
                idle: Duration::ZERO,
            };
        } else {
            self.idle += pace;
        }
        self.idle
    }
}

/// Passes on the pilot's shutdown phases. Never returns.
pub(super) async fn forward(
    mut from: watch::Receiver<ShutdownPhase>,
    to: &ShutdownSender,
) -> Infallible {
    loop {
        to.advance(*from.borrow_and_update());
        if from.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Duration = Duration::from_secs(1);
    const STALL: Duration = Duration::from_mins(1);

    #[test]
    fn only_time_without_work_and_output_counts_as_a_stall() {
        let mut progress = IdleTracker::default();
        let mut look = |ticks, output| progress.idle_for(ticks, output, PACE, STALL);
        assert_eq!(look(50, 0), Duration::ZERO);
        assert_eq!(look(51, 0), PACE, "a tick is the runtime's");
        assert_eq!(look(51, 0), PACE * 2);
        assert_eq!(look(51, 1), Duration::ZERO, "output");
        assert_eq!(look(100, 1), Duration::ZERO, "work");
        assert_eq!(look(90, 1), Duration::ZERO, "a process ended");
        assert_eq!(look(90, 1), PACE);
    }

    #[test]
    fn without_a_limit_nothing_is_looked_at() {
        assert_eq!(ResourceLimits::default().pace(), None);
        let both = ResourceLimits {
            memory: Some(1),
            stall: Some(Duration::from_secs(1)),
        };
        assert_eq!(both.pace(), Some(Duration::from_millis(100)));
    }

    #[tokio::test]
    async fn the_pilots_will_comes_first_and_is_never_taken_back() {
        let (pilots, own) = (ShutdownSender::new(), ShutdownSender::new());
        pilots.advance(ShutdownPhase::Terminate(1));
        let mut seen = own.subscribe();
        tokio::select! {
            never = forward(pilots.subscribe(), &own) => match never {},
            told = seen.wait_for(|shutdown| *shutdown == ShutdownPhase::Terminate(1)) => {
                assert!(told.is_ok());
            }
        }
        own.advance(ShutdownPhase::Kill);
        assert_eq!(own.current(), ShutdownPhase::Kill);
    }
}
