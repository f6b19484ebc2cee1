//! Draws when tasks ran: one bar for each task as long as bars can be told apart, else boxes of equal time
//! that show how busy each lane was and its failures. So the page stays usable with any number of tasks.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::aggregate::Aggregate;
use super::charts::{look, time_ticks};
use super::failure_reasons::ReasonClass;
use super::svg::{Anchor, Drawing, time_step};
use super::timeline_data::{TaskFate, TimelineBar};
use crate::human::{as_float, count, one_line, round_seconds, to_integer, utc};

const WIDTH: f64 = 1000.0;
const NAMES: f64 = 170.0;
const RIGHT: f64 = 10.0;
const AXIS: f64 = 26.0;
const ROW: f64 = 18.0;
/// The most bars, and the most slots, that are drawn one by one.
const MOST_BARS: usize = 1500;
const MOST_LANES: usize = 60;
/// Boxes in a row, at most.
const BOXES: f64 = 110.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    Slot,
    Host,
    Site,
}

/// The picture and its caption.
pub(super) struct Timeline {
    pub(super) svg: String,
    pub(super) caption: String,
}

/// The sort key of a lane: site, host, pilot, slot.
type Key = (u32, u32, u32, u16);

struct Lanes {
    by: By,
    rows: BTreeMap<Key, usize>,
    names: Vec<String>,
}

/// Draws all tasks; `None` if none has a time.
pub(super) fn draw(aggregate: &Aggregate) -> Option<Timeline> {
    let (first, last) = aggregate.timeline_data.range()?;
    let lanes = Lanes::of(aggregate);
    let mut canvas = Canvas {
        drawing: Drawing::new(WIDTH, AXIS + ROW * as_float(lanes.names.len() as u64)),
        from: first,
        to: last,
    };
    canvas.frame(&lanes.names, aggregate.timeline_data.base);
    let tasks = aggregate.timeline_data.tasks.len();
    let missing = match aggregate.timeline_data.left_out {
        0 => String::new(),
        number => format!(
            " {} further tasks are not in the charts over time.",
            count(number)
        ),
    };
    let caption = if lanes.by == By::Slot && tasks <= MOST_BARS {
        canvas.bars(aggregate, &lanes);
        format!("One bar a task, one row a slot; a mark shows whose fault a failure was.{missing}")
    } else {
        let width = canvas.boxes(aggregate, &lanes);
        let row = match lanes.by {
            By::Slot => "slot",
            By::Host => "host: its slots are too many to draw each",
            By::Site => "site: slots and hosts are too many to draw each",
        };
        format!(
            "Too many tasks for a bar each: a box is {}, the stronger its colour the more ran, compared with the row's most. \
             A mark shows the class of most failures that happened in it, the larger the more of its tasks \
             failed. One row a {row}.{missing}",
            round_seconds(width)
        )
    };
    Some(Timeline {
        svg: canvas.drawing.finish("wide", "Timeline of tasks"),
        caption,
    })
}

impl Lanes {
    /// The finest lanes that can be drawn. Thousands of sites share the last row.
    fn of(aggregate: &Aggregate) -> Self {
        for by in [By::Slot, By::Host, By::Site] {
            let mut rows = BTreeMap::new();
            for task in &aggregate.timeline_data.tasks {
                rows.entry(key(by, aggregate, task)).or_insert(0);
                if by != By::Site && rows.len() > MOST_LANES {
                    break;
                }
            }
            if by != By::Site && rows.len() > MOST_LANES {
                continue;
            }
            let mut order: Vec<Key> = rows.keys().copied().collect();
            order.sort_by_key(|key| {
                (
                    site_name(aggregate, key.0),
                    host_name(aggregate, by, key.1),
                    key.2,
                    key.3,
                )
            });
            let mut names = Vec::new();
            for (row, key) in order.iter().enumerate() {
                rows.insert(*key, row.min(MOST_LANES));
                if row < MOST_LANES {
                    names.push(name(by, aggregate, *key));
                } else if row == MOST_LANES {
                    names.push("all others".to_owned());
                }
            }
            return Self { by, rows, names };
        }
        Self {
            by: By::Site,
            rows: BTreeMap::new(),
            names: Vec::new(),
        }
    }

