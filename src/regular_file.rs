//! Opens files whose path came from outside: settings, HTCondor, a shared directory. Opening a FIFO would
//! wait for a writer that never comes, and opening a device may do anything, so only regular files are
//! opened.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;

/// Opens a file for reading. Links are followed.
///
/// # Errors
/// Returns the system's error, or one that names the type of a file that isn't regular.
pub fn open(path: &Path) -> io::Result<File> {
    check(&std::fs::metadata(path)?)?;
    // The file may have been replaced since: then `O_NONBLOCK` at least keeps this from waiting.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

/// Reads a whole file.
///
/// # Errors
/// Returns the errors of [`open`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The name of a file type other than that of a regular file.
#[must_use]
pub fn kind_of(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() || kind.is_block_device() {
        "a device"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else {
        "no regular file"
    }
}

fn check(found: &Metadata) -> io::Result<()> {
    if found.is_file() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "it is {}, and a regular file is expected",
        kind_of(found.file_type())
    )))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn what_is_no_file_is_named_and_not_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        mkfifo(&at("fifo"), Mode::S_IRWXU).expect("made");
        let _socket = UnixListener::bind(at("socket")).expect("bound");
        symlink("fifo", at("link to a FIFO")).expect("linked");
        for (path, what) in [
            (at("fifo"), "a FIFO"),
            (at("link to a FIFO"), "a FIFO"),
            (at("socket"), "a socket"),
            (at(""), "a directory"),
            ("/dev/zero".into(), "a device"),
        ] {
            let error = read(&path).expect_err("is no file").to_string();
            assert!(error.contains(what), "{}: {error}", path.display());
        }
    }

    #[test]
    fn a_file_is_read_through_a_link_too() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file"), "content").expect("written");
        symlink("file", at("link")).expect("linked");
        assert_eq!(read(&at("link")).expect("read"), b"content");
        let missing = read(&at("missing")).expect_err("is not there");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
