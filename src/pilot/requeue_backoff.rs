//! The pause before a failed event goes back to its queue. RabbitMQ puts it in front, so this pilot is likely
//! to get it again at once; and since version 4.0 it deletes an event after 20 deliveries. Without a pause a
//! task that fails at once would reach them in seconds, although the reason of its failure may soon pass.

use std::time::Duration;

use crate::backoff;
use crate::broker::Verdict;

/// The shortest pause, for an event that was delivered once before.
const FIRST: Duration = Duration::from_millis(250);
/// The longest one. Twenty deliveries take six minutes with it, and an idle pilot ends before that.
const LONGEST: Duration = Duration::from_secs(30);

/// The pause if the broker doesn't say how often it delivered the event before, as with classic queues.
const UNKNOWN: Duration = Duration::from_secs(4);

/// How long an event waits before the broker is told. A failed one doesn't wait the first time, then twice
/// as long each time; others never wait.
#[must_use]
pub(super) fn before(verdict: &Verdict, earlier_deliveries: Option<u64>) -> Duration {
    match (verdict, earlier_deliveries) {
        (Verdict::Failed { .. }, Some(earlier)) if earlier > 0 => {
            backoff::exponential(FIRST, LONGEST, earlier)
        }
        (Verdict::Failed { .. }, None) => UNKNOWN,
        (Verdict::Failed { .. } | Verdict::Done | Verdict::Released | Verdict::Rejected, _) => {
            Duration::ZERO
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(earlier_deliveries: Option<u64>) -> Duration {
        let reason = String::new();
        before(&Verdict::Failed { reason }, earlier_deliveries)
    }

    #[test]
    fn a_first_failure_goes_back_at_once() {
        assert_eq!(failed(Some(0)), Duration::ZERO);
    }

    #[test]
    fn one_that_came_again_from_a_queue_that_does_not_count_waits() {
        assert_eq!(failed(None), UNKNOWN);
    }

    #[test]
    fn what_did_not_fail_never_waits() {
        for verdict in [Verdict::Done, Verdict::Released, Verdict::Rejected] {
            assert_eq!(before(&verdict, Some(9)), Duration::ZERO, "{verdict:?}");
        }
    }

    #[test]
    fn each_further_failure_waits_twice_as_long_up_to_a_limit() {
        let millis: Vec<u128> = (1..=9)
            .map(|earlier| failed(Some(earlier)).as_millis())
            .collect();
        assert_eq!(
            millis,
            [250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]
        );
        assert_eq!(failed(Some(u64::MAX)), LONGEST);
    }

    #[test]
    fn twenty_deliveries_take_minutes() {
        let all: Duration = (0..20).map(|earlier| failed(Some(earlier))).sum();
        assert!(all > Duration::from_mins(6), "{all:?}");
    }
}
