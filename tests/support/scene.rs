//! The pilot, run for real: its own working directory, an environment that starts empty, output kept
//! in files, and nothing left behind. Whatever a test waits for has a deadline and fails with the
//! pilot's stderr in hand.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::spool::SpoolQueue;
use super::{eventually, pilot_binary, rabbitmq};

/// What a pilot is started with. Several may be started from one scene, at once too.
#[derive(Debug)]
pub(crate) struct Scene {
    directory: tempfile::TempDir,
    program: PathBuf,
    variables: BTreeMap<OsString, OsString>,
    arguments: Vec<OsString>,
    started: AtomicUsize,
}

impl Scene {
    /// An empty directory and an environment of nothing but PATH and HOME.
    pub(crate) fn new() -> Self {
        let path = std::env::var_os("PATH").expect("the tests have a PATH");
        let scene = Self::bare().set("PATH", path);
        let home = scene.dir().to_owned();
        scene.set("HOME", home)
    }

    /// An empty directory and no variable at all.
    pub(crate) fn bare() -> Self {
        Self {
            directory: tempfile::tempdir().expect("a temporary directory can be made"),
            program: pilot_binary(),
            variables: BTreeMap::new(),
            arguments: Vec::new(),
            started: AtomicUsize::new(0),
        }
    }

    /// A scene whose tasks run `arguments` in `image`.
    pub(crate) fn task(image: impl AsRef<OsStr>, arguments: impl AsRef<OsStr>) -> Self {
        Self::new()
            .set("EWMS_PILOT_TASK_IMAGE", image)
            .set("EWMS_PILOT_TASK_ARGS", arguments)
    }

    /// Starts something else in the pilot's place: for what Apptainer or a shell would do there.
    pub(crate) fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = program.into();
        self
    }

    /// Sets a variable of the pilot.
    pub(crate) fn set(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.variables.insert(name.into(), value.as_ref().into());
        self
    }

    /// Adds an argument of the pilot.
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().into());
        self
    }

    /// Takes events from and sends results to a spool below this scene's directory.
    pub(crate) fn spool(self) -> (Self, SpoolQueue, SpoolQueue) {
        let address = self.dir().join("spool");
        let incoming = SpoolQueue::create(&address, "events");
        let outgoing = SpoolQueue::create(&address, "results");
        let scene = self.queues("spool", address.as_os_str(), "events", "results");
        (scene, incoming, outgoing)
    }

    /// Takes events from and sends results to queues of one real broker.
    pub(crate) fn rabbitmq(self, incoming: &rabbitmq::Queue, outgoing: &rabbitmq::Queue) -> Self {
        let address = OsStr::new(incoming.address());
        self.queues("rabbitmq", address, incoming.name(), outgoing.name())
    }

    fn queues(mut self, broker: &str, address: &OsStr, incoming: &str, outgoing: &str) -> Self {
        for (direction, name) in [("INCOMING", incoming), ("OUTGOING", outgoing)] {
            let variable = format!("EWMS_PILOT_QUEUE_{direction}");
            self = self
                .set(&variable, name)
                .set(&format!("{variable}_BROKER_TYPE"), broker)
                .set(&format!("{variable}_BROKER_ADDRESS"), address);
        }
        self
    }

    /// The pilot's working directory.
    pub(crate) fn dir(&self) -> &Path {
        self.directory.path()
    }

    /// A file in the directory that all its tasks share, which they see as `{{DATA_HUB}}/name`.
    pub(crate) fn hub(&self, name: &str) -> PathBuf {
        self.dir().join("ewms-pilot-data/data-hub").join(name)
    }

    /// Starts the pilot, in a process group of its own.
    pub(crate) fn start(&self) -> Pilot {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        // Beside the working directory's own files, hidden, so that a test may list those.
        let output = |name: &str| self.dir().join(format!(".{name}-{number}"));
        let (stdout, stderr) = (output("stdout"), output("stderr"));
        let create = |path: &Path| File::create(path).expect("the scene's directory is writable");
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .envs(&self.variables)
            .current_dir(self.dir())
            .stdin(Stdio::null())
            .stdout(create(&stdout))
            .stderr(create(&stderr))
            .process_group(0)
            .spawn()
            .expect("the pilot's binary is there: run the tests with scripts/test");
        Pilot {
            child,
            status: None,
            stdout,
            stderr,
        }
    }

    /// Starts the pilot and waits for its end.
    #[track_caller]
    pub(crate) fn run(&self, deadline: Duration) -> Outcome {
        self.start().wait(deadline)
    }
}

