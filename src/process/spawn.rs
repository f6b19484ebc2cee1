//! Starting, signalling and waiting: the only file with `unsafe`. Talks to the kernel, and decides
//! nothing.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sched::{CloneFlags, clone};
use nix::sys::signal::{self, SigHandler, SigSet, SigmaskHow, Signal};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, getpid, setsid};

use super::child::{ChildSpec, ExitStatus};
use super::guardian::GUARDIAN;
use super::guardian_message::{ChildId, GuardianMessage};
use super::procfs::ProcessStat;
use crate::ids::ProcessGroup;

/// What the kernel charged a child and all its descendants that were waited for; for a container
/// that is everything in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub cpu_user: Duration,
    pub cpu_system: Duration,
    /// The largest resident set of any one process.
    pub max_rss_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignalDelivery {
    Sent,
    /// There is no such process any more (`ESRCH`).
    Gone,
    /// The process isn't ours to signal (`EPERM`).
    Refused,
}

#[derive(Debug)]
pub(super) enum NotStarted {
    /// The guardian doesn't take its notice: it is gone, or reads no more.
    Unheard(io::Error),
    /// No process could be made, or it could not become the program.
    Unmade(io::Error),
}

impl From<io::Error> for NotStarted {
    fn from(error: io::Error) -> Self {
        Self::Unmade(error)
    }
}

impl From<Errno> for NotStarted {
    fn from(error: Errno) -> Self {
        Self::Unmade(error.into())
    }
}

/// Starts `job` as the leader of a new session, which is what all that it leaves behind is found by.
/// It tells `guardian` of itself before anything of the job's runs.
///
/// In the child, before the exec: dispositions and a signal mask that the pilot's own parent may have
/// set (as nohup ignores `SIGHUP`) go back to the default, and every descriptor from 3 on becomes
/// close-on-exec, those that the pilot inherited included.
///
/// The child shares our memory until its exec, and our thread stands still until then, as with
/// `posix_spawn(3)`, which can't do what is to be done before the exec. A fork would copy the page tables,
/// and then each page that we write to: measured, a fifth of the CPU time that an event costs the pilot.
///
/// # Errors
/// [`NotStarted`]. The kernel says `EAGAIN` for a pipe that is full as for processes that are used up, so
/// the number alone doesn't tell whether the guardian is to blame.
pub(super) fn spawn(job: &ChildSpec, guardian: &PipeWriter) -> Result<ChildId, NotStarted> {
    let nothing = File::open("/dev/null")?;
    let program = job.program.as_os_str().as_bytes();
    let args = job.args.iter().map(|arg| arg.as_bytes());
    let env = job.env.iter();
    let cwd = job.cwd.as_deref().map(|cwd| cwd.as_os_str().as_bytes());
    let leader = spawn_child(&SpawnPlan {
        program: CString::new(program).map_err(io::Error::from)?,
        args: CStrings::of(std::iter::once(program).chain(args).map(<[u8]>::to_vec))?,
        env: CStrings::of(
            env.map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat()),
        )?,
        cwd: cwd.map(CString::new).transpose().map_err(io::Error::from)?,
        streams: [nothing.as_fd(), job.stdout.as_fd(), job.stderr.as_fd()],
        part: ChildRole::Ward(guardian),
    })?;
    // Unreaped, so its pid is its own even if it has ended.
    match ProcessStat::read(leader).and_then(|stat| stat.ok_or_else(|| Errno::ESRCH.into())) {
        Ok(stat) => Ok(ChildId {
            leader: ProcessGroup(leader),
            start: stat.start,
        }),
        Err(error) => {
            // Who can't be told apart can't be supervised.
            send(Pid::from_raw(-leader.as_raw()), libc::SIGKILL);
            let _ = reap(leader);
            Err(error.into())
        }
    }
}

/// What a child needs to become a program, all of it made before: a child makes nothing.
struct SpawnPlan<'a> {
    program: CString,
    /// From the program's own name on.
    args: CStrings,
    env: CStrings,
    cwd: Option<CString>,
    /// Its standard input, output and error.
    streams: [BorrowedFd<'a>; 3],
    part: ChildRole<'a>,
}

/// What a child of ours is.
enum ChildRole<'a> {
    /// Guarded by whoever reads this, and open to every signal.
    Ward(&'a PipeWriter),
    Guardian,
}

/// Strings, and what `execve` is told of them: pointers, and a null at the end.
struct CStrings {
    pointers: Vec<*const libc::c_char>,
    _owned: Vec<CString>,
}

