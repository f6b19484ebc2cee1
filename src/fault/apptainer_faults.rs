//! The rules that tell from a container's exit code and stderr whose fault its end is, and the evaluation of
//! a probe's answer. The rules decide when a probe is needed; `task` makes it.
//!
//! Apptainer and its task share stderr and the exit code, so neither is proof: a task can imitate every line
//! here, and none is believed without a probe. A probe is the same container with a command that can't exist,
//! so its stderr is Apptainer's alone. When Apptainer answers that the command doesn't exist, everything up
//! to there works.

use super::Cause;
use super::stderr::{ERRORS, OwnLine, apptainer_error, lines, own_lines, readable, reason};

/// The command of a probe, which no image contains.
pub const NO_COMMAND: &str = "/.ewms-pilot-probe/no-such-command";

/// The way to find out whose fault a container's end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextStep {
    /// Nothing to ask: it is the task's own.
    Task,
    Probe,
    /// Probe, and if that works, read the image and all binds, because a page of one may be unreadable.
    ProbeAndRead,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeResult {
    /// Containers of this image with these binds can be made here.
    Works,
    /// Such containers can't be made here.
    Broken {
        cause: Cause,
        /// In Apptainer's words.
        said: String,
    },
}

/// Exit codes that Apptainer, its Go runtime or the kernel may have caused: usage and namespaces 1, Go's
/// crashes 2 and 134, unreadable pages 135, kills 137, everything else 255.
const AMBIGUOUS: [i32; 6] = [1, 2, 134, 135, 137, 255];
/// The signal for access to a page that can't be read.
const SIGBUS: i32 = 7;
const SIGSEGV: i32 = 11;

/// Judges a container that ended with `code` (128 + N for signal N). `stderr` is the beginning and the end of
/// its output.
#[must_use]
pub fn suspect(code: i32, stderr: &[u8]) -> NextStep {
    let text = readable(stderr);
    let own = || own_lines(&text);
    // A container runs on without these, and its task may even succeed.
    if own().any(|line| {
        matches!(
            cause_of(line.message),
            Some(Cause::BindsForbidden | Cause::PidNamespace)
        )
    }) {
        return NextStep::Probe;
    }
    if code == 0 {
        return NextStep::Task;
    }
    if code == 128 + SIGBUS || lines(&text).any(is_storage_failure) {
        return NextStep::ProbeAndRead;
    }
    if is_starved(code, &text) {
        return NextStep::Probe;
    }
    if !AMBIGUOUS.contains(&code) {
        return NextStep::Task;
    }
    let only_apptainers = lines(&text).all(|line| OwnLine::parse(line).is_some());
    let points_at_apptainer =
        only_apptainers || own().any(|line| is_error(&line)) || find_in(&text).is_some();
    if points_at_apptainer {
        NextStep::Probe
    } else {
        NextStep::Task
    }
}

/// Evaluates a probe's answer. Its stderr is Apptainer's alone.
#[must_use]
pub fn answer(code: i32, stderr: &[u8]) -> ProbeResult {
    let text = readable(stderr);
    let reached = format!("stat {NO_COMMAND}: no such file or directory");
    let is_reached =
        code == 255 && own_lines(&text).any(|line| is_error(&line) && line.message == reached);
    match find_in(&text) {
        // These don't stop a container, but make it useless.
        Some((cause @ (Cause::BindsForbidden | Cause::PidNamespace), said)) => {
            ProbeResult::Broken { cause, said }
        }
        _ if is_reached => ProbeResult::Works,
        Some((cause, said)) => ProbeResult::Broken { cause, said },
        None => {
            let said = match apptainer_error(stderr) {
                Some(said) => said,
                None => format!("apptainer ended with exit code {code}: {}", reason(stderr)),
            };
            ProbeResult::Broken {
                cause: Cause::Unknown,
                said,
            }
        }
    }
}

/// The first known cause in Apptainer's own messages, in the order of the table, with the message. Of several
/// complaints by Apptainer one may explain the others.
#[must_use]
pub fn find_cause(stderr: &[u8]) -> Option<(Cause, String)> {
    find_in(&readable(stderr))
}

fn find_in(text: &str) -> Option<(Cause, String)> {
    let crash = lines(text).find_map(|line| Some((cause_of_crash(line)?, line.to_owned())));
    let mut worst: Option<(usize, Cause, String)> = None;
    // The usage errors of older versions have no level.
    let messages = lines(text).filter_map(|line| match OwnLine::parse(line) {
        Some(own) if own.level <= ERRORS => Some(own.message),
        None if line.starts_with("Error for command ") => Some(line),
        Some(_) | None => None,
    });
    for message in messages {
        let Some((rank, cause)) = ranked_cause_of(message) else {
            continue;
        };
        if worst.as_ref().is_none_or(|(best, ..)| rank < *best) {
            worst = Some((rank, cause, message.to_owned()));
        }
    }
    worst.map(|(_, cause, said)| (cause, said)).or(crash)
}

