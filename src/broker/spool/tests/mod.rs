//! The spool against a real directory, and the helpers that its tests share.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::time::timeout;

use super::SpoolSource;
use super::lease::Lease;
use super::paths::SpoolPaths;
use crate::broker::{Content, Delivery, Direction};

mod events;
mod results;
mod sharing;

const DEADLINE: Duration = Duration::from_secs(20);

struct Spool {
    root: TempDir,
}

impl Spool {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("q")).unwrap();
        Self { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("q").join(name)
    }

    /// Writes under a hidden name, then renames, as a careful producer does.
    fn put(&self, name: &str, text: &str) {
        fs::write(self.path(".new"), text).unwrap();
        let old = SystemTime::now() - Duration::from_secs(10);
        File::options()
            .write(true)
            .open(self.path(".new"))
            .unwrap()
            .set_modified(old)
            .unwrap();
        fs::rename(self.path(".new"), self.path(name)).unwrap();
    }

    async fn source(&self, window: u32) -> SpoolSource {
        SpoolSource::open("q", self.root.path(), NonZeroU32::new(window).unwrap())
            .await
            .unwrap()
    }

    fn paths(&self) -> SpoolPaths {
        let paths = SpoolPaths::new(Direction::Incoming, "q", self.root.path()).unwrap();
        paths.create().unwrap();
        paths
    }

    fn names(&self, directory: &str) -> BTreeSet<String> {
        fs::read_dir(self.path(directory))
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_file())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect()
    }
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

async fn next(source: &mut SpoolSource) -> Delivery {
    timeout(DEADLINE, source.recv())
        .await
        .expect("an event within the deadline")
        .unwrap()
}

fn text(delivery: &Delivery) -> &str {
    match &delivery.content {
        Content::File(_, bytes) => std::str::from_utf8(bytes.in_memory().unwrap()).unwrap(),
        Content::Frame(_) => panic!("a frame from a spool"),
    }
}

/// Asserts that there is no event, neither now nor after a moment in which everything else runs.
async fn nothing(source: &mut SpoolSource) {
    let received = timeout(Duration::from_millis(600), source.recv()).await;
    assert!(received.is_err(), "{received:?}");
}

/// Makes a holder look as if its pilot, on another machine, had died long ago.
fn bury(own_lease: &Lease) {
    let lease = own_lease.directory.join(".lease");
    let long_ago = SystemTime::now() - Duration::from_mins(10);
    fs::write(&lease, "boot=another\ndevice=1\nlock=flock\n").unwrap();
    File::options()
        .write(true)
        .open(&lease)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
}
