//! What every integration test needs: the real binary in a scene of its own, queues on real parts, a
//! look at the processes of the machine. Knows the pilot only from outside, by its variables, files,
//! lines and exit code. The tests run in the throw-away execution point that `scripts/test` enters.

pub(crate) mod broker;
pub(crate) mod certificates;
pub(crate) mod chirp;
pub(crate) mod cluster;
pub(crate) mod condor;
pub(crate) mod faults;
pub(crate) mod images;
pub(crate) mod mounts;
pub(crate) mod oauth;
pub(crate) mod processes;
pub(crate) mod proxy;
pub(crate) mod rabbitmq;
pub(crate) mod scene;
pub(crate) mod service;
pub(crate) mod source;
pub(crate) mod spool;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Long enough for anything that needs no waiting, on a machine that is busy with other tests.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Polls until `condition` holds; says afterwards whether it did within `deadline`.
pub(crate) fn eventually(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The pilot under test: `scripts/test` says where it is in the execution point.
pub(crate) fn pilot_binary() -> PathBuf {
    std::env::var_os("EWMS_PILOT_BIN")
        .map_or_else(|| env!("CARGO_BIN_EXE_ewms-pilot").into(), PathBuf::from)
}

/// The checkout, read-only in the execution point.
pub(crate) fn source_dir() -> PathBuf {
    std::env::var_os("EWMS_PILOT_SOURCE")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}
