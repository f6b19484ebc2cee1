//! Writes the report as one HTML page that needs no network and no further files. Its numbers are those of the
//! tables.

use std::fmt::Write as _;

use super::aggregate::Aggregate;
use super::charts::{self, look};
use super::failure_reasons::ReasonClass;
use super::numbers::ReportNumbers;
use super::sections;
use super::sites::Site;
use super::suspects::{Suspect, SuspectReason};
use super::svg::{Drawing, Escaped};
use super::tables::{self, Audience, Table};
use super::timeline;
use super::timeline_data::TaskFate;
use crate::human::{count, percent, seconds};

/// Tables with at most this many columns stand side by side.
const FACT_COLUMNS: usize = 3;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page, with `title` as its heading if there is one.
pub(super) fn page(title: Option<&str>, report: &ReportNumbers, aggregate: &Aggregate) -> String {
    let title = title.map_or_else(|| default_title(report), str::to_owned);
    let mut body = String::new();
    let _ = write!(
        body,
        "<header><h1>{}</h1><p>{}</p></header>",
        Escaped(&title),
        Escaped(&tables::headline(report))
    );
    let warnings = tables::warnings(report);
    if !warnings.is_empty() {
        let items: Vec<String> = warnings
            .iter()
            .map(|line| format!("<li>{}</li>", Escaped(line)))
            .collect();
        let _ = write!(body, "<ul class=\"warnings\">{}</ul>", items.concat());
    }
    if report.input.records == 0 {
        body.push_str("<p>There is no record to show.</p>");
    } else {
        tiles(&mut body, report);
        exclusion(&mut body, report);
        pictures(&mut body, report, aggregate);
        let (facts, grids): (Vec<Table>, Vec<Table>) = sections::tables(report, Audience::Page)
            .into_iter()
            .partition(|table| table.head.len() <= FACT_COLUMNS);
        body.push_str("<div class=\"facts\">");
        for table in &facts {
            html(&mut body, table);
        }
        body.push_str("</div>");
        for table in &grids {
            html(&mut body, table);
        }
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\
         <title>{} · ewms-pilot report</title><style>{STYLE}</style></head><body>{body}\
         <footer>ewms-pilot {} report</footer><output id=\"note\" hidden></output><script>{SCRIPT}</script></body></html>\n",
        Escaped(&title),
        env!("CARGO_PKG_VERSION")
    )
}

fn default_title(report: &ReportNumbers) -> String {
    let names: Vec<&str> = report
        .pilots
        .taskforces
        .keys()
        .map(String::as_str)
        .collect();
    match names.as_slice() {
        [] => "What the pilots did".to_owned(),
        [name] => format!("Taskforce {name}"),
        names => format!("What the pilots of {} taskforces did", names.len()),
    }
}

fn tiles(body: &mut String, report: &ReportNumbers) {
    let events = &report.events;
    let mut tiles = vec![
        ("pilots", count(report.pilots.seen)),
        ("done", count(events.done)),
        ("failed", count(events.failed)),
        ("given back", count(events.given_back)),
    ];
    if let Some(run) = &report.run_time_secs {
        tiles.push(("median run time", seconds(run.median)));
    }
    if report.slot_time.total_secs > 0.0 {
        tiles.push((
            "slots busy",
            percent(report.slot_time.share(report.slot_time.busy_secs)),
        ));
    }
    if let Some(efficiency) = report.cpu.efficiency {
        tiles.push(("CPU efficiency", percent(efficiency)));
    }
    body.push_str("<dl class=\"tiles\">");
    for (what, value) in tiles {
        let _ = write!(body, "<div><dt>{what}</dt><dd>{value}</dd></div>");
    }
    body.push_str("</dl>");
}

/// The places to avoid, what speaks against each, and what to paste.
fn exclusion(body: &mut String, report: &ReportNumbers) {
    let (Some(command), Some(expression)) = (&report.condor_submit, &report.requirements) else {
        return;
    };
    body.push_str(
        "<section class=\"card bad\"><h2>Worse than the rest, by more than chance</h2><ul>",
    );
    let places = report.sites.iter().chain(&report.hosts);
    for (place, suspect) in places.filter_map(|place| Some((place, place.bad.as_ref()?))) {
        let _ = write!(
            body,
            "<li><b>{}</b>: {}</li>",
            Escaped(place.name()),
            Escaped(&evidence(place, suspect))
        );
    }
    body.push_str(
        "</ul><p>To avoid them, the next <code>condor_submit</code> of the bundled template begins with</p>",
    );
    paste(body, "condor-submit", command);
    body.push_str("<p>In other submit files</p>");
    paste(
        body,
        "requirements",
        &format!("requirements = {expression}"),
    );
    body.push_str("</section>");
}

/// A text with a button that copies it.
fn paste(body: &mut String, id: &str, text: &str) {
    let _ = write!(
        body,
        "<div class=\"paste\"><pre id=\"{id}\">{}</pre>\
         <button type=\"button\" data-copies=\"{id}\">Copy</button></div>",
        Escaped(text)
    );
}

