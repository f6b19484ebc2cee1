//! Whether a place is worse than the rest by more than chance: Fisher's exact test for one comparison, Holm's
//! correction for having made many.

use crate::human::as_float;

/// Natural logarithm of the factorial.
fn ln_factorial(n: u64) -> f64 {
    // Below this, a sum of logarithms is exact enough; above, Stirling's series (Abramowitz and Stegun,
    // 6.1.41) is: its next term is under 1e-15.
    if n < 32 {
        return (2..=n).map(|factor| as_float(factor).ln()).sum();
    }
    let x = as_float(n) + 1.0;
    let square = x * x;
    (x - 0.5) * x.ln() - x
        + 0.5 * std::f64::consts::TAU.ln()
        + (1.0 / 12.0 - (1.0 / 360.0 - (1.0 / 1260.0 - 1.0 / (1680.0 * square)) / square) / square)
            / x
}

fn ln_choose(n: u64, k: u64) -> f64 {
    ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k)
}

/// Trials and how many of them failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) failed: u64,
    pub(super) trials: u64,
}

impl Sample {
    /// The share that failed; 0 without trials.
    pub(super) fn rate(self) -> f64 {
        if self.trials == 0 {
            0.0
        } else {
            as_float(self.failed) / as_float(self.trials)
        }
    }

    /// These trials without some of them.
    pub(super) fn without(self, part: Self) -> Self {
        Self {
            failed: self.failed.saturating_sub(part.failed),
            trials: self.trials.saturating_sub(part.trials),
        }
    }

    pub(super) fn with(self, other: Self) -> Self {
        Self {
            failed: self.failed + other.failed,
            trials: self.trials + other.trials,
        }
    }

    /// Wilson's score interval of the rate, 95 %.
    pub(super) fn interval(self) -> (f64, f64) {
        if self.trials == 0 {
            return (0.0, 1.0);
        }
        let z = 1.959_964;
        let (n, rate) = (as_float(self.trials), self.rate());
        let centre = rate + z * z / (2.0 * n);
        let half = z * (rate * (1.0 - rate) / n + z * z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + z * z / n;
        (
            ((centre - half) / scale).max(0.0),
            ((centre + half) / scale).min(1.0),
        )
    }
}

/// Fisher's exact test, one-sided: the probability that at least as many of all failures fall on `here` if
/// `here` and `rest` are alike.
pub(super) fn fisher(here: Sample, rest: Sample) -> f64 {
    let all = here.with(rest);
    let most = here.trials.min(all.failed);
    let chosen = ln_choose(all.trials, here.trials);
    let probability = |failed: u64| {
        (ln_choose(all.failed, failed) + ln_choose(all.trials - all.failed, here.trials - failed)
            - chosen)
            .exp()
    };
    let fewest = (here.trials + all.failed).saturating_sub(all.trials);
    if here.failed <= fewest {
        return 1.0;
    }
    // Above the common rate, each further failure is less likely than the one before.
    let expected = here.trials.saturating_mul(all.failed) / all.trials.max(1);
    let mut sum = 0.0;
    for failed in here.failed..=most {
        let term = probability(failed);
        sum += term;
        if failed > expected && term < sum * 1e-16 {
            break;
        }
    }
    sum.min(1.0)
}

/// Holm's step-down correction: p-values that hold for all `comparisons` together. Comparisons without a
/// given value count as 1.
pub(super) fn holm(p_values: &[f64], comparisons: usize) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&left, &right| p_values[left].total_cmp(&p_values[right]));
    let mut adjusted = vec![1.0; p_values.len()];
    let mut at_least = 0.0_f64;
    for (done, index) in order.into_iter().enumerate() {
        let left = comparisons.max(p_values.len()) - done;
        at_least = at_least.max((p_values[index] * as_float(left as u64)).min(1.0));
        adjusted[index] = at_least;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(failed: u64, trials: u64) -> Sample {
        Sample { failed, trials }
    }

    #[track_caller]
    fn assert_close(found: f64, expected: f64) {
        assert!(
            (found / expected - 1.0).abs() < 1e-9,
            "{found:e} for {expected:e}"
        );
    }

    #[test]
    fn fishers_test_gives_the_probabilities_that_scipy_gives() {
        // scipy.stats.fisher_exact(…, alternative="greater")
        for (here, rest, expected) in [
            (sample(3, 3), sample(0, 3), 0.050_000_000_000_000_01),
            (sample(8, 10), sample(1, 15), 0.000_335_295_341_352_684_2),
            (
                sample(34, 283),
                sample(120, 9717),
                2.489_201_970_478_542e-21,
            ),
            (
                sample(120, 4000),
                sample(9000, 996_000),
                2.418_214_990_435_356e-28,
            ),
            (
                sample(300, 5000),
                sample(30_000, 995_000),
                9.620_587_002_084_583e-28,
            ),
            (
                sample(900, 100_000),
                sample(8000, 900_000),
                0.366_445_688_889_431_4,
            ),
            (
                sample(7, 7),
                sample(100, 100_000),
                1.313_861_092_903_484_8e-21,
            ),
        ] {
            // Terms of a few million, whose last digits are lost in the difference.
            let found = fisher(here, rest);
            assert!(
                (found / expected - 1.0).abs() < 1e-7,
                "{found:e} for {expected:e}"
            );
        }
    }

    #[test]
    fn fishers_test_is_certain_of_nothing_where_there_is_nothing() {
        for (here, rest) in [
            ((0, 0), (0, 0)),
            ((0, 5), (3, 9)),
            ((5, 5), (9, 9)),
            ((0, 0), (3, 9)),
        ] {
            let p = fisher(sample(here.0, here.1), sample(rest.0, rest.1));
            assert!((p - 1.0).abs() < f64::EPSILON, "{here:?} {rest:?}: {p}");
        }
    }

    #[test]
    fn fishers_test_takes_a_million_trials_at_once() {
        let begun = std::time::Instant::now();
        assert!(fisher(sample(500_000, 500_000), sample(0, 500_000)) < 1e-300);
        assert!(fisher(sample(250_500, 500_000), sample(250_000, 500_000)) > 0.01);
        assert!(begun.elapsed().as_secs() < 5);
    }

    #[test]
    fn holms_correction_multiplies_the_smallest_by_all_and_never_reorders() {
        // By hand: 0.01 × 4, then 0.015 × 3, then 0.02 × 2 raised to the one before, 0.5 × 1.
        let adjusted = holm(&[0.5, 0.01, 0.02, 0.015], 4);
        for (found, expected) in adjusted.iter().zip([0.5, 0.04, 0.045, 0.045]) {
            assert_close(*found, expected);
        }
        assert_close(holm(&[0.001], 50)[0], 0.05);
        assert_close(holm(&[0.9], 50)[0], 1.0);
    }

    #[test]
    fn wilsons_interval_stays_between_none_and_all() {
        // statsmodels.stats.proportion.proportion_confint(…, method="wilson")
        for ((failed, trials), (low, high)) in [
            ((0, 10), (0.0, 0.277_532_8)),
            ((10, 10), (0.722_467_2, 1.0)),
            ((34, 283), (0.087_260_9, 0.163_196_2)),
        ] {
            let found = sample(failed, trials).interval();
            assert!(
                (found.0 - low).abs() < 1e-6 && (found.1 - high).abs() < 1e-6,
                "{found:?}"
            );
        }
    }
}
