//! Reads a container's stderr to find the reason of its end, for people and for the service that counts equal
//! reasons. Apptainer and the task write into the same stream; [`OwnLine`] tells Apptainer's lines from the
//! task's by their form.

/// How much of stderr's end is read, in bytes.
pub const READ: usize = 64 * 1024;

/// The levels of Apptainer's lines, the worst first.
const LEVELS: &[&str] = &[
    "FATAL", "ABORT", "ERROR", "WARNING", "INFO", "LOG", "VERBOSE", "DEBUG",
];
/// How many of [`LEVELS`] are errors.
pub(super) const ERRORS: usize = 3;
/// The index of the first level below the errors.
const WARNING: usize = 3;

/// A line that Apptainer wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OwnLine<'a> {
    /// Index in [`LEVELS`].
    pub(super) level: usize,
    pub(super) message: &'a str,
}

impl<'a> OwnLine<'a> {
    pub(super) fn parse(line: &'a str) -> Option<Self> {
        Self::parse_plain(line).or_else(|| Self::parse_debug(line))
    }

    /// `FATAL:   message` or, from Apptainer's C part, `ERROR  : message`. The padding belongs to the form: a
    /// task's own `ERROR: message` is not Apptainer's. `WARNING: ` has no padding and is taken for
    /// Apptainer's.
    fn parse_plain(line: &'a str) -> Option<Self> {
        LEVELS.iter().enumerate().find_map(|(level, name)| {
            let message = line
                .strip_prefix(&format!("{:<9}", format!("{name}:")))
                .or_else(|| line.strip_prefix(&format!("{name:<7}: ")))?;
            Some(Self {
                level,
                message: message.trim(),
            })
        })
    }

    /// `LEVEL   [U=1000,P=1]   Function()   message`.
    fn parse_debug(line: &'a str) -> Option<Self> {
        let name = line
            .split(|letter: char| !letter.is_ascii_uppercase())
            .next()
            .filter(|name| !name.is_empty())?;
        let rest = line[name.len()..]
            .strip_prefix(char::is_whitespace)?
            .trim_start();
        let rest = digits(rest.strip_prefix("[U=")?)?;
        let rest = digits(rest.strip_prefix(",P=")?)?.strip_prefix(']')?;
        let message = rest.strip_prefix(char::is_whitespace)?.trim();
        // The function's name differs between versions and tells users nothing.
        let message = match message.split_once(char::is_whitespace) {
            Some((function, message)) if function.ends_with("()") => message.trim_start(),
            _ => message,
        };
        let level = LEVELS
            .iter()
            .position(|level| *level == name)
            .unwrap_or(LEVELS.len());
        Some(Self { level, message })
    }
}

/// The text after one or more digits.
fn digits(text: &str) -> Option<&str> {
    let rest = text.trim_start_matches(|letter: char| letter.is_ascii_digit());
    (rest.len() < text.len()).then_some(rest)
}

/// The reason of a container's failure, from the end of its stderr:
///
/// 1. the last Python traceback and everything that the task wrote after it, or the report of Python's fault
///    handler if that came later;
/// 2. otherwise the last line that isn't Apptainer's own;
/// 3. otherwise, if only Apptainer complained, `[Apptainer-Error]` and the last of its worst messages;
/// 4. `<no stderr logs>`.
#[must_use]
pub fn reason(stderr: &[u8]) -> String {
    let text = readable(stderr);
    let tasks: Vec<&str> = lines(&text)
        .filter(|line| OwnLine::parse(line).is_none())
        .collect();
    let traceback = tasks.iter().rposition(|line| begins_traceback(line));
    let fatal = tasks.iter().rposition(|line| line.starts_with(FATAL));
    match (traceback, fatal) {
        (traceback, Some(fatal)) if traceback < Some(fatal) => {
            return python_fault(&tasks[fatal..]);
        }
        (Some(traceback), _) => return tasks[traceback..].join("\n"),
        _ => {}
    }
    if let Some(last) = tasks.last() {
        return (*last).to_owned();
    }
    match worst(&text) {
        Some(line) => format!("[Apptainer-Error] {}", line.message),
        None => "<no stderr logs>".to_owned(),
    }
}