impl CStrings {
    fn of(strings: impl Iterator<Item = Vec<u8>>) -> io::Result<Self> {
        let owned = strings.map(CString::new).collect::<Result<Vec<_>, _>>()?;
        let mut pointers: Vec<_> = owned.iter().map(|string| string.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Ok(Self {
            pointers,
            _owned: owned,
        })
    }
}

impl SpawnPlan<'_> {
    /// From birth to exec, in the child; returns only if that fails.
    fn become_program(&self) -> NotStarted {
        let unready = || -> Result<(), NotStarted> {
            setsid()?;
            // No handler of ours may run here: until this, every signal is blocked.
            dispose_all(match self.part {
                ChildRole::Ward(_) => SigHandler::SigDfl,
                ChildRole::Guardian => SigHandler::SigIgn,
            });
            SigSet::empty().thread_set_mask()?;
            let [stdin, stdout, stderr] = self.streams;
            dup2_stdin(stdin)?;
            dup2_stdout(stdout)?;
            dup2_stderr(stderr)?;
            if let Some(cwd) = &self.cwd {
                chdir(cwd.as_c_str())?;
            }
            if let ChildRole::Ward(guardian) = self.part {
                announce(guardian)?;
            }
            close_others_on_exec();
            Ok(())
        };
        if let Err(error) = unready() {
            return error;
        }
        // SAFETY: the program is a string and both arrays end with a null; all of it lives in `self`.
        unsafe {
            libc::execve(
                self.program.as_ptr(),
                self.args.pointers.as_ptr(),
                self.env.pointers.as_ptr(),
            );
        }
        io::Error::last_os_error().into()
    }
}

/// Makes a child and waits until it is a program. Its pid; of one that failed nothing is left.
fn spawn_child(spawn_plan: &SpawnPlan<'_>) -> Result<Pid, NotStarted> {
    /// The deepest that the child goes takes less than 2 KiB.
    const STACK: usize = 64 * 1024;
    let mut stack = vec![0; STACK];
    let (unheard, unmade) = (AtomicI32::new(0), AtomicI32::new(0));
    let child = || {
        let (failure, error) = match spawn_plan.become_program() {
            NotStarted::Unheard(error) => (&unheard, error),
            NotStarted::Unmade(error) => (&unmade, error),
        };
        failure.store(error.raw_os_error().unwrap_or(libc::EIO), Ordering::Relaxed);
        127
    };
    let shared = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    // SAFETY: our thread goes on when the child has a memory of its own or is gone, so what it borrows is
    // there for it, and it uses a stack of its own. Other threads go on meanwhile: it makes only system
    // calls (setsid, sigaction, sigprocmask, dup2, chdir, open, read, write, close_range, fcntl, execve),
    // allocates nothing and takes no lock.
    let born = unsafe { clone(Box::new(child), &mut stack, shared, Some(libc::SIGCHLD)) };
    mask.thread_set_mask()?;
    let child = born?;
    let failure = match (unheard.into_inner(), unmade.into_inner()) {
        (0, 0) => return Ok(child),
        (0, errno) => NotStarted::Unmade(io::Error::from_raw_os_error(errno)),
        (errno, _) => NotStarted::Unheard(io::Error::from_raw_os_error(errno)),
    };
    let _ = reap(child);
    Err(failure)
}