/// A pilot that was started. Dropped, it is ended, the hard way if it must be.
#[derive(Debug)]
pub(crate) struct Pilot {
    child: Child,
    status: Option<ExitStatus>,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// How a pilot ended, and all it said.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The exit code, unless a signal ended it.
    pub(crate) code: Option<i32>,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    /// Whether it left a core file, or would have.
    pub(crate) dumped_core: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// The last line of stderr that isn't empty.
    pub(crate) fn last_line(&self) -> &str {
        let mut lines = self.stderr.lines().rev();
        lines
            .find(|line| !line.trim().is_empty())
            .unwrap_or_default()
    }

    /// Panics, with stderr, unless the pilot exited with `code`.
    #[track_caller]
    pub(crate) fn assert_code(&self, code: i32) -> &Self {
        assert_eq!(
            self.code,
            Some(code),
            "signal {:?}, stderr:\n{}",
            self.signal,
            self.stderr
        );
        self
    }
}

impl Pilot {
    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("pids fit")
    }

    /// Sends it a signal; to it alone, not to its tasks.
    pub(crate) fn signal(&self, signal: Signal) {
        // Already gone is no failure: the outcome tells.
        let _ = kill(Pid::from_raw(self.pid()), signal);
    }

    /// What it wrote to stdout so far.
    pub(crate) fn stdout(&self) -> String {
        read_lossily(&self.stdout)
    }

    /// What it wrote to stderr so far.
    pub(crate) fn stderr(&self) -> String {
        read_lossily(&self.stderr)
    }

    /// Waits until a whole line of stderr holds `pattern`, and gives that line.
    #[track_caller]
    pub(crate) fn wait_for_line(&mut self, pattern: &str, deadline: Duration) -> String {
        let mut found = None;
        eventually(deadline, || {
            // Asked before reading: what a pilot that has ended wrote is all there.
            let ended = self.has_ended();
            let text = self.stderr();
            let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
            found = whole
                .lines()
                .find(|line| line.contains(pattern))
                .map(str::to_owned);
            found.is_some() || ended
        });
        found.unwrap_or_else(|| {
            panic!(
                "no line with `{pattern}` within {deadline:?}, {}; stderr:\n{}",
                if self.has_ended() {
                    "the pilot ended"
                } else {
                    "the pilot runs"
                },
                self.stderr()
            )
        })
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(mut self, deadline: Duration) -> Outcome {
        let ended = eventually(deadline, || self.has_ended());
        assert!(
            ended,
            "the pilot still runs after {deadline:?}; stderr:\n{}",
            self.stderr()
        );
        Outcome {
            code: self.status.and_then(|status| status.code()),
            signal: self.status.and_then(|status| status.signal()),
            dumped_core: self.status.is_some_and(|status| status.core_dumped()),
            stdout: read_lossily(&self.stdout),
            stderr: read_lossily(&self.stderr),
        }
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("a child can be waited for");
        }
        self.status.is_some()
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        // The second SIGTERM asks it to kill its containers at once, and to give their events back.
        for signal in [Signal::SIGTERM, Signal::SIGTERM, Signal::SIGKILL] {
            if self.has_ended() {
                return;
            }
            self.signal(signal);
            eventually(Duration::from_secs(3), || self.has_ended());
        }
    }
}

/// A task's output may be any bytes, and the log may quote it.
fn read_lossily(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
