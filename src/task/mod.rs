//! One event in, one report out: stages the files, runs the container, reads what it wrote. Uses
//! codec, container and process; never sees a delivery, so it can't ack anything.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{DumpOutput, KeepFiles, Verbosity};
use crate::container::{Apptainer, Bind, ProcMount, Template, names_outfile};
use crate::process::Guard;
use crate::telemetry::Progress;

mod blame;
mod capped;
pub mod census;
pub mod disk;
mod external;
mod guards;
pub mod image;
mod init;
pub mod inputs;
mod keepsake;
mod launch;
mod leftover;
pub mod look;
mod memory_cgroup;
pub mod own;
pub mod probe;
mod run;
mod running;
mod shared_look;
mod spare;
pub mod staging;
mod trace;
mod transfer;

pub use blame::write_something;
pub use external::{ExternalDirs, ExternalError};
pub use guards::Guards;
pub use keepsake::Keepsake;
pub use leftover::Leftover;
pub use memory_cgroup::MemoryKills;
pub use run::{Report, Runner, TaskEnd, Turn};
pub use running::{Containers, Running};
pub use shared_look::SharedLook;
pub use trace::Trace;
pub use transfer::Room;

use staging::DataDirs;

/// What all containers of a pilot have in common.
#[derive(Debug)]
pub struct Workbench {
    /// The runtime.
    pub apptainer: Apptainer,
    /// What every container is started through.
    pub guard: Guard,
    /// Where files go.
    pub dirs: DataDirs,
    /// The files that came with the job.
    pub inputs: Option<Bind>,
    /// The user's external directories.
    pub external: ExternalDirs,
    /// Time between telling a container and killing it.
    pub grace: Duration,
    /// Which directories survive.
    pub keep: KeepFiles,
    /// What a task is ended for.
    pub guards: Guards,
    /// The kernel's own kills.
    pub memory_kills: MemoryKills,
    /// Bytes kept of each output.
    pub output_limit: u64,
    /// What may still be kept of failed tasks.
    pub kept: Arc<disk::Budget>,
    /// Whose output goes to the log.
    pub dump: DumpOutput,
    /// How much Apptainer says.
    pub verbosity: Verbosity,
    /// Whether containers have a `/proc`.
    pub proc: ProcMount,
    /// Where containers' output is shown.
    pub log: Progress,
    /// The containers that run now.
    pub running: Running,
    /// What the tasks' guards see.
    pub look: SharedLook,
}

/// What to run: the tasks' container, or the init container.
#[derive(Debug)]
pub struct ContainerPlan {
    /// A sandbox directory.
    pub image: PathBuf,
    /// A script of ours that its containers need to get their variables.
    pub repair: Option<Bind>,
    /// Arguments, placeholders not replaced yet.
    pub args: Template,
    /// The user's variables.
    pub env: Vec<(String, String)>,
    /// Wall time after which it is killed.
    pub timeout: Option<Duration>,
}

impl ContainerPlan {
    /// Whether the arguments or variables name an outfile, so that a task is to write one.
    #[must_use]
    pub fn names_outfile(&self) -> bool {
        self.args.names_outfile() || self.env.iter().any(|(_, value)| names_outfile(value))
    }
}

pub use init::{Initialized, run_init};

/// A workbench is shared with the threads that do blocking file work.
pub type SharedWorkbench = Arc<Workbench>;
