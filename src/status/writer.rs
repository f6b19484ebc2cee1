//! The pilot's side of the status file: takes changes without making the pilot wait, and writes the file. It
//! sleeps until something changes. If the file can't be written, the pilot goes on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use super::debounce::Debounce;
use super::discover::{self, Liveness};
use super::{Snapshot, file};
use crate::blocking;
use crate::mailbox::{Mail, Mailbox, MailboxSender, mailbox};

/// How long a pilot waits at its end for the file to be removed. On a sound disk that takes less than a
/// millisecond.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// A handle to the writer. When the last one is dropped the writing ends, and the file stays.
#[derive(Debug, Clone)]
pub struct StatusWriter(MailboxSender<Debounce>);

impl StatusWriter {
    /// Starts the writer on the current tokio runtime; there must be one. The file is in `directory`; files of
    /// dead pilots there are removed.
    #[must_use]
    pub fn start(directory: &Path, first: Snapshot) -> Self {
        let path = file::path(directory, &first.facts.pilot_id);
        let (sender, mailbox) = mailbox(Debounce::new(first));
        let actor = StatusActor {
            path,
            mailbox,
            health: WriteHealth::Well,
        };
        tokio::spawn(actor.run(directory.to_owned()));
        Self(sender)
    }

    /// Changes the content of the file.
    pub fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        self.0.change(|debounce| debounce.change(change));
    }

    /// Removes the file; nothing is written afterwards. Bounded in time.
    pub async fn close(&self) {
        if self.0.request(CLOSE_WITHIN).await.is_err() {
            warn!("the status file could not be removed in time");
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriteHealth {
    Well,
    Failing,
}

#[derive(Debug)]
struct StatusActor {
    path: PathBuf,
    mailbox: Mailbox<Debounce>,
    health: WriteHealth,
}

impl StatusActor {
    async fn run(mut self, directory: PathBuf) {
        off_the_loop(move || sweep(&directory)).await;
        loop {
            let due = self.mailbox.state().due(Instant::now());
            match self.mailbox.next(due).await {
                Mail::Changed => {}
                Mail::Due => self.write().await,
                Mail::Request(done) => {
                    self.remove().await;
                    // The caller may have stopped waiting.
                    let _ = done.send(());
                    return;
                }
                Mail::Closed => return,
            }
        }
    }

    async fn write(&mut self) {
        let snapshot = self.mailbox.state().take(Instant::now());
        let path = self.path.clone();
        let Some(written) = off_the_loop(move || file::write(&path, snapshot)).await else {
            return;
        };
        match written {
            Ok(()) => self.health = WriteHealth::Well,
            // The pilot makes the directory later, or reports that it can't.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                debug!(file = %self.path.display(), %error, "no status file yet");
            }
            Err(error) => {
                if self.health == WriteHealth::Well {
                    warn!(
                        file = %self.path.display(), %error,
                        "the status file can't be written; see to the disk's free space: the pilot goes \
                         on, `ewms-pilot status` shows old news"
                    );
                }
                self.health = WriteHealth::Failing;
            }
        }
    }

    async fn remove(&self) {
        let path = self.path.clone();
        if let Some(Err(error)) = off_the_loop(move || file::remove(&path)).await {
            warn!(file = %self.path.display(), %error, "the status file can't be removed");
        }
    }
}

/// Removes the files of pilots that were killed here.
fn sweep(directory: &Path) {
    for path in file::list(directory).unwrap_or_default() {
        let Ok(snapshot) = file::read(&path) else {
            continue;
        };
        if discover::liveness(&snapshot.facts.process) == Liveness::Dead {
            // It may be another user's, or another pilot may remove it at the same time.
            let _ = file::remove(&path);
        }
    }
}

/// Runs work on files off the event loop, because file systems may hang.
async fn off_the_loop<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    blocking::start(work).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::ProcessId;

    fn snapshot(id: &str) -> Snapshot {
        let mut snapshot = Snapshot::default();
        id.clone_into(&mut snapshot.facts.pilot_id);
        snapshot.facts.process = ProcessId::own();
        snapshot
    }

    async fn until(mut condition: impl FnMut() -> bool) {
        for _ in 0..1000 {
            if condition() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it never was");
    }

    #[tokio::test]
    async fn a_change_is_on_disk_soon_and_the_file_goes_with_the_pilot() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = file::path(directory.path(), "p");
        let keeper = StatusWriter::start(directory.path(), snapshot("p"));
        until(|| path.exists()).await;
        keeper.change(|snapshot| snapshot.facts.slots = 7);
        let slots = || file::read(&path).expect("it is whole").facts.slots;
        until(|| slots() == 7).await;
        keeper.change(|snapshot| snapshot.facts.slots = 8);
        keeper.close().await;
        assert_eq!(file::list(directory.path()).expect("listed").len(), 0);
        keeper.close().await;
    }

    #[tokio::test]
    async fn files_of_dead_pilots_go_and_those_of_living_ones_stay() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut dead = snapshot("dead");
        dead.facts.process.start_ticks += 1;
        let mut elsewhere = snapshot("elsewhere");
        elsewhere.facts.process.host = "another".into();
        elsewhere.facts.process.boot_id = "another".into();
        for snapshot in [dead, elsewhere, snapshot("living")] {
            let path = file::path(directory.path(), &snapshot.facts.pilot_id);
            file::write(&path, snapshot).expect("written");
        }
        let keeper = StatusWriter::start(directory.path(), snapshot("p"));
        until(|| file::path(directory.path(), "p").exists()).await;
        let left = ["elsewhere", "living", "p"].map(|id| file::path(directory.path(), id));
        assert_eq!(file::list(directory.path()).expect("listed"), left);
        keeper.close().await;
    }

    #[tokio::test]
    async fn a_directory_that_takes_no_file_holds_nothing_up() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(file::path(directory.path(), "p").join("x")).expect("made");
        let keeper = StatusWriter::start(directory.path(), snapshot("p"));
        keeper.change(|snapshot| snapshot.facts.slots = 7);
        keeper.close().await;
    }
}
