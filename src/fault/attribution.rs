//! Whose fault a container's failure is, after the machine was asked, and the error that says so.

use super::{Cause, ContainerRole, FaultClass, TaskError, reason};

/// The result of a diagnosis, with its observation.
#[derive(Debug)]
pub enum Attribution {
    /// The task's fault, or none with exit code 0.
    Task,
    Cause(Cause, String),
    /// The pilot was told to end before that was known.
    Unknown,
}

impl Attribution {
    /// The error of a container that ended with `exit_code` after writing `stderr` (its end is enough): the
    /// reason from stderr and, unless it is the task's own fault, whose fault it is and the remedy.
    #[must_use]
    pub fn error(&self, role: ContainerRole, exit_code: i32, stderr: &[u8]) -> TaskError {
        let reason = reason(stderr);
        let (reason, class) = match self {
            Self::Task | Self::Unknown => (reason, FaultClass::Task),
            Self::Cause(cause, said) if reason.contains(said.as_str()) => {
                (not_the_tasks(*cause, &reason), cause.class())
            }
            Self::Cause(cause, said) => {
                let reason = format!("{reason}; {said}");
                (not_the_tasks(*cause, &reason), cause.class())
            }
        };
        TaskError::ContainerRun {
            role,
            exit_code: Some(exit_code),
            reason,
            class,
        }
    }
}

impl TaskError {
    /// A container that could not be made for a known cause.
    #[must_use]
    pub fn setup(cause: Cause, said: &str) -> Self {
        Self::ContainerSetup {
            message: not_the_tasks(cause, said),
            class: cause.class(),
        }
    }
}

fn not_the_tasks(cause: Cause, said: &str) -> String {
    let whose = match cause.class() {
        FaultClass::Image => "the image's fault",
        _ => "the execution point's fault, not the task's",
    };
    format!("{said}; {whose} ({cause}): {}", cause.remedy())
}
