//! Run times as a text histogram, with round numbers on the axis and few enough lines for a log.

use super::{Runtimes, as_float};

/// More lines would be no overview.
const MOST_BINS: u64 = 20;
/// The longest bar. Longer ones are scaled down, all by the same factor.
const BAR_COLUMNS: u64 = 50;
/// Narrower bins, as a share of the largest value, would show how run times were rounded.
const RESOLUTION: f64 = 0.002;

/// With fewer run times, the middle half says little about their spread.
const ENOUGH_FOR_QUARTILES: u64 = 32;

/// Bins of equal width, at multiples of it.
struct Axis {
    /// Width of a bin in seconds: 1, 2 or 5 times a power of ten.
    width: f64,
    /// The start of the first bin, in widths.
    first: u64,
    decimals: usize,
}

impl Axis {
    /// As many bins as the data deserves (Sturges' or Freedman and Diaconis' rule, whichever is
    /// finer, as in numpy), but no more than [`MOST_BINS`].
    fn of(runtimes: &Runtimes) -> Self {
        let range = runtimes.max - runtimes.min;
        let mut wanted = if range > 0.0 {
            range / (as_float(runtimes.count).log2() + 1.0)
        } else {
            runtimes.max / 20.0
        };
        let quarter = runtimes.count / 4;
        let middle_half =
            runtimes.at_rank(runtimes.count - 1 - quarter) - runtimes.at_rank(quarter);
        if middle_half > 0.0 && runtimes.count >= ENOUGH_FOR_QUARTILES {
            wanted = wanted.min(2.0 * middle_half / as_float(runtimes.count).cbrt());
        }
        let at_least = (range / as_float(MOST_BINS - 1)).max(runtimes.max * RESOLUTION);
        let (width, decimals) = round_width(wanted, at_least);
        let axis = Self {
            width,
            first: 0,
            decimals,
        };
        Self {
            first: axis.bin(runtimes.min),
            ..axis
        }
    }

    /// The bin of a value, counted from zero seconds.
    fn bin(&self, seconds: f64) -> u64 {
        // The tolerance keeps 0.3 out of [0.2, 0.3): 0.3 / 0.1 is 2.9999999999999996.
        to_integer(seconds / self.width + 1e-9)
    }

    fn range(&self, from: u64, to: u64) -> String {
        let edge = |bin: u64| as_float(self.first + bin) * self.width;
        let digits = self.decimals;
        format!("[{:.digits$}, {:.digits$})", edge(from), edge(to))
    }
}

/// The largest round width that is not above `wanted`, or the smallest that is not below `at_least` if that
/// is wider; with the decimals to print it.
fn round_width(wanted: f64, at_least: f64) -> (f64, usize) {
    // 1 µs, 2 µs, 5 µs, 10 µs, … 500 million years.
    let widths = (-6..16).flat_map(|exponent| {
        [1.0, 2.0, 5.0].map(|digit| {
            let decimals = usize::try_from(-exponent).unwrap_or(0).max(2);
            (digit * 10_f64.powi(exponent), decimals)
        })
    });
    // The tolerance is needed because 0.1 is not exact in binary.
    let mut chosen = (1e-6, 6);
    for (width, decimals) in widths {
        if width > wanted * 1.000_001 && chosen.0 >= at_least * 0.999_999 {
            break;
        }
        chosen = (width, decimals);
    }
    chosen
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rounding down is what is wanted, and `as` saturates"
)]
fn to_integer(number: f64) -> u64 {
    number as u64
}

/// Draws one line a bin. A run of empty bins shares a line.
pub(super) fn draw(runtimes: &Runtimes) -> Vec<String> {
    if runtimes.count == 0 {
        return Vec::new();
    }
    let axis = Axis::of(runtimes);
    let mut counts: Vec<u64> = Vec::new();
    for (seconds, count) in runtimes.values() {
        let bin = usize::try_from(axis.bin(seconds) - axis.first).unwrap_or(usize::MAX);
        if counts.len() <= bin {
            counts.resize(bin + 1, 0);
        }
        counts[bin] += count;
    }
    let largest = counts.iter().copied().max().unwrap_or(1);
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut bin = 0;
    for stretch in counts.chunk_by(|&left, &right| left == 0 && right == 0) {
        let end = bin + stretch.len() as u64;
        let bar = match stretch[0] {
            0 => "[none]".to_owned(),
            count => format!("{} {count}", "#".repeat(bar_columns(count, largest))),
        };
        lines.push((axis.range(bin, end), bar));
        bin = end;
    }
    let column = lines.iter().map(|(range, _)| range.len()).max();
    let column = column.unwrap_or(0).max(20);
    lines
        .into_iter()
        .map(|(range, bar)| format!("{range:column$} | {bar}"))
        .collect()
}

/// At least one column, so that a rare run time is visible.
fn bar_columns(count: u64, largest: u64) -> usize {
    let columns = if largest <= BAR_COLUMNS {
        u128::from(count)
    } else {
        (u128::from(count) * u128::from(BAR_COLUMNS) / u128::from(largest)).max(1)
    };
    usize::try_from(columns).unwrap_or(usize::MAX)
}
