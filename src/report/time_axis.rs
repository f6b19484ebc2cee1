//! The common axis of all that is drawn over time: from left to right, in pixels, with round times above.

use super::svg::{Anchor, Drawing, multiples, time_step};
use super::timeline_data::TimelineData;
use crate::human::{as_float, to_integer, utc};

/// Pixels. With the names at its left it is as wide as the page.
pub(super) const WIDTH: f64 = 940.0;
const RIGHT: f64 = 10.0;
/// The height of the labels.
pub(super) const LABELS: f64 = 26.0;

/// Times are seconds from `base`, which is seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeAxis {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) base: f64,
}

/// Spans of equal, round length that cover the axis.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeBins {
    axis: TimeAxis,
    begin: f64,
    pub(super) width: f64,
    pub(super) number: usize,
}

impl TimeAxis {
    /// The time of all tasks; `None` if none has a time.
    pub(super) fn of(data: &TimelineData) -> Option<Self> {
        let (from, to) = data.range()?;
        let base = data.base;
        Some(Self { from, to, base })
    }

    pub(super) fn x(&self, time: f64) -> f64 {
        let share = (time - self.from) / (self.to - self.from);
        share.clamp(0.0, 1.0) * (WIDTH - RIGHT)
    }

    /// At most `most` bins.
    pub(super) fn bins(self, most: f64) -> TimeBins {
        let width = time_step(self.to - self.from, most);
        let begin = ((self.base + self.from) / width).floor() * width - self.base;
        let mut bins = TimeBins {
            axis: self,
            begin,
            width,
            number: 0,
        };
        bins.number = bins.of(self.to) + 1;
        bins
    }

    /// Lines at round times down to `bottom`, with labels above them.
    pub(super) fn draw(&self, drawing: &mut Drawing, bottom: f64) {
        for (time, label) in time_ticks(self.base + self.from, self.base + self.to, 9.0) {
            let x = self.x(time - self.base);
            drawing.line((x, LABELS - 5.0), (x, bottom), "grid");
            let anchor = match x {
                ..20.0 => Anchor::Start,
                _ if x > WIDTH - 20.0 => Anchor::End,
                _ => Anchor::Middle,
            };
            drawing.text((x, LABELS - 10.0), anchor, &label);
        }
    }
}

impl TimeBins {
    pub(super) fn of(&self, time: f64) -> usize {
        let bin = ((time - self.begin) / self.width).floor();
        usize::try_from(to_integer(bin)).unwrap_or(0)
    }

    pub(super) fn start(&self, bin: usize) -> f64 {
        self.begin + self.width * as_float(bin as u64)
    }

    /// The bins that a span of time touches, and how many seconds of it are in each.
    pub(super) fn parts(&self, start: f64, end: f64) -> impl Iterator<Item = (usize, f64)> {
        let (start, end) = (start.max(self.begin), end.min(self.start(self.number)));
        let bins = if start <= end {
            self.of(start)..(self.of(end) + 1).min(self.number)
        } else {
            0..0
        };
        bins.map(move |bin| {
            let left = self.start(bin);
            (bin, (end.min(left + self.width) - start.max(left)).max(0.0))
        })
    }

    /// The pixels that a bin begins and ends at.
    pub(super) fn edges(&self, bin: usize) -> (f64, f64) {
        let time = self.start(bin);
        (self.axis.x(time), self.axis.x(time + self.width))
    }

    /// When the bin begins.
    pub(super) fn utc(&self, bin: usize) -> String {
        utc(self.axis.base + self.start(bin))
    }
}

/// Round times between two, with the day where it changes.
fn time_ticks(from: f64, to: f64, most: f64) -> Vec<(f64, String)> {
    let step = time_step(to - from, most);
    let mut day = String::new();
    multiples(from, to, step)
        .map(|time| {
            let text = utc(time);
            let (date, clock) = text.split_once(' ').unwrap_or((&text, ""));
            let is_new = day != date;
            date.clone_into(&mut day);
            let clock = if step < 60.0 { clock } else { &clock[..5] };
            let label = if step >= 86_400.0 || (is_new && clock.starts_with("00:00")) {
                &date[5..]
            } else {
                clock
            };
            (time, label.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_divided_among_the_bins_that_it_touches() {
        let axis = TimeAxis {
            from: 3.0,
            to: 95.0,
            base: 1_790_000_000.0,
        };
        let bins = axis.bins(10.0);
        assert!((bins.width - 10.0).abs() < 1e-9 && bins.number == 10);
        let parts: Vec<(usize, f64)> = bins.parts(8.0, 21.0).collect();
        assert_eq!(parts, [(0, 2.0), (1, 10.0), (2, 1.0)]);
        let all: f64 = bins.parts(-500.0, 1e6).map(|(_, secs)| secs).sum();
        assert!(
            (all - 100.0).abs() < 1e-9,
            "what is outside of the axis is cut off"
        );
        assert_eq!(bins.parts(200.0, 300.0).count(), 0);
    }
}
