//! From a [`ChildSpec`] to a running program: the steps between clone(2) and execve(2).
//!
//! The child shares our memory until its exec, and the thread that makes it waits until then.
//! `posix_spawn(3)` works the same way, but can't do all the steps needed before the exec. A fork would copy
//! the page tables, and later each page that we write to: measured, a fifth of the CPU time that an event
//! costs the pilot. Because an exec on a dead file server never returns, nothing here runs on an event loop's
//! thread.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sched::{CloneFlags, clone};
use nix::sys::signal::{self, SigHandler, SigSet, SigmaskHow, Signal};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, getpid, setsid};

use super::child::ChildSpec;
use super::guardian::protocol::{ChildId, GUARDIAN, GuardianMessage};
use super::procfs::{ProcessStat, StartTime};
use super::signal::{await_end, reap};
use crate::ids::ProcessGroup;

/// The reason why there is no child.
#[derive(Debug)]
pub(super) enum NotStarted {
    /// The guardian doesn't take the child's message: it is gone, or reads no more.
    Unheard(io::Error),
    /// Called off by [`StartProgress::call_off`] before the exec.
    CalledOff,
    /// No process could be made, or its exec failed.
    Unmade(io::Error),
}

#[derive(Debug)]
pub(super) struct FailedStart {
    pub(super) why: NotStarted,
    /// The child, if one was made. It has ended but is not reaped.
    pub(super) ended: Option<Pid>,
}

/// The state of a child before its exec, shared with other threads: clone(2) returns the pid only after the
/// exec. The child writes it itself, in the memory that it shares with us.
///
/// The child stores its pid, then reads whether it is called off. The other thread stores that it is, then
/// reads the pid. So at least one of them sees the other's store.
#[derive(Debug, Default)]
pub(super) struct StartProgress {
    /// 0 while unknown.
    pid: AtomicI32,
    start_time: AtomicU64,
    is_called_off: AtomicBool,
    is_abandoned: AtomicBool,
}

impl StartProgress {
    /// Runs in the child.
    fn announce(&self, child: ChildId) -> Result<(), NotStarted> {
        self.start_time.store(child.start.0, Ordering::SeqCst);
        self.pid.store(child.leader.0.as_raw(), Ordering::SeqCst);
        if self.is_called_off.load(Ordering::SeqCst) {
            return Err(NotStarted::CalledOff);
        }
        Ok(())
    }

    pub(super) fn child(&self) -> Option<ChildId> {
        let pid = self.pid.load(Ordering::SeqCst);
        (pid != 0).then(|| ChildId {
            leader: ProcessGroup(Pid::from_raw(pid)),
            start: StartTime(self.start_time.load(Ordering::SeqCst)),
        })
    }

    /// Calls off this attempt. A child that isn't known yet ends before its exec; the returned one may become
    /// a program.
    pub(super) fn call_off(&self) -> Option<ChildId> {
        self.is_called_off.store(true, Ordering::SeqCst);
        self.child()
    }

    /// Calls off this attempt and all later ones.
    pub(super) fn abandon(&self) -> Option<ChildId> {
        self.is_abandoned.store(true, Ordering::SeqCst);
        self.call_off()
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::SeqCst)
    }

    /// Prepares another attempt. The last attempt's child must be reaped.
    pub(super) fn begin_anew(&self) {
        self.pid.store(0, Ordering::SeqCst);
        self.is_called_off
            .store(self.is_abandoned(), Ordering::SeqCst);
    }
}