    fn row(&self, aggregate: &Aggregate, task: &TimelineBar) -> usize {
        self.rows
            .get(&key(self.by, aggregate, task))
            .copied()
            .unwrap_or(0)
    }
}

fn key(by: By, aggregate: &Aggregate, task: &TimelineBar) -> Key {
    let host = aggregate.pilots[task.pilot as usize].host;
    let site = aggregate.hosts[host as usize].site;
    match by {
        By::Slot => (site, host, task.pilot, task.slot),
        By::Host => (site, host, 0, 0),
        By::Site => (site, 0, 0, 0),
    }
}

fn site_name(aggregate: &Aggregate, site: u32) -> &str {
    aggregate.sites[site as usize]
        .precise()
        .unwrap_or("(no site)")
}

fn host_name(aggregate: &Aggregate, by: By, host: u32) -> &str {
    if by == By::Site {
        ""
    } else {
        &aggregate.hosts[host as usize].name
    }
}

fn name(by: By, aggregate: &Aggregate, (site, host, _, slot): Key) -> String {
    let machine = host_name(aggregate, by, host)
        .split('.')
        .next()
        .unwrap_or_default();
    match (by, slot) {
        (By::Site, _) => one_line(site_name(aggregate, site), 26),
        (By::Host, _) => one_line(host_name(aggregate, by, host), 26),
        (By::Slot, 0) => format!("{} · no slot", one_line(machine, 16)),
        (By::Slot, slot) => format!("{} · slot {slot}", one_line(machine, 16)),
    }
}

/// Time from left to right, lanes from top to bottom.
struct Canvas {
    drawing: Drawing,
    from: f64,
    to: f64,
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
    fn x(&self, time: f64) -> f64 {
        NAMES + (time - self.from) / (self.to - self.from) * (WIDTH - NAMES - RIGHT)
    }

    fn y(row: usize) -> f64 {
        AXIS + ROW * as_float(row as u64)
    }

    fn frame(&mut self, names: &[String], base: f64) {
        for (row, name) in names.iter().enumerate() {
            let y = Self::y(row);
            self.drawing.line(
                (NAMES, y + ROW - 0.5),
                (WIDTH - RIGHT, y + ROW - 0.5),
                "grid",
            );
            self.drawing
                .text((NAMES - 6.0, y + 13.0), Anchor::End, name);
        }
        for (time, label) in time_ticks(base + self.from, base + self.to, 9.0) {
            let x = self.x(time - base);
            self.drawing
                .line((x, AXIS - 5.0), (x, Self::y(names.len())), "grid");
            let anchor = if x > WIDTH - 20.0 {
                Anchor::End
            } else {
                Anchor::Middle
            };
            self.drawing.text((x, AXIS - 10.0), anchor, &label);
        }
    }

    fn bars(&mut self, aggregate: &Aggregate, lanes: &Lanes) {
        let mut marks = Vec::new();
        for (index, task) in aggregate.timeline_data.tasks.iter().enumerate() {
            let (class, shape, _) = look(task.fate);
            let y = Self::y(lanes.row(aggregate, task));
            let (left, right) = (self.x(f64::from(task.start)), self.x(f64::from(task.end)));
            let note = aggregate.timeline_data.note(index).unwrap_or_default();
            let size = ((right - left - 0.5).max(1.5), ROW - 7.0);
            self.drawing
                .rect((left, y + 3.0), size, &format!("{class} bar"), note);
            if matches!(task.fate, TaskFate::Failed(_)) {
                marks.push((
                    shape,
                    (right.max(left + 1.5), y + ROW / 2.0 - 0.5),
                    class,
                    note,
                ));
            }
        }
        // Marks come last, so that no bar covers them.
        for (shape, at, class, note) in marks {
            self.drawing.mark(shape, at, 4.5, class, note);
        }
    }

