//! Adds the records up, one by one. Memory grows with the number of pilots and hosts, and by sixteen bytes
//! for each task. `numbers.rs` turns the sums into the numbers of the report.

use std::collections::hash_map::{Entry, RandomState};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::BuildHasher;

use super::distribution::Values;
use super::failure_reasons::{FailureExample, ReasonClass, Reasons};
use super::record_line::{JsonText, LineKind, RecordLine};
use super::timeline_data::{TaskFate, TimelineData};
use super::totals::{GpuTotals, OutcomeCounts, SlotTime, TimeUsed};

/// The most tasks that are recognised when they are read again (40 MB).
pub(super) const MOST_REMEMBERED: usize = 3_600_000;
/// The most of a pilot's last tasks that count for the time it drained, if its window is larger or unknown.
const LONGEST_WINDOW: usize = 4096;
/// Times of another century come from a wrong clock.
const BELIEVABLE: std::ops::Range<f64> = 946_684_800.0..4_102_444_800.0;

#[derive(Debug, Default)]
pub(super) struct Aggregate {
    hasher: RandomState,
    ids: HashMap<u64, u32>,
    tasks_seen: HashSet<u64>,
    site_ids: HashMap<SiteName, u32>,
    host_ids: HashMap<(u32, Box<str>), u32>,

    pub(super) pilots: Vec<PilotSums>,
    pub(super) sites: Vec<SiteName>,
    pub(super) hosts: Vec<HostSums>,

    /// Lines that were read before, in another copy of the file.
    pub(super) repeated: u64,
    pub(super) records: u64,

    pub(super) outcomes: BTreeMap<&'static str, u64>,
    pub(super) redelivered: u64,
    pub(super) classes: BTreeMap<ReasonClass, u64>,
    pub(super) reasons: Reasons,
    pub(super) run_times: Values,
    pub(super) start_latencies: Values,
    /// Tasks whose container waited for them, and tasks with a container that could have.
    pub(super) waited: (u64, u64),
    pub(super) failed_secs: f64,
    pub(super) cpu_secs: f64,
    pub(super) core_secs: f64,
    pub(super) memory: TimeUsed,
    pub(super) disk: TimeUsed,
    /// By model; of those without a known one under no name.
    pub(super) gpus: BTreeMap<Option<Box<str>>, GpuTotals>,

    /// Pilots of each version, and of each taskforce that is known.
    pub(super) versions: BTreeMap<Box<str>, u64>,
    pub(super) taskforces: BTreeMap<Box<str>, u64>,

    pub(super) ends: PilotEnds,
    pub(super) timeline_data: TimelineData,
}

#[derive(Debug)]
pub(super) struct PilotSums {
    pub(super) host: u32,
    /// HTCondor's number of its job.
    pub(super) job_id: Option<Box<str>>,
    pub(super) slots: Option<u32>,
    window: usize,
    cpus: Option<u32>,
    memory: Option<u64>,
    disk: Option<u64>,
    began: bool,
    pub(super) ended: bool,
    pub(super) started: Option<f64>,
    pub(super) finished: Option<f64>,
    /// Start of the first and end of the last of its tasks.
    pub(super) seen: Option<(f64, f64)>,
    /// Start and end of the last tasks, as many as may have run while it drained.
    last_tasks: VecDeque<(f64, f64)>,
}

/// A site; with the name of a resource, only that part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct SiteName {
    pub(super) site: Option<Box<str>>,
    pub(super) resource: Option<Box<str>>,
}

impl SiteName {
    pub(super) fn of(line: &RecordLine<'_>) -> Self {
        let text = |text: &Option<JsonText<'_>>| text.as_ref().map(|text| text.as_str().into());
        Self {
            site: text(&line.site),
            resource: text(&line.resource),
        }
    }

    pub(super) fn is_called(&self, name: &str) -> bool {
        [&self.site, &self.resource].contains(&&Some(name.into()))
    }

