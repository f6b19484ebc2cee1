//! Signals, sessions and waiting: the only file with `unsafe`, and the only one that names pids.
//! Talks to the kernel and `/proc`, to nothing of the crate but [`ProcessGroup`].

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{self, SigHandler, Signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpid, getsid, setsid};

use super::job::{ExitStatus, Job};
use crate::ids::ProcessGroup;

/// What the kernel charged a child and all its descendants that were waited for; for a container
/// that is everything in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// CPU time in user mode.
    pub cpu_user: Duration,
    /// CPU time in the kernel.
    pub cpu_system: Duration,
    /// The largest resident set of any one process.
    pub max_rss_bytes: u64,
}

/// What became of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// The kernel took it.
    Sent,
    /// There is no such process any more (`ESRCH`).
    Gone,
    /// The process isn't ours to signal (`EPERM`).
    Refused,
}

/// A process of the session, other than the leader, that still runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) pid: Pid,
    parent: Pid,
}

/// Starts `job` as the leader of a new session, which is what all that it leaves behind is found by.
///
/// In the child, before the exec: dispositions that the pilot's own parent may have set to "ignore"
/// (as nohup does with `SIGHUP`) go back to the default, and every descriptor from 3 on becomes
/// close-on-exec, those that the pilot inherited included.
pub(super) fn spawn(job: Job) -> io::Result<ProcessGroup> {
    let mut command = Command::new(&job.program);
    command
        .args(&job.args)
        .env_clear()
        .envs(job.env)
        .stdin(Stdio::null())
        .stdout(job.stdout)
        .stderr(job.stderr);
    if let Some(cwd) = &job.cwd {
        command.current_dir(cwd);
    }
    // SAFETY: between fork and exec only async-signal-safe calls are made: setsid, signal,
    // close_range and fcntl, none of which allocates or takes a lock.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            for name in [
                Signal::SIGHUP,
                Signal::SIGINT,
                Signal::SIGQUIT,
                Signal::SIGTERM,
                Signal::SIGUSR1,
                Signal::SIGUSR2,
                Signal::SIGCHLD,
            ] {
                signal::signal(name, SigHandler::SigDfl)?;
            }
            close_others_on_exec();
            Ok(())
        });
    }
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    Ok(ProcessGroup(Pid::from_raw(pid)))
}

/// Marks descriptors from 3 on close-on-exec: with `close_range`, or where the kernel (before 5.11)
/// or a seccomp filter doesn't know it, one by one.
fn close_others_on_exec() {
    /// From `linux/close_range.h`.
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 1 << 2;
    /// As many as the loop looks at; a pilot's parent with more open descriptors was not seen.
    const LOOKED_AT: libc::c_int = 1024;
    // SAFETY: the system call takes three integers and touches no memory of ours.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3 as libc::c_uint,
            libc::c_uint::MAX,
            CLOSE_RANGE_CLOEXEC,
        )
    };
    if done == 0 {
        return;
    }
    for descriptor in 3..LOOKED_AT {
        // SAFETY: F_GETFD and F_SETFD take integers; on a closed descriptor they only fail.
        unsafe {
            let flags = libc::fcntl(descriptor, libc::F_GETFD);
            if flags >= 0 {
                libc::fcntl(descriptor, libc::F_SETFD, flags | libc::FD_CLOEXEC);
            }
        }
    }
}

/// Sends `number` to one process, or with a negative pid to that process group; 0 only asks.
pub(super) fn send(pid: Pid, number: i32) -> Delivery {
    // SAFETY: kill takes two integers.
    let answer = Errno::result(unsafe { libc::kill(pid.as_raw(), number) });
    match answer {
        Ok(_) => Delivery::Sent,
        Err(Errno::EPERM) => Delivery::Refused,
        // ESRCH; and EINVAL, a number that is no signal, which reaches nobody either.
        Err(_) => Delivery::Gone,
    }
}

