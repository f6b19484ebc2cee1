//! Chirp: how a pilot tells HTCondor what it is doing, in the job ad or in the job event log.
//!
//! Talks TCP to the starter's I/O proxy and to nothing else. Apart from the rest because nothing
//! here may ever slow or end a pilot: the pilot sets values, [`reporter`] sends them when it can.
//!
//! - [`value`]: a value as ClassAd text, quoted as HTCondor quotes it and cut to its budget; pure.
//! - [`protocol`]: the wire: the server's address, commands, replies.
//! - [`client`]: one connection.
//! - `board`: what is yet to be sent, and when; pure.
//! - [`reporter`]: the actor that does the sending, and its handle.

pub mod client;
#[cfg(test)]
mod fake_server;
pub mod protocol;
pub mod reporter;
mod update_queue;
pub mod value;

use std::path::PathBuf;
use std::time::Duration;

pub use reporter::ChirpReporter;
pub use update_queue::Urgency;
pub use value::{ChirpValue, quote};

#[derive(Debug, Clone)]
pub struct ChirpSettings {
    pub destination: Destination,
    /// Least time between two reports of [`Urgency::WithinInterval`] values.
    pub interval: Duration,
    /// The file in which HTCondor's starter left `host port cookie`: `$_CONDOR_CHIRP_CONFIG`, else
    /// `.chirp.config` in the job's scratch directory.
    pub config_file: PathBuf,
}

/// Where in HTCondor values go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// Attributes of the job ad: numbers bare, text as ClassAd strings.
    JobAttr,
    /// Lines of the job event log: `NAME: "value"`.
    JobEventLog,
}
