//! How many containers wait for their event. A start costs some 0.1 s, and a task that finds a container waiting
//! begins within milliseconds; but each waiting one costs memory.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff;
use crate::config::WarmStart;

/// The memory of one waiting container, in bytes: measured with Apptainer 1.4.5, proportional set size of its two
/// processes.
const BYTES: u64 = 14 << 20;
/// Waiting containers may take one part in so many of the slot's memory.
const PART_OF_MEMORY: u64 = 8;
/// Without events for so long, no more containers wait than for the tasks that run.
const QUIET_AFTER: Duration = Duration::from_mins(1);
/// After so many deaths in a row the machine is at fault.
const DEATHS_MAX: u64 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A start or task counts this much for the mean time, and all earlier ones the rest.
const WEIGHT: f64 = 0.25;

/// The settings, and the job's size.
#[derive(Debug, Clone)]
pub struct WarmRules {
    pub setting: WarmStart,
    pub slots: usize,
    pub cores: usize,
    /// Of the slot, in bytes, if the machine ad says it.
    pub memory: Option<u64>,
    /// Whether tasks have GPUs: then a waiting container has those of its task.
    pub has_gpus: bool,
}

/// The times that decide how many containers wait, and the deaths among them.
#[derive(Debug)]
pub(super) struct WarmPolicy {
    rules: WarmRules,
    start_secs: Option<f64>,
    task_secs: Option<f64>,
    last_event: Option<Instant>,
    since: Instant,
    /// In a row.
    deaths: u64,
    pause_until: Option<Instant>,
}

impl WarmPolicy {
    pub(super) fn new(rules: WarmRules) -> Self {
        Self {
            rules,
            start_secs: None,
            task_secs: None,
            last_event: None,
            since: Instant::now(),
            deaths: 0,
            pause_until: None,
        }
    }

    pub(super) fn event_came(&mut self) {
        self.last_event = Some(Instant::now());
    }

    /// A container waits, so long after its start began.
    pub(super) fn started(&mut self, took: Duration) {
        self.start_secs = Some(mean(self.start_secs, took));
    }

    pub(super) fn task_ended(&mut self, wall: Duration) {
        self.task_secs = Some(mean(self.task_secs, wall));
        self.deaths = 0;
    }

    /// A container died before its task began. Returns the pause before another is made; `None` if the machine is
    /// at fault.
    pub(super) fn died(&mut self) -> Option<Duration> {
        self.deaths += 1;
        if self.deaths >= DEATHS_MAX {
            return None;
        }
        let pause = backoff::exponential(FIRST_PAUSE, LONGEST_PAUSE, self.deaths);
        self.pause_until = Some(Instant::now() + pause);
        Some(pause)
    }

    /// How many containers to hold while so many tasks run.
    pub(super) fn wanted(&self, running: usize) -> usize {
        let now = Instant::now();
        if self.pause_until.is_some_and(|until| now < until) {
            return 0;
        }
        let free = self.rules.slots.saturating_sub(running);
        let is_quiet = self.is_quiet();
        let ahead = match (self.last_event, running) {
            (None, _) => 0,
            (Some(_), 0) if is_quiet => 0,
            (Some(_), _) => self.ahead(),
        };
        let wanted = match self.rules.setting {
            WarmStart::Off => 0,
            WarmStart::Containers(_) if is_quiet && running == 0 => 0,
            WarmStart::Containers(count) => usize::try_from(count.get()).unwrap_or(usize::MAX),
            WarmStart::Auto if is_quiet => ahead,
            WarmStart::Auto => (free + ahead).min(self.most_in_memory()),
        };
        // More would have to share GPUs.
        if self.rules.has_gpus {
            wanted.min(free)
        } else {
            wanted
        }
    }

    /// Whether no event came for so long that containers beyond [`Self::wanted`] are of no use.
    pub(super) fn is_quiet(&self) -> bool {
        Instant::now() >= self.quiet_from()
    }

    /// How many to start at once while none of them has an event: more would only make the first one late.
    pub(super) fn starts_at_once(&self) -> usize {
        self.rules.cores.max(1)
    }

    /// When [`Self::wanted`] changes by itself.
    pub(super) fn changes_at(&self) -> Option<Instant> {
        let now = Instant::now();
        let quiet = Some(self.quiet_from()).filter(|at| *at > now);
        let pause = self.pause_until.filter(|at| *at > now);
        quiet.into_iter().chain(pause).min()
    }

    fn quiet_from(&self) -> Instant {
        self.last_event.unwrap_or(self.since) + QUIET_AFTER
    }

