//! Mean, median and percentiles of a quantity: exact for a few values, within 0.1 % and in constant memory for
//! many.

use crate::human::{as_float, to_integer};
use hdrhistogram::Histogram;
use serde::Serialize;

/// How many values are kept as they are (8 bytes each).
const EXACT: usize = 2048;

/// Values of one quantity, as whole numbers of its smallest unit.
#[derive(Debug)]
pub(super) struct Values {
    count: u64,
    sum: f64,
    max: u64,
    kept: KeptValues,
}

#[derive(Debug)]
enum KeptValues {
    Few(Vec<u64>),
    Many(Histogram<u64>),
}

/// The statistics, in the unit that the field's name says.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Distribution {
    pub count: u64,
    pub mean: f64,
    /// The middle one, or the mean of the middle two.
    pub median: f64,
    /// 95 % are not above it.
    pub p95: f64,
    /// 99 % are not above it.
    pub p99: f64,
    pub max: f64,
}

impl Default for Values {
    fn default() -> Self {
        Self {
            count: 0,
            sum: 0.0,
            max: 0,
            kept: KeptValues::Few(Vec::new()),
        }
    }
}

impl Values {
    pub(super) fn add(&mut self, value: u64) {
        self.count += 1;
        self.sum += as_float(value);
        self.max = self.max.max(value);
        match &mut self.kept {
            KeptValues::Few(values) if values.len() < EXACT => values.push(value),
            KeptValues::Few(values) => {
                let mut many =
                    Histogram::new(3).expect("3 is between 0 and 5, which is all that is asked");
                for value in values.drain(..).chain([value]) {
                    record(&mut many, value);
                }
                self.kept = KeptValues::Many(many);
            }
            KeptValues::Many(many) => record(many, value),
        }
    }

    /// Adds seconds, kept as microseconds. Negative and infinite values are left out.
    pub(super) fn add_secs(&mut self, seconds: f64) {
        if seconds.is_finite() && seconds >= 0.0 {
            self.add(to_integer(seconds * 1e6));
        }
    }

    /// The statistics of all values, divided by `unit`; `None` without a value.
    pub(super) fn distribution(&mut self, unit: f64) -> Option<Distribution> {
        if self.count == 0 {
            return None;
        }
        let low = self.at_rank(self.count.div_ceil(2));
        let high = self.at_rank(self.count / 2 + 1);
        Some(Distribution {
            count: self.count,
            mean: self.sum / as_float(self.count) / unit,
            median: f64::midpoint(as_float(low), as_float(high)) / unit,
            p95: as_float(self.quantile(95)) / unit,
            p99: as_float(self.quantile(99)) / unit,
            max: as_float(self.max) / unit,
        })
    }

    /// The smallest value that `percent` of all values don't exceed.
    fn quantile(&mut self, percent: u64) -> u64 {
        self.at_rank((self.count * percent).div_ceil(100))
    }

    /// The value at this place of the sorted values, from 1.
    fn at_rank(&mut self, rank: u64) -> u64 {
        match &mut self.kept {
            KeptValues::Few(values) => {
                values.sort_unstable();
                let at = usize::try_from(rank.max(1) - 1).unwrap_or(usize::MAX);
                values.get(at).copied().unwrap_or(self.max)
            }
            KeptValues::Many(many) => {
                let mut below = 0;
                let step = many.iter_recorded().find(|step| {
                    below += step.count_since_last_iteration();
                    below >= rank
                });
                step.map_or(self.max, |step| step.value_iterated_to().min(self.max))
            }
        }
    }

    /// Different values, ascending, and how often each occurred.
    pub(super) fn counted(&self) -> Vec<(u64, u64)> {
        match &self.kept {
            KeptValues::Few(values) => {
                let mut values = values.clone();
                values.sort_unstable();
                let same = values.chunk_by(|left, right| left == right);
                same.map(|same| (same[0], same.len() as u64)).collect()
            }
            KeptValues::Many(many) => many
                .iter_recorded()
                .map(|step| {
                    let value = many.median_equivalent(step.value_iterated_to());
                    (value.min(self.max), step.count_since_last_iteration())
                })
                .collect(),
        }
    }
}

fn record(many: &mut Histogram<u64>, value: u64) {
    // Fails only where `usize` has 16 bits; then the quantiles would miss this one.
    let _ = many.record(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distribution(values: impl IntoIterator<Item = u64>) -> Distribution {
        let mut all = Values::default();
        values.into_iter().for_each(|value| all.add(value));
        all.distribution(1.0).expect("there are values")
    }

    #[test]
    fn few_values_are_exact() {
        let found = distribution([30, 10, 20, 40]);
        let expected = Distribution {
            count: 4,
            mean: 25.0,
            median: 25.0,
            p95: 40.0,
            p99: 40.0,
            max: 40.0,
        };
        assert_eq!(found, expected);
        assert_eq!(Values::default().distribution(1.0), None);
    }

    #[test]
    fn many_values_are_within_a_thousandth() {
        let found = distribution((1..=100_000).rev());
        for (value, expected) in [
            (found.median, 50_000.5),
            (found.p95, 95_000.0),
            (found.p99, 99_000.0),
        ] {
            assert!(
                (value / expected - 1.0).abs() < 1e-3,
                "{value} for {expected}"
            );
        }
        assert_eq!(
            (found.count, found.mean, found.max),
            (100_000, 50_000.5, 100_000.0)
        );
    }

    #[test]
    fn ninety_nine_of_a_hundred_values_fit_the_p99() {
        assert!((distribution(1..=100).p99 - 99.0).abs() < f64::EPSILON);
        assert!((distribution(1..=101).p99 - 100.0).abs() < f64::EPSILON);
    }

    #[test]
    fn values_are_counted_whether_few_or_many() {
        for times in [2, 2000] {
            let mut all = Values::default();
            (0..times).for_each(|_| [7, 5].iter().for_each(|value| all.add(*value)));
            assert_eq!(all.counted(), [(5, times), (7, times)]);
        }
    }
}
