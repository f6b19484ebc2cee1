//! `ewms-pilot report --tasks`: a line for each task of one kind, with the job, the host and the task's id that lead
//! to its log. The files are read a second time for it, so that memory doesn't grow with the number of tasks.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::fmt::Write as _;
use std::hash::BuildHasher;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use super::aggregate::{Aggregate, MOST_REMEMBERED, SiteName};
use super::numbers::{InputNumbers, ReportNumbers};
use super::record_line::{JsonText, LineKind, RecordLine};
use super::scan::{ScannedRecord, scan};
use crate::exit::Exit;
use crate::human::{OutputFormat, counted, one_line, seconds, utc};

/// The widest column of names.
const WIDEST: usize = 40;
/// The longest error of a line.
const ERROR_COLUMNS: usize = 200;
/// The most sites that are named when there is none of the wanted name.
const SITES_NAMED: usize = 20;

/// Which tasks are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskQuery {
    pub which: ListedTasks,
    /// Only those of the site or the part of a site with this name.
    pub site: Option<String>,
    /// Only those whose error contains this text.
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListedTasks {
    /// Failed, dead-lettered or rejected.
    Failed,
    /// Ran at least as long as the slowest twentieth of those that succeeded.
    Slow,
    /// Given back for another's fault or untried, and unsettled ones.
    GivenBack,
}

impl ListedTasks {
    fn has(self, line: &RecordLine<'_>, slow_secs: f64) -> bool {
        let outcome = line.outcome.as_ref().map(JsonText::as_str);
        match self {
            Self::Failed => matches!(outcome, Some("failed" | "dead_lettered" | "rejected")),
            Self::GivenBack => matches!(outcome, Some("given_back" | "unsettled")),
            Self::Slow => line.wall_time_secs.is_some_and(|ran| ran >= slow_secs),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Slow => "slow",
            Self::GivenBack => "given back",
        }
    }

    /// The argument that lists them.
    fn argument(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Slow => "slow",
            Self::GivenBack => "given-back",
        }
    }
}

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub(super) enum TaskListError {
    #[error("no record is of a site `{wanted}`; {known}")]
    NoSuchSite { wanted: String, known: String },
    #[error("can't write the list: {0}")]
    Write(io::Error),
    #[error("can't start a thread to read with: {0}")]
    Thread(io::Error),
}

impl TaskListError {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::NoSuchSite { .. } => Exit::Configuration,
            Self::Write(_) | Self::Thread(_) => Exit::ExecutionPoint,
        }
    }
}

/// Prints the tasks that `query` asks for, and returns a sentence about them. `aggregate` has the sums of the same
/// files.
pub(super) fn print(
    query: &TaskQuery,
    output: OutputFormat,
    files: &[PathBuf],
    (report, aggregate): (&ReportNumbers, &Aggregate),
    out: &mut impl Write,
) -> Result<String, TaskListError> {
    if let Some(wanted) = &query.site {
        find_site(wanted, &aggregate.sites)?;
    }
    let slow_secs = report.run_time_secs.map_or(f64::INFINITY, |run| run.p95);
    let mut list = TaskList {
        query,
        output,
        slow_secs,
        widths: Widths::of(aggregate),
        aggregate,
        hasher: RandomState::new(),
        seen: HashSet::new(),
        matches: [0; 3],
        slow: Vec::new(),
        out,
        broken: None,
    };
    let mut problems = InputNumbers::default();
    scan(files, &mut problems, |record| list.visit(&record)).map_err(TaskListError::Thread)?;
    list.finish()
}

fn find_site(wanted: &str, sites: &[SiteName]) -> Result<(), TaskListError> {
    if sites.iter().any(|site| site.is_called(wanted)) {
        return Ok(());
    }
    let mut names: Vec<&str> = sites.iter().filter_map(SiteName::precise).collect();
    names.sort_unstable();
    names.dedup();
    let more = if names.len() > SITES_NAMED {
        ", …"
    } else {
        ""
    };
    names.truncate(SITES_NAMED);
    Err(TaskListError::NoSuchSite {
        wanted: wanted.to_owned(),
        known: match names.as_slice() {
            [] => "the records name no site".to_owned(),
            names => format!("there are {}{more}", names.join(", ")),
        },
    })
}

/// The widths of the columns with names.
#[derive(Debug, Clone, Copy)]
struct Widths {
    job: usize,
    host: usize,
    site: usize,
}

impl Widths {
    fn of(aggregate: &Aggregate) -> Self {
        let widest = |names: &mut dyn Iterator<Item = &str>| {
            let widths = names.map(|name| name.chars().count());
            widths.max().unwrap_or(1).min(WIDEST)
        };
        let jobs = &aggregate.pilots;
        Self {
            job: widest(&mut jobs.iter().filter_map(|pilot| pilot.job_id.as_deref())),
            host: widest(&mut aggregate.hosts.iter().map(|host| &*host.name)),
            site: widest(&mut aggregate.sites.iter().filter_map(SiteName::precise)),
        }
    }
}

struct TaskList<'a, W> {
    query: &'a TaskQuery,
    output: OutputFormat,
    /// What counts as slow.
    slow_secs: f64,
    widths: Widths,
    aggregate: &'a Aggregate,
    hasher: RandomState,
    /// Tasks that were listed, because a file may be there twice.
    seen: HashSet<u64>,
    /// How many failed, slow and given back tasks are of the wanted site and error.
    matches: [u64; 3],
    /// Lines that are printed last, the longest run time first. They are a twentieth of all.
    slow: Vec<(f64, String)>,
    out: &'a mut W,
    broken: Option<io::Error>,
}

