//! The limits that a pilot keeps to: time, memory, disk, output, deliveries. Read as one, because what
//! `auto` means depends on the slot that HTCondor gave. Touches nothing.

use std::time::Duration;

use super::CondorJob;
use super::reader::VariableReader;
use super::variables as var;

/// Everything that the pilot ends a task, or itself, for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PilotLimits {
    /// Resident memory of one task's container, in bytes.
    pub task_memory: Option<u64>,
    /// Free bytes that must stay on the disk that the pilot data is on.
    pub min_free_disk: Option<u64>,
    /// How long a task may show no progress.
    pub task_stall: Option<Duration>,
    /// Wall time of the pilot, from its start.
    pub max_runtime: Option<Duration>,
    /// Bytes kept of each of a container's two outputs.
    pub task_output: u64,
    /// Bytes kept of all failed tasks' directories together.
    pub kept_files: u64,
    /// What may be sent as one message, in bytes, if that was set.
    pub message: Option<usize>,
    /// Deliveries of an event that fails each time, before it is taken out of the queue.
    pub max_deliveries: Option<u64>,
}

/// Of the slot's memory, what tasks may share when the limit is `auto`; the rest is the pilot's and
/// Apptainer's own, and the distance in which a growing task is noticed before HTCondor does.
const TASKS_SHARE_PERCENT: u64 = 95;

/// A limit on memory as the user gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryLimit {
    /// The slot's, divided by the number of tasks.
    Auto,
    /// This many bytes.
    Bytes(u64),
}

pub(super) fn limits(
    reader: &mut VariableReader<'_>,
) -> impl FnOnce(&CondorJob, u32) -> PilotLimits + use<> {
    let task_memory = reader.memory(&var::TASK_MEMORY);
    let min_free_disk = reader.size(&var::MIN_FREE_DISK).filter(|bytes| *bytes > 0);
    let task_stall = reader.seconds(&var::TASK_STALL);
    let max_runtime = reader.seconds(&var::MAX_RUNTIME);
    let task_output = reader.size(&var::TASK_OUTPUT_MAX).unwrap_or(u64::MAX);
    let kept_files = reader.size(&var::KEPT_FILES_MAX).unwrap_or(u64::MAX);
    let message = reader
        .size_above_zero(&var::BROKER_MAX_MESSAGE_SIZE)
        .map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    let max_deliveries = reader.count(&var::MAX_DELIVERIES).map(u64::from);
    move |condor, slots| PilotLimits {
        task_memory: match task_memory {
            None => None,
            Some(MemoryLimit::Bytes(bytes)) => Some(bytes),
            Some(MemoryLimit::Auto) => condor
                .memory
                .map(|bytes| bytes / 100 * TASKS_SHARE_PERCENT / u64::from(slots.max(1))),
        },
        min_free_disk,
        task_stall,
        max_runtime: max_runtime.or(condor.wall_time),
        task_output,
        kept_files,
        message,
        max_deliveries,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::Environment;

    fn read(variables: &[(&str, &str)], condor: &CondorJob, slots: u32) -> PilotLimits {
        let environment: Environment = variables
            .iter()
            .map(|&(name, value)| (name.into(), value.into()))
            .collect();
        let mut reader = VariableReader::new(&environment, Vec::new());
        let limits = limits(&mut reader);
        assert!(reader.problems.is_empty(), "{:?}", reader.problems);
        limits(condor, slots)
    }

    #[test]
    fn nothing_is_limited_by_default_but_what_is_kept() {
        let limits = read(&[], &CondorJob::default(), 1);
        assert_eq!(
            limits,
            PilotLimits {
                task_memory: None,
                min_free_disk: None,
                task_stall: None,
                max_runtime: None,
                task_output: 100 << 20,
                kept_files: 1 << 30,
                message: None,
                max_deliveries: None,
            }
        );
    }

    #[test]
    fn auto_memory_is_a_slots_share_for_each_task() {
        let condor = CondorJob {
            memory: Some(4_000_000_000),
            ..CondorJob::default()
        };
        let auto = &[("EWMS_PILOT_TASK_MEMORY", "auto")];
        assert_eq!(read(auto, &condor, 4).task_memory, Some(950_000_000));
        assert_eq!(read(auto, &CondorJob::default(), 4).task_memory, None);
    }

    #[test]
    fn a_run_time_that_was_set_counts_before_the_jobs_own() {
        let condor = CondorJob {
            wall_time: Some(Duration::from_hours(4)),
            ..CondorJob::default()
        };
        assert_eq!(
            read(&[], &condor, 1).max_runtime,
            Some(Duration::from_hours(4))
        );
        let set = &[("EWMS_PILOT_MAX_RUNTIME", "60")];
        assert_eq!(
            read(set, &condor, 1).max_runtime,
            Some(Duration::from_mins(1))
        );
    }
}
