//! The guardian: a process that kills the pilot's containers when the pilot is gone, even if that was killed.

pub(super) mod client;
pub(super) mod protocol;
pub(super) mod server;
