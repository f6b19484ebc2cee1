//! HTCondor seen from a submit node: jobs made of the bundled templates, by an ordinary user, with
//! HTCondor's own commands. One pool, of two machines, for all tests; started by the first that asks.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use super::processes::{self, Process};
use super::rabbitmq::{self, PYTHON, Queue};
use super::{eventually, pilot_binary, source_dir};

/// The machine that has everything.
pub(crate) const FIRST: &str = "localhost";
/// The machine that has no image.
pub(crate) const SECOND: &str = "second";

/// A job waits for the negotiator, for files to be copied, and for other tests' jobs.
pub(crate) const BY_THEN: Duration = Duration::from_mins(2);

/// What HTCondor writes into a job's event log, by the numbers that stand there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Happened {
    Executing = 1,
    Evicted = 4,
    Terminated = 5,
    Aborted = 9,
    Suspended = 10,
    Unsuspended = 11,
    Held = 12,
    Released = 13,
}

/// The bundled template.
pub(crate) fn template() -> PathBuf {
    source_dir().join("condor/ewms-pilot.sub")
}

/// Pilots to be submitted: a directory, the env file that is in it, macros.
#[derive(Debug)]
pub(crate) struct Submission {
    directory: tempfile::TempDir,
    /// Relative to the directory.
    env_file: PathBuf,
    exported: BTreeMap<String, String>,
    macros: BTreeMap<String, String>,
    appended: Vec<String>,
}