    /// The more precise of the two names; `None` if neither is known.
    pub(super) fn precise(&self) -> Option<&str> {
        self.resource.as_deref().or(self.site.as_deref())
    }
}

/// A machine, with the outcomes there.
#[derive(Debug)]
pub(super) struct HostSums {
    pub(super) name: Box<str>,
    pub(super) site: u32,
    pub(super) counts: OutcomeCounts,
}

/// The sums of the pilots' last records.
#[derive(Debug, Default)]
pub(super) struct PilotEnds {
    pub(super) exit_codes: BTreeMap<i32, u64>,
    pub(super) reasons: Reasons,
    pub(super) stillborn: u64,
    pub(super) duplicates: u64,
    pub(super) no_output: u64,
    pub(super) without_outfile: u64,
    pub(super) first_event_waits: Values,
    pub(super) outages: u64,
    pub(super) outage_secs: f64,
    pub(super) pilots_with_outage: u64,
    pub(super) slots: SlotTime,
}

impl Aggregate {
    pub(super) fn add(&mut self, kind: LineKind, line: &RecordLine<'_>) {
        let index = self.pilot(line);
        match kind {
            LineKind::Start => self.start(index, line),
            LineKind::Task => self.task(index, line),
            LineKind::End => self.end(index, line),
        }
    }

    /// HTCondor's number of the job that a pilot was.
    pub(super) fn job_of(&self, pilot_id: &str) -> Option<&str> {
        let index = *self.ids.get(&self.hasher.hash_one(pilot_id))?;
        self.pilots[index as usize].job_id.as_deref()
    }

    fn pilot(&mut self, line: &RecordLine<'_>) -> u32 {
        let id = self.hasher.hash_one(&*line.pilot_id);
        if let Some(&index) = self.ids.get(&id) {
            return index;
        }
        let site = self.site(SiteName::of(line));
        let host = self.host(site, &line.host);
        self.hosts[host as usize].counts.pilots += 1;
        let index = index(self.pilots.len());
        self.ids.insert(id, index);
        self.pilots.push(PilotSums {
            host,
            job_id: None,
            slots: None,
            window: 64,
            cpus: None,
            memory: None,
            disk: None,
            began: false,
            ended: false,
            started: None,
            finished: None,
            seen: None,
            last_tasks: VecDeque::new(),
        });
        index
    }

