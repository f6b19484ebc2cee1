//! The charts of numbers: run times, failures by site. Drawn small enough for a phone.

use super::distribution::Values;
use super::failure_reasons::ReasonClass;
use super::sites::Site;
use super::svg::{Anchor, Drawing, Shape, multiples, round_step, time_step};
use super::timeline_data::TaskFate;
use crate::human::{as_float, count, one_line, percent, round_seconds, seconds, to_integer};

/// Units of a small chart; about a phone's width.
const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 8.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 26.0;
const BARS: f64 = 32.0;
const SITES: usize = 15;
const MICROS: f64 = 1e6;

/// A fate's class in the style sheet, its mark, and its name in the legend.
pub(super) fn look(fate: TaskFate) -> (&'static str, Shape, &'static str) {
    match fate {
        TaskFate::Done => ("done", Shape::Square, "done"),
        TaskFate::Untried => ("back", Shape::Square, "given back"),
        TaskFate::Failed(ReasonClass::Task) => ("task", Shape::Triangle, "task's fault"),
        TaskFate::Failed(ReasonClass::Event) => ("event", Shape::Diamond, "event's fault"),
        TaskFate::Failed(ReasonClass::Image) => ("image", Shape::Square, "image's fault"),
        TaskFate::Failed(ReasonClass::Ep) => ("ep", Shape::Cross, "machine's fault (EP)"),
        TaskFate::Failed(ReasonClass::Broker) => ("broker", Shape::Circle, "broker's fault"),
        TaskFate::Failed(ReasonClass::Unknown) => ("unknown", Shape::Plus, "unknown fault"),
    }
}

/// Bars of equal width over an axis.
struct Bars {
    drawing: Drawing,
    from: f64,
    width: f64,
    number: usize,
    largest: u64,
}

impl Bars {
    fn new(from: f64, width: f64, number: usize, largest: u64) -> Self {
        let mut bars = Self {
            drawing: Drawing::new(WIDTH, HEIGHT),
            from,
            width,
            number,
            largest: largest.max(1),
        };
        let top = as_float(bars.largest);
        for value in multiples(0.0, top, round_step(top, 4.0).max(1.0)) {
            let y = bars.y(value);
            bars.drawing.line((LEFT, y), (WIDTH - RIGHT, y), "grid");
            bars.drawing.text(
                (LEFT - 5.0, y + 4.0),
                Anchor::End,
                &count(to_integer(value)),
            );
        }
        bars
    }

    fn end(&self) -> f64 {
        self.from + self.width * as_float(self.number as u64)
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + (value - self.from) / (self.end() - self.from) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - value / as_float(self.largest) * (HEIGHT - TOP - BOTTOM)
    }

    /// Draws `number` on top of the bar so far.
    fn bar(&mut self, bin: usize, below: u64, number: u64, class: &str, note: &str) {
        if number == 0 {
            return;
        }
        let left = self.x(self.from + self.width * as_float(bin as u64));
        let right = self.x(self.from + self.width * as_float(bin as u64 + 1));
        let (top, bottom) = (self.y(as_float(below + number)), self.y(as_float(below)));
        // A rare fate must be visible too.
        let height = (bottom - top).max(1.0);
        self.drawing.rect(
            (left + 0.5, bottom - height),
            ((right - left - 1.0).max(0.8), height),
            class,
            note,
        );
    }

    fn tick(&mut self, value: f64, label: &str) {
        let x = self.x(value);
        self.drawing
            .line((x, HEIGHT - BOTTOM), (x, HEIGHT - BOTTOM + 4.0), "axis");
        let anchor = if x > WIDTH - 30.0 {
            Anchor::End
        } else {
            Anchor::Middle
        };
        self.drawing
            .text((x, HEIGHT - BOTTOM + 19.0), anchor, label);
    }
}

