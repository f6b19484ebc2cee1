//! Works out the numbers of the report from the sums, once. The table, the page and `--json` show these and
//! compute none of their own.

use std::collections::BTreeMap;

use serde::Serialize;

use super::aggregate::Aggregate;
use super::distribution::Distribution;
use super::failure_reasons::Reason;
use super::sites::{self, Site, by_name};
use super::submit_settings::memory_mib;
use super::totals::TimeUsed;
use crate::human::{as_float, to_integer};

/// The most errors that are named.
const REASONS: usize = 20;
const MIB: f64 = 1024.0 * 1024.0;
const MICROS: f64 = 1e6;

/// The files that were read, and the lines in them that could not be.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct InputNumbers {
    pub files: u64,
    pub records: u64,
    /// Records that were read before, in another copy of a file; they count once.
    pub repeated_records: u64,
    pub unreadable_lines: u64,
    /// The first of them: file, line, reason.
    pub first_unreadable: Vec<String>,
    /// Records of a later format than this program knows.
    pub newer_records: u64,
    /// Records of kinds that this program doesn't know.
    pub unknown_records: u64,
    /// Files and directories that could not be read, or not to their end.
    pub problems: Vec<String>,
}

/// All numbers of the report. A field's name gives its unit; an absent value is not known.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReportNumbers {
    /// 1; changes when a field changes its meaning.
    pub report_format: u32,
    pub input: InputNumbers,
    /// Start of the first task.
    pub first_unix_secs: Option<f64>,
    /// End of the last task.
    pub last_unix_secs: Option<f64>,
    pub pilots: Pilots,
    pub events: Events,
    /// Failed and given back tasks by the class of their fault.
    pub faults_by_class: BTreeMap<&'static str, u64>,
    /// The most frequent errors of tasks.
    pub errors: Vec<Reason>,
    /// How many failures had other errors.
    pub other_errors: u64,
    /// Wall time of tasks that succeeded.
    pub run_time_secs: Option<Distribution>,
    /// From taking an event until its task begins.
    pub start_latency_secs: Option<Distribution>,
    /// Of those tasks, how many found a container waiting.
    pub container_waited: u64,
    /// How many tasks began in a container that could have waited.
    pub container_begun: u64,
    /// Wall time of all tasks that didn't succeed.
    pub failed_run_time_secs: f64,
    /// From the connection to the first event, one value for each pilot.
    pub first_event_wait_secs: Option<Distribution>,
    /// The use of the slots' time.
    pub slot_time: Slots,
    /// How much of their cores containers used.
    pub cpu: Cpu,
    /// The largest memory of a task, against the request for each slot.
    pub memory: Resource,
    /// The disk of a task at its end, against the request for each slot.
    pub disk: Resource,
    /// Tasks that had GPUs, by model.
    pub gpus: Vec<GpuModel>,
    pub broker: Broker,
    /// By failures, most first.
    pub sites: Vec<Site>,
    /// By failures, most first.
    pub hosts: Vec<Site>,
    /// The beginning of a command that submits the bundled template, off the bad ones and with memory that fits.
    pub condor_submit: Option<String>,
    /// An expression for `requirements` that keeps jobs off the bad ones, for other submit files.
    pub requirements: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pilots {
    pub seen: u64,
    /// With a record of their end.
    pub ended: u64,
    /// Without such a record: killed, evicted without their files, or still running.
    pub without_end: u64,
    /// Ended by a fault of machine, broker, init container or image before a task was started.
    pub failed_before_any_task: u64,
    /// None of their tasks wrote an outfile, although its path was given to them.
    pub without_outfile: u64,
    /// How many ended with each exit code.
    pub exit_codes: BTreeMap<i32, u64>,
    /// The most frequent errors of pilots that ended with exit code 2 or more.
    pub errors: Vec<Reason>,
    pub other_errors: u64,
    /// Slots that all pilots together had, one after another included.
    pub slots: u64,
    /// Slots of one pilot, if all had as many.
    pub slots_each: Option<u32>,
    /// How many pilots were of each version, and of each taskforce that HTCondor knew.
    pub versions: BTreeMap<String, u64>,
    pub taskforces: BTreeMap<String, u64>,
}

