//! The limits that a pilot keeps to: time, memory, disk, output, deliveries, and the grace of a container
//! that was told to end. Some of them depend on the slot and the time that HTCondor gave.

use std::num::NonZeroU32;
use std::time::Duration;

use super::CondorJob;
use super::reader::{MemoryLimit, VariableReader};
use super::variables as var;

/// The limits at which the pilot ends a task, or itself, and what it keeps of outputs and files.
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
    /// Bytes kept of the directories of all failed tasks together.
    pub kept_files: u64,
    /// The largest message that may be sent, in bytes, if that was set.
    pub message: Option<usize>,
    /// Deliveries after which an event that fails each time is taken out of the queue.
    pub max_deliveries: Option<u64>,
}

/// The part of the slot's memory that tasks may share when the limit is `auto`. The rest is for the pilot and
/// Apptainer, and leaves time to notice a growing task before HTCondor does.
const TASKS_SHARE_PERCENT: u64 = 95;

/// The part of an eviction's time that the pilot itself needs: to kill containers that did not end (up to
/// 3 s), give events back, and tell HTCondor.
const OWN_PART: Duration = Duration::from_secs(5);

/// How long a container that was told to end may take: the user's value, else the default, shortened to fit
/// the time that HTCondor gives an evicted job (`vacate_time`). The user's value counts even if it doesn't
/// fit, with a warning: not every pool ends a job when its ad says.
pub(super) fn kill_grace(
    reader: &mut VariableReader<'_>,
    vacate_time: Option<Duration>,
) -> Duration {
    let is_set = reader.set(&var::KILL_GRACE).is_some();
    let grace = reader.duration(&var::KILL_GRACE);
    let Some(vacate_time) = vacate_time else {
        return grace;
    };
    let most = vacate_time.saturating_sub(OWN_PART);
    if !is_set {
        return grace.min(most);
    }
    if grace > most {
        reader.warnings.push(format!(
            "`{}` is `{}`, but HTCondor kills an evicted job after {} s: set at most {} to be sure that \
             events are given back in order",
            var::KILL_GRACE.name,
            grace.as_secs_f64(),
            vacate_time.as_secs(),
            most.as_secs()
        ));
    }
    grace
}

pub(super) fn limits(
    reader: &mut VariableReader<'_>,
    condor: &CondorJob,
    slots: NonZeroU32,
) -> PilotLimits {
    PilotLimits {
        task_memory: match reader.memory(&var::TASK_MEMORY) {
            None => None,
            Some(MemoryLimit::Bytes(bytes)) => Some(bytes),
            Some(MemoryLimit::Auto) => condor
                .memory
                .map(|bytes| bytes / 100 * TASKS_SHARE_PERCENT / u64::from(slots.get())),
        },
        min_free_disk: reader.size(&var::MIN_FREE_DISK).filter(|bytes| *bytes > 0),
        task_stall: reader.seconds(&var::TASK_STALL),
        max_runtime: reader.seconds(&var::MAX_RUNTIME).or(condor.wall_time),
        task_output: reader.size(&var::TASK_OUTPUT_MAX).unwrap_or(u64::MAX),
        kept_files: reader.size(&var::KEPT_FILES_MAX).unwrap_or(u64::MAX),
        message: reader
            .size_above_zero(&var::BROKER_MAX_MESSAGE_SIZE)
            .map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
        max_deliveries: reader
            .count(&var::MAX_DELIVERIES)
            .map(|count| u64::from(count.get())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    fn read(variables: &[(&str, &str)], condor: &CondorJob, slots: u32) -> PilotLimits {
        let environment: Environment = variables
            .iter()
            .map(|&(name, value)| (name.into(), value.into()))
            .collect();
        let mut reader = VariableReader::new(&environment, Vec::new());
        let slots = NonZeroU32::new(slots).expect("not zero");
        let limits = limits(&mut reader, condor, slots);
        assert!(reader.problems.is_empty(), "{:?}", reader.problems);
        limits
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

    fn grace(value: Option<&str>, vacate_secs: Option<u64>) -> (f64, Vec<String>) {
        let mut environment = Environment::new();
        if let Some(value) = value {
            environment.insert(var::KILL_GRACE.name.into(), value.into());
        }
        let mut reader = VariableReader::new(&environment, Vec::new());
        let vacate_time = vacate_secs.map(Duration::from_secs);
        let grace = kill_grace(&mut reader, vacate_time);
        assert!(reader.problems.is_empty(), "{:?}", reader.problems);
        (grace.as_secs_f64(), reader.warnings)
    }

    #[test]
    fn the_default_fits_what_htcondor_gives() {
        for (vacate_secs, expected) in [
            (None, 10.0),
            (Some(600), 10.0),
            (Some(15), 10.0),
            (Some(8), 3.0),
            (Some(5), 0.0),
            (Some(0), 0.0),
        ] {
            assert_eq!(
                grace(None, vacate_secs),
                (expected, Vec::new()),
                "{vacate_secs:?}"
            );
        }
    }

    #[test]
    fn a_set_value_wins_and_is_warned_of_when_it_is_too_long() {
        assert_eq!(grace(Some("10"), Some(15)), (10.0, Vec::new()));
        assert_eq!(grace(Some("300"), None), (300.0, Vec::new()));
        let (grace, warnings) = grace(Some("10.5"), Some(15));
        assert!((grace - 10.5).abs() < f64::EPSILON);
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].contains("`10.5`") && warnings[0].contains("at most 10 "),
            "{warnings:?}"
        );
    }
}