/// Starts `spec` as the leader of a new session, by which the processes that it leaves behind are found. The
/// child announces itself to `guardian` before the program runs. Blocks until the exec.
///
/// Before its exec the child resets the dispositions and the signal mask, which the pilot's own parent may
/// have set (nohup ignores `SIGHUP`), and closes every descriptor from 3 on, including those that the pilot
/// inherited. A child that hangs in its exec must not hold open a pipe, lock or connection of the pilot.
///
/// # Errors
/// [`FailedStart`]. The kernel returns `EAGAIN` both for a full pipe and for too many processes, so the
/// number alone doesn't tell whether the guardian is to blame.
pub(super) fn spawn(
    spec: &ChildSpec,
    guardian: &PipeWriter,
    progress: &StartProgress,
) -> Result<ChildId, FailedStart> {
    let nothing = File::open("/dev/null")?;
    let program = spec.program.as_os_str().as_bytes();
    let args = spec.args.iter().map(|arg| arg.as_bytes());
    let env = spec.env.iter();
    let cwd = spec.cwd.as_deref().map(|cwd| cwd.as_os_str().as_bytes());
    let pid = spawn_child(&SpawnPlan {
        program: CString::new(program).map_err(io::Error::from)?,
        args: CStrings::of(std::iter::once(program).chain(args).map(<[u8]>::to_vec))?,
        env: CStrings::of(
            env.map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat()),
        )?,
        cwd: cwd.map(CString::new).transpose().map_err(io::Error::from)?,
        streams: [nothing.as_fd(), spec.stdout.as_fd(), spec.stderr.as_fd()],
        role: ChildRole::Guarded { guardian, progress },
    })?;
    prefer_for_oom_kill(pid);
    // A child that was killed before it announced itself has not become a program.
    progress.child().ok_or_else(|| {
        let _ = await_end(pid);
        FailedStart {
            why: NotStarted::Unmade(Errno::ECANCELED.into()),
            ended: Some(pid),
        }
    })
}

impl From<io::Error> for FailedStart {
    fn from(error: io::Error) -> Self {
        Self {
            why: NotStarted::Unmade(error),
            ended: None,
        }
    }
}

impl From<Errno> for FailedStart {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

impl From<Errno> for NotStarted {
    fn from(error: Errno) -> Self {
        Self::Unmade(error.into())
    }
}

/// The arguments, environment and descriptors of a child, all prepared before clone(2), because the child
/// must not allocate.
struct SpawnPlan<'a> {
    program: CString,
    /// Including the program's name.
    args: CStrings,
    env: CStrings,
    cwd: Option<CString>,
    /// Its stdin, stdout and stderr.
    streams: [BorrowedFd<'a>; 3],
    role: ChildRole<'a>,
}

#[derive(Clone, Copy)]
enum ChildRole<'a> {
    /// Handles every signal by default, and announces itself to the guardian on this pipe.
    Guarded {
        guardian: &'a PipeWriter,
        progress: &'a StartProgress,
    },
    /// Ignores every signal.
    Guardian,
}

/// Strings and their pointers for `execve`, with a null at the end.
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
    /// The steps from clone to exec, in the child. Returns only if one fails.
    fn become_program(&self) -> NotStarted {
        if let Err(error) = self.prepare() {
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
        NotStarted::Unmade(io::Error::last_os_error())
    }

    /// Calls that may hang come last: `chdir` only after the child is announced and has closed our
    /// descriptors.
    fn prepare(&self) -> Result<(), NotStarted> {
        setsid()?;
        // Our handlers must not run here; every signal is blocked until these are gone.
        dispose_all(match self.role {
            ChildRole::Guarded { .. } => SigHandler::SigDfl,
            ChildRole::Guardian => SigHandler::SigIgn,
        });
        SigSet::empty().thread_set_mask()?;
        if let ChildRole::Guarded { guardian, progress } = self.role {
            announce(guardian, progress)?;
        }
        let [stdin, stdout, stderr] = self.streams;
        dup2_stdin(stdin)?;
        dup2_stdout(stdout)?;
        dup2_stderr(stderr)?;
        close_others();
        if let Some(cwd) = &self.cwd {
            chdir(cwd.as_c_str())?;
        }
        Ok(())
    }
}

