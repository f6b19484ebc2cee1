//! The deadline of a pilot whose wall time is limited, and the steps before it. Has no timer of its own. Wall
//! time runs on while a pilot is suspended, as it does for HTCondor.

use std::time::{Duration, Instant, SystemTime};

/// The time for the last results, acknowledgements and reports after the tasks have ended; at most a tenth
/// of the run time.
const GOOD_BYE: Duration = Duration::from_secs(15);

/// How long before its token expires a pilot must be gone, since clocks differ; at most a tenth of the
/// token's remaining life.
const TOKEN_MARGIN: Duration = Duration::from_secs(30);

/// A step towards the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeadlineStep {
    /// A task that began now would not end in time.
    NoMoreTasks,
    /// Running tasks are told to end.
    TellTasks,
    KillTasks,
}

/// The limit on a pilot's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadlineCause {
    RunTime,
    /// The end of a token, after which the broker takes no result any more.
    Token,
}

/// The earlier of the two limits of a pilot that began at `began`, and its cause. A token that has expired
/// already is no limit: the broker judges it.
#[must_use]
pub fn earlier(
    began: Instant,
    run_time: Option<Duration>,
    token_end: Option<SystemTime>,
) -> Option<(Duration, DeadlineCause)> {
    let token = token_end
        .and_then(|end| end.duration_since(SystemTime::now()).ok())
        .map(|left| began.elapsed() + left.saturating_sub(TOKEN_MARGIN.min(left / 10)));
    let limits = [
        run_time.map(|limit| (limit, DeadlineCause::RunTime)),
        token.map(|limit| (limit, DeadlineCause::Token)),
    ];
    limits.into_iter().flatten().min_by_key(|&(limit, _)| limit)
}

/// The steps of one pilot, each of which comes once.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    tell: Instant,
    kill: Instant,
    next: Option<DeadlineStep>,
}

impl Deadline {
    /// For a pilot that began at `began`, has `limit` to run, and whose tasks have `grace` to end.
    /// `None` when it never ends.
    #[must_use]
    pub fn new(began: Instant, limit: Duration, grace: Duration) -> Option<Self> {
        let spare = GOOD_BYE.min(limit / 10);
        let kill = began.checked_add(limit.checked_sub(spare)?)?;
        let tell = kill.checked_sub(grace.min(limit / 4))?;
        Some(Self {
            tell,
            kill,
            next: Some(DeadlineStep::NoMoreTasks),
        })
    }

    /// The next step and its time. The slower the slowest tasks were, the earlier
    /// [`DeadlineStep::NoMoreTasks`] comes; while none has ended, it comes with [`DeadlineStep::TellTasks`].
    #[must_use]
    pub fn next(&self, slowest: Option<f64>) -> Option<(Instant, DeadlineStep)> {
        let slowest = slowest
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .unwrap_or_default();
        let limit = self.next?;
        let at = match limit {
            // In the past, and so due at once, if a task takes longer than the pilot has.
            DeadlineStep::NoMoreTasks => self.tell.checked_sub(slowest).unwrap_or(self.tell),
            DeadlineStep::TellTasks => self.tell,
            DeadlineStep::KillTasks => self.kill,
        };
        Some((at, limit))
    }

    pub fn passed(&mut self, limit: DeadlineStep) {
        self.next = match limit {
            DeadlineStep::NoMoreTasks => Some(DeadlineStep::TellTasks),
            DeadlineStep::TellTasks => Some(DeadlineStep::KillTasks),
            DeadlineStep::KillTasks => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);
    const GRACE: Duration = Duration::from_secs(10);

    #[test]
    fn the_longer_the_slowest_tasks_the_sooner_none_is_started() {
        let began = Instant::now();
        let wall = Deadline::new(began, HOUR, GRACE).expect("it ends");
        let secs = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(
            wall.next(None),
            Some((secs(3575), DeadlineStep::NoMoreTasks))
        );
        assert_eq!(
            wall.next(Some(575.0)),
            Some((secs(3000), DeadlineStep::NoMoreTasks))
        );
    }

    #[test]
    fn tasks_are_told_then_killed_and_the_pilot_has_time_to_leave() {
        let began = Instant::now();
        let mut wall = Deadline::new(began, HOUR, GRACE).expect("it ends");
        let mut seen = Vec::new();
        while let Some((at, limit)) = wall.next(Some(60.0)) {
            seen.push((at.duration_since(began).as_secs(), limit));
            wall.passed(limit);
        }
        let expected = [
            (3515, DeadlineStep::NoMoreTasks),
            (3575, DeadlineStep::TellTasks),
            (3585, DeadlineStep::KillTasks),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_short_run_time_is_not_eaten_up_by_its_end() {
        let began = Instant::now();
        let wall = Deadline::new(began, Duration::from_secs(20), GRACE).expect("it ends");
        assert_eq!(wall.tell, began + Duration::from_secs(13));
        assert_eq!(wall.kill, began + Duration::from_secs(18));
    }

    #[test]
    fn the_earlier_of_run_time_and_token_limits() {
        let began = Instant::now();
        let limit = |run_time, token: Option<u64>| {
            let end = token.map(|left| SystemTime::now() + Duration::from_secs(left));
            earlier(began, run_time, end).map(|(limit, cause)| (limit.as_secs() / 10, cause))
        };
        assert_eq!(limit(None, None), None);
        assert_eq!(
            limit(Some(HOUR), Some(7200)),
            Some((360, DeadlineCause::RunTime))
        );
        assert_eq!(
            limit(Some(HOUR), Some(1835)),
            Some((180, DeadlineCause::Token))
        );
        assert_eq!(limit(None, Some(105)), Some((9, DeadlineCause::Token)));
        let past = SystemTime::now() - HOUR;
        assert_eq!(earlier(began, None, Some(past)), None);
    }

    #[test]
    fn a_run_time_beyond_the_clock_never_ends() {
        assert!(Deadline::new(Instant::now(), Duration::MAX, GRACE).is_none());
    }
}
