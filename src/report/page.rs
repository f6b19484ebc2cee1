//! Writes the report as one HTML page that needs no network and no further files. Its numbers are those of the
//! tables.

use std::fmt::Write as _;

use super::aggregate::Aggregate;
use super::charts::{self, look};
use super::failure_reasons::ReasonClass;
use super::numbers::ReportNumbers;
use super::sections;
use super::svg::{Drawing, Escaped};
use super::tables::{self, Audience, Table};
use super::timeline;
use super::timeline_data::TaskFate;
use crate::human::{count, percent, round_seconds, seconds};

/// Tables with at most this many columns stand side by side.
const FACT_COLUMNS: usize = 3;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

pub(super) fn page(report: &ReportNumbers, aggregate: &Aggregate) -> String {
    let mut body = String::new();
    let _ = write!(
        body,
        "<header><h1>What the pilots did</h1><p>{}</p></header>",
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
         <title>ewms-pilot report</title><style>{STYLE}</style></head><body>{body}\
         <footer>ewms-pilot {} report</footer><output id=\"note\" hidden></output><script>{SCRIPT}</script></body></html>\n",
        env!("CARGO_PKG_VERSION")
    )
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

fn exclusion(body: &mut String, report: &ReportNumbers) {
    if let (Some(command), Some(expression)) = (&report.condor_submit, &report.requirements) {
        let _ = write!(
            body,
            "<section class=\"card bad\"><h2>To avoid the sites and hosts that are worse than the rest</h2>\
             <p>The next <code>condor_submit</code> of the bundled template begins with</p>\
             <pre id=\"condor-submit\">{}</pre><p>In other submit files</p>\
             <pre id=\"requirements\">requirements = {}</pre></section>",
            Escaped(command),
            Escaped(expression)
        );
    }
}

fn pictures(body: &mut String, report: &ReportNumbers, aggregate: &Aggregate) {
    if let Some(timeline) = timeline::draw(aggregate) {
        let _ = write!(
            body,
            "<section class=\"card\"><h2>Tasks over time (UTC)</h2>{}<div class=\"scroll\">{}</div><p>{} Point at anything, or tap it, to see what it is.</p></section>",
            legend(aggregate),
            timeline.svg,
            Escaped(&timeline.caption)
        );
    }
    body.push_str("<div class=\"charts\">");
    let mut chart = |title: &str, svg: Option<String>| {
        if let Some(svg) = svg {
            let _ = write!(
                body,
                "<section class=\"card\"><h2>{title}</h2>{svg}</section>"
            );
        }
    };
    chart(
        "Run time of tasks that succeeded",
        charts::run_times(&aggregate.run_times),
    );
    if let Some((svg, width)) = charts::throughput(&aggregate.timeline_data) {
        chart(
            &format!(
                "Events done (below) and failed (above), per {}, UTC",
                round_seconds(width)
            ),
            Some(svg),
        );
    }
    chart("Faults by site", charts::sites(&report.sites));
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
            .map(|(column, head)| format!("<th{}>{}</th>", class(table, column), Escaped(head)))
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
    if table.is_number(column) {
        " class=\"number\""
    } else {
        ""
    }
}
