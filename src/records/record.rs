//! The record types. [`records`](super) documents the fields.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub const FORMAT: u32 = 1;

/// The longest text of an error, in bytes.
const TEXT_BYTES: usize = 4 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordKind {
    /// [`PilotStart`]
    PilotStart,
    /// [`TaskRecord`]
    Task,
    /// [`PilotEnd`]
    PilotEnd,
}

/// Seconds since 1970, to the millisecond.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, Deserialize)]
pub struct UnixTime(pub f64);

impl UnixTime {
    /// The clock's time.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        // The same double that a reader parses from the digits.
        Self((since.as_secs_f64() * 1e3).round() / 1e3)
    }

    /// Seconds since an earlier time.
    #[must_use]
    pub fn since(self, earlier: Self) -> f64 {
        ((self.0 - earlier.0).max(0.0) * 1e3).round() / 1e3
    }
}

/// The writing pilot: the fields that every line has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PilotIdentity {
    pub pilot_id: String,
    pub host: String,
    pub site: Option<String>,
    pub resource: Option<String>,
}

/// Declares a record: the fields that every line begins with, then its own.
macro_rules! record {
    ($(#[$meta:meta])* $name:ident, $kind:ident, { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        pub struct $name {
            /// [`FORMAT`]
            pub format: u32,
            pub kind: RecordKind,
            pub pilot_id: String,
            /// The machine's name.
            pub host: String,
            #[serde(default)]
            pub site: Option<String>,
            #[serde(default)]
            pub resource: Option<String>,
            $($(#[$field_meta])* #[doc = concat!("See [`", stringify!($field), "`](super).")]
              #[serde(default)] pub $field: $type,)*
        }

        impl $name {
            /// A record that has only the fields of the writing pilot.
            #[must_use]
            pub fn of(source: &PilotIdentity) -> Self {
                Self {
                    format: FORMAT,
                    kind: RecordKind::$kind,
                    pilot_id: source.pilot_id.clone(),
                    host: source.host.clone(),
                    site: source.site.clone(),
                    resource: source.resource.clone(),
                    $($field: Default::default(),)*
                }
            }
        }
    };
}

record! {
    /// The first line of a pilot.
    PilotStart, PilotStart, {
        version: String,
        started_unix_secs: UnixTime,
        job_id: Option<String>,
        taskforce_uuid: Option<String>,
        slots: u32,
        window: u32,
        requested_cpus: Option<u64>,
        requested_memory_bytes: Option<u64>,
        requested_disk_bytes: Option<u64>,
        max_runtime_secs: Option<f64>,
    }
}

record! {
    TaskRecord, Task, {
        task_id: String,
        event_name: Option<String>,
        slot: Option<u32>,
        gpus: Option<Vec<String>>,
        gpu_model: Option<String>,
        earlier_deliveries: Option<u64>,
        received_unix_secs: UnixTime,
        started_unix_secs: Option<UnixTime>,
        ended_unix_secs: Option<UnixTime>,
        published_unix_secs: Option<UnixTime>,
        settled_unix_secs: Option<UnixTime>,
        start_latency_secs: Option<f64>,
        container_waited: Option<bool>,
        wall_time_secs: Option<f64>,
        container_time_secs: Option<f64>,
        cpu_user_secs: Option<f64>,
        cpu_system_secs: Option<f64>,
        max_rss_bytes: Option<u64>,
        container_memory_bytes: Option<u64>,
        input_bytes: u64,
        output_bytes: Option<u64>,
        disk_bytes: Option<u64>,
        exit_code: Option<i32>,
        exit_signal: Option<i32>,
        outcome: EventOutcome,
        fault_class: Option<String>,
        error_name: Option<String>,
        error: Option<String>,
    }
}

record! {
    /// The last line of a pilot.
    PilotEnd, PilotEnd, {
        started_unix_secs: UnixTime,
        ended_unix_secs: UnixTime,
        init_time_secs: Option<f64>,
        connected_unix_secs: Option<UnixTime>,
        first_event_unix_secs: Option<UnixTime>,
        first_event_wait_secs: Option<f64>,
        intake_closed_unix_secs: Option<UnixTime>,
        slots: u32,
        busy_secs: f64,
        broker_outages: u64,
        broker_outage_secs: f64,
        received: u64,
        started: u64,
        succeeded: u64,
        failed: u64,
        given_back: u64,
        dead_lettered: u64,
        rejected: u64,
        published: u64,
        no_output: u64,
        outfile_never_written: bool,
        duplicates: u64,
        exit_code: u8,
        error: Option<String>,
    }
}

impl TaskRecord {
    /// [`TaskRecord::wall_time_secs`] as time.
    #[must_use]
    pub fn wall_time(&self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.wall_time_secs?).ok()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventOutcome {
    Done,
    /// The task or event failed, and the event went back to the queue.
    Failed,
    /// The event failed too often and is in the dead-letter queue.
    DeadLettered,
    /// The event failed too often and is in `rejected/`.
    Rejected,
    /// The event went back to the queue untried or unfinished.
    GivenBack,
    #[default]
    Unsettled,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Record {
    Start(Box<PilotStart>),
    Task(Box<TaskRecord>),
    End(Box<PilotEnd>),
}

/// The beginning of a text, as long as a record allows.
#[must_use]
pub fn shorten(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES)].to_owned()
}
