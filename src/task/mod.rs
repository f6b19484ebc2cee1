//! One event in, one report out: makes the directories, runs the container, reads the outfile. Deliveries
//! don't exist here, so nothing can be acknowledged here.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{DumpOutput, KeepFiles, Verbosity};
use crate::container::{Apptainer, Bind, ProcMount, Template, UserNamespace, names_outfile};
use crate::fault::TaskError;
use crate::process::GuardianHandle;
use crate::telemetry::Progress;

mod active_containers;
mod binds;
mod cleanup;
mod container_end;
mod container_run;
pub mod cvmfs;
mod dir_pool;
pub mod disk_space;
mod event_copy;
mod event_files;
mod external;
mod fault_diagnosis;
mod gate;
pub mod gpu_probe;
mod gpus;
mod held_container;
pub mod image_setup;
mod init_container;
pub mod input_files;
mod memory_cgroup;
mod metrics;
mod output_capture;
pub mod own_files;
pub mod path_probe;
pub mod probe_container;
pub mod process_tree;
mod shared_look;
pub mod staging;
mod task_runner;
mod turn;
mod watchdog;

pub use active_containers::{ActiveContainers, ContainerPids};
pub use cleanup::Leftover;
pub use container_end::{ContainerLoss, TaskOutcome};
pub use cvmfs::Cvmfs;
pub use event_copy::EventCopy;
pub use event_files::MemoryBudget;
pub use external::{ExternalDirs, ExternalError};
pub use fault_diagnosis::write_something;
pub use gpus::{GpuLease, GpuPool, models};
pub use memory_cgroup::MemoryKills;
pub use metrics::TaskMetrics;
pub use shared_look::SharedLook;
pub use task_runner::{TaskEnd, TaskReport, TaskRunner};
pub use turn::{TaskTurn, TurnSender};
pub use watchdog::ResourceLimits;

use staging::DataDirs;

/// The settings and services that all containers of a pilot share.
#[derive(Debug, Clone)]
pub struct TaskContext {
    pub apptainer: Apptainer,
    /// The handle through which every container is started.
    pub guard: GuardianHandle,
    pub dirs: DataDirs,
    /// The files that came with the job.
    pub inputs: Option<Bind>,
    pub external: ExternalDirs,
    pub cvmfs: Cvmfs,
    /// The time between a container's termination signal and its kill.
    pub grace: Duration,
    pub keep: KeepFiles,
    /// The limits of a task's container; none apply to the init container.
    pub guards: ResourceLimits,
    pub memory_kills: MemoryKills,
    /// Bytes kept of each output.
    pub output_limit: u64,
    /// The bytes that may still be kept of failed tasks.
    pub kept: Arc<disk_space::DiskBudget>,
    /// The tasks whose output goes to the pilot's stdout and stderr.
    pub dump: DumpOutput,
    pub verbosity: Verbosity,
    /// Whether containers have a `/proc`.
    pub proc: ProcMount,
    pub user_namespace: UserNamespace,
    pub gpus: GpuPool,
    pub log: Progress,
    pub running: ActiveContainers,
    /// The containers that wait for their event.
    pub waiting: ActiveContainers,
    /// How tasks start in their containers.
    pub task_start: TaskStart,
    pub look: SharedLook,
}

/// The settings of one kind of container: the tasks', or the init container.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// A sandbox directory.
    pub image: PathBuf,
    /// A script of ours without which these containers don't get their variables.
    pub repair: Option<Bind>,
    pub cvmfs: CvmfsBind,
    /// Arguments, with their placeholders.
    pub args: Template,
    pub env: Vec<(String, String)>,
    /// Wall time after which the container is ended.
    pub timeout: Option<Duration>,
}

/// How a task starts in its container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskStart {
    /// With the container, which is made when its event is in its infile.
    WithContainer,
    /// When the container's gate opens.
    AtGate,
    /// As soon as the container comes to its gate: its turn came before.
    AtOpenGate,
}

/// Whether containers see `/cvmfs` if the machine has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CvmfsBind {
    Wanted,
    /// The image has no mount point for it, and none can be made.
    LeftOut,
}

impl ContainerSpec {
    /// Whether the arguments or variables name an outfile, so that a task should write one.
    #[must_use]
    pub fn names_outfile(&self) -> bool {
        self.args.names_outfile() || self.env.iter().any(|(_, value)| names_outfile(value))
    }
}

pub use init_container::run_init;

/// A [`TaskContext`] shared with the threads that do blocking file work.
pub type SharedTaskContext = Arc<TaskContext>;

/// Runs blocking file work on another thread, inside the current span.
async fn file_work<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TaskError> + Send + 'static,
) -> Result<T, TaskError> {
    let span = tracing::Span::current();
    match crate::blocking::start(move || span.in_scope(work)).await {
        Ok(result) => result,
        Err(error) => Err(TaskError::Os(format!(
            "the pilot's file work stopped: {error}"
        ))),
    }
}
