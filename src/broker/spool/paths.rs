//! The paths of a spool queue, which files are events, and how a file moves without ever replacing another.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use uuid::Uuid;

use crate::broker::{
    BrokerError, Direction, Endpoint, FileFormat, PublishError, QueueLook, SettleError,
};

/// The longest file name of the common file systems, in bytes.
const NAME_MAX: usize = 255;

/// A failed action on a file.
#[derive(Debug)]
pub(super) struct SpoolError {
    pub(super) action: &'static str,
    pub(super) path: PathBuf,
    pub(super) error: io::Error,
}

impl SpoolError {
    pub(super) fn on(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self {
            action,
            path: path.to_owned(),
            error,
        }
    }

    pub(super) fn into_broker(self, at: &Endpoint) -> BrokerError {
        let Self {
            action,
            path,
            error,
        } = self;
        BrokerError::Spool {
            at: at.clone(),
            action,
            path,
            detail: error.to_string(),
        }
    }

    pub(super) fn into_publish(self) -> PublishError {
        let Self {
            action,
            path,
            error,
        } = self;
        PublishError::Spool {
            action,
            path,
            detail: error.to_string(),
        }
    }

    /// A missing claim was taken back by another pilot.
    pub(super) fn into_settle(self) -> SettleError {
        let Self {
            action,
            path,
            error,
        } = self;
        match error.kind() {
            io::ErrorKind::NotFound => SettleError::SessionLost,
            _ => SettleError::Spool {
                action,
                path,
                detail: error.to_string(),
            },
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct SpoolPaths {
    pub(super) at: Endpoint,
    pub(super) waiting: PathBuf,
    /// Holds a directory for each pilot that holds events.
    pub(super) claimed: PathBuf,
    pub(super) done: PathBuf,
    /// Events that were given up, each with a `.error.txt` beside it.
    pub(super) failed: PathBuf,
    /// How often each waiting event has failed.
    pub(super) tries: PathBuf,
}

impl SpoolPaths {
    pub(super) fn new(
        direction: Direction,
        queue: &str,
        directory: &Path,
    ) -> Result<Self, BrokerError> {
        let at = Endpoint {
            direction,
            address: directory.display().to_string(),
            queues: vec![queue.to_owned()],
        };
        let why = match queue {
            "" => Some("it is empty"),
            "." | ".." => Some("it is no name"),
            name if name.contains('/') => Some("it contains a slash"),
            name if name.contains('\0') => Some("it contains a zero byte"),
            _ => None,
        };
        if let Some(why) = why {
            return Err(BrokerError::SpoolName { at, why });
        }
        let waiting = directory.join(queue);
        Ok(Self {
            at,
            claimed: waiting.join("claimed"),
            done: waiting.join("done"),
            failed: waiting.join("failed"),
            tries: waiting.join(".tries"),
            waiting,
        })
    }

    /// Whether a name in the directory of waiting events is one of the queue's own directories.
    pub(super) fn is_own(&self, name: &OsStr) -> bool {
        [&self.claimed, &self.done, &self.failed]
            .iter()
            .any(|own| own.file_name() == Some(name))
    }

    /// Creates missing directories; for results, only the queue itself.
    pub(super) fn create(&self) -> Result<(), SpoolError> {
        let all = [
            &self.waiting,
            &self.claimed,
            &self.done,
            &self.failed,
            &self.tries,
        ];
        let needed = match self.at.direction {
            Direction::Incoming => &all[..],
            Direction::Outgoing | Direction::DeadLetters => &all[..1],
        };
        for directory in needed {
            fs::create_dir_all(directory).map_err(SpoolError::on("create directory", directory))?;
        }
        Ok(())
    }
}

impl SpoolPaths {
    /// Counts events and pilots; creates nothing.
    pub(super) fn look(&self) -> Result<QueueLook, SpoolError> {
        let read = |directory: &Path| {
            fs::read_dir(directory)
                .and_then(Iterator::collect::<io::Result<Vec<_>>>)
                .map_err(SpoolError::on("read directory", directory))
        };
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let entries = match read(&self.waiting) {
            Err(trouble) if trouble.error.kind() == io::ErrorKind::NotFound => {
                return Ok(QueueLook::Missing);
            }
            entries => entries?,
        };
        access(&self.waiting, AccessFlags::W_OK | AccessFlags::X_OK)
            .map_err(io::Error::from)
            .map_err(SpoolError::on("write to directory", &self.waiting))?;
        let is_event = |entry: &fs::DirEntry| {
            is_event_name(&entry.file_name()) && entry.file_type().is_ok_and(|kind| kind.is_file())
        };
        let leases = match read(&self.claimed) {
            Err(trouble) if trouble.error.kind() == io::ErrorKind::NotFound => Vec::new(),
            leases => leases?,
        };
        Ok(QueueLook::There {
            waiting: count(entries.iter().filter(|entry| is_event(entry)).count()),
            consumers: count(leases.len()),
        })
    }
}

/// Whether a file of this name is an event. Hidden files are none, nor are names that editors, copying
/// programs and careful producers give to files that they are still writing.
pub(super) fn is_event_name(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let unfinished: [&[u8]; 4] = [b"~", b".tmp", b".part", b".partial"];
    !name.starts_with(b".") && !unfinished.iter().any(|suffix| name.ends_with(suffix))
}

/// The format that a file's name stands for.
pub(super) fn format_of(name: &OsStr) -> FileFormat {
    match Path::new(name).extension() {
        Some(suffix) if suffix.eq_ignore_ascii_case("json") => FileFormat::Json,
        _ => FileFormat::Text,
    }
}

/// Moves a file into a directory, under `name` or, if that is taken, a similar name. Never replaces a file,
/// and is atomic if the file system can do that. Returns the name.
pub(super) fn move_beside(
    from: &Path,
    directory: &Path,
    name: &OsStr,
) -> Result<OsString, SpoolError> {
    let mut target = name.to_owned();
    loop {
        let to = directory.join(&target);
        match move_new(from, &to) {
            Ok(()) => return Ok(target),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let tag = Uuid::new_v4().simple().to_string();
                target = similar(name, &tag[..8]);
            }
            Err(error) => return Err(SpoolError::on("move", from)(error)),
        }
    }
}

/// Moves a file unless the target exists. Not every file system has such a rename (NFS doesn't). Then a hard
/// link is made instead; where there are no links, the target is checked before the rename.
fn move_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP | Errno::PERM) => {}
        outcome => return outcome.map_err(io::Error::from),
    }
    match fs::hard_link(from, to) {
        Ok(()) => match fs::remove_file(from) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound
            ) =>
        {
            Err(error)
        }
        Err(_no_links) if to.try_exists()? => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_no_links) => fs::rename(from, to),
    }
}

