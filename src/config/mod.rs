//! The pilot's settings, read once from the environment and the job's env file, and validated as a whole.
//! No other module reads an environment variable.
//!
//! Here are the types that the rest of the pilot sees. [`variables`] is the one definition of every
//! variable, for the parser, `--help` and the README; [`load()`] turns text into these types.

mod address;
mod condor;
mod credentials;
mod early_chirp;
mod env_json;
mod environment;
pub mod help_table;
mod limits;
mod load;
mod problem;
mod python_values;
mod queues;
mod reader;
pub mod variables;

pub use address::{AddressError, AmqpAddress, Transport};
pub use condor::CondorJob;
pub use credentials::{CaCertificates, Secret, TokenFile, expiry};
pub use env_json::{is_name, is_settable};
pub use environment::{ENV_FILE_NAME, Environment, data_parents};
pub use limits::PilotLimits;
pub use load::load;
pub use problem::{ConfigErrors, ConfigProblem};
pub use queues::{BrokerConfig, QueueConfig};

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Everything that decides what a pilot does.
#[derive(Debug, Clone)]
pub struct Config {
    /// The container that every event is run in.
    pub task: ContainerConfig,
    /// The container that runs once, before any event is taken.
    pub init: Option<ContainerConfig>,
    /// Where events come from; at least one queue.
    pub incoming: Vec<QueueConfig>,
    /// Where results go, each to all of them; at least one queue, all of one kind.
    pub outgoing: Vec<QueueConfig>,
    /// The working directory, where relative paths begin. Absolute.
    pub cwd: PathBuf,
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
    /// What a failed task means for further events.
    pub on_task_error: OnTaskError,
    /// How long to sleep after a fatal error.
    pub quarantine: Duration,
    /// How long a container has between being told to end and being killed.
    pub kill_grace: Duration,
    /// Which task directories survive their task.
    pub keep_files: KeepFiles,
    /// Whose stdout is copied to the pilot's, and whose stderr.
    pub dump_output: DumpOutput,
    pub verbosity: Verbosity,
    /// Limits at which a task, or the pilot, is ended.
    pub limits: PilotLimits,
    /// When the first of those tokens expires that are not renewed from a file.
    pub token_end: Option<SystemTime>,
    /// Where an event goes that failed too often; `None` lets the broker decide.
    pub dead_letter: Option<QueueConfig>,
    /// Where the record of every task is written. Absolute.
    pub task_log: Option<PathBuf>,
    /// Whether the execution point is checked before the first event.
    pub preflight: Preflight,
    /// What is accepted as an image.
    pub images: ImagePolicy,
    pub log: LogLevels,
    /// What the machine says in the pilot's own environment.
    pub host: HostVariables,
    /// Certificates that brokers are trusted by. Absolute.
    pub ca_file: Option<PathBuf>,
    /// What HTCondor says of this job.
    pub condor: CondorJob,
    /// How HTCondor is told what the pilot does; `None` when it isn't.
    pub chirp: Option<ChirpConfig>,
    /// Remarks on settings that are odd without being wrong, to be logged once the log is there.
    pub warnings: Vec<String>,
    /// Every variable and its value in a form that may be logged; see [`Config::dump`].
    pub shown: Vec<(&'static str, String)>,
}

/// What the machine says in the pilot's own environment; a container sees none of it.
#[derive(Debug, Clone, Default)]
pub struct HostVariables {
    /// `PATH`
    pub path: OsString,
    /// `HOME`
    pub home: Option<OsString>,
    /// `LANG`
    pub lang: Option<OsString>,
    pub proxies: Vec<(OsString, OsString)>,
    /// `CVMFS_MOUNT_DIR`: where a glidein mounted what else is in `/cvmfs`.
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

/// What a failed task means for further events.
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

/// Whose stdout is copied to the pilot's, and whose stderr.
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
    /// Where the machine has it.
    Bind,
    LeaveOut,
}

/// Whether the execution point is checked before the first event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preflight {
    /// It is, and a broken one takes no event.
    Check,
    /// It isn't; its faults show when tasks fail.
    Skip,
}

/// What is accepted as an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImagePolicy {
    /// Only a sandbox directory that is there already.
    DirectoryOnly,
    /// Anything Apptainer can convert; converted once, below this directory.
    Convert {
        /// Where sandboxes are made. Absolute.
        workdir: PathBuf,
    },
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

/// How HTCondor is told what the pilot does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChirpConfig {
    /// Where HTCondor puts it.
    pub destination: ChirpDestination,
    /// The least time between two reports of the counters; status and errors go at once.
    pub interval: Duration,
}

/// Where HTCondor is told that the pilot can't start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EarlyChirp {
    /// All that may be meant; at least one.
    pub destinations: Vec<ChirpDestination>,
    /// The file that says where the chirp server is; it need not exist.
    pub file: PathBuf,
    /// The site, as glideins name it.
    pub site: Option<String>,
}

/// Where HTCondor puts what the pilot reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChirpDestination {
    /// The job's attributes, which `condor_q` shows.
    JobAttributes,
    JobEventLog,
}

impl Config {
    /// How many unsettled events to take from the broker: enough for every slot and what
    /// `EWMS_PILOT_PREFETCH` asks for, but never more than twice what can run, because an event
    /// held here can't be run by another pilot.
    #[must_use]
    pub fn window(&self) -> NonZeroU32 {
        let most = self
            .slots
            .saturating_mul(NonZeroU32::new(2).unwrap_or(NonZeroU32::MIN));
        self.prefetch.max(self.slots).min(most)
    }
    /// Every variable with its value or default, fit for a log: tokens and passwords are `***`, of
    /// the variables for containers only the names are there.
    #[must_use]
    pub fn dump(&self) -> &[(&'static str, String)] {
        &self.shown
    }
}
