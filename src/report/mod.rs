//! `ewms-pilot report`: adds up the records of any number of pilots and writes them as tables, a page or JSON.
//! It runs where the files are, after the pilots, and reads nothing but record files.
//!
//! | file | what it does |
//! | --- | --- |
//! | `input` | finds files and reads their lines, on a thread of its own |
//! | `scan`, `record_line` | hand on each record, parse a line |
//! | `aggregate`, `totals`, `failure_reasons`, `distribution`, `timeline_data` | add records up to sums, counts and the charts' data, in bounded memory |
//! | `suspects`, `significance` | find sites and hosts that are worse than the rest; method and limits are described there |
//! | `submit_settings` | the settings of the next pilots, as text to paste |
//! | `numbers`, `sites` | work out [`ReportNumbers`], the one source of all output |
//! | `sections`, `tables`, `page`, `charts`, `timeline`, `lanes`, `panels`, `time_axis`, `svg`, `tooltip` | show them as text and as a page |
//! | `task_list` | prints a line a task instead |
//!
//! Measured with a million records of 2,000 pilots (707 MB, or 113 MB as gzip), release build, page
//! included, on two cores that had six times as much to do: 2.3 s of CPU time (3.1 s), 9 s (7 s) on the
//! clock, 58 MiB of memory. `tests/support/records.py` makes the records.

mod aggregate;
mod brief;
mod charts;
mod distribution;
mod failure_reasons;
mod input;
mod lanes;
mod numbers;
mod page;
mod panels;
mod record_line;
mod scan;
mod sections;
mod significance;
mod sites;
mod submit_settings;
mod suspects;
mod svg;
mod tables;
mod task_list;
mod time_axis;
mod timeline;
mod timeline_data;
mod tooltip;
mod totals;

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

pub use distribution::Distribution;
pub use failure_reasons::{FailureExample, Reason};
pub use input::MissingInput;
pub use numbers::{
    Broker, Cpu, Events, GpuModel, InputNumbers, Pilots, ReportNumbers, Resource, Slots,
};
pub use sites::Site;
pub use suspects::{Suspect, SuspectReason};
pub use task_list::{ListedTasks, TaskQuery};

use crate::exit::Exit;
use crate::human::{OutputFormat, counted};
use aggregate::Aggregate;
use scan::ScannedRecord;
use tables::Audience;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportRequest {
    /// Files, directories, globs.
    pub paths: Vec<PathBuf>,
    /// The file for a page, if one is to be written.
    pub page: Option<PathBuf>,
    /// The page's heading, if it is not to be the taskforce.
    pub title: Option<String>,
    /// The tasks to list instead of the sums.
    pub tasks: Option<TaskQuery>,
    /// As JSON, [`ReportNumbers`].
    pub output: OutputFormat,
}

/// Reads the files and writes the report. Problems go to `complaints`.
pub fn run(request: &ReportRequest, out: &mut impl Write, complaints: &mut impl Write) -> Exit {
    // If stderr can't be written, only the exit code tells.
    let mut complain = |text: String| drop(writeln!(complaints, "ewms-pilot report: {text}"));
    let found = match input::find(&request.paths) {
        Ok(found) => found,
        Err(missing) => {
            complain(missing.to_string());
            return Exit::Configuration;
        }
    };
    let (mut aggregate, input) = match read(&found.files, found.problems, RecordScope::Everybody) {
        Ok(read) => read,
        Err(error) => {
            complain(format!("can't start a thread to read with: {error}"));
            return Exit::ExecutionPoint;
        }
    };
    let report = ReportNumbers::of(&mut aggregate, input);
    if report.input.records == 0 {
        complain(format!(
            "no record in {}; pilots write theirs to a file that ends in .jsonl, one each",
            counted(report.input.files, "file")
        ));
    }
    if let Some(query) = &request.tasks {
        let sums = (&report, &aggregate);
        let listed = task_list::print(query, request.output, &found.files, sums, out);
        let (said, exit) = match listed {
            Ok(summary) => (summary, Exit::Success),
            Err(error) => (error.to_string(), error.exit()),
        };
        complain(said);
        return exit;
    }
    if let Some(path) = &request.page
        && let Err(error) = std::fs::write(
            path,
            page::page(request.title.as_deref(), &report, &aggregate),
        )
    {
        complain(format!(
            "can't write the page `{}`: {error}",
            path.display()
        ));
        return Exit::ExecutionPoint;
    }
    if let Err(error) = show(&report, request.output, out)
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        complain(format!("can't write the report: {error}"));
        return Exit::ExecutionPoint;
    }
    Exit::Success
}

