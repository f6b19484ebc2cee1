//! Sums with rules of their own: outcomes at a place, resources used and requested, the time of the slots.

use std::collections::VecDeque;

use super::distribution::Values;
use super::failure_reasons::ReasonClass;
use super::record_line::RecordLine;
use super::timeline_data::TaskFate;
use crate::human::as_float;

/// Outcomes at a place.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct OutcomeCounts {
    pub(super) pilots: u64,
    /// Pilots that ended by a fault before they started a task.
    pub(super) stillborn: u64,
    pub(super) done: u64,
    pub(super) failed: u64,
    pub(super) other: u64,
    /// Tasks with a fault, by its class. Those with a fault of the machine are given back and don't count as
    /// failed.
    pub(super) faults: [u64; ReasonClass::ALL.len()],
}

/// The use of a resource by tasks, and the requests for it.
#[derive(Debug, Default)]
pub(super) struct TimeUsed {
    pub(super) tasks: Values,
    /// One value for each pilot: its request for each slot.
    pub(super) requested: Values,
    /// Tasks that used more than their slot's share.
    pub(super) above: u64,
    pub(super) compared: u64,
}

/// The tasks that had GPUs of one model.
#[derive(Debug, Default)]
pub(super) struct GpuTotals {
    pub(super) tasks: u64,
    pub(super) done: u64,
    pub(super) failed: u64,
    /// Wall time of those that are done.
    pub(super) run_times: Values,
    /// Wall time of all, times the GPUs of each.
    pub(super) gpu_secs: f64,
}

/// The use of the slots' time, in seconds of one slot.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SlotTime {
    pub(super) total: f64,
    pub(super) busy: f64,
    /// Until events could be taken.
    pub(super) starting: f64,
    /// The init container's part of that.
    pub(super) init: f64,
    /// Waited for the other slots after the last event.
    pub(super) draining: f64,
    /// Was without a connection and without a task; an upper bound.
    pub(super) outage: f64,
}

impl GpuTotals {
    pub(super) fn add(&mut self, gpus: usize, wall_secs: Option<f64>, fate: TaskFate) {
        self.tasks += 1;
        let wall = wall_secs.filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
        if let Some(seconds) = wall {
            self.gpu_secs += seconds * as_float(gpus as u64);
        }
        match fate {
            TaskFate::Done => {
                self.done += 1;
                self.run_times.add_secs(wall.unwrap_or(f64::NAN));
            }
            TaskFate::Failed(_) => self.failed += 1,
            TaskFate::Untried => {}
        }
    }
}

impl TimeUsed {
    pub(super) fn add(&mut self, bytes: Option<u64>, requested: Option<u64>) {
        let Some(bytes) = bytes else { return };
        self.tasks.add(bytes);
        if let Some(requested) = requested {
            self.compared += 1;
            self.above += u64::from(bytes > requested);
        }
    }
}

impl SlotTime {
    pub(super) fn of(
        line: &RecordLine<'_>,
        slots: u32,
        last_tasks: &VecDeque<(f64, f64)>,
    ) -> Option<Self> {
        let (start, end) = (line.started_unix_secs?, line.ended_unix_secs?);
        let slots = f64::from(slots);
        let span = (end - start).max(0.0);
        let total = slots * span;
        let busy = line.busy_secs.unwrap_or(0.0).clamp(0.0, total);
        let mut left = total - busy;
        // Each part takes at most the rest, so the parts add up to the whole even with odd records.
        let mut take = |wanted: f64| {
            let taken = wanted.clamp(0.0, left);
            left -= taken;
            taken
        };
        let ready = line.connected_unix_secs.unwrap_or(end);
        let starting = take(slots * (ready - start));
        let closed = line
            .intake_closed_unix_secs
            .unwrap_or(end)
            .clamp(ready.min(end), end);
        let busy_then: f64 = last_tasks
            .iter()
            .map(|&(from, to)| (to.min(end) - from.max(closed)).max(0.0))
            .sum();
        let draining = take(slots * (end - closed) - busy_then);
        let outage = take(slots * line.broker_outage_secs.unwrap_or(0.0));
        let init = (slots * line.init_time_secs.unwrap_or(0.0)).min(starting);
        Some(Self {
            total,
            busy,
            starting,
            init,
            draining,
            outage,
        })
    }

    pub(super) fn add(&mut self, other: Self) {
        self.total += other.total;
        self.busy += other.busy;
        self.starting += other.starting;
        self.init += other.init;
        self.draining += other.draining;
        self.outage += other.outage;
    }

    /// The rest of the time: waited for an event.
    pub(super) fn idle(&self) -> f64 {
        (self.total - self.busy - self.starting - self.draining - self.outage).max(0.0)
    }
}

impl OutcomeCounts {
    pub(super) fn add(&mut self, other: &Self) {
        self.pilots += other.pilots;
        self.stillborn += other.stillborn;
        self.done += other.done;
        self.failed += other.failed;
        self.other += other.other;
        for (sum, more) in self.faults.iter_mut().zip(other.faults) {
            *sum += more;
        }
    }

    pub(super) fn faults_of(&self, class: ReasonClass) -> u64 {
        self.faults[class as usize]
    }
}
