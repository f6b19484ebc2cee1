//! The lines of a trial for a person: one for each input as it ends, and the sums.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::input_batch::TrialInput;
use crate::fault::TaskError;
use crate::human;

/// The widest column of names; longer names push the rest of their line to the right.
const WIDEST_NAME: usize = 40;
/// The most characters of a reason.
const REASON: usize = 160;
/// The most names that a sum lists.
const LISTED: usize = 3;

/// How an input's task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum InputEnd {
    /// The result's path, if it wrote one; it need not where nothing names an outfile.
    Done(Option<PathBuf>),
    /// It succeeded without the result that its arguments name.
    NoResult,
    Failed(TaskError),
    /// Its result could not be kept.
    Unkept(String),
    /// The trial was ended before.
    NotDone,
}

/// An input whose task has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TriedInput {
    pub(super) input: TrialInput,
    pub(super) end: InputEnd,
    pub(super) wall: Duration,
    /// The most memory that was seen, in bytes.
    pub(super) memory: Option<u64>,
    /// The file with its stderr, if that was kept.
    pub(super) stderr: Option<PathBuf>,
}

/// The width of the column of names.
pub(super) fn name_width(inputs: &[TrialInput]) -> usize {
    let widths = inputs.iter().map(|input| name(input).chars().count());
    widths.max().unwrap_or(0).min(WIDEST_NAME)
}

/// `p1.json   ok     0.19 s   38 MiB   results/p1.json`
pub(super) fn line(tried: &TriedInput, width: usize) -> String {
    let (word, text) = match &tried.end {
        InputEnd::Done(Some(result)) => ("ok", shown(result)),
        InputEnd::Done(None) => ("ok", "(no result, and none is named)".to_owned()),
        InputEnd::NoResult => ("NONE", NOTHING_THERE.to_owned()),
        InputEnd::Failed(error) => ("FAIL", reason(error)),
        InputEnd::Unkept(reason) => ("FAIL", one_line(reason)),
        InputEnd::NotDone => ("-", "not done".to_owned()),
    };
    let stderr = match &tried.stderr {
        Some(path) => format!("   ({})", shown(path)),
        None => String::new(),
    };
    let memory = tried.memory.map(mebibytes).unwrap_or_default();
    let wall = human::seconds(tried.wall.as_secs_f64());
    let name = name(&tried.input);
    format!("{name:width$}   {word:<4}  {wall:>8}  {memory:>9}   {text}{stderr}")
}

const NOTHING_THERE: &str = "exit code 0, but nothing at {{OUTFILE}}";

fn name(input: &TrialInput) -> String {
    shown(&input.label)
}

fn shown(path: &Path) -> String {
    one_line(&path.to_string_lossy())
}

fn one_line(text: &str) -> String {
    human::one_line(text, REASON)
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", human::count(bytes.div_ceil(1 << 20)))
}

/// What a person needs of an error: the last line of a traceback, else the exit code and the last words.
pub(super) fn reason(error: &TaskError) -> String {
    const NO_WORDS: &str = "<no stderr logs>";
    let TaskError::ContainerRun {
        exit_code, reason, ..
    } = error
    else {
        let text = error.message();
        return one_line(text.strip_prefix("task failed: ").unwrap_or(&text));
    };
    // The frame of an exception group ends in a line without words.
    let is_frame = |line: &str| line.trim_matches([' ', '+', '-', '|']).is_empty();
    let mut lines = reason.lines().filter(|line| !is_frame(line));
    let last = lines
        .next_back()
        .unwrap_or(NO_WORDS)
        .trim_start_matches([' ', '|']);
    let is_traceback = lines.next().is_some();
    match exit_code {
        Some(code) if last == NO_WORDS => format!("exit code {code}, and nothing on stderr"),
        Some(code) if !is_traceback => one_line(&format!("exit code {code}: {last}")),
        _ => one_line(last),
    }
}

