//! Parses one line of a record file (see [`crate::records`]). Texts are borrowed from the line, and every field
//! is optional: pilots of other versions may lack some.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::records::FORMAT;

/// A parsed line.
#[derive(Debug)]
pub(super) enum ReadLine<'a> {
    Record(LineKind, Box<RecordLine<'a>>),
    /// A record of a kind that this version doesn't know.
    UnknownKind,
    /// A record of a later format, whose fields may mean something else.
    Newer,
    /// No record, with a short reason.
    Unreadable(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineKind {
    Start,
    Task,
    End,
}

/// A text that is copied only if it has escapes. (serde borrows a `Cow` inside an `Option` only through a
/// type like this.)
#[derive(Debug, Deserialize)]
pub(super) struct JsonText<'a>(#[serde(borrow)] Cow<'a, str>);

impl JsonText<'_> {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The fields of records of every kind and format.
#[derive(Debug, Deserialize)]
struct RecordHead<'a> {
    format: u32,
    #[serde(borrow)]
    kind: Cow<'a, str>,
}

/// The fields that the report uses, of all kinds; none is in two kinds with different meanings.
#[derive(Debug, Deserialize)]
pub(super) struct RecordLine<'a> {
    format: u32,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) pilot_id: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) host: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) site: Option<JsonText<'a>>,
    #[serde(borrow)]
    pub(super) resource: Option<JsonText<'a>>,
    #[serde(borrow)]
    pub(super) error: Option<JsonText<'a>>,
    pub(super) started_unix_secs: Option<f64>,
    pub(super) ended_unix_secs: Option<f64>,
    pub(super) exit_code: Option<i32>,

    #[serde(borrow)]
    pub(super) version: Option<JsonText<'a>>,
    #[serde(borrow)]
    pub(super) taskforce_uuid: Option<JsonText<'a>>,
    #[serde(borrow)]
    pub(super) job_id: Option<JsonText<'a>>,
    pub(super) slots: Option<u32>,
    pub(super) window: Option<u32>,
    pub(super) requested_cpus: Option<u32>,
    pub(super) requested_memory_bytes: Option<u64>,
    pub(super) requested_disk_bytes: Option<u64>,

    #[serde(borrow)]
    pub(super) task_id: Option<JsonText<'a>>,
    #[serde(borrow)]
    pub(super) event_name: Option<JsonText<'a>>,
    pub(super) slot: Option<u32>,
    /// Only their number counts.
    pub(super) gpus: Option<Vec<IgnoredAny>>,
    #[serde(borrow)]
    pub(super) gpu_model: Option<JsonText<'a>>,
    pub(super) earlier_deliveries: Option<u64>,
    pub(super) received_unix_secs: Option<f64>,
    pub(super) settled_unix_secs: Option<f64>,
    pub(super) start_latency_secs: Option<f64>,
    pub(super) container_waited: Option<bool>,
    pub(super) wall_time_secs: Option<f64>,
    pub(super) container_time_secs: Option<f64>,
    pub(super) cpu_user_secs: Option<f64>,
    pub(super) cpu_system_secs: Option<f64>,
    pub(super) max_rss_bytes: Option<u64>,
    pub(super) container_memory_bytes: Option<u64>,
    pub(super) disk_bytes: Option<u64>,
    pub(super) exit_signal: Option<i32>,
    #[serde(borrow)]
    pub(super) outcome: Option<JsonText<'a>>,
    #[serde(borrow)]
    pub(super) fault_class: Option<JsonText<'a>>,

    pub(super) connected_unix_secs: Option<f64>,
    pub(super) first_event_wait_secs: Option<f64>,
    pub(super) init_time_secs: Option<f64>,
    pub(super) intake_closed_unix_secs: Option<f64>,
    pub(super) busy_secs: Option<f64>,
    pub(super) broker_outages: Option<u64>,
    pub(super) broker_outage_secs: Option<f64>,
    pub(super) started: Option<u64>,
    pub(super) no_output: Option<u64>,
    pub(super) outfile_never_written: Option<bool>,
    pub(super) duplicates: Option<u64>,
}

/// Reads a line without its line break.
pub(super) fn read(line: &[u8]) -> ReadLine<'_> {
    match serde_json::from_slice::<RecordLine<'_>>(line) {
        Ok(record) if record.format > FORMAT => ReadLine::Newer,
        Ok(record) => match kind(&record.kind) {
            Some(kind) => ReadLine::Record(kind, Box::new(record)),
            None => ReadLine::UnknownKind,
        },
        // A later format or another kind may give a field another type.
        Err(error) => match serde_json::from_slice::<RecordHead<'_>>(line) {
            Ok(head) if head.format > FORMAT => ReadLine::Newer,
            Ok(head) if kind(&head.kind).is_none() => ReadLine::UnknownKind,
            _ => ReadLine::Unreadable(brief(&error)),
        },
    }
}

fn kind(name: &str) -> Option<LineKind> {
    match name {
        "pilot_start" => Some(LineKind::Start),
        "task" => Some(LineKind::Task),
        "pilot_end" => Some(LineKind::End),
        _ => None,
    }
}

/// Shortens serde's text, which ends in a position within the line and may quote a field of any length.
fn brief(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text
        .rsplit_once(" at line ")
        .map_or(&*text, |(what, _)| what);
    let end = text.floor_char_boundary(100);
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_and_unknown_fields_are_no_mistake() {
        let line =
            br#"{"format":1,"kind":"task","pilot_id":"p","host":"h","mood":["good"],"slot":null}"#;
        let ReadLine::Record(LineKind::Task, record) = read(line) else {
            panic!("{:?}", read(line));
        };
        assert!(record.slot.is_none() && record.site.is_none() && record.outcome.is_none());
        assert!(matches!(record.host, Cow::Borrowed("h")), "copied nothing");
    }

    #[test]
    fn a_line_is_judged_by_its_format_and_kind_before_its_fields() {
        let newer = br#"{"format":2,"kind":"task","slot":"the third"}"#;
        assert!(matches!(read(newer), ReadLine::Newer));
        let unknown = br#"{"format":1,"kind":"weather","slot":"cloudy"}"#;
        assert!(matches!(read(unknown), ReadLine::UnknownKind));
    }

    #[test]
    fn what_is_no_record_is_unreadable_and_says_why_in_few_words() {
        for line in [
            &b"{\"format\":1,\"kind\":\"task\",\"pilot_id\":\"p\",\"ho"[..],
            b"[]",
            b"\xff\xfe",
            b"{}",
            br#"{"format":1,"kind":"task","pilot_id":"p","host":"h","slot":"3"}"#,
        ] {
            let ReadLine::Unreadable(why) = read(line) else {
                panic!("{:?}", read(line));
            };
            assert!(!why.is_empty() && !why.contains(" at line "), "{why}");
        }
    }
}
