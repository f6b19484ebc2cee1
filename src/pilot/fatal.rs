//! What ends a pilot, and the exit code and last line it ends with.

use thiserror::Error;

use crate::exit::Exit;
use crate::fault::TaskError;

/// An error that is not one task's.
#[derive(Debug, Error)]
pub enum Fatal {
    /// The configuration is wrong in a way that shows only on the EP.
    #[error("RuntimeError: {0}")]
    Configuration(String),
    /// An external directory can't be bound.
    #[error("InvalidBindMountError: {0}")]
    Bind(String),
    /// The machine can't do what a pilot needs.
    #[error("RuntimeError: {0}")]
    ExecutionPoint(String),
    /// The image can't be used.
    #[error("ContainerSetupError: {0}")]
    Image(String),
    /// The init container failed.
    #[error("{}: {}", .0.name(), .0.message())]
    Init(TaskError),
    /// The broker can't be reached, or was lost.
    #[error("RuntimeError: {0}")]
    Broker(String),
    /// Ended by a signal before the first event.
    #[error("RuntimeError: ended by signal {0} before any event was taken")]
    Signal(i32),
}

impl Fatal {
    /// What HTCondor is told.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Configuration(_) => Exit::Configuration,
            Self::Bind(_) | Self::ExecutionPoint(_) => Exit::ExecutionPoint,
            Self::Image(_) => Exit::Image,
            Self::Init(_) => Exit::Init,
            Self::Broker(_) => Exit::Broker,
            Self::Signal(signal) => Exit::Signal(*signal),
        }
    }
}
