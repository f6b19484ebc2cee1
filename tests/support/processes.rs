//! A look at the machine's processes, to tell whether something still runs. Reads `/proc` only.

use std::fs;
use std::time::Duration;

use super::eventually;

/// One process, as it was when it was looked at. What was unreadable is empty.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) session: i32,
    /// Arguments, joined by spaces.
    pub(crate) command_line: String,
    /// `NAME=value` pairs, separated by NUL bytes.
    pub(crate) environment: Vec<u8>,
}

/// All living processes; a zombie is dead.
pub(crate) fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries
        .flatten()
        .filter_map(|entry| look(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// The processes with `marker` in their command line. A test gives its tasks a marker of their own,
/// such as an odd number of seconds to sleep. The test's own process never matches.
pub(crate) fn matching(marker: &str) -> Vec<Process> {
    let me = i32::try_from(std::process::id()).expect("pids are positive");
    let mut found = all();
    found.retain(|process| process.pid != me && process.command_line.contains(marker));
    found
}

/// Panics, with what is left, unless all processes with `marker` are gone within `deadline`.
#[track_caller]
pub(crate) fn assert_nothing_runs(marker: &str, deadline: Duration) {
    assert!(
        eventually(deadline, || matching(marker).is_empty()),
        "still running after {deadline:?}: {:#?}",
        matching(marker)
    );
}

/// Panics unless a process with `marker` appears within `deadline`; gives those that did.
#[track_caller]
pub(crate) fn await_running(marker: &str, deadline: Duration) -> Vec<Process> {
    assert!(
        eventually(deadline, || !matching(marker).is_empty()),
        "no process with `{marker}` after {deadline:?}"
    );
    matching(marker)
}

/// Resident memory of a process in bytes: now, and the most there ever was.
pub(crate) fn memory(pid: i32) -> Option<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find(|line| line.starts_with(name))?;
        let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kibibytes * 1024)
    };
    Some((field("VmRSS:")?, field("VmHWM:")?))
}

fn look(pid: i32) -> Option<Process> {
    // pid (name) state parent group session …; the name may hold anything, parentheses too.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&arguments).replace('\0', " ");
    Some(Process {
        pid,
        parent,
        session,
        command_line: text.trim_end().to_owned(),
        environment: fs::read(format!("/proc/{pid}/environ")).unwrap_or_default(),
    })
}