/// After so many numbers the name gets a random tag, since each try costs a call to the file system.
const NUMBERS_MAX: u32 = 100;

/// Moves the result of an event into a directory, under a name made of the event's, with a number if that is
/// taken: the result of `a.json` is `a.json`, or `a.2.json`. Only one of several movers gets a name, as with
/// [`move_beside`].
pub(super) fn move_as_result(
    from: &Path,
    directory: &Path,
    event: &OsStr,
    format: FileFormat,
) -> Result<(), SpoolError> {
    let mut number = 1;
    loop {
        let tag = match number {
            1 => None,
            2..=NUMBERS_MAX => Some(number.to_string()),
            _ => Some(Uuid::now_v7().simple().to_string()),
        };
        let to = directory.join(result_name(event, tag.as_deref(), format));
        match move_new(from, &to) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(SpoolError::on("move", from)(error)),
        }
    }
}

/// The suffix says what is in the file. It replaces the event's suffix if that is `json` or `txt`; any other
/// suffix belongs to the name.
fn result_name(event: &OsStr, tag: Option<&str>, format: FileFormat) -> OsString {
    let path = Path::new(event);
    let is_kind = |suffix: &OsStr| {
        ["json", "txt"]
            .iter()
            .any(|kind| suffix.eq_ignore_ascii_case(kind))
    };
    let stem = match (path.file_stem(), path.extension()) {
        (Some(stem), Some(suffix)) if is_kind(suffix) => stem,
        _ => event,
    };
    let tag = tag.map(|tag| format!(".{tag}")).unwrap_or_default();
    let end = format!("{tag}.{}", suffix_of(format));
    let stem = stem.as_bytes();
    let stem = &stem[..stem.len().min(NAME_MAX.saturating_sub(end.len()))];
    OsString::from_vec([stem, end.as_bytes()].concat())
}