    fn site(&mut self, name: SiteName) -> u32 {
        match self.site_ids.entry(name) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                self.sites.push(new.key().clone());
                *new.insert(index(self.sites.len() - 1))
            }
        }
    }

    fn host(&mut self, site: u32, name: &str) -> u32 {
        match self.host_ids.entry((site, name.into())) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                self.hosts.push(HostSums {
                    name: name.into(),
                    site,
                    counts: OutcomeCounts::default(),
                });
                *new.insert(index(self.hosts.len() - 1))
            }
        }
    }

    fn start(&mut self, index: u32, line: &RecordLine<'_>) {
        let pilot = &mut self.pilots[index as usize];
        if std::mem::replace(&mut pilot.began, true) {
            self.repeated += 1;
            return;
        }
        self.records += 1;
        pilot.started = line.started_unix_secs.filter(|at| BELIEVABLE.contains(at));
        for (counts, name) in [
            (&mut self.versions, &line.version),
            (&mut self.taskforces, &line.taskforce_uuid),
        ] {
            if let Some(name) = name {
                *counts.entry(name.as_str().into()).or_default() += 1;
            }
        }
        pilot.job_id = line.job_id.as_ref().map(|job| job.as_str().into());
        let slots = line.slots.filter(|&slots| slots > 0);
        pilot.slots = slots.or(pilot.slots);
        pilot.cpus = line.requested_cpus;
        if let Some(window) = line.window {
            pilot.window = (window as usize).clamp(1, LONGEST_WINDOW);
        }
        let share = |bytes: u64| bytes / u64::from(slots.unwrap_or(1));
        pilot.memory = line.requested_memory_bytes.map(share);
        pilot.disk = line.requested_disk_bytes.map(share);
        if let Some(bytes) = pilot.memory {
            self.memory.requested.add(bytes);
        }
        if let Some(bytes) = pilot.disk {
            self.disk.requested.add(bytes);
        }
    }

    fn task(&mut self, index: u32, line: &RecordLine<'_>) {
        let task_id = line.task_id.as_ref().map(JsonText::as_str);
        if self.tasks_seen.len() < MOST_REMEMBERED
            && !self
                .tasks_seen
                .insert(self.hasher.hash_one((index, task_id)))
        {
            self.repeated += 1;
            return;
        }
        self.records += 1;
        let (outcome, has_failed) = outcome(line.outcome.as_ref().map(JsonText::as_str));
        *self.outcomes.entry(outcome).or_default() += 1;
        self.redelivered += u64::from(line.earlier_deliveries.is_some_and(|times| times > 0));

        let is_done = outcome == "done";
        let is_fault = has_failed || (!is_done && line.fault_class.is_some());
        let class = ReasonClass::of(line.fault_class.as_ref().map(JsonText::as_str));
        let pilot = &mut self.pilots[index as usize];
        let host = &mut self.hosts[pilot.host as usize];
        let site = host.site;
        match (is_done, has_failed) {
            (true, _) => host.counts.done += 1,
            (false, true) => host.counts.failed += 1,
            (false, false) => host.counts.other += 1,
        }
        if is_fault {
            host.counts.faults[class as usize] += 1;
            *self.classes.entry(class).or_default() += 1;
            let text = line.error.as_ref().map_or("(no text)", JsonText::as_str);
            let example = || example(pilot, host, task_id);
            self.reasons.add(class.name(), text, site, example);
        }

        if let Some(seconds) = line.wall_time_secs.filter(|seconds| seconds.is_finite()) {
            if is_done {
                self.run_times.add_secs(seconds);
            } else {
                self.failed_secs += seconds;
            }
        }
        if let Some(latency) = line
            .start_latency_secs
            .filter(|latency| latency.is_finite())
        {
            self.start_latencies.add_secs(latency);
            self.waited.0 += u64::from(line.container_waited == Some(true));
            self.waited.1 += 1;
        }
        let cores = pilot.cpus.map_or(1.0, |cpus| {
            f64::from(cpus) / f64::from(pilot.slots.unwrap_or(1))
        });
        if let (Some(wall), Some(user)) = (
            line.container_time_secs.or(line.wall_time_secs),
            line.cpu_user_secs,
        ) {
            self.cpu_secs += user + line.cpu_system_secs.unwrap_or(0.0);
            self.core_secs += wall * cores;
        }
        self.memory.add(
            line.container_memory_bytes.max(line.max_rss_bytes),
            pilot.memory,
        );
        self.disk.add(line.disk_bytes, pilot.disk);

        if let (Some(start), Some(end)) = (line.started_unix_secs, line.ended_unix_secs)
            && !pilot.ended
        {
            if pilot.last_tasks.len() >= pilot.window {
                pilot.last_tasks.pop_front();
            }
            pilot.last_tasks.push_back((start, end));
        }
        let fate = match (is_done, is_fault) {
            (true, _) => TaskFate::Done,
            (false, true) => TaskFate::Failed(class),
            (false, false) => TaskFate::Untried,
        };
        if let Some(gpus) = line.gpus.as_ref().filter(|gpus| !gpus.is_empty()) {
            let model = line.gpu_model.as_ref().map(|model| model.as_str().into());
            let totals = self.gpus.entry(model).or_default();
            totals.add(gpus.len(), line.wall_time_secs, fate);
        }
        self.track(index, line, fate);
    }

    fn track(&mut self, index: u32, line: &RecordLine<'_>, fate: TaskFate) {
        let end = line
            .ended_unix_secs
            .or(line.settled_unix_secs)
            .or(line.received_unix_secs);
        let Some(end) = end.filter(|end| BELIEVABLE.contains(end)) else {
            return;
        };
        let start = line
            .started_unix_secs
            .filter(|start| BELIEVABLE.contains(start));
        let ran = line.slot.filter(|_| start.is_some());
        let slot = ran.map_or(0, |slot| u16::try_from(slot).unwrap_or(u16::MAX));
        let times = (start.unwrap_or(end), end);
        let seen = &mut self.pilots[index as usize].seen;
        let (first, last) = seen.unwrap_or(times);
        *seen = Some((first.min(times.0), last.max(times.1)));
        self.timeline_data
            .add(times, index, slot, fate, || super::tooltip::words(line));
    }

    fn end(&mut self, index: u32, line: &RecordLine<'_>) {
        let pilot = &mut self.pilots[index as usize];
        if std::mem::replace(&mut pilot.ended, true) {
            self.repeated += 1;
            return;
        }
        self.records += 1;
        pilot.started =
            (pilot.started.or(line.started_unix_secs)).filter(|at| BELIEVABLE.contains(at));
        pilot.finished = line.ended_unix_secs.filter(|at| BELIEVABLE.contains(at));
        let last_tasks = std::mem::take(&mut pilot.last_tasks);
        pilot.slots = pilot.slots.or(line.slots.filter(|&slots| slots > 0));
        let slots = pilot.slots.unwrap_or(1);
        let host = &self.hosts[pilot.host as usize];
        let site = host.site;

        let ends = &mut self.ends;
        if let Some(code) = line.exit_code {
            *ends.exit_codes.entry(code).or_default() += 1;
            // Exit code 1 repeats the errors of the tasks.
            if let (2.., Some(text)) = (code, &line.error) {
                let example = || example(pilot, host, None);
                let class = class_of_end(code);
                ends.reasons.add(class, text.as_str(), site, example);
            }
            // A fault of the machine, the broker, the init container or the image; not of the operator or a task.
            if line.started.unwrap_or(0) == 0 && (3..=6).contains(&code) {
                ends.stillborn += 1;
                self.hosts[pilot.host as usize].counts.stillborn += 1;
            }
        }
        ends.duplicates += line.duplicates.unwrap_or(0);
        ends.no_output += line.no_output.unwrap_or(0);
        ends.without_outfile += u64::from(line.outfile_never_written.unwrap_or(false));
        if let Some(seconds) = line.first_event_wait_secs {
            ends.first_event_waits.add_secs(seconds);
        }
        let outages = line.broker_outages.unwrap_or(0);
        ends.outages += outages;
        ends.outage_secs += line.broker_outage_secs.unwrap_or(0.0);
        ends.pilots_with_outage += u64::from(outages > 0);
        if let Some(time) = SlotTime::of(line, slots, &last_tasks) {
            ends.slots.add(time);
        }
    }
}

fn example(pilot: &PilotSums, host: &HostSums, task_id: Option<&str>) -> FailureExample {
    FailureExample {
        job_id: pilot.job_id.as_deref().map(str::to_owned),
        host: host.name.to_string(),
        task_id: task_id.map(str::to_owned),
    }
}

/// Whose fault a pilot's end was, by its exit code. The record of a pilot's end has no class.
fn class_of_end(code: i32) -> &'static str {
    match code {
        2 => "configuration",
        3 => ReasonClass::Ep.name(),
        4 => ReasonClass::Broker.name(),
        5 => "init",
        6 => ReasonClass::Image.name(),
        129..=192 => "stopped",
        _ => ReasonClass::Unknown.name(),
    }
}

/// The outcome's name, and whether it is a failure of the event.
fn outcome(name: Option<&str>) -> (&'static str, bool) {
    match name {
        Some("done") => ("done", false),
        Some("failed") => ("failed", true),
        Some("dead_lettered") => ("dead_lettered", true),
        Some("rejected") => ("rejected", true),
        Some("given_back") => ("given_back", false),
        _ => ("unsettled", false),
    }
}

/// Saturates: pilots or hosts beyond four thousand million share the last number.
fn index(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