/// Makes a child and waits for its exec.
fn spawn_child(plan: &SpawnPlan<'_>) -> Result<Pid, FailedStart> {
    /// The child uses less than 2 KiB.
    const STACK: usize = 64 * 1024;
    /// Not an errno of the kernel.
    const CALLED_OFF: i32 = -1;
    let mut stack = vec![0; STACK];
    let (unheard, unmade) = (AtomicI32::new(0), AtomicI32::new(0));
    let child = || {
        let number = |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO);
        match plan.become_program() {
            NotStarted::Unheard(error) => unheard.store(number(error), Ordering::Relaxed),
            NotStarted::Unmade(error) => unmade.store(number(error), Ordering::Relaxed),
            NotStarted::CalledOff => unmade.store(CALLED_OFF, Ordering::Relaxed),
        }
        127
    };
    let shared = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    // SAFETY: our thread goes on when the child has a memory of its own or is gone, so what it borrows is
    // there for it, and it uses a stack of its own. Other threads go on meanwhile: it makes only system
    // calls (setsid, sigaction, sigprocmask, dup2, chdir, open, read, write, close_range, close, execve),
    // allocates nothing and takes no lock.
    let cloned = unsafe { clone(Box::new(child), &mut stack, shared, Some(libc::SIGCHLD)) };
    mask.thread_set_mask()?;
    let pid = cloned?;
    let why = match (unheard.into_inner(), unmade.into_inner()) {
        (0, 0) => return Ok(pid),
        (0, CALLED_OFF) => NotStarted::CalledOff,
        (0, errno) => NotStarted::Unmade(io::Error::from_raw_os_error(errno)),
        (errno, _) => NotStarted::Unheard(io::Error::from_raw_os_error(errno)),
    };
    // The child doesn't use our memory any more and is exiting.
    let _ = await_end(pid);
    Err(FailedStart {
        why,
        ended: Some(pid),
    })
}