const ALL: [ListedTasks; 3] = [
    ListedTasks::Failed,
    ListedTasks::Slow,
    ListedTasks::GivenBack,
];

impl<W: Write> TaskList<'_, W> {
    fn visit(&mut self, record: &ScannedRecord<'_>) -> ControlFlow<()> {
        let line = &*record.line;
        if record.kind != LineKind::Task || !self.query.suits(line) || self.is_repeated(line) {
            return ControlFlow::Continue(());
        }
        for which in ALL
            .into_iter()
            .filter(|which| which.has(line, self.slow_secs))
        {
            self.matches[which as usize] += 1;
        }
        if !self.query.which.has(line, self.slow_secs) {
            return ControlFlow::Continue(());
        }
        let text = match self.output {
            OutputFormat::Text => self.row(line),
            OutputFormat::Json => self.json(line, record.text),
        };
        if self.query.which == ListedTasks::Slow {
            let ran = line.wall_time_secs.unwrap_or_default();
            self.slow.push((ran, text));
            return ControlFlow::Continue(());
        }
        self.write(&text)
    }

    fn is_repeated(&mut self, line: &RecordLine<'_>) -> bool {
        let task = line.task_id.as_ref().map(JsonText::as_str);
        let hash = self.hasher.hash_one((&*line.pilot_id, task));
        self.seen.len() < MOST_REMEMBERED && !self.seen.insert(hash)
    }

    fn write(&mut self, text: &str) -> ControlFlow<()> {
        match writeln!(self.out, "{text}") {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.broken = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    fn job(&self, line: &RecordLine<'_>) -> Option<&str> {
        self.aggregate.job_of(&line.pilot_id)
    }

    fn row(&self, line: &RecordLine<'_>) -> String {
        let text = |text: &Option<JsonText<'_>>| {
            text.as_ref()
                .map_or("-".to_owned(), |text| one_line(text.as_str(), WIDEST))
        };
        let outcome = text(&line.outcome).replace('_', " ");
        let class = line
            .fault_class
            .as_ref()
            .map(|class| format!(" ({})", class.as_str()));
        let ended = line.ended_unix_secs.or(line.settled_unix_secs);
        let site = if line.resource.is_some() {
            &line.resource
        } else {
            &line.site
        };
        let error = line
            .error
            .as_ref()
            .map(|error| one_line(error.as_str(), ERROR_COLUMNS));
        let Widths {
            job,
            host,
            site: widest,
        } = self.widths;
        let row = format!(
            "{:<job$}  {:<36}  {:<host$}  {:<widest$}  {:<19}  {:<22}  {:>12}  {}",
            self.job(line).unwrap_or("-"),
            text(&line.task_id),
            one_line(&line.host, WIDEST),
            text(site),
            ended.map_or("-".to_owned(), utc),
            outcome + &class.unwrap_or_default(),
            line.wall_time_secs.map_or("-".to_owned(), seconds),
            error.unwrap_or_default(),
        );
        row.trim_end().to_owned()
    }

    /// The record as it is, with the job's number.
    fn json(&self, line: &RecordLine<'_>, text: &[u8]) -> String {
        let whole = String::from_utf8_lossy(text.trim_ascii());
        let job = serde_json::json!(self.job(line));
        match whole.strip_prefix('{') {
            Some(rest) => format!("{{\"job_id\":{job},{rest}"),
            None => whole.into_owned(),
        }
    }

    fn finish(mut self) -> Result<String, TaskListError> {
        let mut slow = std::mem::take(&mut self.slow);
        slow.sort_by(|(left, _), (right, _)| right.total_cmp(left));
        for (_, text) in slow {
            if self.write(&text).is_break() {
                break;
            }
        }
        let flushed = self.out.flush();
        match self.broken.take().map_or(flushed, Err) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(TaskListError::Write(error))
            }
            _ => Ok(self.summary()),
        }
    }

    fn summary(&self) -> String {
        let which = self.query.which;
        let found = self.matches[which as usize];
        let mut text = match which {
            ListedTasks::Slow if self.slow_secs.is_finite() => format!(
                "{} that ran {} or longer, as the slowest 5 % of those that succeeded did",
                counted(found, "task"),
                seconds(self.slow_secs)
            ),
            ListedTasks::Slow => "no task succeeded, so none is called slow".to_owned(),
            _ => format!("{} {}", counted(found, "task"), which.words()),
        };
        let others = [ListedTasks::Failed, ListedTasks::GivenBack]
            .into_iter()
            .filter(|other| *other != which && found == 0 && self.matches[*other as usize] > 0);
        for other in others {
            // Writing into a string can't fail.
            let _ = write!(
                text,
                "; but {} {}: --tasks {}",
                counted(self.matches[other as usize], "task"),
                other.words(),
                other.argument()
            );
        }
        text
    }
}

impl TaskQuery {
    fn suits(&self, line: &RecordLine<'_>) -> bool {
        let site = self.site.as_deref();
        let is_there = site.is_none_or(|wanted| SiteName::of(line).is_called(wanted));
        let error = line.error.as_ref().map_or("", JsonText::as_str);
        let is_it = |wanted: &String| error.contains(wanted.as_str());
        is_there && self.error.as_ref().is_none_or(is_it)
    }
}
