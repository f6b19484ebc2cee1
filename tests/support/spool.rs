//! A spool queue seen from outside: plain files in directories. Written by hand on purpose, so that a
//! test doesn't believe the pilot's own idea of the layout.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// One queue: a directory. Events wait in it; `claimed`, `done` and `failed` are below it. Results
/// are the files of an outgoing queue's directory.
#[derive(Debug, Clone)]
pub(crate) struct SpoolQueue {
    directory: PathBuf,
}

impl SpoolQueue {
    /// The queue `name` below the broker address `address`, its directory made.
    pub(crate) fn create(address: &Path, name: &str) -> Self {
        let directory = address.join(name);
        fs::create_dir_all(&directory).expect("the spool directory can be made");
        Self { directory }
    }

    /// Puts a file in as an event, under a temporary name first, as the pilot asks of producers.
    pub(crate) fn put(&self, file_name: &str, content: impl AsRef<[u8]>) {
        let temporary = self.directory.join(format!(".{file_name}.tmp"));
        fs::write(&temporary, content).expect("the spool can be written");
        fs::rename(&temporary, self.directory.join(file_name)).expect("renaming works");
    }

    /// Names and contents of the files that wait, or of an outgoing queue's results.
    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        read(&self.directory)
    }

    /// What a pilot is working on.
    pub(crate) fn claimed(&self) -> BTreeMap<String, Vec<u8>> {
        read(&self.directory.join("claimed"))
    }

    /// What was done.
    pub(crate) fn done(&self) -> BTreeMap<String, Vec<u8>> {
        read(&self.directory.join("done"))
    }

    /// What was given up, with the errors beside it.
    pub(crate) fn failed(&self) -> BTreeMap<String, Vec<u8>> {
        read(&self.directory.join("failed"))
    }

    /// The directory itself.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// The regular files of a directory, hidden ones left out; none if there is no such directory.
fn read(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let Ok(entries) = fs::read_dir(directory) else {
        return BTreeMap::new();
    };
    let mut found = BTreeMap::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || !entry.path().is_file() {
            continue;
        }
        // It may be renamed away between listing and reading: then it isn't here.
        if let Ok(content) = fs::read(entry.path()) {
            found.insert(name, content);
        }
    }
    found
}