/// `2,546 of 8,451 tasks failed by its machines, elsewhere 0.99 % (p < 0.001)`
fn evidence(place: &Site, suspect: &Suspect) -> String {
    let tried = if place.failed_before_any_task == 0 {
        "tasks"
    } else {
        "tasks and pilots without a task"
    };
    let whose = match (suspect.because, &place.host) {
        (SuspectReason::Failures, _) => "",
        (SuspectReason::EpFaults, Some(_)) => " by the machine",
        (SuspectReason::EpFaults, None) => " by its machines",
    };
    let chance = match sections::p_value(suspect.p_value) {
        small if small.starts_with('<') => format!("p\u{a0}{}", small.replace(' ', "\u{a0}")),
        chance => format!("p\u{a0}=\u{a0}{chance}"),
    };
    format!(
        "{} of {} {tried} failed{whose}, elsewhere {} ({chance})",
        count(suspect.failed),
        count(suspect.tried),
        percent(suspect.rate_elsewhere)
    )
}

fn pictures(body: &mut String, report: &ReportNumbers, aggregate: &Aggregate) {
    if let Some(timeline) = timeline::draw(aggregate) {
        let _ = write!(
            body,
            "<section class=\"card\"><h2>Over time (UTC)</h2>{}<p class=\"hint\">Scroll it sideways to see all.</p>\
             <div class=\"scroll over-time\" tabindex=\"0\"><div class=\"names\">{}</div>{}</div>\
             <p>{} Point at anything, or tap it, to see what it is.</p></section>",
            legend(aggregate),
            timeline.names,
            timeline.svg,
            Escaped(&timeline.caption)
        );
    }
    body.push_str("<div class=\"charts\">");
    let mut chart = |title: &str, svg: Option<String>, remark: &str| {
        if let Some(svg) = svg {
            let _ = write!(
                body,
                "<section class=\"card\"><h2>{title}</h2>{svg}<p>{remark}</p></section>"
            );
        }
    };
    let run_times = charts::run_times(&aggregate.run_times);
    chart("Run time of tasks that succeeded", run_times, "");
    let remark =
        "Number and, in brackets, failure rate, which leaves out faults of the events themselves.";
    chart("Faults by site", charts::sites(&report.sites), remark);
    body.push_str("</div>");
}

/// The legend of the marks that occur.
fn legend(aggregate: &Aggregate) -> String {
    let all = ReasonClass::ALL.map(TaskFate::Failed);
    let occurs = |fate: &TaskFate| {
        aggregate
            .timeline_data
            .tasks
            .iter()
            .any(|task| task.fate == *fate)
    };
    let mut items = String::new();
    for fate in [TaskFate::Done, TaskFate::Untried]
        .into_iter()
        .chain(all)
        .filter(occurs)
    {
        let (class, shape, label) = look(fate);
        let mut key = Drawing::new(14.0, 14.0);
        match fate {
            TaskFate::Failed(_) => key.mark(shape, (7.0, 7.0), 5.0, class, ""),
            _ => key.rect((1.0, 3.0), (12.0, 8.0), &format!("{class} bar"), ""),
        }
        let _ = write!(items, "<li>{}{label}</li>", key.finish("key", label));
    }
    format!("<ul class=\"legend\">{items}</ul>")
}

fn html(body: &mut String, table: &Table) {
    let kind = if table.head.is_empty() { "" } else { " grid" };
    let _ = write!(
        body,
        "<section class=\"card{kind}\"><h2>{}</h2><div class=\"scroll\"><table>",
        Escaped(table.title)
    );
    if !table.head.is_empty() && !table.rows.is_empty() {
        let cells: Vec<String> = (table.head.iter().enumerate())
            .map(|(column, head)| {
                let class = class(table, column);
                format!(
                    "<th{class}><button type=\"button\">{}</button></th>",
                    Escaped(head)
                )
            })
            .collect();
        let _ = write!(body, "<thead><tr>{}</tr></thead>", cells.concat());
    }
    body.push_str("<tbody>");
    for row in &table.rows {
        body.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            // Leading spaces show which fact another one belongs to.
            let part = if column == 0 && cell.starts_with(' ') {
                " class=\"part\""
            } else {
                class(table, column)
            };
            let mut lines = cell.lines();
            let first = lines.next().unwrap_or_default();
            let _ = write!(body, "<td{part}>{}", Escaped(first.trim_start()));
            for line in lines {
                let _ = write!(body, "<div class=\"more\">{}</div>", Escaped(line));
            }
            body.push_str("</td>");
        }
        body.push_str("</tr>");
    }
    body.push_str("</tbody></table></div>");
    if let Some(remark) = &table.remark {
        let _ = write!(body, "<p>{}</p>", Escaped(remark));
    }
    body.push_str("</section>");
}

fn class(table: &Table, column: usize) -> &'static str {
    match table.head.get(column) {
        _ if table.is_number(column) => " class=\"number\"",
        Some(&("site" | "host")) => " class=\"name\"",
        _ => "",
    }
}
