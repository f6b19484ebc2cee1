//! Reads `/proc`: a process's start time, parent, session, children and resource use. It need not be a child
//! of the pilot. A process that ends during the look counts as missing.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid, getsid};

use crate::ids::ProcessGroup;

/// A process of the session, other than the leader, that still runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SessionMember {
    pub(super) pid: Pid,
    parent: Pid,
}

/// A process's start time, in the kernel's ticks since boot. Together with the pid it identifies a process; a
/// pid alone may be reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartTime(pub(super) u64);

/// The fields of `/proc/PID/stat` that the pilot needs (`proc_pid_stat(5)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessStat {
    pub parent: Pid,
    pub session: Pid,
    /// Clock ticks of CPU time, including those of children that were waited for.
    pub cpu_ticks: u64,
    pub start: StartTime,
    pub rss_pages: u64,
    pub is_zombie: bool,
}

impl ProcessStat {
    /// `None` when the process doesn't exist or can't be read.
    #[must_use]
    pub fn of(pid: Pid) -> Option<Self> {
        Self::read(pid).ok().flatten()
    }

    /// `None` when the process doesn't exist.
    ///
    /// # Errors
    /// When it can't be read, for example because no more files may be open.
    pub(super) fn read(pid: Pid) -> io::Result<Option<Self>> {
        match fs::read(format!("/proc/{pid}/stat")) {
            Ok(line) => Self::parse(&line)
                .map(Some)
                .ok_or_else(|| Errno::EBADMSG.into()),
            // The process may end before the file is opened, or while it is read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Must not allocate: a child calls it between clone and exec.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        // The command may contain spaces and parentheses; the fields after the last parenthesis don't.
        let after_command = line.iter().rposition(|byte| *byte == b')')? + 1;
        let mut fields = std::str::from_utf8(&line[after_command..])
            .ok()?
            .split_ascii_whitespace();
        // Fields 3, 4, 6, 14 to 17, 20, 22 and 24 of `proc_pid_stat(5)`.
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        fields.nth(6)?;
        let mut cpu_ticks = 0_u64;
        for _ in 0..4 {
            // The children's time may be negative on some old kernels.
            let ticks: i64 = fields.next()?.parse().ok()?;
            cpu_ticks += u64::try_from(ticks).unwrap_or(0);
        }
        let threads: i64 = fields.nth(2)?.parse().ok()?;
        let start = fields.nth(1)?.parse().ok()?;
        let rss_pages: i64 = fields.nth(1)?.parse().ok()?;
        Some(Self {
            parent: Pid::from_raw(parent),
            session: Pid::from_raw(session),
            cpu_ticks,
            start: StartTime(start),
            rss_pages: u64::try_from(rss_pages).unwrap_or(0),
            // With other threads alive, only the main thread has ended.
            is_zombie: matches!(state, "Z" | "X") && threads <= 1,
        })
    }
}

/// The start time of the process `pid`, in the kernel's ticks since boot. `None` once it has ended, even if
/// it was not waited for.
#[must_use]
pub fn start_ticks(pid: i32) -> Option<u64> {
    let stat = ProcessStat::of(Pid::from_raw(pid))?;
    (!stat.is_zombie).then_some(stat.start.0)
}

/// All processes of the machine.
pub fn pids() -> impl Iterator<Item = Pid> {
    #[cfg(test)]
    tests::LOOKS_AT_ALL.set(tests::LOOKS_AT_ALL.get() + 1);
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
}

/// The children of `parent`, from the kernel's lists. Without those (before Linux 4.2 they were a rare build
/// option) by looking at all processes.
#[must_use]
pub fn children(parent: Pid) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{parent}/task")).into_iter();
    let lists: Vec<Vec<Pid>> = threads
        .flatten()
        .flatten()
        .filter_map(|thread| children_in(&thread.path()))
        .collect();
    if !lists.is_empty() || own_children().is_some() {
        return lists.concat();
    }
    pids()
        .filter(|pid| ProcessStat::of(*pid).is_some_and(|stat| stat.parent == parent))
        .collect()
}

/// The children of this process's main thread: those that it made, and all that were reparented to this
/// process, because the kernel gives orphans to the main thread while it exists. Children made by other
/// threads are missing until their thread ends. `None` if the kernel doesn't list children.
///
/// A single read is complete only if no child is reaped meanwhile: the kernel finds its place in the list by
/// counting.
pub(super) fn own_children() -> Option<Vec<Pid>> {
    let pid = getpid();
    children_in(Path::new(&format!("/proc/self/task/{pid}")))
}

