//! How the pilot reports to HTCondor, as configured. Apart from the module that talks to HTCondor,
//! so that settings can be checked where it isn't there.

use std::time::Duration;

/// How HTCondor is told what the pilot does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChirpConfig {
    /// Where HTCondor puts it.
    pub destination: ChirpDestination,
    /// The least time between two reports of the counters; status and errors go at once.
    pub interval: Duration,
}

/// Where HTCondor puts what the pilot reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChirpDestination {
    /// The job's attributes, which `condor_q` shows.
    JobAttributes,
    JobEventLog,
}

/// The words of `EWMS_PILOT_HTCHIRP_DEST` and what they mean.
pub(super) const DESTINATIONS: [(&str, ChirpDestination); 2] = [
    ("JOB_ATTR", ChirpDestination::JobAttributes),
    ("JOB_EVENT_LOG", ChirpDestination::JobEventLog),
];
