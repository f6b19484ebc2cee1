//! Writes the records: one for each event, from its arrival until it is settled, and the pilot's own. The
//! driver tells it what happens. The statistics at the end are made of the same records.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tracing::info;
use uuid::Uuid;

use super::{PilotExit, status_feed};
use crate::broker::{BrokerStats, Content, Delivery, Outages};
use crate::config::{Config, Gpu};
use crate::fault::{FaultClass, TaskError};
use crate::ids::TaskId;
use crate::process::ExitStatus;
use crate::records::{
    EventOutcome, PilotEnd, PilotIdentity, PilotStart, Record, RecordWriter, TaskRecord, UnixTime,
    shorten,
};
use crate::stats::{Runtimes, Tally};
use crate::status::StatusWriter;
use crate::task::{TaskMetrics, TaskOutcome, TaskReport, models};

/// The records of one pilot: those of its unsettled events, and the counts for its last line.
#[derive(Debug)]
pub(super) struct Recorder {
    writer: RecordWriter,
    source: PilotIdentity,
    /// Records of events that aren't settled yet.
    open: HashMap<TaskId, OpenRecord>,
    /// Which slots are taken; a slot's number is its place here plus one.
    slots: Vec<SlotUse>,
    runtimes: Runtimes,
    /// [`Runtimes::slowest`], which looks through all of them.
    slowest: Option<f64>,
    end: PilotEnd,
    began: Instant,
    keeper: StatusWriter,
}

/// The record of an event that isn't settled yet.
#[derive(Debug)]
struct OpenRecord {
    record: TaskRecord,
    received: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlotUse {
    Free,
    Taken(TaskId),
}

impl Recorder {
    /// Opens the file and writes the pilot's first line. Without a file there are still statistics.
    #[must_use]
    pub(super) fn open(config: &Config) -> Self {
        let names = &config.condor.names;
        let source = PilotIdentity {
            pilot_id: Uuid::new_v4().simple().to_string(),
            host: names.machine.clone(),
            site: names.site.clone(),
            resource: names.resource.clone(),
        };
        let writer = match &config.task_log {
            None => RecordWriter::off(),
            Some(path) => RecordWriter::appending_to(path.clone()),
        };
        let mut end = PilotEnd::of(&source);
        end.started_unix_secs = UnixTime::now();
        end.slots = config.slots.get();
        let mut start = PilotStart::of(&source);
        env!("CARGO_PKG_VERSION").clone_into(&mut start.version);
        start.started_unix_secs = end.started_unix_secs;
        start.job_id.clone_from(&config.condor.job_id);
        start.taskforce_uuid.clone_from(&config.condor.taskforce);
        start.slots = config.slots.get();
        start.window = config.window().get();
        start.requested_cpus = config.condor.request.cpus;
        start.requested_memory_bytes = config.condor.request.memory;
        start.requested_disk_bytes = config.condor.request.disk;
        start.max_runtime_secs = config.limits.max_runtime.map(|time| time.as_secs_f64());
        let recorder = Self {
            keeper: status_feed::start(config, &source),
            writer,
            source,
            open: HashMap::new(),
            slots: Vec::new(),
            runtimes: Runtimes::default(),
            slowest: None,
            end,
            began: Instant::now(),
        };
        recorder.writer.write(Record::Start(Box::new(start)));
        info!(
            pilot_id = recorder.source.pilot_id,
            host = recorder.source.host,
            site = recorder.source.site,
            resource = recorder.source.resource,
            "records are kept"
        );
        recorder
    }

    #[must_use]
    pub(super) fn source(&self) -> &PilotIdentity {
        &self.source
    }

    /// The writer of the status file.
    #[must_use]
    pub(super) fn keeper(&self) -> &StatusWriter {
        &self.keeper
    }

    #[must_use]
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// Run times of the tasks that succeeded.
    #[must_use]
    pub(super) fn runtimes(&self) -> &Runtimes {
        &self.runtimes
    }

    /// The run time in seconds that only the slowest 5 % of them exceeded, see [`Runtimes::slowest`].
    #[must_use]
    pub(super) fn slowest(&self) -> Option<f64> {
        self.slowest
    }

