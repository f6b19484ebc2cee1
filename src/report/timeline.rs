//! Draws when tasks ran: one bar for each task as long as bars can be told apart, else boxes of equal time
//! that show how busy each lane was and its failures. So the page stays usable with any number of tasks. Above the
//! lanes, on the same axis, stand the panels.

use std::fmt::Write as _;

use super::aggregate::Aggregate;
use super::charts::look;
use super::failure_reasons::ReasonClass;
use super::lanes::{LaneKind, LaneLabel, Lanes};
use super::panels::{self, Panel};
use super::svg::{Drawing, Escaped};
use super::time_axis::{LABELS, TimeAxis, TimeBins, WIDTH};
use super::timeline_data::TaskFate;
use crate::human::{as_float, count, round_seconds, to_integer};

const ROW: f64 = 18.0;
/// The most tasks that are drawn one by one.
const MOST_BARS: usize = 1500;
/// Boxes in a row, at most.
const BOXES: f64 = 110.0;

/// The picture, the names at its left, and its caption.
pub(super) struct Timeline {
    pub(super) svg: String,
    /// HTML as high as the picture, a line for each row.
    pub(super) names: String,
    pub(super) caption: String,
}

/// Draws all tasks; `None` if none has a time.
pub(super) fn draw(aggregate: &Aggregate) -> Option<Timeline> {
    let axis = TimeAxis::of(&aggregate.timeline_data)?;
    let lanes = Lanes::of(aggregate);
    let panels = panels::all(aggregate, axis);
    let top = LABELS + panels.iter().map(Panel::height).sum::<f64>();
    let height = top + ROW * as_float(lanes.labels.len() as u64);
    let mut drawing = Drawing::new(WIDTH, height);
    axis.draw(&mut drawing, height);
    let mut y = LABELS;
    for panel in &panels {
        panel.draw(&mut drawing, y);
        y += panel.height();
    }
    let mut canvas = Canvas { drawing, axis, top };
    canvas.rules(&lanes.labels);
    let caption = canvas.tasks(aggregate, &lanes);
    Some(Timeline {
        svg: canvas
            .drawing
            .finish("wide", "Slots, events and tasks over time"),
        names: names(&panels, &lanes.labels),
        caption,
    })
}

fn names(panels: &[Panel], labels: &[LaneLabel]) -> String {
    let mut html = format!("<div style=\"height:{LABELS}px\"></div>");
    for panel in panels {
        html.push_str(&panel.names());
    }
    for label in labels {
        let _ = write!(
            html,
            "<div class=\"lane\" title=\"{}\">{}</div>",
            Escaped(&label.long),
            Escaped(&label.short)
        );
    }
    html
}

/// Time from left to right, lanes from top to bottom.
struct Canvas {
    drawing: Drawing,
    axis: TimeAxis,
    /// Where the first lane begins.
    top: f64,
}

/// The tasks of a lane in one box of time.
#[derive(Debug, Clone, Default)]
struct Cell {
    busy: f64,
    ended: u64,
    failed: [u64; ReasonClass::ALL.len()],
    example: Option<usize>,
}

impl Canvas {
    fn y(&self, row: usize) -> f64 {
        self.top + ROW * as_float(row as u64)
    }

    /// A line above each label.
    fn rules(&mut self, labels: &[LaneLabel]) {
        for (row, label) in labels.iter().enumerate() {
            if !label.short.is_empty() {
                let y = self.y(row) - 0.5;
                self.drawing.line((0.0, y), (WIDTH, y), "grid");
            }
        }
    }

    /// Returns the caption.
    fn tasks(&mut self, aggregate: &Aggregate, lanes: &Lanes) -> String {
        let missing = match aggregate.timeline_data.left_out {
            0 => String::new(),
            number => format!(
                " {} further tasks are not in the charts over time.",
                count(number)
            ),
        };
        if lanes.kind == LaneKind::Slot && aggregate.timeline_data.tasks.len() <= MOST_BARS {
            self.bars(aggregate, lanes);
            return format!(
                "One bar a task, one row a slot, one name a pilot, those with the most faults first; a mark shows \
                 whose fault a failure was.{missing}"
            );
        }
        let width = self.boxes(aggregate, lanes);
        let row = match lanes.kind {
            LaneKind::Slot => "slot, one name a pilot",
            LaneKind::Host => "host",
            LaneKind::Site => "site",
        };
        format!(
            "One row a {row}, those with the most faults first. A box is {}, the stronger its colour the more tasks \
             ran, compared with the row's most. A mark shows the class of most failures that happened in it, the \
             larger the more of its tasks failed.{missing}",
            round_seconds(width)
        )
    }

