//! Errors that end a pilot, with the exit code and last line of each.

use thiserror::Error;

use crate::exit::Exit;
use crate::fault::{FaultClass, TaskError};
use crate::preflight::CheckProblem;

/// An error that is not one task's.
#[derive(Debug, Clone, Error)]
pub enum PilotError {
    /// The configuration is wrong in a way that shows only on the EP.
    #[error("RuntimeError: {0}")]
    Configuration(String),
    /// An external directory can't be bound.
    #[error("InvalidBindMountError: {0}")]
    Bind(String),
    /// The machine can't do what a pilot needs.
    #[error("RuntimeError: {0}")]
    ExecutionPoint(String),
    #[error("ContainerSetupError: {0}")]
    Image(String),
    #[error("{}: {}", .0.name(), .0.message())]
    Init(TaskError),
    /// The broker can't be reached, or was lost.
    #[error("RuntimeError: {0}")]
    Broker(String),
    #[error(
        "RuntimeError: ended by signal {0}; no event is lost: whatever was not finished is in its queue"
    )]
    Signal(i32),
}

impl From<CheckProblem> for PilotError {
    fn from(problem: CheckProblem) -> Self {
        Self::of(problem.class, problem.to_string())
    }
}

impl PilotError {
    #[must_use]
    pub fn of(class: FaultClass, text: String) -> Self {
        match class {
            FaultClass::Image => Self::Image(text),
            FaultClass::Broker => Self::Broker(text),
            FaultClass::Ep => Self::ExecutionPoint(text),
            // Before there is any event, what is wrong with a task is wrong with its settings.
            FaultClass::Task | FaultClass::Event => Self::Configuration(text),
        }
    }

    /// The text without the error's name.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Configuration(text)
            | Self::Bind(text)
            | Self::ExecutionPoint(text)
            | Self::Image(text)
            | Self::Broker(text) => text.clone(),
            Self::Init(_) | Self::Signal(_) => self.to_string(),
        }
    }

    /// What HTCondor is told.
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
