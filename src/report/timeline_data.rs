//! When each task ran, where, and what came of it: what charts over time are drawn from. Sixteen bytes
//! a task, so that a million fit; the words of a record are kept for the first few and for failures only.

use std::collections::HashMap;

use super::failure_reasons::Class;

/// So many tasks are kept (32 MB); what comes later is missing in the charts, and they say so.
const MOST: usize = 2_000_000;
/// Of so many tasks, and of so many further failures, the record's words are kept.
const MOST_NOTES: usize = 2000;

#[derive(Debug, Default)]
pub(super) struct TimelineData {
    /// The time that all are counted from, seconds since 1970.
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
    pub(super) fate: Fate,
}

/// What came of a task, as the charts tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Done,
    /// Given back or unsettled, by nobody's fault.
    Untried,
    Failed(Class),
}

impl TimelineData {
    /// Adds a task that ran from one time to another, both seconds since 1970. `note` is asked for words
    /// only if they are kept.
    pub(super) fn add(
        &mut self,
        times: (f64, f64),
        pilot: u32,
        slot: u16,
        fate: Fate,
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
        let limit = if matches!(fate, Fate::Failed(_)) {
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

    /// A task's record in words, if they were kept.
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

/// A twentieth of a second is exact over ten days, a second over half a year.
#[expect(
    clippy::cast_possible_truncation,
    reason = "single precision is what a chart needs"
)]
fn from(base: f64, time: f64) -> f32 {
    (time - base) as f32
}
