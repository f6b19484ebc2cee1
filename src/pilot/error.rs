//! Errors that end a pilot, with the exit code and last line of each.

use thiserror::Error;

use crate::exit::Exit;
use crate::fault::{Diagnosis, FaultClass, TaskError};
use crate::preflight::CheckProblem;

/// An error that ends the pilot, rather than one task.
#[derive(Debug, Clone, Error)]
pub enum PilotError {
    /// The configuration is wrong in a way that shows only on the EP.
    #[error("RuntimeError: {0}")]
    Configuration(Diagnosis),
    /// An external directory can't be bound.
    #[error("InvalidBindMountError: {0}")]
    Bind(Diagnosis),
    /// The machine can't do what a pilot needs.
    #[error("RuntimeError: {0}")]
    ExecutionPoint(Diagnosis),
    #[error("ContainerSetupError: {0}")]
    Image(Diagnosis),
    #[error("{}: {}", .0.name(), .0.message())]
    Init(TaskError),
    /// The broker can't be reached, or was lost.
    #[error("RuntimeError: {0}")]
    Broker(Diagnosis),
    #[error(
        "RuntimeError: ended by signal {0}; no event is lost: whatever was not finished is in its queue"
    )]
    Signal(i32),
}

impl From<CheckProblem> for PilotError {
    fn from(problem: CheckProblem) -> Self {
        Self::of(problem.class, problem.diagnosis)
    }
}

impl PilotError {
    #[must_use]
    pub fn of(class: FaultClass, diagnosis: Diagnosis) -> Self {
        match class {
            FaultClass::Image => Self::Image(diagnosis),
            FaultClass::Broker => Self::Broker(diagnosis),
            FaultClass::Ep => Self::ExecutionPoint(diagnosis),
            // Before the first event, a fault of the task is a fault of its settings.
            FaultClass::Task | FaultClass::Event => Self::Configuration(diagnosis),
        }
    }

    /// The problem and its fix, without the error's name.
    #[must_use]
    pub fn diagnosis(&self) -> Diagnosis {
        match self {
            Self::Configuration(diagnosis)
            | Self::Bind(diagnosis)
            | Self::ExecutionPoint(diagnosis)
            | Self::Image(diagnosis)
            | Self::Broker(diagnosis) => diagnosis.clone(),
            Self::Init(_) | Self::Signal(_) => Diagnosis::without_fix(self.to_string()),
        }
    }

    /// The text that services count. For a container's error it is that of the Python pilot, without a name.
    /// `None` for a signal, which is no error.
    #[must_use]
    pub fn chirped(&self) -> Option<String> {
        match self {
            Self::Signal(_) => None,
            Self::Init(error) if error.is_container_run() => Some(error.message()),
            _ => Some(self.to_string()),
        }
    }

    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Configuration(_) => Exit::Configuration,
            Self::Bind(_) | Self::ExecutionPoint(_) => Exit::ExecutionPoint,
            Self::Image(_) => Exit::Image,
            Self::Init(error) => match error.class() {
                FaultClass::Task | FaultClass::Event => Exit::Init,
                class @ (FaultClass::Image | FaultClass::Ep | FaultClass::Broker) => class.exit(),
            },
            Self::Broker(_) => Exit::Broker,
            Self::Signal(signal) => Exit::Signal(*signal),
        }
    }
}
