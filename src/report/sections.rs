//! Fills the tables of the report: the place of each number, and the remarks on it.

use super::distribution::Distribution;
use super::failure_reasons::Reason;
use super::numbers::{GpuModel, ReportNumbers, Resource};
use super::sites::Site;
use super::suspects::SuspectReason;
use super::tables::{Audience, Table};
use crate::exit;
use crate::human::{bytes, count, counted, one_line, percent, seconds, share};

/// The tables for this audience that are not empty.
pub(super) fn tables(report: &ReportNumbers, audience: Audience) -> Vec<Table> {
    let (most_sites, most_hosts) = audience.rows();
    let mut tables = vec![events(report), time(report), resources(report)];
    if audience != Audience::Log {
        tables.insert(0, pilots(report));
    }
    tables.push(gpus(report));
    tables.push(classes(report));
    tables.push(errors(
        "Errors of tasks",
        &report.errors,
        report.other_errors,
        audience,
    ));
    if audience != Audience::Log {
        tables.push(errors(
            "Errors of pilots",
            &report.pilots.errors,
            report.pilots.other_errors,
            audience,
        ));
        tables.push(places("Sites", "site", &report.sites, most_sites));
        tables.push(places("Hosts", "host", &report.hosts, most_hosts));
        tables.push(bad(report));
    }
    tables.retain(|table| !table.rows.is_empty() || table.remark.is_some());
    tables
}

fn pilots(report: &ReportNumbers) -> Table {
    let pilots = &report.pilots;
    let mut table = Table::facts("Pilots");
    let each = match pilots.slots_each {
        Some(slots) => format!("{} each", counted(u64::from(slots), "slot")),
        None => format!("{:.1} slots each on average", pilots.mean_slots()),
    };
    table.fact("seen", count(pilots.seen), each);
    table.fact(
        "ended with a record",
        count(pilots.ended),
        share(pilots.ended, pilots.seen),
    );
    table.fact(
        "ended without a record",
        count(pilots.without_end),
        "killed, or still running",
    );
    if pilots.failed_before_any_task > 0 {
        let remark = "by the machine, the broker, the init container or the image";
        table.fact(
            "failed before any task",
            count(pilots.failed_before_any_task),
            remark,
        );
    }
    for (version, number) in &pilots.versions {
        table.fact(
            &format!("version {version}"),
            count(*number),
            share(*number, pilots.seen),
        );
    }
    for (code, number) in &pilots.exit_codes {
        let name = code.to_string();
        let meaning = exit::TABLE
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, meaning)| *meaning);
        let meaning = match (meaning, code) {
            (Some(meaning), _) => meaning
                .split([':', ';'])
                .next()
                .unwrap_or_default()
                .to_owned(),
            (None, 129..=192) => format!("ended by signal {}", code - 128),
            (None, _) => String::new(),
        };
        table.fact(&format!("exit code {code}"), count(*number), meaning);
    }
    table
}

fn events(report: &ReportNumbers) -> Table {
    let events = &report.events;
    let mut table = Table::facts("Events");
    table.fact(
        "taken from the queue",
        count(events.taken),
        "each time counted",
    );
    table.fact("done", count(events.done), share(events.done, events.taken));
    table.fact(
        "failed",
        count(events.failed),
        share(events.failed, events.taken),
    );
    table.fact("  of these dead-lettered", count(events.dead_lettered), "");
    table.fact(
        "  of these rejected",
        count(events.rejected),
        "kept on the EP in rejected/",
    );
    table.fact(
        "given back",
        count(events.given_back),
        "untried, or not by their fault",
    );
    if events.unsettled > 0 {
        table.fact(
            "unsettled",
            count(events.unsettled),
            "the broker delivers them again",
        );
    }
    table.fact(
        "delivered before",
        count(events.redelivered),
        share(events.redelivered, events.taken),
    );
    table.fact(
        "duplicates",
        count(events.duplicates),
        "results that may be there twice, after an outage",
    );
    if events.no_output > 0 {
        table.fact("done without output", count(events.no_output), "");
    }
    table
}

