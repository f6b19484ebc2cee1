//! The pilot's statistics: counts of events, the successful tasks' run times, and their histogram. Memory use
//! is bounded for any number of tasks. The lines are those of the Python pilot, which people know.

mod histogram;

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The counts of events so far, by outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    pub received: u64,
    pub started: u64,
    pub succeeded: u64,
    /// Events that failed, in the task or before it.
    pub failed: u64,
    /// Events given back to the queue untried or unfinished, failed ones not counted.
    pub given_back: u64,
    /// Failed events that went to the dead-letter queue.
    pub dead_lettered: u64,
    /// Failed events that were rejected for good and kept in `rejected/`.
    pub rejected: u64,
    pub published: u64,
    /// Successful tasks that wrote no outfile.
    pub no_output: u64,
}

impl Tally {
    /// Events that are neither finished nor given back.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.received
            .saturating_sub(self.finished() + self.given_back)
    }

    #[must_use]
    pub fn finished(&self) -> u64 {
        self.succeeded + self.failed
    }
}

/// The Python pilot's line.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} Pending Tasks {} Finished Tasks ({} succeeded, {} failed)",
            self.pending(),
            self.finished(),
            self.succeeded,
            self.failed
        )
    }
}

/// Run times of successful tasks. Count, mean, variance, minimum and maximum are exact; the median and the
/// histogram are within 0.1 %. Takes at most about 450 KB.
#[derive(Debug)]
pub struct Runtimes {
    count: u64,
    mean: f64,
    /// Sum of the squared distances from the mean (Welford's method: no cancellation).
    squares: f64,
    min: f64,
    max: f64,
    micros: Histogram<u64>,
}

impl Default for Runtimes {
    fn default() -> Self {
        Self {
            count: 0,
            mean: 0.0,
            squares: 0.0,
            min: f64::INFINITY,
            max: 0.0,
            micros: Histogram::new(3).expect("3 is between 0 and 5, which is all that is asked"),
        }
    }
}

/// Statistics in seconds, as numpy defines them (variance of the population).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    pub count: u64,
    pub mean: f64,
    /// The middle value, or the mean of the two middle ones; within 0.1 %.
    pub median: f64,
    /// Mean squared distance from the mean, in square seconds.
    pub variance: f64,
    pub standard_deviation: f64,
    pub min: f64,
    pub max: f64,
}

/// The Python pilot's lines, one for each number.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "(count: {})", self.count)?;
        writeln!(f, "(mean: {:.2})", self.mean)?;
        writeln!(f, "(median: {:.2})", self.median)?;
        writeln!(f, "(variance: {:.2})", self.variance)?;
        writeln!(f, "(standard deviation: {:.2})", self.standard_deviation)?;
        writeln!(f, "(min: {:.2})", self.min)?;
        writeln!(f, "(max: {:.2})", self.max)?;
        write!(f, "(range: {:.2})", self.max - self.min)
    }
}

impl Runtimes {
    pub fn record(&mut self, runtime: Duration) {
        let seconds = runtime.as_secs_f64();
        self.count += 1;
        let from_old_mean = seconds - self.mean;
        self.mean += from_old_mean / as_float(self.count);
        self.squares += from_old_mean * (seconds - self.mean);
        self.min = self.min.min(seconds);
        self.max = self.max.max(seconds);
        let micros = u64::try_from(runtime.as_micros()).unwrap_or(u64::MAX);
        // Fails only where `usize` has 16 bits; the median would miss this run time then.
        let _ = self.micros.record(micros);
    }

    /// The statistics; `None` until a task has succeeded.
    #[must_use]
    pub fn summary(&self) -> Option<Summary> {
        if self.count == 0 {
            return None;
        }
        let variance = self.squares / as_float(self.count);
        let low = self.at_rank((self.count - 1) / 2);
        let high = self.at_rank(self.count / 2);
        Some(Summary {
            count: self.count,
            mean: self.mean,
            median: f64::midpoint(low, high),
            variance,
            standard_deviation: variance.sqrt(),
            min: self.min,
            max: self.max,
        })
    }

    /// The run time in seconds that only the slowest 5 % exceeded; with fewer than twenty tasks, that of the
    /// slowest one. `None` until a task has succeeded.
    #[must_use]
    pub fn slowest(&self) -> Option<f64> {
        let above = self.count / 20;
        (self.count > 0).then(|| self.at_rank(self.count - 1 - above.min(self.count - 1)))
    }

    /// All statistics, as lines for the log.
    #[must_use]
    pub fn report(&self) -> Vec<String> {
        let mut lines = vec!["Task runtime stats (successful tasks), in seconds:".to_owned()];
        let Some(summary) = self.summary() else {
            lines.push("no finished successful tasks".to_owned());
            return lines;
        };
        lines.extend(summary.to_string().lines().map(str::to_owned));
        lines.push("Runtimes distribution:".to_owned());
        lines.extend(self.histogram());
        lines
    }

    /// The histogram's lines; none without data.
    #[must_use]
    pub fn histogram(&self) -> Vec<String> {
        histogram::draw(self)
    }

    /// The value in seconds that has `rank` others below it when sorted.
    fn at_rank(&self, rank: u64) -> f64 {
        let mut below = 0;
        for (seconds, count) in self.values() {
            below += count;
            if below > rank {
                return seconds;
            }
        }
        self.max
    }

    /// The different run times in seconds, ascending, and the count of each.
    fn values(&self) -> impl Iterator<Item = (f64, u64)> {
        self.micros.iter_recorded().map(|step| {
            let micros = self.micros.median_equivalent(step.value_iterated_to());
            let seconds = as_float(micros) / 1e6;
            (
                seconds.clamp(self.min, self.max),
                step.count_since_last_iteration(),
            )
        })
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts and microseconds stay far below 2^53, or a rounded last digit does no harm"
)]
fn as_float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests;
