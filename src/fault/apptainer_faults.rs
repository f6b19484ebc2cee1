//! The rules that read whose fault the end of a container is from its exit code and stderr, and what the
//! answer of a probe means. They say when a probe is needed; `task` makes it.
//!
//! Apptainer and its task share stderr and the exit code, so neither decides alone: a task can imitate
//! every line here, and none of them is believed without a probe. A probe is the same container with a
//! command that can't exist, so its stderr is Apptainer's alone. When Apptainer answers that the command
//! doesn't exist, everything up to there works.

use super::Cause;
use super::stderr::{ERRORS, OwnLine, apptainer_error, lines, own_lines, readable, reason};

/// The command of a probe, which no image has.
pub const NO_COMMAND: &str = "/.ewms-pilot-probe/no-such-command";

/// How to learn whose fault a container's end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextStep {
    /// It is the task's own; there is nothing to ask.
    Task,
    Probe,
    /// Probe, and if that works read the image and all that is bound: a page of one may be unreadable.
    ProbeAndRead,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeResult {
    /// Containers can be made here of this image with these binds.
    Works,
    /// They can't.
    Broken {
        cause: Cause,
        /// Apptainer's words.
        said: String,
    },
}

/// Exit codes that Apptainer, its Go runtime or the kernel may have caused: usage and namespaces 1, Go's
/// crashes 2 and 134, unreadable pages 135, kills 137, everything else 255.
const AMBIGUOUS: [i32; 6] = [1, 2, 134, 135, 137, 255];
/// The signal for a process that touches a page which can't be read.
const SIGBUS: i32 = 7;
const SIGSEGV: i32 = 11;

/// Judges a container that ended with `code` (128 + N for signal N) after writing `stderr`, which is
/// its beginning and its end.
#[must_use]
pub fn suspect(code: i32, stderr: &[u8]) -> NextStep {
    let text = readable(stderr);
    let own = || own_lines(&text);
    // A container runs on when these are missing, and its task may even succeed.
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

/// Reads a probe's answer. Its stderr is Apptainer's alone.
#[must_use]
pub fn answer(code: i32, stderr: &[u8]) -> ProbeResult {
    let text = readable(stderr);
    let reached = format!("stat {NO_COMMAND}: no such file or directory");
    let is_reached =
        code == 255 && own_lines(&text).any(|line| is_error(&line) && line.message == reached);
    match find_in(&text) {
        // These stop no container and still make it useless.
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

/// The first known cause in Apptainer's own words, in the order of the table, with these words. Apptainer may
/// complain about several things, of which one explains the others.
#[must_use]
pub fn find_cause(stderr: &[u8]) -> Option<(Cause, String)> {
    find_in(&readable(stderr))
}

fn find_in(text: &str) -> Option<(Cause, String)> {
    let crash = lines(text).find_map(|line| Some((cause_of_crash(line)?, line.to_owned())));
    let mut worst: Option<(usize, Cause, String)> = None;
    // An older Apptainer's usage error has no level.
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

/// Whether Apptainer or its Go runtime complain about limits. A runtime that gets no thread may
/// end by a fault (139, from its C part) as well as by an abort.
fn is_starved(code: i32, text: &str) -> bool {
    let words = || matches!(find_in(text), Some((Cause::Limits, _)));
    (code == 128 + SIGSEGV || AMBIGUOUS.contains(&code)) && words()
}

fn is_error(line: &OwnLine<'_>) -> bool {
    line.level < ERRORS
}

/// The texts by which a message of Apptainer is recognised: it must hold all of a row's. A message that fits
/// several rows has the cause of the first.
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
    // A file of the image where a directory is to be mounted.
    (
        &["mount hook function failure", "not a directory"],
        Cause::ImageIncomplete,
    ),
    (&["can't mount proc filesystem"], Cause::MaskedProc),
    // Also said when namespaces are used up; so before the full disk.
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

/// Last words of Go's runtime, which have no level.
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
        .any(|crash| line.starts_with(crash))
        .then_some(Cause::Limits)
}

/// Whether a task complains about a file system that fails under it. It may say so for other reasons: this
/// is no proof, only a reason to look for one.
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
