//! Writes a snapshot to disk and reads it back; both block. A file is whole or absent: it is written under
//! another name and renamed. It is not synced: after a power failure there is no pilot either.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::snapshot::{FORMAT, Snapshot};
use crate::records::UnixTime;

const PREFIX: &str = "ewms-pilot-status-";
const SUFFIX: &str = ".json";
/// The most bytes that are read of a status file; a task takes about 120.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The reason why a status file can't be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The file can't be opened or read.
    #[error("can't read `{}`: {source}; only the pilot's own user may, as condor_ssh_to_job is", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The content is not that of a status file.
    #[error("`{}` is no status file: {source}", path.display())]
    Content {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("`{}` is of format {format}, which this version doesn't know; ask the ewms-pilot that wrote it", path.display())]
    Format { path: PathBuf, format: u32 },
}

impl ReadError {
    /// Whether there is nothing to read (any more).
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// The file of a pilot whose data are in `directory`.
pub(super) fn path(directory: &Path, pilot_id: &str) -> PathBuf {
    directory.join(format!("{PREFIX}{pilot_id}{SUFFIX}"))
}

/// Whether a file of this name is some pilot's status file, or is about to become one.
#[must_use]
pub fn is_file_name(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.trim_start_matches('.').starts_with(PREFIX)
}

/// The status files in a directory.
///
/// # Errors
/// Fails if the directory can't be listed.
pub(super) fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Writes the file, replacing an older one.
///
/// # Errors
/// Fails if the file can't be written; then the old one stays.
pub(super) fn write(path: &Path, mut snapshot: Snapshot) -> io::Result<()> {
    snapshot.facts.format = FORMAT;
    snapshot.facts.written_unix_secs = UnixTime::now();
    let mut text = serde_json::to_vec(&snapshot)?;
    text.push(b'\n');
    let hidden = hidden(path);
    let written = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&hidden)
        .and_then(|mut file| file.write_all(&text))
        .and_then(|()| fs::rename(&hidden, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&hidden);
    }
    written
}

/// Removes the file, and the temporary one of an interrupted write.
///
/// # Errors
/// Fails if the file is still there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let _ = fs::remove_file(hidden(path));
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads a status file.
///
/// # Errors
/// Returns a [`ReadError`] if it can't be read, or is no status file.
pub(super) fn read(path: &Path) -> Result<Snapshot, ReadError> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(BYTES_MAX).read_to_end(&mut text))
        .map_err(|source| ReadError::Io {
            path: path.to_owned(),
            source,
        })?;
    let snapshot: Snapshot =
        serde_json::from_slice(&text).map_err(|source| ReadError::Content {
            path: path.to_owned(),
            source,
        })?;
    if snapshot.facts.format != FORMAT {
        return Err(ReadError::Format {
            path: path.to_owned(),
            format: snapshot.facts.format,
        });
    }
    Ok(snapshot)
}

fn hidden(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::default();
        "p".clone_into(&mut snapshot.facts.pilot_id);
        snapshot.begin("t".into(), Some(1), Vec::new());
        snapshot
    }

    #[test]
    fn what_is_written_is_read_again_by_its_owner_and_leaves_nothing_else_behind() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = path(directory.path(), "p");
        for name in [&path, &hidden(&path)] {
            assert!(is_file_name(name.file_name().expect("it has one")));
        }
        let snapshot = snapshot();
        for _ in 0..2 {
            write(&path, snapshot.clone()).expect("written");
        }
        let found = read(&path).expect("it is one");
        assert_eq!(found.tasks, snapshot.tasks);
        assert!(found.facts.written_unix_secs > UnixTime(1.7e9));
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            list(directory.path()).expect("listed"),
            std::slice::from_ref(&path)
        );
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1);
        remove(&path).expect("removed");
        remove(&path).expect("it is gone already");
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 0);
    }

    #[test]
    fn a_file_that_can_not_be_replaced_stays_as_it_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = path(directory.path(), "p");
        fs::create_dir_all(path.join("in the way")).expect("made");
        assert!(write(&path, snapshot()).is_err());
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1);
        assert!(write(&directory.path().join("none/x"), snapshot()).is_err());
    }

    #[test]
    fn what_is_no_status_file_is_said_to_be_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = path(directory.path(), "p");
        let error = |path| read(path).expect_err("it is none");
        assert!(error(&path).is_absence());
        for (text, expected) in [("{", "no status file"), (r#"{"format":7}"#, "format 7")] {
            fs::write(&path, text).expect("written");
            let text = error(&path).to_string();
            assert!(text.contains(expected), "{text}");
        }
    }
}
