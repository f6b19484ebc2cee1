//! The pilot's settings, read once from the environment and the job's env file, and validated as a whole.
//! No other module reads an environment variable.
//!
//! This file holds the types that the rest of the pilot sees. [`variables`] is the one definition of every
//! variable, for the parser, `--help` and the README; [`load()`] turns text into these types.

mod address;
mod apptainer_hints;
mod classad;
mod condor;
mod credentials;
mod early_chirp;
mod env_file_syntax;
mod env_json;
mod environment;
mod gpus;
pub mod help_table;
mod limits;
mod load;
mod machine_names;
mod problem;
mod python_values;
mod queues;
mod reader;
pub mod variables;

pub use address::{AddressError, AmqpAddress, ClientSide, Transport};
pub use apptainer_hints::NamedApptainer;
pub use condor::CondorJob;
pub use credentials::{CaCertificates, Secret, TokenFile, expiry};
pub use env_json::{is_name, is_settable};
pub use environment::{ENV_FILE_NAME, EnvFile, Environment, data_parents};
pub use gpus::{AdGpus, Gpu, GpuSet, GpuVendor, NVIDIA_DEVICES, TaskGpus};
pub use limits::PilotLimits;
pub use load::{load, load_to_submit};
pub use machine_names::MachineNames;
pub use problem::{ConfigErrors, ConfigProblem, SettingsOrigin};
pub use python_values::time;
pub use queues::{BrokerConfig, QueueConfig};

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// All settings of a pilot.
#[derive(Debug, Clone)]
pub struct Config {
    /// The container that every event is run in.
    pub task: ContainerConfig,
    /// The container that runs once, before any event is taken.
    pub init: Option<ContainerConfig>,
    /// The queues of events; at least one.
    pub incoming: Vec<QueueConfig>,
    /// The queues for results, each of which gets every result; at least one, all of one kind.
    pub outgoing: Vec<QueueConfig>,
    /// The working directory, where relative paths begin. Absolute.
    pub cwd: PathBuf,
    /// Where an env file may be. They need not exist.
    pub env_files: Vec<PathBuf>,
    /// The directory in which `ewms-pilot-data/` is made. Absolute.
    pub data_parent: PathBuf,
    /// Suffix of a task's infile, without a leading dot, lower-case.
    pub infile_ext: String,
    /// Suffix of a task's outfile, without a leading dot, lower-case.
    pub outfile_ext: String,
    /// How many events the user wants to hold unsettled; see [`Config::window`].
    pub prefetch: NonZeroU32,
    /// How many tasks may run at once.
    pub slots: NonZeroU32,
    /// The cores that HTCondor allotted, or the machine's.
    pub cores: NonZeroU32,
    /// How many containers wait for their event.
    pub warm_start: WarmStart,
    /// The job's GPUs, and the share of each task.
    pub gpus: TaskGpus,
    /// How long to wait for the very first event.
    pub first_event_timeout: Duration,
    /// How long a free slot may stay without an event before the pilot stops taking any.
    pub idle_timeout: Duration,
    /// How long to wait for a broker that was lost, or that refuses results.
    pub reconnect_timeout: Duration,
    /// Directories bound read-only at the same path into every container. Absolute.
    pub external_directories: Vec<PathBuf>,
    /// Whether containers see `/cvmfs`.
    pub cvmfs: CvmfsPolicy,
    /// Whether further events are taken after a task failed.
    pub on_task_error: OnTaskError,
    /// How long to sleep after a fatal error.
    pub quarantine: Duration,
    /// How long a container has between being told to end and being killed.
    pub kill_grace: Duration,
    /// Which task directories survive their task.
    pub keep_files: KeepFiles,
    /// Which tasks' stdout and stderr are copied to the pilot's.
    pub dump_output: DumpOutput,
    pub verbosity: Verbosity,
    /// Limits at which a task, or the pilot, is ended.
    pub limits: PilotLimits,
    /// The earliest expiry among the tokens that are not renewed from a file.
    pub token_end: Option<SystemTime>,
    /// The queue for events that failed too often; `None` lets the broker decide.
    pub dead_letter: Option<QueueConfig>,
    /// The file for the records of tasks. Absolute.
    pub task_log: Option<PathBuf>,
    /// Whether the execution point is checked before the first event.
    pub preflight: Preflight,
    /// The kinds of images that are accepted.
    pub images: ImagePolicy,
    pub log: LogLevels,
    pub log_format: LogFormat,
    /// The machine's variables in the pilot's own environment.
    pub host: HostVariables,
    /// The file of trusted certificates for brokers. Absolute.
    pub ca_file: Option<PathBuf>,
    /// HTCondor's data on this job.
    pub condor: CondorJob,
    /// How the pilot reports to HTCondor; `None` when it doesn't.
    pub chirp: Option<ChirpConfig>,
    /// Warnings about settings that are odd but not wrong, to be logged once the log is there.
    pub warnings: Vec<String>,
    /// The same, about tokens that have expired or will soon.
    pub token_warnings: Vec<String>,
    /// Every variable and its value in a form that may be logged; see [`Config::dump`].
    pub shown: Vec<(&'static str, String)>,
}

/// The machine's variables in the pilot's own environment; a container sees none of them.
#[derive(Debug, Clone, Default)]
pub struct HostVariables {
    /// `EWMS_PILOT_APPTAINER`: the only Apptainer to be tried. Absolute.
    pub apptainer: Option<PathBuf>,
    /// `PATH`
    pub path: OsString,
    /// `HOME`
    pub home: Option<OsString>,
    /// `LANG`
    pub lang: Option<OsString>,
    pub proxies: Vec<(OsString, OsString)>,
    /// `CVMFS_MOUNT_DIR`: where a glidein mounted CVMFS if not at `/cvmfs`.
    pub cvmfs_mount_dir: Option<PathBuf>,
}

/// One container image and how to run it.
#[derive(Clone)]
pub struct ContainerConfig {
    /// The image as the user wrote it.
    pub image: String,
    /// The arguments as the user wrote them, placeholders and quotes included.
    pub args: String,
    /// Variables for the container, in the user's order; names are valid, values as strings.
    pub env: Vec<(String, String)>,
    /// Wall time after which the container is killed.
    pub timeout: Option<Duration>,
}

/// Shows the names of the variables only: users pass secrets to their tasks this way.
impl fmt::Debug for ContainerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.env.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("ContainerConfig")
            .field("image", &self.image)
            .field("args", &self.args)
            .field("env", &names)
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// Whether further events are taken after a task failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnTaskError {
    /// Take no more events, unless every failure so far has one of these names.
    StopListening {
        /// Names as in `EWMS_PILOT_OKAY_ERRORS`.
        except: BTreeSet<String>,
    },
    Continue,
}