fn show(report: &ReportNumbers, output: OutputFormat, out: &mut impl Write) -> io::Result<()> {
    match output {
        OutputFormat::Json => {
            serde_json::to_writer_pretty(&mut *out, report)?;
            writeln!(out)?;
        }
        OutputFormat::Text => {
            for line in text(report, Audience::Terminal) {
                writeln!(out, "{line}")?;
            }
        }
    }
    out.flush()
}

/// The report of one pilot, for the end of its log. `file` may hold other pilots' records too.
///
/// # Errors
/// Fails if no thread can be started for reading. A file that can't be read is a line of the report.
pub fn of_pilot(file: &Path, pilot_id: &str) -> io::Result<PilotReport> {
    let (mut aggregate, input) = read(&[file.to_owned()], Vec::new(), RecordScope::Only(pilot_id))?;
    let numbers = ReportNumbers::of(&mut aggregate, input);
    Ok(PilotReport {
        brief: brief::lines(&numbers, file),
        whole: text(&numbers, Audience::Log),
    })
}

/// The sums of one pilot's records, as lines.
#[derive(Debug)]
pub struct PilotReport {
    /// Five lines.
    pub brief: Vec<String>,
    pub whole: Vec<String>,
}

fn text(report: &ReportNumbers, audience: Audience) -> Vec<String> {
    let mut lines = vec![tables::headline(report)];
    lines.extend(
        tables::warnings(report)
            .into_iter()
            .map(|warning| format!("  {warning}")),
    );
    if report.input.records == 0 {
        return lines;
    }
    for table in sections::tables(report, audience) {
        if audience != Audience::Log {
            lines.push(String::new());
        }
        lines.extend(tables::lines(&table));
    }
    if audience == Audience::Terminal {
        lines.extend(to_paste(report));
    }
    lines
}

/// What the next pilots may be submitted with.
fn to_paste(report: &ReportNumbers) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(command) = &report.condor_submit {
        lines.push(String::new());
        lines.push("To submit the next pilots by the bundled template, begin with".to_owned());
        lines.push(command.clone());
    }
    if let Some(expression) = &report.requirements {
        lines.push("In other submit files, to avoid the same".to_owned());
        lines.push(format!("requirements = {expression}"));
    }
    lines
}

#[derive(Debug, Clone, Copy)]
enum RecordScope<'a> {
    Everybody,
    Only(&'a str),
}

fn read(
    files: &[PathBuf],
    problems: Vec<String>,
    whose: RecordScope<'_>,
) -> io::Result<(Aggregate, InputNumbers)> {
    let mut input = InputNumbers {
        files: files.len() as u64,
        problems,
        ..InputNumbers::default()
    };
    let mut aggregate = Aggregate::default();
    scan::scan(files, &mut input, |ScannedRecord { kind, line, .. }| {
        match whose {
            RecordScope::Only(pilot_id) if line.pilot_id != pilot_id => {}
            _ => aggregate.add(kind, &line),
        }
        ControlFlow::Continue(())
    })?;
    Ok((aggregate, input))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pilots_own_report_counts_its_own_records_only_and_judges_no_site() {
        let line = |pilot: &str, task: u32| {
            format!(
                r#"{{"format":1,"kind":"task","pilot_id":"{pilot}","host":"h","site":"s","task_id":"{task}","outcome":"done","wall_time_secs":2.5}}"#
            ) + "\n"
        };
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let text = [line("mine", 1), line("other", 1), line("mine", 2)].concat();
        std::fs::write(file.path(), text).expect("it can be written");
        let report = of_pilot(file.path(), "mine").expect("a thread");
        let brief = report.brief;
        assert_eq!(brief[0], "2 events taken: 2 done");
        assert_eq!(
            brief[1],
            "run time: median 2.50 s, 95 % within 2.50 s, longest 2.50 s"
        );
        assert_eq!(brief[3], "failures: none");
        assert_eq!(brief.len(), 5);
        let lines = report.whole.join("\n");
        assert!(
            lines.starts_with("2 records of 1 pilot in 1 file"),
            "{lines}"
        );
        assert!(lines.contains("2.50 s  of tasks that succeeded"), "{lines}");
        assert!(
            !lines.contains("Sites") && !lines.contains("Hosts") && !lines.contains("\n\n"),
            "{lines}"
        );
        let gone = of_pilot(Path::new("/nowhere/records.jsonl"), "mine");
        let gone = gone.expect("a thread").whole;
        assert!(
            gone.len() == 2 && gone[1].contains("/nowhere/records.jsonl"),
            "{gone:?}"
        );
    }
}
