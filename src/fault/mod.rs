//! The faults of tasks and machines: their names, their texts, and whose fault they are.
//!
//! | file | content |
//! | --- | --- |
//! | `mod` | [`TaskError`]: the failure of a task, with its name, its text and its class |
//! | `cause` | [`Cause`]: a fault outside of a task, with its class and its remedy |
//! | `apptainer_faults`, `stderr` | the rules that read exit codes and stderr |
//! | `attribution` | whose fault a failure is after the machine was asked, as an error |
//! | `diagnosis` | an observation and its fix, for the preflight and the pilot's own errors |
//! | `failures` | all failures of one pilot, counted |
//!
//! Names and texts are those of the Python pilot if it has them: users list the names in
//! `EWMS_PILOT_OKAY_ERRORS`, and services count errors whose texts are *equal*. So no text contains an id, a
//! task's path or a time.
//!
//! To add a fault, add a variant of [`TaskError`]; the compiler then asks for its name, its text and its
//! class.

mod apptainer_faults;
mod attribution;
mod cause;
mod diagnosis;
mod failures;
mod python;
mod stderr;

use std::fmt;
use std::time::Duration;

use crate::exit::Exit;

pub use apptainer_faults::{NO_COMMAND, NextStep, ProbeResult, answer, find_cause, suspect};
pub use attribution::Attribution;
pub use cause::Cause;
pub use diagnosis::Diagnosis;
pub use failures::Failures;
pub use python::python_repr;
pub use stderr::{READ, apptainer_error, lines, readable, reason, scrub};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultClass {
    /// The task's program, or its output.
    Task,
    /// The event can't be read, or doesn't suit the workflow.
    Event,
    Image,
    Ep,
    Broker,
}

impl FaultClass {
    /// The name in records and logs. Its meaning never changes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Event => "event",
            Self::Image => "image",
            Self::Ep => "ep",
            Self::Broker => "broker",
        }
    }

    /// The exit code of a pilot that ends because of it.
    #[must_use]
    pub fn exit(self) -> Exit {
        match self {
            Self::Task | Self::Event => Exit::TasksFailed,
            Self::Image => Exit::Image,
            Self::Ep => Exit::ExecutionPoint,
            Self::Broker => Exit::Broker,
        }
    }

    /// Whether the failure counts against the event. Any other failure says nothing about the event and would
    /// hit every further one, so the pilot takes no more.
    #[must_use]
    pub fn is_events_own(self) -> bool {
        match self {
            Self::Task | Self::Event => true,
            Self::Image | Self::Ep | Self::Broker => false,
        }
    }
}

impl fmt::Display for FaultClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The container that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContainerRole {
    /// A container that worked on an event.
    Task,
    /// The container that runs before the first event.
    Init,
}

impl fmt::Display for ContainerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Task => "task",
            Self::Init => "init-container",
        })
    }
}

/// The failure of one task or of the init container. Displays as its [message](Self::message).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    #[error("{role} failed{}: {reason}", exit_code.map(|code| format!(" (exit code {code})")).unwrap_or_default())]
    ContainerRun {
        role: ContainerRole,
        /// The container's exit code, if it has one.
        exit_code: Option<i32>,
        /// The reason from its stderr, see [`reason`].
        reason: String,
        class: FaultClass,
    },
    /// The container exceeded its time limit.
    #[error("{role} failed: [Timeout-Error] timed out after {}s", after.as_secs_f64())]
    Timeout {
        role: ContainerRole,
        after: Duration,
    },
    /// The task's container exceeded its memory limit.
    #[error(
        "task failed: [Memory-Error] more than {limit} bytes of memory used; raise EWMS_PILOT_TASK_MEMORY, or the job's request with `auto`"
    )]
    Memory {
        /// The limit in bytes.
        limit: u64,
    },
    /// The kernel killed the container because the memory of the job was used up.
    #[error("{role} failed: [Memory-Error] the kernel killed it for memory{}", remedy_of_memory(*.limit))]
    OutOfMemory {
        role: ContainerRole,
        /// The job's limit in bytes, if known.
        limit: Option<u64>,
    },
    /// The task used no CPU time and wrote no output.
    #[error("task failed: [Stall-Error] neither CPU time nor output for {}s", after.as_secs_f64())]
    Stalled { after: Duration },
    /// The container could not be prepared or started.
    #[error("{message}")]
    ContainerSetup {
        /// The failed step and its error.
        message: String,
        class: FaultClass,
    },
    /// The event's data can't be written into an infile of the configured extension.
    #[error("{0}")]
    InvalidDataForInfile(String),
    /// The task's outfile can't be sent.
    #[error("{0}")]
    InvalidDataFromOutfile(String),
    /// A directory can't be bound into the container.
    #[error("{0}")]
    InvalidBindMount(String),
    /// The event can't be read. (The Python pilot redelivers such an event endlessly.)
    #[error("{0}")]
    EventDecode(String),
    /// The result can't be published: no queue takes it.
    #[error("{message}")]
    Publish {
        /// The failed step and its error.
        message: String,
        class: FaultClass,
    },
    /// The result is larger than the broker takes. A retry would not help.
    #[error(
        "the result is too large for the broker: `{bytes}` bytes or more after compression, the limit is `{limit}`; \
         let the task write a smaller outfile, or raise max_message_size at the broker and \
         EWMS_PILOT_BROKER_MAX_MESSAGE_SIZE"
    )]
    ResultTooLarge {
        /// The size of the message's body, as far as it was packed.
        bytes: usize,
        /// The largest body that the broker takes.
        limit: usize,
    },
    /// The machine failed: a full disk, no more processes.
    #[error("{0}")]
    Os(String),
}

