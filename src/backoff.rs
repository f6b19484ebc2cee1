//! Exponential backoff: the pause after each failure in a row.

use std::time::Duration;

/// `first` after one failure, twice as long after each further one, `longest` at most.
#[must_use]
pub fn exponential(first: Duration, longest: Duration, failures: u64) -> Duration {
    let doublings = u32::try_from(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    2_u32
        .checked_pow(doublings)
        .and_then(|factor| first.checked_mul(factor))
        .map_or(longest, |pause| pause.min(longest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_further_failure_doubles_the_pause_up_to_the_longest() {
        let (first, longest) = (Duration::from_secs(1), Duration::from_secs(5));
        let pauses =
            [0, 1, 2, 3, 4, u64::MAX].map(|failures| exponential(first, longest, failures));
        assert_eq!(pauses, [1, 1, 2, 4, 5, 5].map(Duration::from_secs));
    }
}