/// Whether a traceback begins here, or an exception group, which is drawn as a tree.
fn begins_traceback(line: &str) -> bool {
    let group = line.trim_start().strip_prefix("+ Exception Group ");
    group.unwrap_or(line).starts_with("Traceback")
}

/// The beginning of a report by Python's fault handler.
const FATAL: &str = "Fatal Python error:";

/// The part of such a report that is the same in every run: the error, and the frames of the failed thread.
/// Leaves out the threads' numbers, the other threads, and the rest: the modules, the addresses of C
/// functions, a shell's line with the process id.
fn python_fault(report: &[&str]) -> String {
    let is_thread =
        |line: &&str| line.contains("hread 0x") && line.ends_with("(most recent call first):");
    let threads = report.iter().position(is_thread).unwrap_or(report.len());
    let head = report[..threads].iter().map(|line| (*line).to_owned());
    let current = report
        .iter()
        .position(|line| line.starts_with("Current thread 0x"));
    let frames = current.map_or(&[][..], |thread| &report[thread + 1..]);
    let frames = frames.iter().take_while(|line| line.starts_with("  "));
    let title = current.map(|_| "Current thread (most recent call first):".to_owned());
    let lines = head
        .chain(title)
        .chain(frames.map(|line| (*line).to_owned()));
    lines.collect::<Vec<_>>().join("\n")
}

/// Apptainer's own last error lines, at most three, joined with `; `. `None` if there are none.
#[must_use]
pub fn apptainer_error(stderr: &[u8]) -> Option<String> {
    let text = readable(stderr);
    let errors: Vec<&str> = lines(&text)
        .filter_map(OwnLine::parse)
        .filter(|line| line.level < ERRORS)
        .map(|line| line.message)
        .collect();
    let last = &errors[errors.len().saturating_sub(3)..];
    (!last.is_empty()).then(|| last.join("; "))
}

/// The last of the lines with the worst level; if none is an error, the last line. Without `--debug`, lines
/// below a warning are no reason (`INFO:    gocryptfs not found`, at every start of a SIF).
fn worst(text: &str) -> Option<OwnLine<'_>> {
    let is_chatter =
        |line: &&str| OwnLine::parse_plain(line).is_some_and(|own| own.level > WARNING);
    let own: Vec<OwnLine<'_>> = lines(text)
        .filter(|line| !is_chatter(line))
        .filter_map(OwnLine::parse)
        .collect();
    let worst = own.iter().map(|line| line.level).min()?;
    own.iter()
        .rfind(|line| line.level == worst || worst >= ERRORS)
        .copied()
}

/// Replaces texts that differ in every run (a task's id, its directory), so that equal failures have equal
/// texts. Replaces the first text of each pair by the second, in this order.
#[must_use]
pub fn scrub(reason: &str, replacements: &[(&str, &str)]) -> String {
    replacements
        .iter()
        .filter(|(from, _)| !from.is_empty())
        .fold(reason.to_owned(), |text, (from, to)| text.replace(from, to))
}

pub(super) fn own_lines(text: &str) -> impl Iterator<Item = OwnLine<'_>> {
    lines(text).filter_map(OwnLine::parse)
}

/// The lines that aren't blank. A lone carriage return ends a line too, as in progress bars.
pub fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split(['\n', '\r'])
        .filter(|line| !line.trim().is_empty())
}

/// Stderr as text without colours, which Apptainer's C part writes even into files.
#[must_use]
pub fn readable(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.as_ref();
    while let Some(start) = rest.find("\x1b[") {
        plain.push_str(&rest[..start]);
        let after = &rest[start + 2..];
        let parameters =
            after.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == ';');
        rest = if let Some(after_colour) = parameters.strip_prefix('m') {
            after_colour
        } else {
            plain.push_str("\x1b[");
            after
        };
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
#[path = "stderr_tests.rs"]
mod tests;