impl TaskError {
    /// The name of the error's class in Python, or of the class that it would have.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::ContainerRun { .. }
            | Self::Timeout { .. }
            | Self::Memory { .. }
            | Self::OutOfMemory { .. }
            | Self::Stalled { .. } => "ContainerRunError",
            Self::ContainerSetup { .. } => "ContainerSetupError",
            Self::InvalidDataForInfile(_) => "InvalidDataForInfileException",
            Self::InvalidDataFromOutfile(_) => "InvalidDataFromOutfileException",
            Self::InvalidBindMount(_) => "InvalidBindMountError",
            Self::EventDecode(_) => "EventDecodeError",
            Self::Publish { .. } | Self::ResultTooLarge { .. } => "PublishError",
            Self::Os(_) => "OSError",
        }
    }

    /// All names by which `EWMS_PILOT_OKAY_ERRORS` may mean this error. Users write `TimeoutError` for a
    /// timeout, though it is displayed as a `ContainerRunError`.
    #[must_use]
    pub fn names(&self) -> &'static [&'static str] {
        match self {
            Self::Timeout { .. } => &["ContainerRunError", "TimeoutError"],
            Self::Memory { .. } | Self::OutOfMemory { .. } => &["ContainerRunError", "MemoryError"],
            Self::Stalled { .. } => &["ContainerRunError", "StallError"],
            Self::ContainerRun { .. } => &["ContainerRunError"],
            Self::ContainerSetup { .. } => &["ContainerSetupError"],
            Self::InvalidDataForInfile(_) => &["InvalidDataForInfileException"],
            Self::InvalidDataFromOutfile(_) => &["InvalidDataFromOutfileException"],
            Self::InvalidBindMount(_) => &["InvalidBindMountError"],
            Self::EventDecode(_) => &["EventDecodeError"],
            Self::Publish { .. } | Self::ResultTooLarge { .. } => &["PublishError"],
            Self::Os(_) => &["OSError"],
        }
    }

    /// Whose fault it is. Only this match decides that.
    #[must_use]
    pub fn class(&self) -> FaultClass {
        match self {
            Self::ContainerRun { class, .. }
            | Self::ContainerSetup { class, .. }
            | Self::Publish { class, .. } => *class,
            Self::Timeout { .. }
            | Self::Memory { .. }
            | Self::OutOfMemory { .. }
            | Self::Stalled { .. }
            | Self::ResultTooLarge { .. }
            | Self::InvalidDataFromOutfile(_) => FaultClass::Task,
            Self::InvalidDataForInfile(_) | Self::EventDecode(_) => FaultClass::Event,
            Self::InvalidBindMount(_) | Self::Os(_) => FaultClass::Ep,
        }
    }

    /// Whether the Python pilot calls it a `ContainerRunError`.
    #[must_use]
    pub fn is_container_run(&self) -> bool {
        self.names().contains(&"ContainerRunError")
    }

    /// Whether every delivery of the event would fail in the same way.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::ResultTooLarge { .. })
    }

    /// The text without the name.
    #[must_use]
    pub fn message(&self) -> String {
        self.to_string()
    }

    /// The same error, with `edit` applied to any text that came from outside.
    #[must_use]
    pub fn edited(mut self, edit: impl FnOnce(&str) -> String) -> Self {
        match &mut self {
            Self::Timeout { .. }
            | Self::Memory { .. }
            | Self::OutOfMemory { .. }
            | Self::Stalled { .. }
            | Self::ResultTooLarge { .. } => {}
            Self::ContainerRun { reason: text, .. }
            | Self::ContainerSetup { message: text, .. }
            | Self::Publish { message: text, .. }
            | Self::InvalidDataForInfile(text)
            | Self::InvalidDataFromOutfile(text)
            | Self::InvalidBindMount(text)
            | Self::EventDecode(text)
            | Self::Os(text) => *text = edit(text),
        }
        self
    }

    /// The error's `repr` in Python: `ContainerRunError('task failed: …')`.
    #[must_use]
    pub fn repr(&self) -> String {
        format!("{}({})", self.name(), python_repr(&self.message()))
    }
}

/// A `request_memory`, in MiB, of one and a half times the job's limit, rounded up: the real need of a killed
/// task is unknown. It depends only on the job, so that equal failures read the same.
#[must_use]
pub fn larger_request_mib(limit: u64) -> u64 {
    const STEP: u64 = 128;
    const MIB: u64 = 1024 * 1024;
    (limit + limit / 2).div_ceil(STEP * MIB) * STEP
}

fn remedy_of_memory(limit: Option<u64>) -> String {
    match limit {
        Some(limit) => format!(
            ": all of the job's `{limit}` bytes were used; let it take less, or use request_memory = {}",
            larger_request_mib(limit)
        ),
        None => "; let it take less, or raise request_memory".to_owned(),
    }
}

#[cfg(test)]
mod tests;
