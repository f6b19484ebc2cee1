//! Watches the free space of the disk that holds the pilot data. Off the event loop, because a file system
//! that hangs would hold it up.

use std::path::PathBuf;
use std::time::Duration;

use crate::task::disk_space;

const PACE: Duration = Duration::from_secs(2);

/// The space that must stay free, and where.
#[derive(Debug, Clone)]
pub struct DiskFloor {
    pub directory: PathBuf,
    /// Least free bytes.
    pub bytes: u64,
}

impl DiskFloor {
    /// Returns a message once less is free. A disk that can't be asked doesn't end the pilot.
    pub async fn crossed(self) -> String {
        loop {
            let directory = self.directory.clone();
            let free = crate::blocking::start(move || disk_space::free(&directory)).await;
            if let Ok(Ok(free)) = free
                && free < self.bytes
            {
                return format!(
                    "less than `{}` bytes are free on the disk of `{}`, which EWMS_PILOT_MIN_FREE_DISK asks \
                     for; see to the disk, or request more for the job",
                    self.bytes,
                    self.directory.display()
                );
            }
            tokio::time::sleep(PACE).await;
        }
    }
}