/// Whether Apptainer or its Go runtime complains about limits. A runtime that gets no thread may end by a
/// segmentation fault (139, from its C part) or by an abort.
fn is_starved(code: i32, text: &str) -> bool {
    let words = || matches!(find_in(text), Some((Cause::Limits, _)));
    (code == 128 + SIGSEGV || AMBIGUOUS.contains(&code)) && words()
}

fn is_error(line: &OwnLine<'_>) -> bool {
    line.level < ERRORS
}

/// The texts by which a message of Apptainer is recognised: it must contain all texts of a row. If several
/// rows match, the first one counts.
const MESSAGES: &[(&[&str], Cause)] = &[
    (
        &["Ignoring ", "bind mount: user bind control disabled"],
        Cause::BindsForbidden,
    ),
    (&["User bind control is disabled"], Cause::BindsForbidden),
    (&["Not virtualizing pid namespace"], Cause::PidNamespace),
    (&["Error for command ", "unknown"], Cause::ApptainerTooOld),
    (
        &["Couldn't determine user account information"],
        Cause::Account,
    ),
    (&["cannot use cgroups"], Cause::Cgroups),
    // The image has a file at the mount point of a directory.
    (
        &["mount hook function failure", "not a directory"],
        Cause::ImageIncomplete,
    ),
    (&["can't mount proc filesystem"], Cause::MaskedProc),
    // Also reported when namespaces are used up, so it comes before the full disk.
    (&["Failed to create ", " namespace"], Cause::Namespaces),
    (
        &["container process", "No space left on device"],
        Cause::Namespaces,
    ),
    (
        &["container process", "Resource temporarily unavailable"],
        Cause::Limits,
    ),
    (&["Requesting capability set"], Cause::Capabilities),
    (&["transport endpoint is not connected"], Cause::Storage),
    (&["stale", " file handle"], Cause::Storage),
    (&["no space left on device"], Cause::DiskFull),
    (&["disk quota exceeded"], Cause::DiskFull),
    (&["fuse: device not found"], Cause::Fuse),
    (&["/dev/fuse"], Cause::Fuse),
    (&["mount source", "doesn't exist"], Cause::BindSource),
    (
        &["destination ", "doesn't exist in container"],
        Cause::ImageIncomplete,
    ),
    (&["No runscript and no /bin/sh"], Cause::ImageIncomplete),
    (&["squashfuse_ll exited"], Cause::ImageDamaged),
    (&["image driver mount failure"], Cause::ImageDamaged),
    (&["not a valid squashfs image"], Cause::ImageFormat),
    (&["image format not recognized"], Cause::ImageFormat),
    (&["could not open image"], Cause::ImageMissing),
    (&["input/output error"], Cause::Storage),
    (&["resource temporarily unavailable"], Cause::Limits),
    (&["cannot allocate memory"], Cause::Limits),
    (&["mount hook function failure"], Cause::Mount),
    (&["fuse-overlayfs"], Cause::Mount),
];

fn ranked_cause_of(message: &str) -> Option<(usize, Cause)> {
    let rank = MESSAGES
        .iter()
        .position(|(texts, _)| texts.iter().all(|text| message.contains(text)))?;
    Some((rank, MESSAGES[rank].1))
}

fn cause_of(message: &str) -> Option<Cause> {
    ranked_cause_of(message).map(|(_, cause)| cause)
}

/// The last words of Go's runtime, which have no level. Two threads that fail at once write into each other's
/// lines.
fn cause_of_crash(line: &str) -> Option<Cause> {
    const CRASHES: [&str; 7] = [
        "runtime: out of memory: cannot allocate",
        "fatal error: out of memory",
        "fatal error: failed to reserve page summary memory",
        "fatal error: runtime: cannot allocate",
        "fatal error: newosproc",
        "runtime: failed to create new OS thread",
        "runtime/cgo: pthread_create failed",
    ];
    CRASHES
        .iter()
        .any(|crash| line.contains(crash))
        .then_some(Cause::Limits)
}

/// Whether a task complains about a failing file system. It may do so for other reasons: this is no proof,
/// only a reason to look.
fn is_storage_failure(line: &str) -> bool {
    [
        "input/output error",
        "transport endpoint is not connected",
        "stale file handle",
        "bus error",
    ]
    .iter()
    .any(|words| line.to_ascii_lowercase().contains(words))
}

#[cfg(test)]
#[path = "apptainer_faults_tests.rs"]
mod tests;