/// Whether the leader has ended. It stays unreaped, so that its pid, which is the session's id, can't
/// be given to another process while the session is swept.
///
/// # Errors
/// `ECHILD` when it is no child of ours (any more).
pub(super) fn has_ended(leader: ProcessGroup) -> nix::Result<bool> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        match waitid(Id::Pid(leader.0), flags) {
            Ok(WaitStatus::StillAlive) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Waits for the leader, which is never waited for elsewhere, and frees its pid. Blocks unless
/// [`has_ended`] said yes.
pub(super) fn reap(leader: ProcessGroup) -> nix::Result<(ExitStatus, Usage)> {
    let mut status = 0;
    loop {
        // SAFETY: rusage is plain integers, for which zero is a value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to live values of the types that wait4 writes.
        let answer = unsafe { libc::wait4(leader.0.as_raw(), &raw mut status, 0, &raw mut usage) };
        match Errno::result(answer) {
            Ok(_) => return Ok((exit_status(status), converted(&usage))),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn exit_status(status: i32) -> ExitStatus {
    if libc::WIFSIGNALED(status) {
        ExitStatus::Signal(libc::WTERMSIG(status))
    } else {
        ExitStatus::Code(libc::WEXITSTATUS(status))
    }
}

fn converted(usage: &libc::rusage) -> Usage {
    let duration = |time: libc::timeval| {
        Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0))
            + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
    };
    Usage {
        cpu_user: duration(usage.ru_utime),
        cpu_system: duration(usage.ru_stime),
        // Linux counts it in KiB (getrusage(2)).
        max_rss_bytes: u64::try_from(usage.ru_maxrss)
            .unwrap_or(0)
            .saturating_mul(1024),
    }
}

/// The processes of the leader's session that still run, the leader aside. Such as fell to us as
/// zombies (we may be pid 1 of a container) are reaped on the way.
///
/// `getsid` for every number in `/proc` and no file read for strangers: a tenth of the cost of
/// reading `/proc/PID/stat`, which matters after every task on a machine with thousands of processes.
pub(super) fn members(leader: ProcessGroup) -> Vec<Member> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw))
        .filter(|pid| *pid != leader.0 && getsid(Some(*pid)) == Ok(leader.0))
        .filter_map(running)
        .collect()
}

/// `None` for a process that has ended, which is then no zombie of ours any more.
fn running(pid: Pid) -> Option<Member> {
    let line = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = Stat::parse(&line)?;
    if !stat.is_zombie {
        return Some(Member {
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

/// What we need of `/proc/PID/stat` (`proc_pid_stat(5)`).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: Pid,
    is_zombie: bool,
}

impl Stat {
    fn parse(line: &[u8]) -> Option<Self> {
        // The command may hold spaces and parentheses; what follows its last one may not.
        let after_command = line.iter().rposition(|byte| *byte == b')')? + 1;
        let fields: Vec<&str> = std::str::from_utf8(&line[after_command..])
            .ok()?
            .split_ascii_whitespace()
            .collect();
        let number = |index: usize| fields.get(index)?.parse::<i32>().ok();
        // Fields 3, 4 and 20 there. A zombie with other threads is only a main thread that ended.
        let is_zombie = matches!(*fields.first()?, "Z" | "X") && number(17)? <= 1;
        Some(Self {
            parent: Pid::from_raw(number(1)?),
            is_zombie,
        })
    }
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
            Stat::parse(line),
            Some(Stat {
                parent: Pid::from_raw(7),
                is_zombie: false
            })
        );
    }

    #[test]
    fn a_zombie_with_living_threads_is_not_gone() {
        let line =
            |threads: u32| format!("42 (x) Z 7 42 42 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 99");
        let zombie = |threads| Stat::parse(line(threads).as_bytes()).map(|stat| stat.is_zombie);
        assert_eq!(zombie(1), Some(true));
        assert_eq!(zombie(2), Some(false));
    }

    #[test]
    fn a_truncated_stat_is_no_process() {
        assert_eq!(Stat::parse(b"42 (x"), None);
        assert_eq!(Stat::parse(b"42 (x) Z 7"), None);
    }

    #[test]
    fn a_signal_to_nobody_is_gone_and_to_ourselves_is_sent() {
        assert_eq!(send(Pid::from_raw(i32::MAX - 1), 0), Delivery::Gone);
        assert_eq!(send(getpid(), 0), Delivery::Sent);
    }

    #[test]
    fn we_are_no_container() {
        assert_eq!(container_init(ProcessGroup(getpid())), None);
    }
}