/// Which task directories survive their task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepFiles {
    Failed,
    All,
}

/// Which tasks' stdout and stderr are copied to the pilot's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DumpOutput {
    Failed,
    All,
}

/// How much Apptainer says on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    Normal,
    /// `apptainer --debug`.
    Debug,
}

/// Whether containers see `/cvmfs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CvmfsPolicy {
    /// Bind it if the machine has it.
    Bind,
    LeaveOut,
}

/// Whether the execution point is checked before the first event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preflight {
    /// Check it; a broken one takes no event.
    Check,
    /// Don't check it; its faults show when tasks fail.
    Skip,
}

/// How many containers are started before their event is known, and wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarmStart {
    /// As many as may be of use.
    Auto,
    Containers(NonZeroU32),
    Off,
}

/// The kinds of images that are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImagePolicy {
    /// Only an existing sandbox directory.
    DirectoryOnly,
    /// Anything Apptainer can convert; converted once, below this directory.
    Convert {
        /// The directory for sandboxes. Absolute.
        workdir: PathBuf,
    },
}

/// The form of stderr.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Log levels, for the pilot's own lines and those of its libraries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLevels {
    /// `EWMS_PILOT_CL_LOG`
    pub own: tracing::level_filters::LevelFilter,
    /// `EWMS_PILOT_CL_LOG_THIRD_PARTY`
    pub third_party: tracing::level_filters::LevelFilter,
}

impl LogLevels {
    /// Nothing but errors, for a command that prints what it finds.
    pub const QUIET: Self = Self {
        own: tracing::level_filters::LevelFilter::ERROR,
        third_party: tracing::level_filters::LevelFilter::ERROR,
    };
}

/// How the pilot reports to HTCondor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChirpConfig {
    /// Where HTCondor puts the reports.
    pub destination: ChirpDestination,
    /// The least time between two reports of the counters; status and errors go at once.
    pub interval: Duration,
}

/// Where to report that the pilot can't start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EarlyChirp {
    /// All destinations that may be meant; at least one.
    pub destinations: Vec<ChirpDestination>,
    /// The file that says where the chirp server is; it need not exist.
    pub file: PathBuf,
    /// The names of the machine and its site.
    pub names: MachineNames,
}

/// Where HTCondor puts the reports of the pilot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChirpDestination {
    /// The job's attributes, which `condor_q` shows.
    JobAttributes,
    JobEventLog,
}

impl Config {
    /// How many unsettled events to take from the broker: enough for every slot and for
    /// `EWMS_PILOT_PREFETCH`, but at most twice the number of slots, because an event held here can't be run
    /// by another pilot.
    #[must_use]
    pub fn window(&self) -> NonZeroU32 {
        let most = self
            .slots
            .saturating_mul(NonZeroU32::new(2).unwrap_or(NonZeroU32::MIN));
        self.prefetch.max(self.slots).min(most)
    }
    /// Every variable with its value or default, fit for a log: tokens and passwords are `***`, and variables
    /// for containers are shown by name only.
    #[must_use]
    pub fn dump(&self) -> &[(&'static str, String)] {
        &self.shown
    }
}
