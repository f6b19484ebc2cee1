//! Chirp: tells HTCondor what the pilot is doing, through attributes of the job ad or lines of the job event
//! log.
//!
//! Chirp never slows or ends a pilot: the pilot sets values, and [`reporter`] sends them to the starter when
//! it can.
//!
//! - [`value`]: a value as ClassAd text, quoted as HTCondor quotes it and cut to its budget.
//! - [`protocol`]: the server's address, commands, replies.
//! - [`client`]: one connection.
//! - `update_queue`: what is yet to be sent, and when.
//! - [`reporter`]: the actor that sends, and its handle.

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
    /// The least time between two reports of [`Urgency::WithinInterval`] values.
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