fn children_in(thread: &Path) -> Option<Vec<Pid>> {
    let list = fs::read_to_string(thread.join("children")).ok()?;
    let pids = list
        .split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok());
    Some(pids.map(Pid::from_raw).collect())
}

/// The running processes of the leader's session, without the leader. Reaps zombies among them that are this
/// process's children.
///
/// Calls `getsid` for every number in `/proc` and reads no file of processes outside the session, which takes
/// a tenth of the time of reading every `/proc/PID/stat`. Still 10 ms on a machine with thousands of
/// processes.
pub(super) fn members(leader: ProcessGroup) -> Vec<SessionMember> {
    pids()
        .filter(|pid| *pid != leader.0 && getsid(Some(*pid)) == Ok(leader.0))
        .filter_map(running)
        .collect()
}

/// `None` for a process that has ended. If it was our zombie, it is reaped.
fn running(pid: Pid) -> Option<SessionMember> {
    let stat = ProcessStat::of(pid)?;
    if !stat.is_zombie {
        return Some(SessionMember {
            pid,
            parent: stat.parent,
        });
    }
    if stat.parent == getpid() {
        // Only processes of the session get here, so nothing else waits for them. An error means that it is
        // gone already.
        let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
    }
    None
}

/// The leader and all its descendants, parents first. This includes processes that left the session but not
/// the container.
pub(super) fn process_tree(leader: ProcessGroup) -> Vec<Pid> {
    let all: Vec<(Pid, Pid)> = pids()
        .filter_map(|pid| Some((pid, ProcessStat::of(pid)?.parent)))
        .collect();
    let mut tree = vec![leader.0];
    let mut next = 0;
    while let Some(&parent) = tree.get(next) {
        tree.extend(
            all.iter()
                .filter(|(_, of)| *of == parent)
                .map(|(pid, _)| pid),
        );
        next += 1;
    }
    tree
}

/// The zombies among this process's children, found by looking at all processes.
pub(super) fn zombie_children() -> Vec<Pid> {
    let is_ours = |stat: ProcessStat| stat.is_zombie && stat.parent == getpid();
    pids()
        .filter(|pid| ProcessStat::of(*pid).is_some_and(is_ours))
        .collect()
}

/// The first process of the container that `leader` made: the child of `leader` that is pid 1 in a pid
/// namespace one level below.
pub(super) fn container_init(leader: ProcessGroup) -> Option<Pid> {
    let depth = namespace_pids(leader.0)?.len();
    members(leader)
        .into_iter()
        .filter(|member| member.parent == leader.0)
        .map(|member| member.pid)
        .find(|pid| {
            namespace_pids(*pid).is_some_and(|pids| {
                pids.len() == depth + 1 && pids.last().is_some_and(|last| last == "1")
            })
        })
}

/// The pid in each namespace, outermost first.
fn namespace_pids(pid: Pid) -> Option<Vec<String>> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    Some(line.split_whitespace().map(str::to_owned).collect())
}

/// How often this thread looked at all processes.
#[cfg(test)]
pub(super) fn looks_at_all_processes() -> u32 {
    tests::LOOKS_AT_ALL.get()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        pub(super) static LOOKS_AT_ALL: Cell<u32> = const { Cell::new(0) };
    }

    #[test]
    fn stat_survives_a_command_full_of_parentheses() {
        let line = b"42 (a ) Z (b) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 99 0 0";
        assert_eq!(
            ProcessStat::parse(line),
            Some(ProcessStat {
                parent: Pid::from_raw(7),
                session: Pid::from_raw(42),
                cpu_ticks: 26,
                rss_pages: 0,
                start: StartTime(99),
                is_zombie: false
            })
        );
    }

    #[test]
    fn a_zombie_with_living_threads_is_not_gone() {
        let line = |threads: u32| {
            format!("42 (x) Z 7 42 42 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 99 0 0")
        };
        let zombie =
            |threads| ProcessStat::parse(line(threads).as_bytes()).map(|stat| stat.is_zombie);
        assert_eq!(zombie(1), Some(true));
        assert_eq!(zombie(2), Some(false));
    }

    #[test]
    fn a_truncated_stat_is_no_process() {
        assert_eq!(ProcessStat::parse(b"42 (x"), None);
        assert_eq!(ProcessStat::parse(b"42 (x) Z 7"), None);
    }

    #[test]
    fn we_are_no_container_but_of_our_own_family() {
        assert_eq!(container_init(ProcessGroup(getpid())), None);
        assert_eq!(
            process_tree(ProcessGroup(getpid())).first(),
            Some(&getpid())
        );
    }
}