impl Submission {
    /// Pilots whose tasks run `arguments` in `image`, on the machine that has images. What waits in the
    /// templates for a real pool's sake is short.
    pub(crate) fn new(image: &Path, arguments: &str) -> Self {
        let submission = Self {
            directory: tempfile::tempdir().expect("a temporary directory can be made"),
            env_file: PathBuf::from("ewms_htcondor_envfile.sh"),
            exported: BTreeMap::new(),
            macros: BTreeMap::new(),
            appended: Vec::new(),
        };
        submission
            .set("task_image", &image.display().to_string())
            .set("pilot_binary", &pilot_binary().display().to_string())
            .set("machines", &format!("TARGET.Machine == \"{FIRST}\""))
            .set("memory", "512MB")
            .set("disk", "500MB")
            .set("retry_wait", "1")
            .set("avoid_seconds", "1")
            .export("EWMS_PILOT_TASK_ARGS", arguments)
            .export("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "3")
    }

    /// Events from and results to the real broker.
    pub(crate) fn rabbitmq(mut self, incoming: &Queue, outgoing: &Queue) -> Self {
        for (direction, queue) in [("INCOMING", incoming), ("OUTGOING", outgoing)] {
            let variable = format!("EWMS_PILOT_QUEUE_{direction}");
            self = self
                .export(&variable, queue.name())
                .export(&format!("{variable}_BROKER_TYPE"), "rabbitmq")
                .export(&format!("{variable}_BROKER_ADDRESS"), rabbitmq::ADDRESS);
        }
        self
    }

    /// Adds a line to the env file.
    pub(crate) fn export(mut self, name: &str, value: &str) -> Self {
        self.exported.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Gives the env file another name.
    pub(crate) fn env_file(mut self, name: &str) -> Self {
        self.env_file = PathBuf::from(name);
        self.set("env_file", name)
    }

    /// Sets a macro of the template.
    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        self.macros.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Adds a submit command, as `condor_submit -append` does.
    pub(crate) fn append(mut self, command: &str) -> Self {
        self.appended.push(command.to_owned());
        self
    }

    /// From where it is submitted.
    pub(crate) fn dir(&self) -> &Path {
        self.directory.path()
    }

    /// What `condor_submit -dry-run` would send: one ad a pilot, without asking the pool.
    #[track_caller]
    pub(crate) fn dry_run(&self) -> String {
        let output = self.condor_submit(&["-dry-run", "job.ad"]);
        assert!(output.status.success(), "{output:?}");
        fs::read_to_string(self.dir().join("job.ad")).expect("a dry run writes the ads")
    }

    /// Lets cron's command keep so many pilots of a taskforce in the queue; gives what it says.
    #[track_caller]
    pub(crate) fn top_up(&self, pilots: usize, taskforce: &str) -> String {
        start_pool();
        self.write_env_file();
        let script = source_dir().join("condor/ewms-pilot-top-up");
        let macros = self.macros.iter();
        run(Command::new(script)
            .current_dir(self.dir())
            .args([&pilots.to_string(), taskforce])
            .args(macros.map(|(name, value)| format!("{name}={value}"))))
    }

    /// The pilots of a cluster that was submitted from here.
    pub(crate) fn jobs(self, cluster: &str) -> Jobs {
        Jobs {
            cluster: cluster.to_owned(),
            directory: self.directory,
        }
    }

    /// The same of a command that a person typed, up to the template's name. The macros are those of the command.
    #[track_caller]
    pub(crate) fn dry_run_as(&self, command: &str) -> String {
        self.write_env_file();
        let whole = format!(
            "{command} -dry-run job.ad {}",
            shell_words::quote(&template().display().to_string())
        );
        run(Command::new("bash")
            .current_dir(self.dir())
            .args(["-c", &whole]));
        fs::read_to_string(self.dir().join("job.ad")).expect("a dry run writes the ads")
    }

    /// Submits it; the pool is started if it doesn't run.
    #[track_caller]
    pub(crate) fn submit(self) -> Jobs {
        start_pool();
        let output = self.condor_submit(&["-terse"]);
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stdout);
        // `FIRST.PROC - LAST.PROC`
        let cluster = said.trim().split('.').next().expect("it says the cluster");
        let cluster = cluster.to_owned();
        self.jobs(&cluster)
    }

    /// Submits it by a module of HTCondor's Python package; `None` where the package lacks that one.
    #[track_caller]
    pub(crate) fn submit_by_python(self, module: &str, count: usize) -> Option<Jobs> {
        start_pool();
        self.write_env_file();
        let mut text = String::new();
        for (name, value) in &self.macros {
            writeln!(text, "{name} = {value}").expect("a string takes it");
        }
        let template = template();
        let directory = template.parent().expect("it is in one").display();
        writeln!(text, "template_dir = {directory}/").expect("a string takes it");
        text.push_str(&fs::read_to_string(&template).expect("it is text"));
        let mut command = python_command(&["submit", module, &count.to_string()]);
        // The wheel's own way to authenticate needs the schedd's version.
        command.env("_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS", "CLAIMTOBE");
        command.current_dir(self.dir());
        let cluster = rabbitmq::finish(command, &text).trim().to_owned();
        (!cluster.is_empty()).then(|| self.jobs(&cluster))
    }

    /// Writes it as the submitting service does.
    fn write_env_file(&self) {
        let exported = self.exported.iter();
        let lines: Vec<String> = exported
            .map(|(name, value)| format!("export {name}={}\n", shell_words::quote(value)))
            .collect();
        let lines = lines.concat();
        let file = self.dir().join(&self.env_file);
        let directory = file.parent().expect("it is in one");
        fs::create_dir_all(directory).expect("the directory is writable");
        fs::write(&file, format!("set -x\n{lines}set +x\n")).expect("the directory is writable");
    }

    fn condor_submit(&self, options: &[&str]) -> Output {
        self.write_env_file();
        let mut command = Command::new("condor_submit");
        command.current_dir(self.dir()).args(options);
        for appended in &self.appended {
            command.args(["-append", appended]);
        }
        let macros = self.macros.iter();
        command.args(macros.map(|(name, value)| format!("{name}={value}")));
        let command = command.arg(template());
        command.output().expect("the execution point has HTCondor")
    }
}

/// Pilots that were submitted. Dropped, what is left of them leaves the queue.
#[derive(Debug)]
pub(crate) struct Jobs {
    cluster: String,
    directory: tempfile::TempDir,
}

impl Jobs {
    /// HTCondor's number for them all.
    pub(crate) fn cluster(&self) -> &str {
        &self.cluster
    }

    /// From where they were submitted.
    pub(crate) fn dir(&self) -> &Path {
        self.directory.path()
    }

    /// What came back of all runs of a pilot, one after the other: `CLUSTER.PROC.RUN.KIND`.
    pub(crate) fn file(&self, process: usize, kind: &str) -> String {
        self.files(process, kind).concat()
    }

    /// What came back of each run of a pilot.
    pub(crate) fn files(&self, process: usize, kind: &str) -> Vec<String> {
        let of_run = |run: usize| {
            let name = format!("{}.{process}.{run}.{kind}", self.cluster);
            let bytes = fs::read(self.dir().join("logs").join(name)).ok()?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        };
        (0..).map_while(of_run).collect()
    }

    /// The job event log.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir().join(format!("ewms-pilot-{}.log", self.cluster))
    }

