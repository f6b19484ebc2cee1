//! The guardian: a process that kills the pilot's containers when the pilot is gone, even after a SIGKILL.

pub(super) mod client;
pub(super) mod protocol;
pub(super) mod server;
