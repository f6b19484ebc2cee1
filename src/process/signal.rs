//! Signals to processes, and waiting for children: kill(2), waitid(2), wait4(2).

use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// How a child's first process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    Code(i32),
    Signal(i32),
}

/// The resource use of a child and all its descendants that were waited for; for a container that is
/// everything in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub cpu_user: Duration,
    pub cpu_system: Duration,
    /// The largest resident set of any single process.
    pub max_rss_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignalDelivery {
    Sent,
    /// The process doesn't exist any more (`ESRCH`).
    Gone,
    /// We have no permission to signal the process (`EPERM`).
    Refused,
}

/// Sends `number` to a process, or to a process group if `pid` is negative. The number 0 only checks.
pub(super) fn send(pid: Pid, number: i32) -> SignalDelivery {
    // SAFETY: kill takes two integers.
    let answer = Errno::result(unsafe { libc::kill(pid.as_raw(), number) });
    match answer {
        Ok(_) => SignalDelivery::Sent,
        Err(Errno::EPERM) => SignalDelivery::Refused,
        // ESRCH, or EINVAL for a number that is no signal: neither reaches a process.
        Err(_) => SignalDelivery::Gone,
    }
}

/// Whether a child has ended. Leaves it unreaped, so that its pid, which is the session's id, can't be reused
/// while the session is swept.
///
/// # Errors
/// `ECHILD` if it is not, or no longer, our child.
pub(super) fn has_ended(child: Pid) -> nix::Result<bool> {
    look(child, WaitPidFlag::WNOHANG)
}

/// Blocks until a child has ended, and leaves it unreaped.
///
/// # Errors
/// Returns the errors of [`has_ended`].
pub(super) fn await_end(child: Pid) -> nix::Result<()> {
    look(child, WaitPidFlag::empty()).map(drop)
}

fn look(child: Pid, how: WaitPidFlag) -> nix::Result<bool> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | how;
    loop {
        match waitid(Id::Pid(child), flags) {
            Ok(WaitStatus::StillAlive) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Waits for a child and frees its pid. Nothing else may wait for that child. Blocks unless [`has_ended`]
/// returned true.
pub(super) fn reap(child: Pid) -> nix::Result<(ExitStatus, Usage)> {
    let mut status = 0;
    loop {
        // SAFETY: rusage is plain integers, for which zero is a value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to live values of the types that wait4 writes.
        let answer = unsafe { libc::wait4(child.as_raw(), &raw mut status, 0, &raw mut usage) };
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
        // Linux counts in KiB (getrusage(2)).
        max_rss_bytes: u64::try_from(usage.ru_maxrss)
            .unwrap_or(0)
            .saturating_mul(1024),
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::getpid;

    use super::*;

    #[test]
    fn a_signal_to_nobody_is_gone_and_to_ourselves_is_sent() {
        assert_eq!(send(Pid::from_raw(i32::MAX - 1), 0), SignalDelivery::Gone);
        assert_eq!(send(getpid(), 0), SignalDelivery::Sent);
    }
}
