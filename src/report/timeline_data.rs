//! The data of the charts over time: when and where each task ran, and its fate, in sixteen bytes for each.
//! The text of a record is kept for the first few tasks and for failures only.

use std::collections::HashMap;

use super::failure_reasons::ReasonClass;

/// The most tasks that are kept (32 MB). Later ones are missing in the charts, which say so.
const MOST: usize = 2_000_000;
/// The most tasks, and the most further failures, that keep the text of their record.
const MOST_NOTES: usize = 2000;

#[derive(Debug, Default)]
pub(super) struct TimelineData {
    /// The time that all times are counted from, seconds since 1970.
    pub(super) base: f64,
    pub(super) tasks: Vec<TimelineBar>,
    pub(super) left_out: u64,
    notes: HashMap<usize, Box<str>>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct TimelineBar {
    /// Seconds from the base.
    pub(super) start: f32,
    pub(super) end: f32,
    pub(super) pilot: u32,
    /// From 1; 0 if it never ran.
    pub(super) slot: u16,
    pub(super) fate: TaskFate,
}

/// The fate of a task, as the charts show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TaskFate {
    Done,
    /// Given back or unsettled, without a fault.
    Untried,
    Failed(ReasonClass),
}

impl TimelineData {
    /// Adds a task that ran from one time to another, both seconds since 1970. `note` is called only if its
    /// text is kept.
    pub(super) fn add(
        &mut self,
        times: (f64, f64),
        pilot: u32,
        slot: u16,
        fate: TaskFate,
        note: impl FnOnce() -> String,
    ) {
        if self.tasks.len() >= MOST {
            self.left_out += 1;
            return;
        }
        if self.tasks.is_empty() {
            self.base = times.0;
        }
        let index = self.tasks.len();
        let limit = if matches!(fate, TaskFate::Failed(_)) {
            2 * MOST_NOTES
        } else {
            MOST_NOTES
        };
        if self.notes.len() < limit {
            self.notes.insert(index, note().into());
        }
        let (start, end) = (
            from(self.base, times.0),
            from(self.base, times.1.max(times.0)),
        );
        self.tasks.push(TimelineBar {
            start,
            end,
            pilot,
            slot,
            fate,
        });
    }

    /// The text of a task's record, if it was kept.
    pub(super) fn note(&self, index: usize) -> Option<&str> {
        self.notes.get(&index).map(|note| &**note)
    }

    /// The first start and the last end, seconds from the base; at least a second apart.
    pub(super) fn range(&self) -> Option<(f64, f64)> {
        let first = self
            .tasks
            .iter()
            .map(|task| task.start)
            .min_by(f32::total_cmp)?;
        let last = self
            .tasks
            .iter()
            .map(|task| task.end)
            .max_by(f32::total_cmp)?;
        Some((
            f64::from(first),
            f64::from(last).max(f64::from(first) + 1.0),
        ))
    }
}

/// Rounds to single precision: a twentieth of a second over ten days, a second over half a year.
#[expect(
    clippy::cast_possible_truncation,
    reason = "single precision is what a chart needs"
)]
fn from(base: f64, time: f64) -> f32 {
    (time - base) as f32
}