    /// How often something has happened to any of them.
    pub(crate) fn count(&self, happened: Happened) -> usize {
        let start = format!("{:03} ({:0>3}.", happened as u8, self.cluster);
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        log.lines().filter(|line| line.starts_with(&start)).count()
    }

    /// Waits until something has happened `times` times.
    #[track_caller]
    pub(crate) fn wait_for(&self, happened: Happened, times: usize) {
        let found = eventually(BY_THEN, || self.count(happened) >= times);
        assert!(found, "{happened:?} not {times} times:\n{}", self.story());
    }

    /// Waits until a task runs exactly `command_line`; gives the process.
    #[track_caller]
    pub(crate) fn wait_for_process(&self, command_line: &str) -> Process {
        let mut found = None;
        eventually(BY_THEN, || {
            let mut running = processes::matching(command_line).into_iter();
            found = running.find(|process| process.command_line == command_line);
            // A pilot that is gone starts no task.
            found.is_some() || self.count(Happened::Terminated) + self.count(Happened::Held) > 0
        });
        found.unwrap_or_else(|| panic!("no `{command_line}`:\n{}", self.story()))
    }

    /// Waits until all `count` pilots have left the queue by their own end.
    #[track_caller]
    pub(crate) fn wait_for_ends(&self, count: usize) {
        let over = |jobs: &Self| jobs.count(Happened::Terminated) + jobs.count(Happened::Held);
        eventually(BY_THEN, || over(self) >= count);
        let ended = self.count(Happened::Terminated);
        assert!(
            ended >= count,
            "{ended} of {count} ended:\n{}",
            self.story()
        );
    }

    /// The events of the log, as HTCondor's Python package reads them.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<Value> {
        let log = self.log().display().to_string();
        let lines = python(&["events", &log], "");
        let parsed = lines.lines().map(serde_json::from_str);
        parsed.map(|event| event.expect("it is JSON")).collect()
    }

    /// The ads of those that left the queue, by process.
    #[track_caller]
    pub(crate) fn history(&self, count: usize) -> Vec<Value> {
        let mut ads = Vec::new();
        let complete = eventually(BY_THEN, || {
            ads = self.ads("condor_history");
            ads.len() == count
        });
        assert!(complete, "{} in the history of {count}", ads.len());
        ads
    }

    /// The ads of those in the queue, by process.
    #[track_caller]
    pub(crate) fn queue(&self) -> Vec<Value> {
        self.ads("condor_q")
    }

    fn ads(&self, program: &str) -> Vec<Value> {
        let text = run(Command::new(program).args([&self.cluster, "-json"]));
        if text.trim().is_empty() {
            return Vec::new();
        }
        let ads: Value = serde_json::from_str(&text).expect("it is JSON");
        let mut ads = ads.as_array().expect("it is a list").clone();
        ads.sort_by_key(|ad| ad["ProcId"].as_i64());
        ads
    }

    /// Runs an HTCondor command on all of them.
    #[track_caller]
    pub(crate) fn tell(&self, program: &str) {
        run(Command::new(program).arg(&self.cluster));
    }

    /// All there is to tell of them, for whoever looks into a failure.
    pub(crate) fn story(&self) -> String {
        let mut story = fs::read_to_string(self.log()).unwrap_or_default();
        for entry in fs::read_dir(self.dir().join("logs")).into_iter().flatten() {
            let Ok(entry) = entry else { continue };
            let name = entry.file_name().to_string_lossy().into_owned();
            let text = fs::read(entry.path()).unwrap_or_default();
            write!(story, "--- {name}\n{}", String::from_utf8_lossy(&text))
                .expect("a string takes it");
        }
        story
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        // Nothing is there to remove after most tests, which it then says.
        let _ = Command::new("condor_rm").arg(&self.cluster).output();
    }
}

/// Starts the pool, once.
#[track_caller]
pub(crate) fn start_pool() {
    static STARTED: OnceLock<()> = OnceLock::new();
    STARTED.get_or_init(|| {
        let script = source_dir().join("tests/support/condor_pool.bash");
        run(Command::new("sudo").arg(script));
    });
}

/// Runs a command to its end and gives its standard output.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().expect("the execution point has it");
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Asks HTCondor's Python package.
#[track_caller]
pub(crate) fn python(arguments: &[&str], input: &str) -> String {
    rabbitmq::finish(python_command(arguments), input)
}

fn python_command(arguments: &[&str]) -> Command {
    let script = include_str!("condor.py");
    let mut command = Command::new(PYTHON);
    command.args(["-W", "ignore", "-c", script]).args(arguments);
    command
}
