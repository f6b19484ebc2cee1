//! What can go wrong with a task or a machine, what it is called, and whose fault it is.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `mod` | [`TaskError`]: why a task failed, with its name, its text and its class |
//! | `cause` | [`Cause`]: what goes wrong outside of a task, whose fault that is and what to do |
//! | `apptainer_faults`, `stderr` | the rules that read exit codes and stderr |
//! | `attribution` | whose fault a failure is once the machine was asked, as an error |
//! | `diagnosis` | what was seen and how to fix it, for the preflight and the pilot's own errors |
//! | `failures` | all failures of one pilot, counted |
//!
//! Names and texts are those of the Python pilot where it has one: users list the names in
//! `EWMS_PILOT_OKAY_ERRORS`, and services count errors whose texts are *equal*. So no text holds an
//! id, a task's path or a time.
//!
//! A fault is added by a variant of [`TaskError`]; the compiler then asks for its name, its text and
//! its class.

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
    /// The task's program, or what it wrote.
    Task,
    /// The event's: it can't be read, or doesn't suit the workflow.
    Event,
    Image,
    Ep,
    Broker,
}

impl FaultClass {
    /// Its name in records and logs, which never changes its meaning.
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

    /// The exit code of a pilot that ends for it.
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
    /// meet every further one, so no more are taken.
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

/// Which container a failure is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContainerRole {
    /// One that worked on an event.
    Task,
    /// The one that ran before the first event.
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

/// Why one task (or the init container) failed. Displays as its [message](Self::message).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    #[error("{role} failed{}: {reason}", exit_code.map(|code| format!(" (exit code {code})")).unwrap_or_default())]
    ContainerRun {
        role: ContainerRole,
        /// Its exit code, if it came to one.
        exit_code: Option<i32>,
        /// What its stderr says, see [`reason`].
        reason: String,
        class: FaultClass,
    },
    /// The container ran longer than it may.
    #[error("{role} failed: [Timeout-Error] timed out after {}s", after.as_secs_f64())]
    Timeout {
        role: ContainerRole,
        after: Duration,
    },
    /// The task's container took more memory than it may.
    #[error(
        "task failed: [Memory-Error] more than {limit} bytes of memory used; raise EWMS_PILOT_TASK_MEMORY, or the job's request with `auto`"
    )]
    Memory {
        /// What it may take, in bytes.
        limit: u64,
    },
    /// The kernel killed it because the memory of the job was used up.
    #[error("{role} failed: [Memory-Error] the kernel killed it for memory{}", remedy_of_memory(*.limit))]
    OutOfMemory {
        role: ContainerRole,
        /// What the job may have, in bytes, if that is known.
        limit: Option<u64>,
    },
    /// The task neither worked nor wrote.
    #[error("task failed: [Stall-Error] neither CPU time nor output for {}s", after.as_secs_f64())]
    Stalled { after: Duration },
    /// The container could not be prepared or started.
    #[error("{message}")]
    ContainerSetup {
        /// What did not work.
        message: String,
        class: FaultClass,
    },
    /// The event's data can't be written into an infile of the configured extension.
    #[error("{0}")]
    InvalidDataForInfile(String),
    /// What the task left as its outfile can't be sent.
    #[error("{0}")]
    InvalidDataFromOutfile(String),
    /// A directory can't be bound into the container.
    #[error("{0}")]
    InvalidBindMount(String),
    /// The event can't be read. (The Python pilot redelivers such an event without end.)
    #[error("{0}")]
    EventDecode(String),
    /// The result can't be published: no queue takes it.
    #[error("{message}")]
    Publish {
        /// What did not work.
        message: String,
        class: FaultClass,
    },
    /// The result is larger than the broker takes, however often it is made.
    #[error(
        "the result is too large for the broker: `{bytes}` bytes or more after compression, the limit is `{limit}`; \
         let the task write a smaller outfile, or raise max_message_size at the broker and \
         EWMS_PILOT_BROKER_MAX_MESSAGE_SIZE"
    )]
    ResultTooLarge {
        /// Size of the message's body, as far as it was packed.
        bytes: usize,
        /// The most that the broker takes.
        limit: usize,
    },
    /// The machine failed: a full disk, no more processes.
    #[error("{0}")]
    Os(String),
}

impl TaskError {
    /// The error's class name in Python, or what it would be.
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

    /// Every name by which `EWMS_PILOT_OKAY_ERRORS` may mean this error. `TimeoutError` is what users
    /// write for a timeout, though it is displayed as a `ContainerRunError`.
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

    /// Whose fault it is: the one place that decides.
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

    /// Whether it is what the Python pilot calls a `ContainerRunError`.
    #[must_use]
    pub fn is_container_run(&self) -> bool {
        self.names().contains(&"ContainerRunError")
    }

    /// Whether it would be the same however often the event is delivered.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::ResultTooLarge { .. })
    }

    /// The text without the name.
    #[must_use]
    pub fn message(&self) -> String {
        self.to_string()
    }

    /// The same error, its text changed by `edit` wherever it came from outside.
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

    /// As Python would write it: `ContainerRunError('task failed: …')`.
    #[must_use]
    pub fn repr(&self) -> String {
        format!("{}({})", self.name(), python_repr(&self.message()))
    }
}

/// A `request_memory`, in MiB, of half as much again as the job had, in round numbers: how much a killed task
/// would have taken is not known. It depends on the job alone, so that equal failures read the same.
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
