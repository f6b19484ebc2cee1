//! The panels above the timeline: how many events were done and failed, and how many slots were in use, over time.

use std::fmt::Write as _;

use super::aggregate::{Aggregate, PilotSums};
use super::svg::{Anchor, Drawing, multiples, round_step};
use super::time_axis::{TimeAxis, TimeBins, WIDTH};
use super::timeline_data::TaskFate;
use crate::human::{count, round_seconds, to_integer};

/// Pixels, with the title above it.
const HEIGHT: f64 = 92.0;
const TITLE: f64 = 22.0;
const GAP: f64 = 10.0;
const BARS: f64 = 94.0;

/// Bars over time. Each has two parts, one on top of the other.
pub(super) struct Panel {
    /// At the left of the panel.
    name: &'static str,
    title: String,
    bins: TimeBins,
    classes: [&'static str; 2],
    values: Vec<[f64; 2]>,
    notes: Vec<String>,
}

/// The panels of these records; each number of the second is that of slots.
pub(super) fn all(aggregate: &Aggregate, axis: TimeAxis) -> Vec<Panel> {
    let bins = axis.bins(BARS);
    vec![throughput(aggregate, bins), slots(aggregate, axis, bins)]
}

fn throughput(aggregate: &Aggregate, bins: TimeBins) -> Panel {
    let mut values = vec![[0.0; 2]; bins.number];
    for task in &aggregate.timeline_data.tasks {
        let part = match task.fate {
            TaskFate::Done => 0,
            TaskFate::Failed(_) => 1,
            TaskFate::Untried => continue,
        };
        values[bins.of(f64::from(task.end))][part] += 1.0;
    }
    let note = |(bin, [done, failed]): (usize, &[f64; 2])| {
        format!(
            "{} UTC, {}: {} done, {} failed",
            bins.utc(bin),
            round_seconds(bins.width),
            count(to_integer(*done)),
            count(to_integer(*failed))
        )
    };
    Panel {
        name: "events",
        title: format!("events done and failed, per {}", round_seconds(bins.width)),
        bins,
        classes: ["done", "failed"],
        notes: values.iter().enumerate().map(note).collect(),
        values,
    }
}

fn slots(aggregate: &Aggregate, axis: TimeAxis, bins: TimeBins) -> Panel {
    let mut busy = vec![0.0; bins.number];
    for task in aggregate
        .timeline_data
        .tasks
        .iter()
        .filter(|task| task.slot > 0)
    {
        for (bin, secs) in bins.parts(f64::from(task.start), f64::from(task.end)) {
            busy[bin] += secs / bins.width;
        }
    }
    let mut there = vec![0.0; bins.number];
    for pilot in &aggregate.pilots {
        let slots = f64::from(pilot.slots.unwrap_or(1));
        let Some((start, end)) = pilot.span() else {
            continue;
        };
        for (bin, secs) in bins.parts(start - axis.base, end - axis.base) {
            there[bin] += slots * secs / bins.width;
        }
    }
    let note = |bin: usize| {
        format!(
            "{} UTC, {}: {:.1} slots in use of {:.1}",
            bins.utc(bin),
            round_seconds(bins.width),
            busy[bin],
            there[bin].max(busy[bin])
        )
    };
    Panel {
        name: "slots",
        title: "slots in use, of those there were".to_owned(),
        bins,
        classes: ["done", "free"],
        notes: (0..bins.number).map(note).collect(),
        values: (busy.iter().zip(&there))
            .map(|(busy, there)| [*busy, (there - busy).max(0.0)])
            .collect(),
    }
}

impl Panel {
    #[expect(clippy::unused_self, reason = "all panels are as high today")]
    pub(super) fn height(&self) -> f64 {
        HEIGHT + GAP
    }

    fn largest(&self) -> f64 {
        let sums = self.values.iter().map(|[first, second]| first + second);
        sums.fold(1.0, f64::max)
    }

    /// Round values for lines, and how far from the panel's top each is.
    fn steps(&self) -> impl Iterator<Item = (f64, f64)> {
        let largest = self.largest();
        let step = round_step(largest, 3.0).max(1.0);
        multiples(0.0, largest, step).map(move |value| (value, HEIGHT - scaled(value, largest)))
    }

    pub(super) fn draw(&self, drawing: &mut Drawing, top: f64) {
        for (_, y) in self.steps() {
            drawing.line((0.0, top + y), (WIDTH, top + y), "grid");
        }
        drawing.text((0.0, top + 14.0), Anchor::Start, &self.title);
        let largest = self.largest();
        for (bin, parts) in self.values.iter().enumerate() {
            let (left, right) = self.bins.edges(bin);
            let mut bottom = top + HEIGHT;
            for (value, class) in parts.iter().zip(self.classes) {
                if *value <= 0.0 {
                    continue;
                }
                // A rare fate must be visible too.
                let height = scaled(*value, largest).max(1.0);
                let size = ((right - left - 1.0).max(0.8), height);
                bottom -= height;
                drawing.rect((left, bottom), size, class, &self.notes[bin]);
            }
        }
    }

    /// The HTML at its left: its name, and the values of the lines.
    pub(super) fn names(&self) -> String {
        let mut html = format!(
            "<div class=\"panel\" style=\"height:{}px\"><b>{}</b>",
            self.height(),
            self.name
        );
        for (value, y) in self.steps() {
            let _ = write!(
                html,
                "<i style=\"top:{:.0}px\">{}</i>",
                y - 9.0,
                count(to_integer(value))
            );
        }
        html + "</div>"
    }
}

fn scaled(value: f64, largest: f64) -> f64 {
    value / largest * (HEIGHT - TITLE)
}

impl PilotSums {
    /// From its start to its end, as far as the records say it.
    fn span(&self) -> Option<(f64, f64)> {
        let (first, last) = self.seen?;
        Some((self.started.unwrap_or(first), self.finished.unwrap_or(last)))
    }
}