fn time(report: &ReportNumbers) -> Table {
    let mut table = Table::facts("Time");
    if let Some(run) = &report.run_time_secs {
        table.fact(
            "run time, median",
            seconds(run.median),
            "of tasks that succeeded",
        );
        table.fact("run time, 95 % within", seconds(run.p95), "");
        table.fact("run time, longest", seconds(run.max), "");
    }
    if let Some(latency) = &report.start_latency_secs {
        let waited = share(report.container_waited, report.container_begun);
        let remark =
            format!("from the event to its task's beginning; {waited} found a container waiting");
        table.fact("start, median", seconds(latency.median), &remark);
    }
    if report.failed_run_time_secs > 0.0 {
        table.fact(
            "spent on others",
            seconds(report.failed_run_time_secs),
            "tasks that didn't succeed, all together",
        );
    }
    if let Some(wait) = &report.first_event_wait_secs {
        table.fact(
            "wait for the first event",
            seconds(wait.median),
            rest_of(wait, seconds),
        );
    }
    let slots = &report.slot_time;
    if slots.total_secs > 0.0 {
        let mut part = |what: &str, secs: f64, remark: &str| {
            table.fact(what, percent(slots.share(secs)), remark);
        };
        part(
            "slots busy",
            slots.busy_secs,
            "of the time of all slots, from start to end",
        );
        part(
            "  starting",
            slots.starting_secs,
            "until events could be taken",
        );
        part("    of this, init", slots.init_secs, "the init container");
        part("  idle", slots.idle_secs, "waited for events");
        part(
            "  broker outage",
            slots.outage_secs,
            "no connection and nothing to do; at most",
        );
        part(
            "  draining",
            slots.draining_secs,
            "waited for other slots after the last event",
        );
    }
    let broker = &report.broker;
    let remark = match broker.reconnects {
        0 => String::new(),
        _ => format!(
            "in {}, {} without connection",
            counted(broker.pilots, "pilot"),
            seconds(broker.outage_secs)
        ),
    };
    table.fact("reconnects", count(broker.reconnects), remark);
    table
}

fn rest_of(distribution: &Distribution, show: impl Fn(f64) -> String) -> String {
    format!(
        "median; 95 % within {}, longest {}",
        show(distribution.p95),
        show(distribution.max)
    )
}

fn resources(report: &ReportNumbers) -> Table {
    let mut table = Table::facts("Resources, for each slot");
    if let Some(efficiency) = report.cpu.efficiency {
        let cpu = &report.cpu;
        let remark = format!(
            "{} of {} of cores",
            seconds(cpu.used_secs),
            seconds(cpu.available_secs)
        );
        table.fact("CPU efficiency", percent(efficiency), remark);
    }
    for (name, variable, resource) in [
        ("memory", "request_memory", &report.memory),
        ("disk", "request_disk", &report.disk),
    ] {
        let Some(used) = &resource.used_bytes else {
            continue;
        };
        let largest = format!(
            "median; 99 % within {}, largest {}",
            bytes(used.p99),
            bytes(used.max)
        );
        table.fact(&format!("{name} used"), bytes(used.median), largest);
        if let Some(requested) = &resource.requested_bytes {
            let above = format!(
                "median; {} used more, of {}",
                counted(resource.tasks_above_request, "task"),
                count(resource.tasks_compared)
            );
            table.fact(&format!("{name} requested"), bytes(requested.median), above);
        }
        table.fact(
            &format!("{name} that fits 99 %"),
            fitting(resource),
            request(variable, resource, report),
        );
    }
    table
}

fn fitting(resource: &Resource) -> String {
    let mib = resource.fits_99_percent_mib.unwrap_or(0);
    format!("{} MiB", count(mib))
}

/// The line of a submit file; a job needs as much for each of its slots.
fn request(variable: &str, resource: &Resource, report: &ReportNumbers) -> String {
    let mib = resource.fits_99_percent_mib.unwrap_or(0);
    match report.pilots.slots_each {
        Some(slots) if variable == "request_memory" => format!(
            "{variable} = {}MB for {} and the pilot",
            resource.job_mib(&report.pilots).unwrap_or(0),
            counted(u64::from(slots), "slot")
        ),
        Some(slots) => {
            format!(
                "{variable} = {}MB for {}",
                mib * u64::from(slots),
                counted(u64::from(slots), "slot")
            )
        }
        None => format!("{variable} = {mib}MB times the slots"),
    }
}

fn gpus(report: &ReportNumbers) -> Table {
    let row = |gpu: &GpuModel| {
        let run = gpu.run_time_secs.as_ref();
        vec![
            gpu.model
                .clone()
                .unwrap_or_else(|| "(not known)".to_owned()),
            count(gpu.tasks),
            count(gpu.done),
            count(gpu.failed),
            run.map(|run| seconds(run.median)).unwrap_or_default(),
            seconds(gpu.gpu_secs),
        ]
    };
    Table {
        title: "GPUs",
        head: vec![
            "model",
            "tasks",
            "done",
            "failed",
            "run time, median",
            "GPU time",
        ],
        rows: report.gpus.iter().map(row).collect(),
        remark: None,
    }
}

