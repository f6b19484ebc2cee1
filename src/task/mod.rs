//! One event in, one report out: makes the directories, runs the container, reads what it wrote. A delivery
//! never comes here, so nothing can be acknowledged here.

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
mod container_run;
pub mod cvmfs;
mod dir_pool;
pub mod disk_space;
mod event_copy;
mod event_files;
mod external;
mod fault_diagnosis;
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
mod watchdog;

pub use active_containers::{ActiveContainers, ContainerPids};
pub use cleanup::Leftover;
pub use container_run::TaskOutcome;
pub use cvmfs::Cvmfs;
pub use event_copy::EventCopy;
pub use event_files::MemoryBudget;
pub use external::{ExternalDirs, ExternalError};
pub use fault_diagnosis::write_something;
pub use memory_cgroup::MemoryKills;
pub use metrics::TaskMetrics;
pub use shared_look::SharedLook;
pub use task_runner::{StartGate, TaskReport, TaskRunner};
pub use watchdog::ResourceLimits;

use staging::DataDirs;

/// What all containers of a pilot have in common.
#[derive(Debug)]
pub struct TaskContext {
    pub apptainer: Apptainer,
    /// What every container is started through.
    pub guard: GuardianHandle,
    pub dirs: DataDirs,
    /// The files that came with the job.
    pub inputs: Option<Bind>,
    pub external: ExternalDirs,
    pub cvmfs: Cvmfs,
    /// Time between telling a container and killing it.
    pub grace: Duration,
    pub keep: KeepFiles,
    /// What a task is ended for.
    pub guards: ResourceLimits,
    pub memory_kills: MemoryKills,
    /// Bytes kept of each output.
    pub output_limit: u64,
    /// What may still be kept of failed tasks.
    pub kept: Arc<disk_space::DiskBudget>,
    /// Whose output goes to the pilot's stdout and stderr.
    pub dump: DumpOutput,
    pub verbosity: Verbosity,
    /// Whether containers have a `/proc`.
    pub proc: ProcMount,
    pub user_namespace: UserNamespace,
    pub log: Progress,
    pub running: ActiveContainers,
    pub look: SharedLook,
}

/// What to run: the tasks' container, or the init container.
#[derive(Debug)]
pub struct ContainerSpec {
    /// A sandbox directory.
    pub image: PathBuf,
    /// A script of ours that its containers need to get their variables.
    pub repair: Option<Bind>,
    pub cvmfs: CvmfsBind,
    /// Arguments, placeholders not replaced yet.
    pub args: Template,
    pub env: Vec<(String, String)>,
    /// Wall time after which it is killed.
    pub timeout: Option<Duration>,
}

/// Whether containers of an image see `/cvmfs`, if the machine has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CvmfsBind {
    Wanted,
    /// No mount point for it can be made in them.
    LeftOut,
}

impl ContainerSpec {
    /// Whether the arguments or variables name an outfile, so that a task is to write one.
    #[must_use]
    pub fn names_outfile(&self) -> bool {
        self.args.names_outfile() || self.env.iter().any(|(_, value)| names_outfile(value))
    }
}

pub use init_container::run_init;

/// Shared with the threads that do blocking file work.
pub type SharedTaskContext = Arc<TaskContext>;

/// Runs file work on a thread of its own, inside the current span.
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