/// The outcomes of the events. An event that was taken twice counts twice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Events {
    pub taken: u64,
    pub done: u64,
    /// Failed; dead-lettered and rejected ones among them.
    pub failed: u64,
    /// Failed too often, and went to the dead-letter queue.
    pub dead_lettered: u64,
    /// Failed too often, and went to `rejected/`.
    pub rejected: u64,
    /// Back to the queue, untried or not by their own fault.
    pub given_back: u64,
    /// The pilot broke down with them.
    pub unsettled: u64,
    /// Had been delivered before.
    pub redelivered: u64,
    /// Recognised as done already and not run again.
    pub duplicates: u64,
    /// Succeeded without an output.
    pub no_output: u64,
}

/// Seconds of one slot, of the pilots with a record of their end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Slots {
    pub total_secs: f64,
    pub busy_secs: f64,
    /// Until events could be taken.
    pub starting_secs: f64,
    /// The init container's part of that.
    pub init_secs: f64,
    /// Waited for an event.
    pub idle_secs: f64,
    /// Was without a connection and without a task; an upper bound.
    pub outage_secs: f64,
    /// Waited for the other slots after the last event.
    pub draining_secs: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cpu {
    pub used_secs: f64,
    /// Their wall time, times the cores that each slot has (1 if not known).
    pub available_secs: f64,
    pub efficiency: Option<f64>,
}

/// Used and requested, in bytes of one slot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Resource {
    pub used_bytes: Option<Distribution>,
    pub requested_bytes: Option<Distribution>,
    /// Tasks that used more than their slot's share of the request.
    pub tasks_above_request: u64,
    /// Tasks for which both are known.
    pub tasks_compared: u64,
    /// Whole MiB that 99 % of the tasks fit into.
    pub fits_99_percent_mib: Option<u64>,
}

/// The tasks that had GPUs of one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GpuModel {
    /// `None` if their records don't say it.
    pub model: Option<String>,
    pub tasks: u64,
    pub done: u64,
    /// With a fault, whoever's.
    pub failed: u64,
    /// Wall time of those that are done.
    pub run_time_secs: Option<Distribution>,
    /// Wall time of all, times the GPUs of each.
    pub gpu_secs: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Broker {
    /// The number of outages, after each of which a pilot reconnected or ended.
    pub reconnects: u64,
    pub pilots: u64,
    /// Time without connection, all pilots together.
    pub outage_secs: f64,
}

impl ReportNumbers {
    pub(super) fn of(aggregate: &mut Aggregate, mut input: InputNumbers) -> Self {
        input.records = aggregate.records;
        input.repeated_records = aggregate.repeated;
        let range = aggregate.timeline_data.range();
        let base = aggregate.timeline_data.base;
        let (errors, other_errors) = aggregate.reasons.most_frequent(REASONS);
        let judgement = sites::judge(aggregate);
        let pilots = pilots(aggregate);
        let memory = Resource::of(&mut aggregate.memory);
        let time = aggregate.ends.slots;
        let cpu = Cpu {
            used_secs: aggregate.cpu_secs,
            available_secs: aggregate.core_secs,
            efficiency: (aggregate.core_secs > 0.0)
                .then(|| aggregate.cpu_secs / aggregate.core_secs),
        };
        Self {
            report_format: 1,
            input,
            first_unix_secs: range.map(|(first, _)| base + first),
            last_unix_secs: range.map(|(_, last)| base + last),
            condor_submit: condor_submit(judgement.macros, &memory, &pilots),
            pilots,
            events: events(aggregate),
            faults_by_class: by_name(|class| aggregate.classes.get(&class).copied().unwrap_or(0)),
            errors,
            other_errors,
            run_time_secs: aggregate.run_times.distribution(MICROS),
            start_latency_secs: aggregate.start_latencies.distribution(MICROS),
            container_waited: aggregate.waited.0,
            container_begun: aggregate.waited.1,
            failed_run_time_secs: aggregate.failed_secs,
            first_event_wait_secs: aggregate.ends.first_event_waits.distribution(MICROS),
            slot_time: Slots {
                total_secs: time.total,
                busy_secs: time.busy,
                starting_secs: time.starting,
                init_secs: time.init,
                idle_secs: time.idle(),
                outage_secs: time.outage,
                draining_secs: time.draining,
            },
            cpu,
            memory,
            disk: Resource::of(&mut aggregate.disk),
            gpus: gpus(aggregate),
            broker: Broker {
                reconnects: aggregate.ends.outages,
                pilots: aggregate.ends.pilots_with_outage,
                outage_secs: aggregate.ends.outage_secs,
            },
            sites: judgement.sites,
            hosts: judgement.hosts,
            requirements: judgement.requirements,
        }
    }
}