/// The suffix of files of this format.
pub(super) fn suffix_of(format: FileFormat) -> &'static str {
    match format {
        FileFormat::Json => "json",
        FileFormat::Text => "txt",
    }
}

/// `a.b.json` becomes `a.b.TAG.json`: the suffix stays last, since it says what is in the file.
fn similar(name: &OsStr, tag: &str) -> OsString {
    let path = Path::new(name);
    let stem = path.file_stem().unwrap_or(name).as_bytes();
    let suffix = path.extension().map_or(&b""[..], OsStrExt::as_bytes);
    let dot: &[u8] = if suffix.is_empty() { b"" } else { b"." };
    let room = NAME_MAX.saturating_sub(1 + tag.len() + dot.len() + suffix.len());
    let stem = &stem[..stem.len().min(room)];
    OsString::from_vec([stem, b".", tag.as_bytes(), dot, suffix].concat())
}

/// The name of the file that says why an event was given up.
pub(super) fn error_name(name: &OsStr) -> OsString {
    let suffix = b".error.txt";
    let stem = name.as_bytes();
    let stem = &stem[..stem.len().min(NAME_MAX - suffix.len())];
    OsString::from_vec([stem, suffix].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_and_unfinished_files_are_no_events() {
        for name in [
            ".x.json",
            "x.json.tmp",
            "x.part",
            "x.partial",
            "x~",
            ".tries",
        ] {
            assert!(!is_event_name(OsStr::new(name)), "{name}");
        }
        for name in ["x.json", "x", "tmp", "a b.txt"] {
            assert!(is_event_name(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn only_the_suffix_json_means_json() {
        assert_eq!(format_of(OsStr::new("a.JSON")), FileFormat::Json);
        assert_eq!(format_of(OsStr::new("json")), FileFormat::Text);
        assert_eq!(format_of(OsStr::new("a.json.gz")), FileFormat::Text);
    }

    #[test]
    fn a_move_never_replaces_a_file_and_keeps_the_suffix() {
        let directory = tempfile::tempdir().unwrap();
        let (from, into) = (
            directory.path().join("a.json"),
            directory.path().join("into"),
        );
        fs::create_dir(&into).unwrap();
        fs::write(into.join("a.json"), "old").unwrap();
        fs::write(&from, "new").unwrap();
        let name = move_beside(&from, &into, OsStr::new("a.json")).unwrap();
        assert_eq!(fs::read_to_string(into.join("a.json")).unwrap(), "old");
        assert_eq!(fs::read_to_string(into.join(&name)).unwrap(), "new");
        assert_eq!(format_of(&name), FileFormat::Json);
        assert!(!from.exists());
    }

    #[test]
    fn a_result_is_named_after_its_event_and_its_suffix_says_what_it_is() {
        let (json, text) = (FileFormat::Json, FileFormat::Text);
        for (event, tag, format, result) in [
            ("p1.json", None, json, "p1.json"),
            ("p1.txt", None, json, "p1.json"),
            ("p1.JSON", Some("2"), text, "p1.2.txt"),
            ("p1", None, text, "p1.txt"),
            ("run.17", Some("3"), json, "run.17.3.json"),
            ("a.b.json", None, json, "a.b.json"),
            ("a.fits", None, text, "a.fits.txt"),
        ] {
            let name = result_name(OsStr::new(event), tag, format);
            assert_eq!(name, result, "{event}");
            assert!(is_event_name(&name));
        }
        let long = OsString::from("x".repeat(255));
        assert_eq!(result_name(&long, Some("17"), json).len(), NAME_MAX);
    }

    #[test]
    fn derived_names_fit_into_a_directory() {
        let long = OsString::from("x".repeat(250) + ".json");
        assert_eq!(similar(&long, "12345678").len(), NAME_MAX);
        assert_eq!(error_name(&long).len(), NAME_MAX);
    }

    #[test]
    fn names_that_are_no_directory_are_refused() {
        for queue in ["", ".", "..", "a/b"] {
            let paths = SpoolPaths::new(Direction::Incoming, queue, Path::new("/spool"));
            assert!(
                matches!(paths, Err(BrokerError::SpoolName { .. })),
                "{queue}"
            );
        }
    }
}
