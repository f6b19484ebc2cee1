//! What `/proc` tells about processes that need not be our children: who is in a session, who is the
//! first process of a container, when a process began. Reads only; kills nobody.

use std::fs;
use std::io;

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

/// When a process began, in the kernel's ticks since boot. With the pid it names one process for
/// good: a pid alone may be given to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StartTime(pub(super) u64);

/// What we need of `/proc/PID/stat` (`proc_pid_stat(5)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessStat {
    pub(super) parent: Pid,
    pub(super) start: StartTime,
    pub(super) is_zombie: bool,
}

impl ProcessStat {
    /// `None` when there is no such process, or it can't be told.
    pub(super) fn of(pid: Pid) -> Option<Self> {
        Self::read(pid).ok().flatten()
    }

    /// `None` when there is no such process.
    ///
    /// # Errors
    /// When it can't be told: no more files may be open, for example.
    pub(super) fn read(pid: Pid) -> io::Result<Option<Self>> {
        match fs::read(format!("/proc/{pid}/stat")) {
            Ok(line) => Self::parse(&line)
                .map(Some)
                .ok_or_else(|| Errno::EBADMSG.into()),
            // The process may be gone before the file is opened, or while it is read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Allocates nothing, because a child between fork and exec must not.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        // The command may hold spaces and parentheses; what follows its last one may not.
        let after_command = line.iter().rposition(|byte| *byte == b')')? + 1;
        let mut fields = std::str::from_utf8(&line[after_command..])
            .ok()?
            .split_ascii_whitespace();
        // Fields 3, 4, 20 and 22 there.
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let threads: i64 = fields.nth(15)?.parse().ok()?;
        let start = fields.nth(1)?.parse().ok()?;
        Some(Self {
            parent: Pid::from_raw(parent),
            start: StartTime(start),
            // A zombie with other threads is only a main thread that ended.
            is_zombie: matches!(state, "Z" | "X") && threads <= 1,
        })
    }
}

/// When the process `pid` began, in the kernel's ticks since boot, if it runs: with its pid that names
/// it for good. `None` for one that has ended, whether somebody waited for it or not.
#[must_use]
pub fn start_ticks(pid: i32) -> Option<u64> {
    let stat = ProcessStat::of(Pid::from_raw(pid))?;
    (!stat.is_zombie).then_some(stat.start.0)
}

/// Every number in `/proc` that is a process.
fn pids() -> impl Iterator<Item = Pid> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
}

/// The processes of the leader's session that still run, the leader aside. Such as fell to us as
/// zombies (we may be pid 1 of a container) are reaped on the way.
///
/// `getsid` for every number in `/proc` and no file read for strangers: a tenth of the cost of
/// reading `/proc/PID/stat`, which matters after every task on a machine with thousands of processes.
pub(super) fn members(leader: ProcessGroup) -> Vec<SessionMember> {
    pids()
        .filter(|pid| *pid != leader.0 && getsid(Some(*pid)) == Ok(leader.0))
        .filter_map(running)
        .collect()
}

/// `None` for a process that has ended, which is then no zombie of ours any more.
fn running(pid: Pid) -> Option<SessionMember> {
    let stat = ProcessStat::of(pid)?;
    if !stat.is_zombie {
        return Some(SessionMember {
            pid,
            parent: stat.parent,
        });
    }
    if stat.parent == getpid() {
        // Only a process of the session gets here, so nobody else waits for it. If it is gone
        // already, all the better.
        let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
    }
    None
}

/// The leader and everything below it, parents first: its session, and what left the session but
/// not the container.
pub(super) fn process_tree(leader: ProcessGroup) -> Vec<Pid> {
    let all: Vec<(Pid, Pid)> = pids()
        .filter_map(|pid| Some((pid, ProcessStat::of(pid)?.parent)))
        .collect();
    let mut family = vec![leader.0];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(
            all.iter()
                .filter(|(_, of)| *of == parent)
                .map(|(pid, _)| pid),
        );
        next += 1;
    }
    family
}

/// Our zombies: children of ours that have ended and that nobody waited for.
pub(super) fn zombies_of_ours() -> impl Iterator<Item = Pid> {
    pids().filter(|pid| {
        ProcessStat::of(*pid).is_some_and(|stat| stat.is_zombie && stat.parent == getpid())
    })
}

/// The first process of the container that `leader` made: its child that is pid 1 of a pid namespace
/// one level further down.
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

/// The pid as each namespace sees it, outermost first.
fn namespace_pids(pid: Pid) -> Option<Vec<String>> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    Some(line.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_a_command_full_of_parentheses() {
        let line = b"42 (a ) Z (b) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 99 0 0";
        assert_eq!(
            ProcessStat::parse(line),
            Some(ProcessStat {
                parent: Pid::from_raw(7),
                start: StartTime(99),
                is_zombie: false
            })
        );
    }

    #[test]
    fn a_zombie_with_living_threads_is_not_gone() {
        let line =
            |threads: u32| format!("42 (x) Z 7 42 42 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 99");
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