/// Run times of tasks that succeeded. The few that are far longer than the others share the last bar.
pub(super) fn run_times(values: &Values) -> Option<String> {
    let counted = values.counted();
    let all: u64 = counted.iter().map(|(_, number)| number).sum();
    let mut below = 0;
    let most = counted.iter().find(|(_, number)| {
        below += number;
        as_float(below) >= as_float(all) * 0.995
    })?;
    let longest = as_float(most.0) / MICROS;
    let width = round_step(longest.max(0.001), BARS);
    let number = usize::try_from(to_integer((longest / width).floor())).unwrap_or(0) + 1;
    let mut bins = vec![0; number + 1];
    for (micros, times) in counted {
        let bin = to_integer((as_float(micros) / MICROS / width + 1e-9).floor());
        bins[usize::try_from(bin).unwrap_or(number).min(number)] += times;
    }
    if bins.last() == Some(&0) {
        bins.pop();
    }
    let largest = bins.iter().copied().max().unwrap_or(0);
    let mut bars = Bars::new(0.0, width, bins.len(), largest);
    for (bin, &times) in bins.iter().enumerate() {
        let from = width * as_float(bin as u64);
        let range = match bin {
            _ if bin == number => format!("{} or more", seconds(from)),
            _ => format!("{} to {}", seconds(from), seconds(from + width)),
        };
        bars.bar(
            bin,
            0,
            times,
            "done",
            &format!("{range}: {} tasks", count(times)),
        );
    }
    let end = bars.end();
    for value in multiples(
        0.0,
        end,
        time_step(end, 5.0).max(round_step(end, 6.0).min(1.0)),
    ) {
        bars.tick(value, &round_seconds(value));
    }
    Some(bars.drawing.finish(
        "small",
        "Histogram of the run times of tasks that succeeded",
    ))
}

/// Faults by site, coloured by class, with the failure rate.
pub(super) fn sites(places: &[Site]) -> Option<String> {
    const ROW: f64 = 24.0;
    const NAME: f64 = 128.0;
    const RATE: f64 = 140.0;
    let faults =
        |place: &Site| place.faults_by_class.values().sum::<u64>() + place.failed_before_any_task;
    let mut worst: Vec<&Site> = places.iter().filter(|place| faults(place) > 0).collect();
    worst.sort_by_key(|place| std::cmp::Reverse(faults(place)));
    worst.truncate(SITES);
    let largest = as_float(worst.iter().map(|place| faults(place)).max()?);
    let mut drawing = Drawing::new(WIDTH, TOP + ROW * as_float(worst.len() as u64));
    for (row, place) in worst.iter().enumerate() {
        let y = TOP / 2.0 + ROW * as_float(row as u64);
        let name = one_line(place.name(), 16);
        drawing.text((NAME - 6.0, y + 16.0), Anchor::End, &name);
        let mut x = NAME;
        let parts = ReasonClass::ALL.into_iter().map(|class| {
            let (style, shape, label) = look(TaskFate::Failed(class));
            (
                style,
                shape,
                label,
                place
                    .faults_by_class
                    .get(class.name())
                    .copied()
                    .unwrap_or(0),
            )
        });
        let stillborn = (
            "ep",
            Shape::Cross,
            "pilots failed before any task",
            place.failed_before_any_task,
        );
        for (style, shape, label, number) in parts.chain([stillborn]) {
            if number == 0 {
                continue;
            }
            let width = as_float(number) / largest * (WIDTH - NAME - RATE);
            let note = format!("{}: {} {label}", place.name(), count(number));
            drawing.rect(
                (x, y + 3.0),
                ((width - 0.5).max(1.0), ROW - 6.0),
                style,
                &note,
            );
            if width > 14.0 {
                drawing.mark(shape, (x + 8.0, y + ROW / 2.0), 3.5, "inside", "");
            }
            x += width.max(1.5);
        }
        let bad = if place.bad.is_some() { " bad" } else { "" };
        let rate = format!(
            "{} ({}){bad}",
            count(faults(place)),
            percent(place.failure_rate)
        );
        drawing.text((x + 5.0, y + 16.0), Anchor::Start, &rate);
    }
    Some(drawing.finish("small", "Faults by site and class"))
}