/// Tells the guardian of this very process. Runs in the child.
fn announce(mut guardian: &PipeWriter) -> Result<(), NotStarted> {
    // As much as every field before the one we need may take.
    let mut line = [0; 512];
    let stat = nix::fcntl::open(
        c"/proc/self/stat",
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let length = nix::unistd::read(&stat, &mut line)?;
    let stat = ProcessStat::parse(&line[..length]).ok_or(Errno::ENOSYS)?;
    let born = GuardianMessage::Born(ChildId {
        leader: ProcessGroup(getpid()),
        start: stat.start,
    });
    // An error must come back instead of killing the child, which would look like a start.
    // SAFETY: no handler is installed, only a disposition.
    unsafe { signal::signal(Signal::SIGPIPE, SigHandler::SigIgn)? };
    guardian
        .write_all(&born.to_bytes())
        .map_err(NotStarted::Unheard)?;
    // SAFETY: as above.
    unsafe { signal::signal(Signal::SIGPIPE, SigHandler::SigDfl)? };
    Ok(())
}

/// Starts a guardian: this very binary, even when its file was replaced since. It reads notices from
/// `pipe` and has nothing else of ours: no other descriptor, no terminal, not our working directory,
/// and it ignores what is sent to all of a job's processes to end them.
pub(super) fn spawn_guardian(pipe: &PipeReader) -> io::Result<Pid> {
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    // Not to be hit together with the pilot by whoever kills by name.
    let args = ["ewms-guardian", GUARDIAN];
    let started = spawn_child(&SpawnPlan {
        program: c"/proc/self/exe".to_owned(),
        args: CStrings::of(args.into_iter().map(Vec::from))?,
        env: CStrings::of(std::iter::empty())?,
        cwd: Some(c"/".to_owned()),
        streams: [pipe.as_fd(), nothing.as_fd(), nothing.as_fd()],
        part: ChildRole::Guardian,
    });
    started.map_err(|failure| match failure {
        NotStarted::Unheard(error) | NotStarted::Unmade(error) => error,
    })
}

/// Makes the allocator give the memory of large buffers back as soon as they are freed, and share one
/// heap between all threads. By default it keeps what it once had of them, for each thread: measured
/// with events of 16 MiB, twice as much. To be called before there are threads.
pub fn spare_memory() {
    /// Buffers from this size on are the kernel's to grow, without a copy, and to take back.
    const LARGE: libc::c_int = 256 * 1024;
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers; a value that it refuses changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Makes this process one that a limit on the size of files doesn't end: batch systems set one, and the
/// kernel's answer to a file that grows beyond it is `SIGXFSZ`, unless that is ignored; then it is
/// `EFBIG`. Children get the default back, like that of all signals.
pub fn survive_file_size_limit() {
    // SAFETY: no handler is installed, only a disposition. It can't fail: the signal exists.
    let _ = unsafe { signal::signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
}

/// Keeps the memory of this process, which holds tokens, from other processes of the same user, and out
/// of core files, where the kernel lets us say so. A program that is executed begins anew, so that
/// children keep what the job had.
pub fn keep_memory_private() {
    // Refused by a seccomp filter at most: then all is as it would be without.
    let _ = nix::sys::prctl::set_dumpable(false);
}

/// Gives every signal the same disposition. Kill and stop, which have none, and the two that the C
/// library keeps for itself refuse, which is as well.
fn dispose_all(handler: SigHandler) {
    let raw = match handler {
        SigHandler::SigIgn => libc::SIG_IGN,
        _ => libc::SIG_DFL,
    };
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: no handler is installed, only a disposition.
        unsafe { libc::signal(number, raw) };
    }
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
pub(super) fn send(pid: Pid, number: i32) -> SignalDelivery {
    // SAFETY: kill takes two integers.
    let answer = Errno::result(unsafe { libc::kill(pid.as_raw(), number) });
    match answer {
        Ok(_) => SignalDelivery::Sent,
        Err(Errno::EPERM) => SignalDelivery::Refused,
        // ESRCH; and EINVAL, a number that is no signal, which reaches nobody either.
        Err(_) => SignalDelivery::Gone,
    }
}

/// Whether a child has ended. It stays unreaped, so that its pid, which is the session's id, can't
/// be given to another process while the session is swept.
///
/// # Errors
/// `ECHILD` when it is no child of ours (any more).
pub(super) fn has_ended(child: Pid) -> nix::Result<bool> {
    look(child, WaitPidFlag::WNOHANG)
}

/// Blocks until a child has ended, and leaves it unreaped.
///
/// # Errors
/// As [`has_ended`].
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

/// Waits for a child, which is never waited for elsewhere, and frees its pid. Blocks unless
/// [`has_ended`] said yes.
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
        // Linux counts it in KiB (getrusage(2)).
        max_rss_bytes: u64::try_from(usage.ru_maxrss)
            .unwrap_or(0)
            .saturating_mul(1024),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_leaves_our_own_signal_mask_as_it_was_whether_it_succeeds_or_fails() {
        let (_guardians, guardian) = io::pipe().expect("a pipe");
        let before = SigSet::thread_get_mask().expect("there is one");
        for (program, succeeds) in [("/bin/true", true), ("/bin/nothing-there", false)] {
            let nowhere = || File::create("/dev/null").expect("opened");
            let job = ChildSpec {
                program: program.into(),
                args: Vec::new(),
                env: Vec::new(),
                cwd: None,
                stdout: nowhere(),
                stderr: nowhere(),
            };
            let started = spawn(&job, &guardian);
            assert_eq!(SigSet::thread_get_mask(), Ok(before));
            assert_eq!(started.is_ok(), succeeds, "{started:?}");
            if let Ok(child_id) = started {
                let (exit, _) = reap(child_id.leader.0).expect("a child of ours");
                assert_eq!(exit, ExitStatus::Code(0));
            }
        }
    }

    #[test]
    fn a_signal_to_nobody_is_gone_and_to_ourselves_is_sent() {
        assert_eq!(send(Pid::from_raw(i32::MAX - 1), 0), SignalDelivery::Gone);
        assert_eq!(send(getpid(), 0), SignalDelivery::Sent);
    }
}