    fn bars(&mut self, aggregate: &Aggregate, lanes: &Lanes) {
        let mut marks = Vec::new();
        for (index, task) in aggregate.timeline_data.tasks.iter().enumerate() {
            let (class, shape, _) = look(task.fate);
            let y = self.y(lanes.row(aggregate, task));
            let (start, end) = (f64::from(task.start), f64::from(task.end));
            let (left, right) = (self.axis.x(start), self.axis.x(end));
            let note = aggregate.timeline_data.note(index).unwrap_or_default();
            let size = ((right - left - 0.5).max(1.5), ROW - 7.0);
            self.drawing
                .rect((left, y + 3.0), size, &format!("{class} bar"), note);
            if matches!(task.fate, TaskFate::Failed(_)) {
                let at = (right.max(left + 1.5), y + ROW / 2.0 - 0.5);
                marks.push((shape, at, class, note));
            }
        }
        // Marks come last, so that no bar covers them.
        for (shape, at, class, note) in marks {
            self.drawing.mark(shape, at, 4.5, class, note);
        }
    }

    /// Returns the width of a box in seconds.
    fn boxes(&mut self, aggregate: &Aggregate, lanes: &Lanes) -> f64 {
        let bins = self.axis.bins(BOXES);
        let rows = cells(aggregate, lanes, bins);
        for (row, cells) in rows.iter().enumerate() {
            let busy = cells.iter().map(|cell| cell.busy);
            let most = busy.fold(f64::MIN_POSITIVE, f64::max);
            for (bin, cell) in cells.iter().enumerate() {
                if cell.busy > 0.0 || cell.ended > 0 {
                    let note = note(cell, aggregate, &lanes.labels[row], (bins, bin));
                    self.cell(
                        cell,
                        (self.y(row), bins.edges(bin)),
                        cell.busy / most,
                        &note,
                    );
                }
            }
        }
        bins.width
    }

    fn cell(&mut self, cell: &Cell, (y, (left, right)): (f64, (f64, f64)), shade: f64, note: &str) {
        let level = to_integer((shade * 5.0).ceil()).clamp(1, 5);
        let size = ((right - left - 0.5).max(0.5), ROW - 5.0);
        let class = format!("busy b{level}");
        self.drawing.rect((left, y + 2.0), size, &class, note);
        let most = ReasonClass::ALL
            .into_iter()
            .max_by_key(|class| (cell.failed[*class as usize], std::cmp::Reverse(*class)));
        if let Some(class) = most.filter(|class| cell.failed[*class as usize] > 0) {
            let all: u64 = cell.failed.iter().sum();
            let size = (5.0 * (as_float(all) / as_float(cell.ended)).sqrt()).max(1.0);
            let (style, form, _) = look(TaskFate::Failed(class));
            let at = (f64::midpoint(left, right), y + ROW / 2.0 - 0.5);
            self.drawing.mark(form, at, size, style, note);
        }
    }
}

/// The boxes of each row.
fn cells(aggregate: &Aggregate, lanes: &Lanes, bins: TimeBins) -> Vec<Vec<Cell>> {
    let mut cells = vec![vec![Cell::default(); bins.number]; lanes.labels.len()];
    for (index, task) in aggregate.timeline_data.tasks.iter().enumerate() {
        let row = &mut cells[lanes.row(aggregate, task)];
        let (start, end) = (f64::from(task.start), f64::from(task.end));
        for (bin, secs) in bins.parts(start, end) {
            row[bin].busy += secs;
        }
        let cell = &mut row[bins.of(end)];
        cell.ended += 1;
        if let TaskFate::Failed(class) = task.fate {
            cell.failed[class as usize] += 1;
            if cell.example.is_none() && aggregate.timeline_data.note(index).is_some() {
                cell.example = Some(index);
            }
        }
    }
    cells
}

/// The text of a box.
fn note(
    cell: &Cell,
    aggregate: &Aggregate,
    lane: &LaneLabel,
    (bins, bin): (TimeBins, usize),
) -> String {
    let mut note = format!(
        "{} · {} UTC, {}\n{:.1} tasks ran on average, {} ended",
        lane.long,
        bins.utc(bin),
        round_seconds(bins.width),
        cell.busy / bins.width,
        count(cell.ended)
    );
    let failed: Vec<String> = ReasonClass::ALL
        .into_iter()
        .map(|class| (cell.failed[class as usize], look(TaskFate::Failed(class)).2))
        .filter(|(number, _)| *number > 0)
        .map(|(number, fault)| format!("{} {fault}", count(number)))
        .collect();
    if !failed.is_empty() {
        let _ = write!(note, "\nfailed: {}", failed.join(", "));
    }
    let example = cell
        .example
        .and_then(|index| aggregate.timeline_data.note(index));
    if let Some(example) = example {
        let _ = write!(note, "\nfor example: {example}");
    }
    note
}