    /// The init container ended, successfully or not.
    pub(super) fn initialized(&mut self, took: Duration) {
        self.end.init_time_secs = Some(seconds(took));
    }

    pub(super) fn connected(&mut self) {
        self.end.connected_unix_secs = Some(UnixTime::now());
    }

    /// No event is taken any more.
    pub(super) fn intake_closed(&mut self) {
        self.end
            .intake_closed_unix_secs
            .get_or_insert_with(UnixTime::now);
    }

    pub(super) fn received(&mut self, id: TaskId, delivery: &Delivery) {
        let mut record = TaskRecord::of(&self.source);
        record.task_id = id.to_string();
        record.received_unix_secs = UnixTime::now();
        let name = delivery.name.as_ref();
        record.event_name = name.map(|name| name.to_string_lossy().into_owned());
        record.earlier_deliveries = delivery.earlier_deliveries;
        record.input_bytes = size(&delivery.content);
        let first = *self
            .end
            .first_event_unix_secs
            .get_or_insert(record.received_unix_secs);
        if let Some(connected) = self.end.connected_unix_secs {
            self.end.first_event_wait_secs = Some(first.since(connected));
        }
        let received = Instant::now();
        self.open.insert(id, OpenRecord { record, received });
    }

    pub(super) fn started(&mut self, id: TaskId, gpus: &[Gpu]) {
        let slot = self.slots.iter().position(|slot| *slot == SlotUse::Free);
        let slot = slot.unwrap_or_else(|| {
            self.slots.push(SlotUse::Free);
            self.slots.len() - 1
        });
        self.slots[slot] = SlotUse::Taken(id);
        let number = u32::try_from(slot + 1).ok();
        let ids: Vec<String> = gpus.iter().map(|gpu| gpu.id.clone()).collect();
        let shown = ids.clone();
        self.keeper
            .change(move |snapshot| snapshot.begin(id.to_string(), number, shown));
        if let Some(record) = self.record(id) {
            record.slot = number;
            record.gpu_model = models(gpus);
            record.gpus = (!ids.is_empty()).then_some(ids);
            record.started_unix_secs = Some(UnixTime::now());
        }
    }

    /// The task ended, or was called off before it started.
    pub(super) fn ended(&mut self, id: TaskId, report: &TaskReport) {
        for slot in &mut self.slots {
            if *slot == SlotUse::Taken(id) {
                *slot = SlotUse::Free;
            }
        }
        self.keeper.change(|snapshot| snapshot.end(&id.to_string()));
        let Some(OpenRecord { record, received }) = self.open.get_mut(&id) else {
            return;
        };
        if record.started_unix_secs.is_none() {
            return;
        }
        record.ended_unix_secs = Some(UnixTime::now());
        record.wall_time_secs = Some(seconds(report.wall));
        let began = report.trace.began;
        record.start_latency_secs = began.map(|at| seconds(at.duration_since(*received)));
        record.container_waited = report.trace.waited;
        self.end.busy_secs += report.wall.as_secs_f64();
        note(record, &report.trace);
        match &report.outcome {
            TaskOutcome::Output(_) | TaskOutcome::NoOutput => {
                if let Some(wall) = record.wall_time() {
                    self.runtimes.record(wall);
                    self.slowest = self.runtimes.slowest();
                }
            }
            TaskOutcome::Failed(error) => blame(record, error),
            TaskOutcome::Interrupted => {}
        }
    }

    /// The task's files are removed; they took so many bytes.
    pub(super) fn cleared(&mut self, id: TaskId, disk_bytes: Option<u64>) {
        if let Some(record) = self.record(id) {
            record.disk_bytes = disk_bytes;
        }
    }

    pub(super) fn published(&mut self, id: TaskId) {
        if let Some(record) = self.record(id) {
            record.published_unix_secs = Some(UnixTime::now());
        }
    }

    /// The task failed for a reason found after its end, such as a result that is too large.
    pub(super) fn failed(&mut self, id: TaskId, error: &TaskError) {
        if let Some(record) = self.record(id) {
            blame(record, error);
        }
    }

