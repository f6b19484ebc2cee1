//! Newtypes for identities, so that one kind of number is never taken for another.

use std::fmt;

use nix::unistd::Pid;
use uuid::Uuid;

/// Names one task: one run of the task image on one event. Also the name of its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Uuid);

impl TaskId {
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

/// A broker's number for one delivery. It is valid on one channel only, so it never travels without its
/// [`Generation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryTag(pub u64);

/// One of the queues that share a session with a broker: its place in the list that the session was
/// opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueIndex(pub usize);

/// Counts the sessions with a broker; a delivery tag of another generation is never used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// The system's host name. HTCondor may know the machine by another one, which
/// [`MachineNames`](crate::config::MachineNames) has.
#[must_use]
pub fn host_name() -> String {
    nix::unistd::gethostname().map_or_else(
        |_| "unknown-host".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// The process group, and session, of one container: the pid of the process that leads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessGroup(pub Pid);

impl fmt::Display for ProcessGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