    /// Returns the width of a box in seconds.
    fn boxes(&mut self, aggregate: &Aggregate, lanes: &Lanes) -> f64 {
        let base = aggregate.timeline_data.base;
        let width = time_step(self.to - self.from, BOXES);
        let begin = ((base + self.from) / width).floor() * width - base;
        let column =
            |time: f64| usize::try_from(to_integer(((time - begin) / width).floor())).unwrap_or(0);
        let columns = column(self.to) + 1;
        let mut cells = vec![vec![Cell::default(); columns]; lanes.names.len()];
        for (index, task) in aggregate.timeline_data.tasks.iter().enumerate() {
            let row = &mut cells[lanes.row(aggregate, task)];
            let (start, end) = (f64::from(task.start), f64::from(task.end));
            for (at, cell) in row
                .iter_mut()
                .enumerate()
                .take(column(end) + 1)
                .skip(column(start))
            {
                let left = begin + width * as_float(at as u64);
                cell.busy += (end.min(left + width) - start.max(left)).max(0.0);
            }
            let cell = &mut row[column(end)];
            cell.ended += 1;
            if let TaskFate::Failed(class) = task.fate {
                cell.failed[class as usize] += 1;
                if cell.example.is_none() && aggregate.timeline_data.note(index).is_some() {
                    cell.example = Some(index);
                }
            }
        }
        for (row, cells) in cells.iter().enumerate() {
            let most = cells
                .iter()
                .map(|cell| cell.busy)
                .fold(0.0, f64::max)
                .max(f64::MIN_POSITIVE);
            for (at, cell) in cells.iter().enumerate() {
                if cell.busy > 0.0 || cell.ended > 0 {
                    let time = begin + width * as_float(at as u64);
                    self.cell(
                        cell,
                        (row, time, width),
                        cell.busy / most,
                        aggregate,
                        &lanes.names[row],
                    );
                }
            }
        }
        width
    }

    fn cell(
        &mut self,
        cell: &Cell,
        (row, time, width): (usize, f64, f64),
        shade: f64,
        aggregate: &Aggregate,
        lane: &str,
    ) {
        let (left, right) = (
            self.x(time.max(self.from)),
            self.x((time + width).min(self.to)),
        );
        let y = Self::y(row);
        let failed: Vec<String> = ReasonClass::ALL
            .into_iter()
            .filter(|class| cell.failed[*class as usize] > 0)
            .map(|class| {
                format!(
                    "{} {}",
                    count(cell.failed[class as usize]),
                    look(TaskFate::Failed(class)).2
                )
            })
            .collect();
        let mut note = format!(
            "{lane} · {} UTC, {}\n{:.1} tasks ran on average, {} ended",
            utc(aggregate.timeline_data.base + time),
            round_seconds(width),
            cell.busy / width,
            count(cell.ended)
        );
        if !failed.is_empty() {
            let _ = write!(note, "\nfailed: {}", failed.join(", "));
        }
        if let Some(example) = cell
            .example
            .and_then(|index| aggregate.timeline_data.note(index))
        {
            let _ = write!(note, "\nfor example: {example}");
        }
        let level = to_integer((shade * 5.0).ceil()).clamp(1, 5);
        self.drawing.rect(
            (left, y + 2.0),
            ((right - left - 0.5).max(0.5), ROW - 5.0),
            &format!("busy b{level}"),
            &note,
        );
        let most = ReasonClass::ALL
            .into_iter()
            .max_by_key(|class| (cell.failed[*class as usize], std::cmp::Reverse(*class)));
        if let Some(class) = most.filter(|class| cell.failed[*class as usize] > 0) {
            let all: u64 = cell.failed.iter().sum();
            let size = (5.0 * (as_float(all) / as_float(cell.ended)).sqrt()).max(1.0);
            let (style, form, _) = look(TaskFate::Failed(class));
            self.drawing.mark(
                form,
                (f64::midpoint(left, right), y + ROW / 2.0 - 0.5),
                size,
                style,
                &note,
            );
        }
    }
}
