//! A time limit that counts only the time in which the pilot could run. HTCondor suspends a pilot and its
//! tasks (by signals or by freezing the cgroup) without notice, so a limit by the wall clock would end tasks
//! that did not run.
//!
//! The timer sleeps in steps. A step that took much longer than intended counts only with its intended
//! length. The price is a wake-up at least every twenty seconds, and more often only towards the limit. A
//! pause adds at most one step to the count.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

const LONGEST: Duration = Duration::from_secs(20);
/// The shortest step, except for the last one.
const SHORTEST: Duration = Duration::from_millis(100);
/// A step is this fraction of the remaining time, so that a pause adds little to any limit.
const PART: u32 = 16;
/// How late a wake-up may be on a busy machine before it counts as a pause.
const LATE: Duration = Duration::from_millis(100);

/// The remaining time of a limit.
#[derive(Debug, Clone)]
pub struct SuspendAwareTimer {
    left: Duration,
    counted_until: Instant,
}

impl SuspendAwareTimer {
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self {
            left: limit,
            counted_until: Instant::now(),
        }
    }

    /// Returns when the time is up. Cancel-safe: the time keeps counting after the future is dropped, if the
    /// timer is looked at again within a step.
    pub async fn over(&mut self) {
        while !self.is_over() {
            sleep_until(self.counted_until + self.step()).await;
        }
    }

    pub fn is_over(&mut self) -> bool {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.counted_until);
        let step = self.step();
        let counts = if took > step + LATE { step } else { took };
        self.left = self.left.saturating_sub(counts);
        self.counted_until = now;
        self.left.is_zero()
    }

    fn step(&self) -> Duration {
        (self.left / PART).clamp(SHORTEST, LONGEST).min(self.left)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    #[tokio::test(start_paused = true)]
    async fn without_a_pause_it_is_the_wall_clock() {
        for limit in [Duration::ZERO, LATE, MINUTE, 60 * MINUTE] {
            let began = Instant::now();
            SuspendAwareTimer::new(limit).over().await;
            let took = began.elapsed();
            // Tokio's timers have a resolution of one millisecond.
            assert!(
                took >= limit && took < limit + LATE * 5,
                "{limit:?}: {took:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_counts_for_one_step_at_most() {
        let mut limit = SuspendAwareTimer::new(MINUTE);
        advance(60 * MINUTE).await;
        assert!(!limit.is_over());
        let began = Instant::now();
        limit.over().await;
        assert!(began.elapsed() + LONGEST >= MINUTE, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn time_goes_on_while_nobody_waits() {
        let mut limit = SuspendAwareTimer::new(MINUTE);
        for _ in 0..59 {
            assert!(timeout(Duration::from_secs(1), limit.over()).await.is_err());
        }
        let began = Instant::now();
        limit.over().await;
        assert!(
            began.elapsed() < 2 * Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
    }
}