fn classes(report: &ReportNumbers) -> Table {
    let all: u64 = report.faults_by_class.values().sum();
    let mut rows: Vec<_> = report.faults_by_class.iter().collect();
    rows.sort_by_key(|(_, number)| std::cmp::Reverse(**number));
    Table {
        title: "Faults by class",
        head: vec!["class", "tasks", "share"],
        rows: rows
            .into_iter()
            .map(|(class, number)| vec![(*class).to_owned(), count(*number), share(*number, all)])
            .collect(),
        remark: None,
    }
}

fn errors(title: &'static str, errors: &[Reason], others: u64, audience: Audience) -> Table {
    let row = |reason: &Reason| {
        let error = one_line(&reason.error, audience.error_columns());
        vec![
            count(reason.count),
            reason.fault_class.to_owned(),
            count(reason.sites as u64),
            match audience {
                // The log is the one that an example would lead to.
                Audience::Log => error,
                _ => format!("{error}\nfor example {}", reason.example.words()),
            },
        ]
    };
    Table {
        title,
        head: vec!["times", "class", "sites", "error"],
        rows: errors.iter().map(row).collect(),
        remark: (others > 0).then(|| format!("{} with other texts", count(others))),
    }
}

fn places(title: &'static str, kind: &'static str, places: &[Site], most: usize) -> Table {
    let row = |place: &Site| {
        let (low, high) = place.whiskers();
        let site_is_known = place.site.is_some() || place.resource.is_some();
        let name = match (&place.host, &place.resource, &place.site) {
            (Some(host), ..) if site_is_known => format!("{host} ({})", place.site_name()),
            (None, Some(resource), Some(site)) if resource != site => {
                format!("{resource} ({site})")
            }
            _ => place.name().to_owned(),
        };
        let (rate, likely) = match place.tried() {
            0 => (String::new(), String::new()),
            _ => (
                percent(place.failure_rate),
                format!("{} to {}", percent(low), percent(high)),
            ),
        };
        vec![
            name,
            rate,
            likely,
            count(place.pilots),
            count(place.done),
            count(place.failed),
            count(place.ep_faults),
            count(place.failed_before_any_task),
            if place.bad.is_some() { "bad" } else { "" }.to_owned(),
        ]
    };
    Table {
        title,
        head: vec![
            kind,
            "failure rate",
            "95 % sure",
            "pilots",
            "done",
            "failed",
            "EP faults",
            "no start",
            "verdict",
        ],
        rows: places.iter().take(most).map(row).collect(),
        remark: remark(places, most),
    }
}

/// What the table leaves out.
fn remark(places: &[Site], most: usize) -> Option<String> {
    let of_events: u64 = places.iter().map(Site::event_faults).sum();
    let more = places.len().saturating_sub(most) as u64;
    let rate = (of_events > 0).then(|| {
        format!(
            "the rate leaves out {} by the events' own fault, which fail everywhere",
            counted(of_events, "failure")
        )
    });
    let rest = (more > 0).then(|| format!("and {} more; --json has all", count(more)));
    let remarks: Vec<String> = rest.into_iter().chain(rate).collect();
    (!remarks.is_empty()).then(|| remarks.join("; "))
}

fn bad(report: &ReportNumbers) -> Table {
    let bad = report
        .sites
        .iter()
        .chain(&report.hosts)
        .filter_map(|place| Some((place, place.bad.as_ref()?)));
    let rows: Vec<Vec<String>> = bad
        .map(|(place, suspect)| {
            let because = match suspect.because {
                SuspectReason::EpFaults => "EP faults",
                SuspectReason::Failures => "failures",
            };
            let share = format!("{} of {}", count(suspect.failed), count(suspect.tried));
            vec![
                place.name().to_owned(),
                because.to_owned(),
                share,
                percent(suspect.rate_elsewhere),
                p_value(suspect.p_value),
            ]
        })
        .collect();
    Table {
        title: "Worse than the rest, by more than chance",
        head: vec!["site", "because", "failed", "elsewhere", "p"],
        remark: rows.is_empty().then(|| "no site and no host".to_owned()),
        rows,
    }
}

/// `< 0.001`, `0.004`
pub(super) fn p_value(chance: f64) -> String {
    match chance {
        ..0.001 => "< 0.001".to_owned(),
        chance => format!("{chance:.3}"),
    }
}