    /// As many as end while one starts, so that short tasks don't wait; more than the cores can't start at once.
    fn ahead(&self) -> usize {
        let (Some(start), Some(task)) = (self.start_secs, self.task_secs) else {
            return 1;
        };
        let slots = u32::try_from(self.rules.slots).unwrap_or(u32::MAX);
        let needed = f64::from(slots) * start / task.max(0.001);
        (1..self.starts_at_once())
            .find(|count| u32::try_from(*count).is_ok_and(|count| f64::from(count) >= needed))
            .unwrap_or(self.starts_at_once())
    }

    fn most_in_memory(&self) -> usize {
        let most = self
            .rules
            .memory
            .map(|bytes| (bytes / PART_OF_MEMORY / BYTES).max(1));
        most.map_or(usize::MAX, |most| {
            usize::try_from(most).unwrap_or(usize::MAX)
        })
    }
}

fn mean(before: Option<f64>, time: Duration) -> f64 {
    let secs = time.as_secs_f64();
    before.map_or(secs, |mean| mean + WEIGHT * (secs - mean))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn rules(slots: usize) -> WarmRules {
        WarmRules {
            setting: WarmStart::Auto,
            slots,
            cores: 4,
            memory: None,
            has_gpus: false,
        }
    }

    fn policy(rules: WarmRules) -> WarmPolicy {
        let mut policy = WarmPolicy::new(rules);
        policy.event_came();
        policy
    }

    #[tokio::test(start_paused = true)]
    async fn a_container_waits_for_each_free_slot_and_one_more_for_the_next_event() {
        let policy = policy(rules(3));
        assert_eq!([0, 1, 3].map(|running| policy.wanted(running)), [4, 3, 1]);
        assert_eq!(
            WarmPolicy::new(rules(3)).wanted(0),
            3,
            "before the first event"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn short_tasks_have_as_many_ahead_as_end_while_one_starts_but_no_more_than_cores() {
        let ahead = |slots, task_ms| {
            let mut policy = policy(rules(slots));
            policy.started(Duration::from_millis(100));
            policy.task_ended(Duration::from_millis(task_ms));
            policy.wanted(slots)
        };
        assert_eq!(
            [1_000, 300, 100, 50, 40, 1].map(|task_ms| ahead(1, task_ms)),
            [1, 1, 1, 2, 3, 4]
        );
        assert_eq!(ahead(8, 1_000), 1);
        assert_eq!(ahead(8, 400), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_minute_without_events_only_the_next_of_running_tasks_waits() {
        let policy = policy(rules(3));
        assert_eq!(policy.changes_at(), Some(Instant::now() + QUIET_AFTER));
        tokio::time::advance(QUIET_AFTER).await;
        assert_eq!([0, 1, 3].map(|running| policy.wanted(running)), [0, 1, 1]);
        assert_eq!(policy.changes_at(), None);
        let never = WarmPolicy::new(rules(3));
        tokio::time::advance(QUIET_AFTER).await;
        assert_eq!(never.wanted(0), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_gpus_and_the_user_limit_how_many_wait() {
        let memory = Some(8 * 5 * BYTES);
        assert_eq!(
            policy(WarmRules {
                memory,
                ..rules(64)
            })
            .wanted(0),
            5
        );
        let memory = Some(1);
        assert_eq!(
            policy(WarmRules {
                memory,
                ..rules(64)
            })
            .wanted(0),
            1
        );
        let has_gpus = policy(WarmRules {
            has_gpus: true,
            ..rules(2)
        });
        assert_eq!([0, 1, 2].map(|running| has_gpus.wanted(running)), [2, 1, 0]);
        let two = WarmStart::Containers(NonZeroU32::MIN.saturating_add(1));
        let two = policy(WarmRules {
            setting: two,
            ..rules(64)
        });
        assert_eq!([0, 64].map(|running| two.wanted(running)), [2, 2]);
        let off = policy(WarmRules {
            setting: WarmStart::Off,
            ..rules(64)
        });
        assert_eq!(off.wanted(0), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_died_is_replaced_after_a_pause_that_grows_until_the_machine_is_at_fault() {
        let mut policy = policy(rules(1));
        let pauses: Vec<_> = (1..DEATHS_MAX).map(|_| policy.died()).collect();
        assert_eq!(
            pauses,
            [1, 2, 4, 8].map(|secs| Some(Duration::from_secs(secs)))
        );
        assert_eq!(policy.wanted(0), 0);
        tokio::time::advance(Duration::from_secs(8)).await;
        assert_eq!(policy.wanted(0), 2);
        assert_eq!(policy.died(), None);
        policy.task_ended(Duration::ZERO);
        assert_eq!(policy.died(), Some(FIRST_PAUSE));
    }
}