fn condor_submit(mut macros: Vec<String>, memory: &Resource, pilots: &Pilots) -> Option<String> {
    if let Some(mib) = memory.job_mib(pilots) {
        macros.push(format!("memory={mib}MB"));
    }
    (!macros.is_empty()).then(|| format!("condor_submit {}", macros.join(" ")))
}

/// The model with the most tasks first.
fn gpus(aggregate: &mut Aggregate) -> Vec<GpuModel> {
    let gpus = aggregate.gpus.iter_mut();
    let mut models: Vec<GpuModel> = gpus
        .map(|(model, totals)| GpuModel {
            model: model.as_deref().map(str::to_owned),
            tasks: totals.tasks,
            done: totals.done,
            failed: totals.failed,
            run_time_secs: totals.run_times.distribution(MICROS),
            gpu_secs: totals.gpu_secs,
        })
        .collect();
    models.sort_by_key(|model| std::cmp::Reverse(model.tasks));
    models
}

fn pilots(aggregate: &Aggregate) -> Pilots {
    let (errors, other_errors) = aggregate.ends.reasons.most_frequent(REASONS);
    let seen = aggregate.pilots.len() as u64;
    let ended = aggregate.pilots.iter().filter(|pilot| pilot.ended).count() as u64;
    let mut slots = aggregate.pilots.iter().filter_map(|pilot| pilot.slots);
    let slots_each = slots
        .next()
        .filter(|first| slots.all(|other| other == *first));
    Pilots {
        seen,
        ended,
        without_end: seen - ended,
        failed_before_any_task: aggregate.ends.stillborn,
        without_outfile: aggregate.ends.without_outfile,
        exit_codes: aggregate.ends.exit_codes.clone(),
        errors,
        other_errors,
        slots: aggregate
            .pilots
            .iter()
            .map(|pilot| u64::from(pilot.slots.unwrap_or(1)))
            .sum(),
        slots_each,
        versions: names(&aggregate.versions),
        taskforces: names(&aggregate.taskforces),
    }
}

fn names(counts: &BTreeMap<Box<str>, u64>) -> BTreeMap<String, u64> {
    let counts = counts.iter();
    counts
        .map(|(name, count)| (name.to_string(), *count))
        .collect()
}

fn events(aggregate: &Aggregate) -> Events {
    let of = |name| aggregate.outcomes.get(name).copied().unwrap_or(0);
    let (dead_lettered, rejected) = (of("dead_lettered"), of("rejected"));
    Events {
        taken: aggregate.outcomes.values().sum(),
        done: of("done"),
        failed: of("failed") + dead_lettered + rejected,
        dead_lettered,
        rejected,
        given_back: of("given_back"),
        unsettled: of("unsettled"),
        redelivered: aggregate.redelivered,
        duplicates: aggregate.ends.duplicates,
        no_output: aggregate.ends.no_output,
    }
}

impl Resource {
    fn of(used: &mut TimeUsed) -> Self {
        let used_bytes = used.tasks.distribution(1.0);
        Self {
            used_bytes,
            requested_bytes: used.requested.distribution(1.0),
            tasks_above_request: used.above,
            tasks_compared: used.compared,
            fits_99_percent_mib: used_bytes
                .map(|distribution| to_integer((distribution.p99 / MIB).ceil())),
        }
    }

    /// The memory that a job needs for all its slots, if all pilots had as many.
    pub(super) fn job_mib(&self, pilots: &Pilots) -> Option<u64> {
        Some(memory_mib(self.fits_99_percent_mib?, pilots.slots_each?))
    }
}

impl Slots {
    /// A share of the total.
    #[must_use]
    pub fn share(&self, seconds: f64) -> f64 {
        if self.total_secs > 0.0 {
            seconds / self.total_secs
        } else {
            0.0
        }
    }
}

impl Pilots {
    /// Slots of one pilot, for a sentence; their mean where they differ.
    #[must_use]
    pub fn mean_slots(&self) -> f64 {
        if self.seen == 0 {
            0.0
        } else {
            as_float(self.slots) / as_float(self.seen)
        }
    }
}
