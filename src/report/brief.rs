//! A pilot's records in a few lines, for a person who has just watched it on a terminal.

use std::path::Path;

use super::distribution::Distribution;
use super::numbers::{Events, ReportNumbers};
use crate::human::{count, counted, one_line, percent, seconds};

/// The most characters of an error.
const ERROR: usize = 120;

/// Five lines: events, run times, slots, the most frequent failure, where the rest is.
pub(super) fn lines(report: &ReportNumbers, file: &Path) -> Vec<String> {
    vec![
        events(&report.events),
        run_time(report.run_time_secs.as_ref()),
        slots(report),
        failures(report),
        format!("all numbers: ewms-pilot report {}", file.display()),
    ]
}

fn events(events: &Events) -> String {
    let mut parts = vec![format!("{} done", count(events.done))];
    for (number, what) in [
        (events.no_output, "of these without a result"),
        (events.failed, "failed"),
        (events.given_back, "given back"),
        (events.unsettled, "unsettled"),
    ] {
        if number > 0 {
            parts.push(format!("{} {what}", count(number)));
        }
    }
    format!(
        "{} taken: {}",
        counted(events.taken, "event"),
        parts.join(", ")
    )
}

fn run_time(times: Option<&Distribution>) -> String {
    times.map_or_else(
        || "run time: no task succeeded".to_owned(),
        |times| {
            format!(
                "run time: median {}, 95 % within {}, longest {}",
                seconds(times.median),
                seconds(times.p95),
                seconds(times.max)
            )
        },
    )
}

fn slots(report: &ReportNumbers) -> String {
    let time = &report.slot_time;
    let part = |secs: f64| {
        if time.total_secs > 0.0 {
            percent(secs / time.total_secs)
        } else {
            percent(0.0)
        }
    };
    format!(
        "slots: busy {}, starting {}, idle {}",
        part(time.busy_secs),
        part(time.starting_secs),
        part(time.idle_secs)
    )
}

fn failures(report: &ReportNumbers) -> String {
    let Some(first) = report.errors.first() else {
        return "failures: none".to_owned();
    };
    let others = report.errors[1..].iter().map(|reason| reason.count);
    let others = others.sum::<u64>() + report.other_errors;
    let more = match others {
        0 => String::new(),
        others => format!("; {} with other errors", count(others)),
    };
    format!(
        "failures: {} × {}{more}",
        count(first.count),
        one_line(&first.error, ERROR)
    )
}
