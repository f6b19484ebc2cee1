//! The text that a chart shows when a task in it is pointed at: its record in a few lines.

use std::fmt::Write as _;

use super::record_line::{JsonText, RecordLine};
use crate::human::{as_float, bytes, one_line, seconds, utc};

/// The longest line of an error.
const ERROR_COLUMNS: usize = 240;
/// The longest name of an event.
const NAME_COLUMNS: usize = 60;

pub(super) fn words(line: &RecordLine<'_>) -> String {
    let text = |text: &Option<JsonText<'_>>| text.as_ref().map(|text| text.as_str().to_owned());
    let outcome = text(&line.outcome).unwrap_or_default().replace('_', " ");
    let class = text(&line.fault_class).map(|class| format!(" ({class})"));
    let event =
        text(&line.event_name).map(|event| format!(" · event {}", one_line(&event, NAME_COLUMNS)));
    let mut lines = vec![format!(
        "{outcome}{} · task {}{}",
        class.unwrap_or_default(),
        text(&line.task_id).unwrap_or_default(),
        event.unwrap_or_default()
    )];
    let mut place = format!(
        "{}{}",
        text(&line.resource)
            .or_else(|| text(&line.site))
            .map(|site| format!("{site} · "))
            .unwrap_or_default(),
        line.host
    );
    if let Some(slot) = line.slot {
        // Writing into a string can't fail.
        let _ = write!(place, " · slot {slot}");
    }
    lines.push(place);
    if let (Some(start), Some(end)) = (line.started_unix_secs, line.ended_unix_secs) {
        lines.push(format!("{} to {} UTC", utc(start), utc(end)));
    }
    let cpu = line
        .cpu_user_secs
        .map(|user| user + line.cpu_system_secs.unwrap_or(0.0));
    let memory = line.container_memory_bytes.max(line.max_rss_bytes);
    let size = |size: Option<u64>| size.map(|size| bytes(as_float(size)));
    let facts = [
        ("ran", line.wall_time_secs.map(seconds)),
        ("CPU", cpu.map(seconds)),
        ("memory", size(memory)),
        ("disk", size(line.disk_bytes)),
        ("exit code", line.exit_code.map(|code| code.to_string())),
        ("signal", line.exit_signal.map(|signal| signal.to_string())),
    ];
    let facts: Vec<String> = facts
        .into_iter()
        .filter_map(|(name, value)| value.map(|value| format!("{name} {value}")))
        .collect();
    if !facts.is_empty() {
        lines.push(facts.join(" · "));
    }
    if let Some(error) = &line.error {
        lines.push(one_line(error.as_str(), ERROR_COLUMNS));
    }
    lines.join("\n")
}