/// The sums: `20 inputs: 18 ok, 1 failed, 1 wrote no result (p7.json: exit code 0, but nothing at {{OUTFILE}})`.
pub(super) fn sums(tried: &[TriedInput], all: usize) -> String {
    let count = |is: fn(&InputEnd) -> bool| tried.iter().filter(|one| is(&one.end)).count();
    let failed = count(is_failure);
    let without: Vec<&TriedInput> = tried
        .iter()
        .filter(|one| one.end == InputEnd::NoResult)
        .collect();
    let not_done = all - tried.len() + count(|end| *end == InputEnd::NotDone);
    let mut parts = vec![format!(
        "{} ok",
        number(count(|end| matches!(end, InputEnd::Done(_))))
    )];
    if failed > 0 {
        parts.push(format!("{} failed", number(failed)));
    }
    if !without.is_empty() {
        parts.push(format!(
            "{} wrote no result ({})",
            number(without.len()),
            listed(&without)
        ));
    }
    if not_done > 0 {
        parts.push(format!("{} not done", number(not_done)));
    }
    let inputs = human::counted(u64::try_from(all).unwrap_or(u64::MAX), "input");
    format!("{inputs}: {}", parts.join(", "))
}

pub(super) fn is_failure(end: &InputEnd) -> bool {
    matches!(end, InputEnd::Failed(_) | InputEnd::Unkept(_))
}

fn listed(without: &[&TriedInput]) -> String {
    let names: Vec<String> = without
        .iter()
        .take(LISTED)
        .map(|one| name(&one.input))
        .collect();
    let more = match without.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}: {NOTHING_THERE}", names.join(", "))
}

fn number(count: usize) -> String {
    human::count(u64::try_from(count).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{ContainerRole, FaultClass};

    fn tried(name: &str, end: InputEnd) -> TriedInput {
        let input = TrialInput {
            path: Path::new("/in").join(name),
            label: name.into(),
            result: Path::new("results").join(name),
            stderr: Path::new("results").join(format!("{name}.stderr")),
        };
        TriedInput {
            stderr: is_failure(&end).then(|| input.stderr.clone()),
            input,
            end,
            wall: Duration::from_millis(190),
            memory: Some(38 << 20),
        }
    }

    fn failure(exit_code: i32, reason: &str) -> TaskError {
        TaskError::ContainerRun {
            role: ContainerRole::Task,
            exit_code: Some(exit_code),
            reason: reason.to_owned(),
            class: FaultClass::Task,
        }
    }

    #[test]
    fn a_line_says_how_an_input_ended_and_where_its_files_are() {
        let done = tried("p1.json", InputEnd::Done(Some("results/p1.json".into())));
        assert_eq!(
            line(&done, 7),
            "p1.json   ok      0.19 s     38 MiB   results/p1.json"
        );
        let traceback = "Traceback (most recent call last):\n  File \"x.py\", line 1\nAssertionError: bad pixel 3";
        let failed = tried("p3.json", InputEnd::Failed(failure(1, traceback)));
        assert_eq!(
            line(&failed, 7),
            "p3.json   FAIL    0.19 s     38 MiB   AssertionError: bad pixel 3   (results/p3.json.stderr)"
        );
    }

    #[test]
    fn a_reason_is_one_line_without_what_services_need() {
        for (error, words) in [
            (
                failure(2, "sh: nope: not found"),
                "exit code 2: sh: nope: not found",
            ),
            (
                failure(9, "<no stderr logs>"),
                "exit code 9, and nothing on stderr",
            ),
            (
                failure(
                    1,
                    "  + Exception Group Traceback\n  | ValueError: one\n  +----",
                ),
                "ValueError: one",
            ),
            (
                failure(1, "red \u{1b}[31m"),
                "exit code 1: red \u{fffd}[31m",
            ),
            (
                TaskError::Timeout {
                    role: ContainerRole::Task,
                    after: Duration::from_secs(5),
                },
                "[Timeout-Error] timed out after 5s",
            ),
        ] {
            assert_eq!(reason(&error), words);
        }
    }

    #[test]
    fn the_sums_count_every_input_once() {
        let all = [
            tried("1", InputEnd::Done(None)),
            tried("2", InputEnd::Failed(failure(1, "x"))),
            tried("3", InputEnd::Unkept("no space".to_owned())),
            tried("4", InputEnd::NoResult),
            tried("5", InputEnd::NotDone),
        ];
        assert_eq!(
            sums(&all, 7),
            "7 inputs: 1 ok, 2 failed, 1 wrote no result (4: exit code 0, but nothing at {{OUTFILE}}), 3 not done"
        );
        assert_eq!(sums(&all[..1], 1), "1 input: 1 ok");
    }
}