    /// The outcome of the event is decided. The first call counts: an event in the dead-letter queue is
    /// settled as done afterwards.
    pub(super) fn decided(&mut self, id: TaskId, outcome: EventOutcome) {
        if let Some(record) = self.record(id)
            && record.outcome == EventOutcome::Unsettled
        {
            record.outcome = outcome;
        }
    }

    /// The event is settled, or can't be because the connection is gone. Writes its line.
    pub(super) fn settled(&mut self, id: TaskId, settlement: Settlement) {
        if let Some(OpenRecord { mut record, .. }) = self.open.remove(&id) {
            record.settled_unix_secs = match settlement {
                Settlement::Told => Some(UnixTime::now()),
                Settlement::Lost => None,
            };
            self.writer.write(Record::Task(Box::new(record)));
        }
    }

    /// No task wrote an outfile, although its path was given to them.
    pub(super) fn outfile_never_written(&mut self) {
        self.end.outfile_never_written = true;
    }

    /// The outages of the broker, and the duplicates that they may have caused.
    pub(super) fn outages(&mut self, outages: Outages, stats: BrokerStats) {
        self.end.broker_outages = outages.count;
        self.end.broker_outage_secs = seconds(outages.time);
        self.end.duplicates = stats.possible_duplicates();
    }

    /// Writes the lines of unsettled events, then the pilot's last line.
    pub(super) async fn close(&mut self, tally: Tally, ended: &PilotExit) {
        self.write_open();
        let end = &mut self.end;
        end.ended_unix_secs = UnixTime::now();
        end.busy_secs = (end.busy_secs * 1e3).round() / 1e3;
        end.received = tally.received;
        end.started = tally.started;
        end.succeeded = tally.succeeded;
        end.failed = tally.failed;
        end.given_back = tally.given_back;
        end.dead_lettered = tally.dead_lettered;
        end.rejected = tally.rejected;
        end.published = tally.published;
        end.no_output = tally.no_output;
        end.exit_code = ended.exit.code();
        end.error = ended.last_line.as_deref().map(shorten);
        self.writer.write(Record::End(Box::new(end.clone())));
        self.writer.close().await;
    }

    fn record(&mut self, id: TaskId) -> Option<&mut TaskRecord> {
        self.open.get_mut(&id).map(|open| &mut open.record)
    }

    fn write_open(&mut self) {
        for (_, OpenRecord { record, .. }) in self.open.drain() {
            self.writer.write(Record::Task(Box::new(record)));
        }
    }
}

/// A pilot that breaks down still leaves the records of its tasks.
impl Drop for Recorder {
    fn drop(&mut self) {
        self.write_open();
    }
}

/// Whether the broker got the verdict on an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settlement {
    Told,
    Lost,
}

fn note(record: &mut TaskRecord, trace: &TaskMetrics) {
    if let Some(usage) = trace.usage {
        record.cpu_user_secs = Some(seconds(usage.cpu_user));
        record.cpu_system_secs = Some(seconds(usage.cpu_system));
        record.max_rss_bytes = Some(usage.max_rss_bytes);
    }
    record.container_time_secs = trace.container_time.map(seconds);
    record.container_memory_bytes = trace.container_memory;
    record.output_bytes = trace.output_bytes;
    match trace.exit {
        Some(ExitStatus::Code(code)) => record.exit_code = Some(code),
        Some(ExitStatus::Signal(signal)) => record.exit_signal = Some(signal),
        None => {}
    }
}

fn blame(record: &mut TaskRecord, error: &TaskError) {
    record.fault_class = Some(class_name(error.class()).to_owned());
    record.error_name = Some(error.name().to_owned());
    record.error = Some(shorten(&error.message()));
}

/// The names in the record format, which stay even if those in the code change.
pub(super) fn class_name(class: FaultClass) -> &'static str {
    match class {
        FaultClass::Task => "task",
        FaultClass::Event => "event",
        FaultClass::Image => "image",
        FaultClass::Ep => "ep",
        FaultClass::Broker => "broker",
    }
}

/// Rounded to the microsecond: further digits mean nothing.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e6
}

fn size(content: &Content) -> u64 {
    content.body().len()
}
