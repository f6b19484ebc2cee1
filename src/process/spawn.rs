//! From a [`ChildSpec`] to a running program: what happens between clone(2) and execve(2).
//!
//! The child shares our memory until its exec, and the thread that makes it stands still until then, as
//! with `posix_spawn(3)`, which can't do what is to be done before the exec. A fork would copy the page
//! tables, and then each page that we write to: measured, a fifth of the CPU time that an event costs the
//! pilot. So nothing here runs on an event loop's thread: an exec on a dead file server never returns.

use std::ffi::CString;
use std::fs::File;
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

/// Why there is no child.
#[derive(Debug)]
pub(super) enum NotStarted {
    /// The guardian doesn't take its message: it is gone, or reads no more.
    Unheard(io::Error),
    /// By [`StartProgress::call_off`], before the child was a program.
    CalledOff,
    /// No process could be made, or it could not become the program.
    Unmade(io::Error),
}

/// A start that came to nothing.
#[derive(Debug)]
pub(super) struct FailedStart {
    pub(super) why: NotStarted,
    /// The child, if one was made. It has ended and is not reaped yet.
    pub(super) ended: Option<Pid>,
}

/// What other threads know of a child before its exec: clone(2) returns the pid only after that. Written
/// by the child itself, in the memory that it shares with us.
///
/// The child stores its pid, then reads whether it is called off; the other thread stores that it is, then
/// reads the pid. So at least one of them sees the other's store.
#[derive(Debug, Default)]
pub(super) struct StartProgress {
    /// 0 until it is known.
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

    /// A child that isn't known yet ends before it becomes a program; one that is known may become one.
    pub(super) fn call_off(&self) -> Option<ChildId> {
        self.is_called_off.store(true, Ordering::SeqCst);
        self.child()
    }

    /// Calls off this attempt and those that would follow.
    pub(super) fn abandon(&self) -> Option<ChildId> {
        self.is_abandoned.store(true, Ordering::SeqCst);
        self.call_off()
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::SeqCst)
    }

    /// For another attempt; the child of the last one is reaped.
    pub(super) fn begin_anew(&self) {
        self.pid.store(0, Ordering::SeqCst);
        self.is_called_off
            .store(self.is_abandoned(), Ordering::SeqCst);
    }
}

/// Starts `spec` as the leader of a new session, which is what all that it leaves behind is found by. It
/// tells `guardian` of itself before anything of `spec` runs. Blocks until it is a program.
///
/// In the child, before the exec: dispositions and a signal mask that the pilot's own parent may have
/// set (as nohup ignores `SIGHUP`) go back to the default, and every descriptor from 3 on is closed, those
/// that the pilot inherited included. A child that hangs in its exec must hold no pipe, lock or connection
/// of the pilot's open.
///
/// # Errors
/// [`FailedStart`]. The kernel says `EAGAIN` for a pipe that is full as for processes that are used up, so
/// the number alone doesn't tell whether the guardian is to blame.
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
    // Killed before it could say who it is, it never became a program.
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

/// What a child needs to become a program, all of it made before: a child makes nothing.
struct SpawnPlan<'a> {
    program: CString,
    /// From the program's own name on.
    args: CStrings,
    env: CStrings,
    cwd: Option<CString>,
    /// Its standard input, output and error.
    streams: [BorrowedFd<'a>; 3],
    role: ChildRole<'a>,
}

#[derive(Clone, Copy)]
enum ChildRole<'a> {
    /// Open to every signal, and known to the guardian at the other end of this pipe.
    Guarded {
        guardian: &'a PipeWriter,
        progress: &'a StartProgress,
    },
    /// Ignores every signal.
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
    /// From clone to exec, in the child; returns only if that fails.
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

    /// In the order of what may hang: `chdir` only after the child is known and holds nothing.
    fn prepare(&self) -> Result<(), NotStarted> {
        setsid()?;
        // No handler of ours may run here: until this, every signal is blocked.
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

/// Makes a child and waits until it is a program.
fn spawn_child(plan: &SpawnPlan<'_>) -> Result<Pid, FailedStart> {
    /// The deepest that the child goes takes less than 2 KiB.
    const STACK: usize = 64 * 1024;
    /// No error of the kernel's.
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
    // It has let go of our memory and is on its way out.
    let _ = await_end(pid);
    Err(FailedStart {
        why,
        ended: Some(pid),
    })
}

/// Tells the other threads and the guardian of this very process. Runs in the child.
fn announce(mut guardian: &PipeWriter, progress: &StartProgress) -> Result<(), NotStarted> {
    // As much as every field before the one we need may take.
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
    // An error must come back instead of killing the child, which would look like a start.
    // SAFETY: no handler is installed, only a disposition.
    unsafe { signal::signal(Signal::SIGPIPE, SigHandler::SigIgn)? };
    guardian
        .write_all(&GuardianMessage::Born(child).to_bytes())
        .map_err(NotStarted::Unheard)?;
    // SAFETY: as above.
    unsafe { signal::signal(Signal::SIGPIPE, SigHandler::SigDfl)? };
    Ok(())
}

/// Starts a guardian: this very binary, even when its file was replaced since. It reads messages from
/// `pipe` and has nothing else of ours: no other descriptor, no terminal, not our working directory,
/// and it ignores what is sent to all of a job's processes to end them. Blocks until it is a program; one
/// that becomes it after the pilot's end finds its pipe at an end, and goes.
pub(super) fn spawn_guardian(pipe: &PipeReader) -> io::Result<Pid> {
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    // A kill by the pilot's name must not hit it together with the pilot.
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

/// Closes descriptors from 3 on: with `close_range`, or where the kernel (before 5.9) or a seccomp filter
/// doesn't know it, one by one.
fn close_others() {
    /// As many as the loop looks at; a pilot's parent with more open descriptors was not seen.
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
