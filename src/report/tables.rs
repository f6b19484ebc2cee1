//! Tables of text, the same for the terminal and the page, and their layout on a terminal.

use std::fmt::Write as _;

use super::numbers::ReportNumbers;
use crate::human::{counted, seconds, utc};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// A person at a terminal, for all pilots.
    Terminal,
    /// A reader of the page, which has room.
    Page,
    /// A reader of one pilot's log.
    Log,
}

impl Audience {
    /// The most rows of the tables of sites and of hosts.
    pub(super) fn rows(self) -> (usize, usize) {
        match self {
            Self::Terminal => (25, 10),
            Self::Page => (200, 50),
            Self::Log => (0, 0),
        }
    }

    pub(super) fn error_columns(self) -> usize {
        match self {
            Self::Terminal => 120,
            Self::Page => 300,
            Self::Log => 200,
        }
    }
}

/// A table: cells are ready to be shown. Only a row's last cell may have several lines.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) title: &'static str,
    /// Empty for a list of facts, whose columns are name, value and remark.
    pub(super) head: Vec<&'static str>,
    pub(super) rows: Vec<Vec<String>>,
    pub(super) remark: Option<String>,
}

impl Table {
    pub(super) fn facts(title: &'static str) -> Self {
        Self {
            title,
            ..Self::default()
        }
    }

    pub(super) fn fact(&mut self, what: &str, value: impl Into<String>, remark: impl Into<String>) {
        self.rows
            .push(vec![what.to_owned(), value.into(), remark.into()]);
    }

    /// Numbers stand to the right, words to the left.
    pub(super) fn is_number(&self, column: usize) -> bool {
        match self.head.get(column) {
            None => column == 1,
            Some(head) => !matches!(
                *head,
                "site" | "host" | "class" | "error" | "because" | "verdict" | "model"
            ),
        }
    }
}

/// One line about the records that were read.
pub(super) fn headline(report: &ReportNumbers) -> String {
    let mut line = format!(
        "{} of {} in {}",
        counted(report.input.records, "record"),
        counted(report.pilots.seen, "pilot"),
        counted(report.input.files, "file"),
    );
    if let (Some(first), Some(last)) = (report.first_unix_secs, report.last_unix_secs) {
        let _ = write!(
            line,
            "; tasks from {} to {} UTC ({})",
            utc(first),
            utc(last),
            seconds(last - first)
        );
    }
    line
}

/// Warnings of lines that could not be read or are not counted.
pub(super) fn warnings(report: &ReportNumbers) -> Vec<String> {
    let input = &report.input;
    let mut lines = Vec::new();
    if input.unreadable_lines > 0 {
        let examples = input.first_unreadable.join("; ");
        let more = if input.unreadable_lines > input.first_unreadable.len() as u64 {
            "; …"
        } else {
            ""
        };
        lines.push(format!(
            "{} can't be read: {examples}{more}",
            counted(input.unreadable_lines, "line")
        ));
    }
    for (number, what) in [
        (
            input.newer_records,
            "of a later format, not counted: use a newer ewms-pilot to report",
        ),
        (
            input.unknown_records,
            "of a kind unknown to this ewms-pilot, not counted",
        ),
        (
            input.repeated_records,
            "in more than one file, counted once",
        ),
    ] {
        if number > 0 {
            lines.push(format!("{} {what}", counted(number, "record")));
        }
    }
    lines.extend(input.problems.iter().cloned());
    let without = report.pilots.without_outfile;
    if without > 0 {
        lines.push(format!(
            "the tasks of {} wrote no outfile, though their arguments or variables name one: look at \
             what the image runs",
            counted(without, "pilot")
        ));
    }
    lines
}

pub(super) fn lines(table: &Table) -> Vec<String> {
    let head: Vec<String> = table.head.iter().map(|head| (*head).to_owned()).collect();
    let all: Vec<&Vec<String>> = (!head.is_empty())
        .then_some(&head)
        .into_iter()
        .chain(&table.rows)
        .collect();
    let columns = all.iter().map(|row| row.len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            all.iter()
                .filter_map(|row| row.get(column))
                .flat_map(|cell| cell.lines())
                .map(|line| line.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut lines = vec![table.title.to_owned()];
    if !table.rows.is_empty() {
        lines.extend(all.iter().flat_map(|row| row_lines(table, row, &widths)));
    }
    lines.extend(table.remark.iter().map(|remark| format!("  {remark}")));
    lines
}

/// A row; further lines of its last cell stand below the first.
fn row_lines(table: &Table, row: &[String], widths: &[usize]) -> Vec<String> {
    let mut line = String::from(" ");
    let mut indent = 0;
    let mut further = Vec::new();
    for (column, cell) in row.iter().enumerate() {
        let width = widths[column];
        indent = line.chars().count() + 1;
        let mut parts = cell.lines();
        let first = parts.next().unwrap_or_default();
        let _ = if table.is_number(column) {
            write!(line, " {first:>width$} ")
        } else {
            write!(line, " {first:<width$} ")
        };
        further = parts.collect();
    }
    let below = further.iter().map(|part| format!("{:indent$}{part}", ""));
    [line.trim_end().to_owned()]
        .into_iter()
        .chain(below)
        .collect()
}
