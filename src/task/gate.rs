//! The pilot's side of a container's gate ([`crate::container::gate_script`]): two FIFOs in the directory that the
//! container sees. The container reports that it waits; the pilot moves them to where no container sees them,
//! and later writes the line that opens the gate.
//!
//! Further containers in the same directories get the same FIFOs: making two costs 0.25 ms on ext4, which is slow to
//! find a free inode after others were freed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc::O_NONBLOCK;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::net::unix::pipe;

use super::staging::{GATE_DIR, GATE_FILES, IO_IN_CONTAINER};
use crate::blocking;
use crate::container::{BEGINS, Bind, GatePaths, WAITS, gate_bind, gate_script};

/// The gate's script, and the bind by which a container with the other `binds` gets it. Blocks.
///
/// # Errors
/// When the script can't be written.
pub(super) fn bind(
    binds: &[Bind],
    script: impl FnOnce(&str) -> io::Result<PathBuf>,
) -> io::Result<Bind> {
    let [opens, reports] = GATE_FILES.map(|name| format!("{IO_IN_CONTAINER}/{GATE_DIR}/{name}"));
    let paths = GatePaths {
        opens: &opens,
        reports: &reports,
    };
    Ok(gate_bind(&script(&gate_script(paths, binds))?))
}

/// The open FIFOs of a gate, before an event loop watches them.
#[derive(Debug)]
pub(super) struct GateFiles {
    opens: File,
    reports: File,
    /// Their directory while the container may look for it, and later.
    seen: PathBuf,
    unseen: PathBuf,
}

impl GateFiles {
    /// Brings the FIFOs into the directory `io`, which the container sees: those that an earlier container left in
    /// `unseen`, or new ones in place of those at which it died. Blocks.
    ///
    /// # Errors
    /// When the file system can't have them.
    pub(super) fn make(io: &Path, unseen: &Path) -> io::Result<Self> {
        let (seen, unseen) = (io.join(GATE_DIR), unseen.join(GATE_DIR));
        let names = GATE_FILES.map(|name| seen.join(name));
        match fs::rename(&unseen, &seen) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match fs::remove_dir_all(&seen) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => fs::create_dir(&seen)?,
                }
                for name in &names {
                    mkfifo(name, Mode::S_IRUSR | Mode::S_IWUSR)?;
                }
            }
            moved => moved?,
        }
        // Opened for both directions, so that neither side waits for the other to open its end.
        let open = |name: &PathBuf| {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true);
            options.custom_flags(O_NONBLOCK).open(name)
        };
        Ok(Self {
            opens: open(&names[0])?,
            reports: open(&names[1])?,
            seen,
            unseen,
        })
    }

    /// Lets the container pass as soon as it comes to the gate, and each time: where a script of the image ends
    /// Apptainer's own shell with exit code 0, all are sourced once more by the image's.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub(super) fn open_for_good(&self) -> io::Result<()> {
        (&self.opens).write_all(&[b'\n'; 8])
    }

    /// Whether the container has passed.
    pub(super) fn was_passed(&self) -> bool {
        let mut reported = [0; 16];
        let read = io::Read::read(&mut &self.reports, &mut reported).unwrap_or(0);
        reported[..read].contains(&BEGINS)
    }
}

/// The gate of one container.
#[derive(Debug)]
pub(super) struct Gate {
    opens: File,
    reports: pipe::Receiver,
    seen: PathBuf,
    unseen: PathBuf,
    has_begun: bool,
}

impl Gate {
    /// # Errors
    /// When the event loop can't watch the files.
    pub(super) fn watch(files: GateFiles) -> io::Result<Self> {
        Ok(Self {
            opens: files.opens,
            reports: pipe::Receiver::from_owned_fd(files.reports.into())?,
            seen: files.seen,
            unseen: files.unseen,
            has_begun: false,
        })
    }

    /// Waits until the container waits. It has opened the FIFOs by then, and they are moved.
    ///
    /// # Errors
    /// When the files can't be read or moved.
    pub(super) async fn reached(&mut self) -> io::Result<()> {
        self.reported(WAITS).await?;
        let (seen, unseen) = (self.seen.clone(), self.unseen.clone());
        blocking::small_files(move || fs::rename(seen, unseen)).await
    }

    /// # Errors
    /// Returns the kernel's error.
    pub(super) fn open(&self) -> io::Result<()> {
        (&self.opens).write_all(b"\n")
    }

    /// Waits until the image's own code begins; for ever if the files can't be read. Cancel-safe.
    pub(super) async fn begun(&mut self) {
        match self.reported(BEGINS).await {
            Ok(()) => self.has_begun = true,
            Err(_unreadable) => std::future::pending().await,
        }
    }

    /// Whether the image's own code has begun, for a container that has ended. Asks the kernel: the event loop may
    /// hear of the end before it hears of the report.
    pub(super) fn has_begun(&mut self) -> bool {
        let mut reported = [0; 16];
        while !self.has_begun {
            match rustix::io::read(&self.reports, &mut reported) {
                Ok(count) if count > 0 => self.has_begun = reported[..count].contains(&BEGINS),
                _ => break,
            }
        }
        self.has_begun
    }

    async fn reported(&self, word: u8) -> io::Result<()> {
        let mut reported = [0; 1];
        loop {
            self.reports.readable().await?;
            match self.reports.try_read(&mut reported) {
                Ok(_) if reported[0] == word => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn the_fifos_of_a_container_that_waited_are_out_of_its_sight_and_serve_another_one() {
        let [seen, unseen] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        let mut identities = Vec::new();
        for _ in 0..2 {
            let files = GateFiles::make(seen.path(), unseen.path()).expect("FIFOs");
            assert!(!files.was_passed(), "a report of the container before");
            let [opens, reports] = GATE_FILES.map(|name| seen.path().join(GATE_DIR).join(name));
            identities
                .push([&opens, &reports].map(|fifo| fs::metadata(fifo).expect("there").ino()));
            let mut container = OpenOptions::new().write(true).open(reports).expect("there");
            let mut gate = Gate::watch(files).expect("an event loop");
            container.write_all(&[WAITS, BEGINS]).expect("a reader");
            gate.reached().await.expect("a report");
            assert!(fs::read_dir(seen.path()).expect("there").next().is_none());
            gate.open().expect("a reader");
        }
        assert_eq!(identities[0], identities[1]);
    }

    #[tokio::test]
    async fn a_report_counts_though_the_event_loop_has_not_heard_of_it() {
        let [seen, unseen] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        let files = GateFiles::make(seen.path(), unseen.path()).expect("FIFOs");
        let reports = seen.path().join(GATE_DIR).join(GATE_FILES[1]);
        let mut container = OpenOptions::new().write(true).open(reports).expect("there");
        container.write_all(&[WAITS]).expect("a reader");
        let mut gate = Gate::watch(files).expect("an event loop");
        gate.reached().await.expect("a report");
        // Leaves the event loop with the knowledge that there is nothing to read.
        let begun = timeout(Duration::from_millis(1), gate.begun()).await;
        assert!(begun.is_err() && !gate.has_begun());
        container.write_all(&[BEGINS]).expect("a reader");
        assert!(gate.has_begun());
    }
}