/// Announces this process to the other threads and to the guardian. Runs in the child.
fn announce(mut guardian: &PipeWriter, progress: &StartProgress) -> Result<(), NotStarted> {
    // Room for the largest values of all fields up to the start time.
    let mut line = [0; 512];
    let stat = nix::fcntl::open(
        c"/proc/self/stat",
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let length = nix::unistd::read(&stat, &mut line)?;
    let stat = ProcessStat::parse(&line[..length]).ok_or(Errno::ENOSYS)?;
    let child = ChildId {
        leader: ProcessGroup(getpid()),
        start: stat.start,
    };
    progress.announce(child)?;
    // A broken pipe must return an error: a killed child would look like a successful start.
    // SAFETY: no handler is installed, only a disposition.
    unsafe { signal::signal(Signal::SIGPIPE, SigHandler::SigIgn)? };
    guardian
        .write_all(&GuardianMessage::Born(child).to_bytes())
        .map_err(NotStarted::Unheard)?;
    // SAFETY: as above.
    unsafe { signal::signal(Signal::SIGPIPE, SigHandler::SigDfl)? };
    Ok(())
}

/// Makes the kernel kill a child, and with it all that the child will start, before the pilot when memory runs out.
/// Not done by the child, who may not write the file before its exec, because the pilot's memory is not dumpable.
/// Later it would need a look at each thread of each process.
fn prefer_for_oom_kill(child: Pid) {
    /// Adds half of the machine's memory to the score: enough to come before the pilot, even with small
    /// tasks, and still after everything that the system rates higher.
    const MORE: i32 = 500;
    const MOST: i32 = 1000;
    let own = fs::read_to_string("/proc/self/oom_score_adj");
    let own = own.ok().and_then(|own| own.trim().parse().ok());
    let wanted = (own.unwrap_or(0) + MORE).min(MOST);
    // It may have ended.
    let _ = fs::write(format!("/proc/{child}/oom_score_adj"), wanted.to_string());
}

/// Starts a guardian: this same binary, even if its file has been replaced. It reads messages from `pipe`,
/// has no other descriptor, no terminal and not our working directory, and ignores the signals that end all
/// of a job's processes. Blocks until the exec. A guardian whose exec happens after the pilot's end finds its
/// pipe closed and exits.
pub(super) fn spawn_guardian(pipe: &PipeReader) -> io::Result<Pid> {
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    // Another name than the pilot's, so that a kill by name doesn't hit both.
    let args = ["ewms-guardian", GUARDIAN];
    let started = spawn_child(&SpawnPlan {
        program: c"/proc/self/exe".to_owned(),
        args: CStrings::of(args.into_iter().map(Vec::from))?,
        env: CStrings::of(std::iter::empty())?,
        cwd: Some(c"/".to_owned()),
        streams: [pipe.as_fd(), nothing.as_fd(), nothing.as_fd()],
        role: ChildRole::Guardian,
    });
    started.map_err(|failed| {
        if let Some(pid) = failed.ended {
            let _ = reap(pid);
        }
        match failed.why {
            NotStarted::Unheard(error) | NotStarted::Unmade(error) => error,
            NotStarted::CalledOff => Errno::ECANCELED.into(),
        }
    })
}

/// Gives every signal the same disposition. The calls for SIGKILL, SIGSTOP and the C library's two own
/// signals fail, as they should.
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

/// Closes descriptors from 3 on: with `close_range`, or one by one if the kernel (before 5.9) or a seccomp
/// filter doesn't allow that.
fn close_others() {
    /// The end of the loop; a pilot's parent with more open descriptors has not been seen.
    const LOOKED_AT: libc::c_int = 1024;
    // SAFETY: the system call takes three integers and touches no memory of ours. The descriptors are the
    // child's own copies: its table is not shared.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3 as libc::c_uint,
            libc::c_uint::MAX,
            0 as libc::c_uint,
        )
    };
    if done == 0 {
        return;
    }
    for descriptor in 3..LOOKED_AT {
        // SAFETY: it takes an integer; on a closed descriptor it only fails.
        unsafe { libc::close(descriptor) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::signal::ExitStatus;
    use super::*;

    fn spec(program: &str) -> ChildSpec {
        let nowhere = || File::create("/dev/null").expect("opened");
        ChildSpec {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: None,
            stdout: nowhere(),
            stderr: nowhere(),
        }
    }

    #[test]
    fn a_start_leaves_our_own_signal_mask_as_it_was_whether_it_succeeds_or_fails() {
        let (_guardians, guardian) = io::pipe().expect("a pipe");
        let before = SigSet::thread_get_mask().expect("there is one");
        for (program, succeeds) in [("/bin/true", true), ("/bin/nothing-there", false)] {
            let started = spawn(&spec(program), &guardian, &StartProgress::default());
            assert_eq!(SigSet::thread_get_mask(), Ok(before));
            assert_eq!(started.is_ok(), succeeds, "{started:?}");
            let pid = match started {
                Ok(child) => child.leader.0,
                Err(failed) => failed.ended.expect("a child was made"),
            };
            let (exit, _) = reap(pid).expect("a child of ours");
            let code = if succeeds { 0 } else { 127 };
            assert_eq!(exit, ExitStatus::Code(code));
        }
    }

    #[test]
    fn a_child_that_is_called_off_before_it_says_who_it_is_becomes_no_program() {
        let (_guardians, guardian) = io::pipe().expect("a pipe");
        let progress = StartProgress::default();
        assert_eq!(progress.call_off(), None);
        let failed = spawn(&spec("/bin/true"), &guardian, &progress).expect_err("called off");
        assert!(matches!(failed.why, NotStarted::CalledOff), "{failed:?}");
        let pid = failed.ended.expect("a child was made");
        assert_eq!(progress.child().map(|child| child.leader.0), Some(pid));
        reap(pid).expect("a child of ours");
        progress.begin_anew();
        let child = spawn(&spec("/bin/true"), &guardian, &progress).expect("started");
        assert_eq!(progress.child(), Some(child));
        reap(child.leader.0).expect("a child of ours");
    }
}
