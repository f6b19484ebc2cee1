//! Directory trees that containers or builders wrote: their size on disk, and their removal. Blocks.
//!
//! A task may leave any tree: deeper than a stack, a path (`PATH_MAX`) or the table of descriptors allows,
//! with directories that even their owner may not enter. So nothing here recurses or builds a path. One
//! directory is open at a time, entries are named relative to it, and the way up is `..`, which is checked
//! against the identity of the directory where the descent began.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, SeekFrom, Stat, chmodat, fchmod, fstat, openat,
    seek, statat, unlinkat,
};
use rustix::io::Errno;

/// The unit of `st_blocks`, whatever the file system's block size.
const BLOCK: u64 = 512;
/// Room for some hundred entries.
const BUFFER: usize = 16 * 1024;
/// The mode bits with which its owner can list, enter and change a directory.
const OPEN_TO_OWNER: u32 = 0o700;
const ENTER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The identity of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DirIdentity {
    device: u64,
    inode: u64,
}

impl DirIdentity {
    fn of(found: &Stat) -> Self {
        Self {
            device: found.st_dev,
            inode: found.st_ino,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Removal {
    Done,
    /// Another process removed it first.
    WasGone,
    /// It is a directory that is not empty.
    NotEmpty,
}

/// Removes `path` and everything below it, whatever the modes. Follows no link. A missing path is no error.
///
/// # Errors
/// When an entry can't be removed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let mut name = CString::new(name.as_bytes())?;
    let above = match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut directory = match openat(CWD, above, flags, Mode::empty()) {
        Ok(above) => above,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if remove(&directory, &name, FileType::Unknown)? != Removal::NotEmpty {
        return Ok(());
    }
    // The name of each entered directory, and the identity of its parent.
    let mut entered: Vec<(CString, DirIdentity)> = Vec::new();
    loop {
        let inner = enter(&directory, &name)?;
        entered.push((name, DirIdentity::of(&fstat(&directory)?)));
        directory = inner;
        name = loop {
            if let Some(inner) = empty(&directory)? {
                break inner;
            }
            let Some((emptied, above)) = entered.pop() else {
                return Ok(());
            };
            let up = openat(&directory, c"..", flags, Mode::empty())?;
            if DirIdentity::of(&fstat(&up)?) != above {
                return Err(io::Error::other(
                    "a directory was moved while it was removed",
                ));
            }
            if remove(&up, &emptied, FileType::Directory)? == Removal::NotEmpty {
                return Err(Errno::NOTEMPTY.into());
            }
            if entered.is_empty() {
                return Ok(());
            }
            directory = openat(&up, c".", ENTER, Mode::empty())?;
        };
    }
}

/// Opens a directory, after giving its owner access.
fn enter(above: &OwnedFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let opened = match openat(above, name, ENTER, Mode::empty()) {
        Err(Errno::ACCESS) => {
            chmodat(above, name, Mode::RWXU, AtFlags::empty())?;
            openat(above, name, ENTER, Mode::empty())
        }
        opened => opened,
    }?;
    if fstat(&opened)?.st_mode & OPEN_TO_OWNER != OPEN_TO_OWNER {
        fchmod(&opened, Mode::RWXU)?;
    }
    Ok(opened)
}

/// Removes the entries of a directory until it finds a subdirectory that is not empty. Returns that one's
/// name.
fn empty(directory: &OwnedFd) -> rustix::io::Result<Option<CString>> {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    loop {
        // Removals during a read may hide other entries, so each pass starts anew.
        seek(directory, SeekFrom::Start(0))?;
        let mut entries = RawDir::new(directory, &mut buffer);
        let mut removed = 0;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if is_itself_or_above(name) {
                continue;
            }
            match remove(directory, name, entry.file_type())? {
                Removal::Done => removed += 1,
                Removal::WasGone => {}
                Removal::NotEmpty => return Ok(Some(name.to_owned())),
            }
        }
        if removed == 0 {
            return Ok(None);
        }
    }
}

fn remove(above: &OwnedFd, name: &CStr, kind: FileType) -> rustix::io::Result<Removal> {
    let kind = match kind {
        // Not every file system returns the type with the name.
        FileType::Unknown => match statat(above, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => FileType::from_raw_mode(found.st_mode),
            Err(Errno::NOENT) => return Ok(Removal::WasGone),
            Err(error) => return Err(error),
        },
        known => known,
    };
    let flags = match kind {
        FileType::Directory => AtFlags::REMOVEDIR,
        _ => AtFlags::empty(),
    };
    match unlinkat(above, name, flags) {
        Ok(()) => Ok(Removal::Done),
        Err(Errno::NOENT) => Ok(Removal::WasGone),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(Removal::NotEmpty),
        Err(error) => Err(error),
    }
}

/// The bytes that `path` and everything below it take on disk. Unreadable directories count as empty: this is
/// for a record, and the task may have removed its own permissions.
#[must_use]
pub fn tree_bytes(path: &Path) -> u64 {
    let Ok(found) = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) else {
        return 0;
    };
    let mut bytes = bytes_of(&found);
    // The removal of the tree fails there too, and reports it.
    let _incomplete = add_below(path, &mut bytes);
    bytes
}

fn add_below(top: &Path, bytes: &mut u64) -> rustix::io::Result<()> {
    let mut directory = match openat(CWD, top, ENTER, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        Err(error) => return Err(error),
    };
    // The identity of each directory that was left for a subdirectory, and where to resume reading it.
    let mut left: Vec<(DirIdentity, u64)> = Vec::new();
    loop {
        if let Some((name, next)) = next_directory(&directory, bytes)? {
            match openat(&directory, &name, ENTER, Mode::empty()) {
                Ok(inner) => {
                    left.push((DirIdentity::of(&fstat(&directory)?), next));
                    directory = inner;
                }
                Err(_) => {
                    seek(&directory, SeekFrom::Start(next))?;
                }
            }
            continue;
        }
        let Some((above, next)) = left.pop() else {
            return Ok(());
        };
        let up = openat(&directory, c"..", ENTER, Mode::empty())?;
        if DirIdentity::of(&fstat(&up)?) != above {
            return Err(Errno::STALE);
        }
        seek(&up, SeekFrom::Start(next))?;
        directory = up;
    }
}

/// Adds the sizes of a directory's entries from the current position up to the next readable subdirectory.
/// Returns that one's name and the position after it.
fn next_directory(
    directory: &OwnedFd,
    bytes: &mut u64,
) -> rustix::io::Result<Option<(CString, u64)>> {
    /// Without these bits the directory can't be read, or not be left again.
    const LOOK_INTO: u32 = 0o500;
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if is_itself_or_above(name) {
            continue;
        }
        let Ok(found) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        *bytes += bytes_of(&found);
        let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
        if is_directory && found.st_mode & LOOK_INTO == LOOK_INTO {
            return Ok(Some((name.to_owned(), entry.next_entry_cookie())));
        }
    }
    Ok(None)
}

fn bytes_of(found: &Stat) -> u64 {
    u64::try_from(found.st_blocks).unwrap_or(0) * BLOCK
}

fn is_itself_or_above(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn a_tree_with_closed_directories_is_removed_and_what_links_point_to_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir_all(tree.join("a/b/c")).expect("made");
        fs::create_dir_all(&outside).expect("made");
        fs::write(outside.join("kept"), "").expect("written");
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).expect("linked");
        for closed in ["a/b/c", "a/b", "a"] {
            fs::set_permissions(tree.join(closed), Permissions::from_mode(0o000)).expect("closed");
        }
        remove_tree(&tree).expect("is removed");
        assert!(!tree.exists());
        assert!(outside.join("kept").exists());
    }

    #[test]
    fn a_link_or_a_file_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let (link, outside) = (dir.path().join("link"), dir.path().join("outside"));
        fs::create_dir_all(outside.join("kept")).expect("made");
        std::os::unix::fs::symlink(&outside, &link).expect("linked");
        remove_tree(&link).expect("is removed");
        assert!(!link.is_symlink() && outside.join("kept").exists());
        fs::write(&link, "").expect("written");
        remove_tree(&link).expect("is removed");
        assert!(!link.exists());
    }

    #[test]
    fn what_is_not_there_is_removed_already_and_takes_nothing() {
        for path in ["/nonexistent/x", "/tmp/nonexistent"] {
            assert!(remove_tree(Path::new(path)).is_ok());
            assert_eq!(tree_bytes(Path::new(path)), 0);
        }
    }

    #[test]
    fn a_tree_takes_what_its_files_take_and_links_lead_nowhere() {
        let dir = tempfile::tempdir().expect("a directory");
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("deep/er")).expect("made");
        fs::write(tree.join("deep/er/file"), vec![7; 1 << 20]).expect("written");
        fs::write(dir.path().join("outside"), vec![7; 1 << 22]).expect("written");
        std::os::unix::fs::symlink(dir.path().join("outside"), tree.join("link")).expect("linked");
        let bytes = tree_bytes(&tree);
        assert!((1 << 20..1 << 21).contains(&bytes), "{bytes}");
    }

    /// Makes `levels` nested directories with a file of 4 KiB in each.
    fn make_deep(top: &Path, levels: usize) {
        fs::create_dir(top).expect("made");
        let mut at = openat(CWD, top, ENTER, Mode::empty()).expect("opened");
        for _ in 0..levels {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            let file = openat(&at, c"file", flags, Mode::RWXU).expect("made");
            rustix::io::write(&file, &[7; 4096]).expect("written");
            mkdirat(&at, c"directory", Mode::RWXU).expect("made");
            at = openat(&at, c"directory", ENTER, Mode::empty()).expect("opened");
        }
    }

    /// On a thread whose stack is too small for a tenth of the depth, as is a path.
    #[test]
    fn a_tree_of_any_depth_is_measured_and_removed() {
        const LEVELS: usize = 15_000;
        // In memory if possible: a disk takes seconds for so many directories.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_none| tempfile::tempdir());
        let dir = dir.expect("a directory");
        let tree = dir.path().join("tree");
        make_deep(&tree, LEVELS);
        let small = std::thread::Builder::new().stack_size(128 * 1024);
        let walk = small.spawn(move || {
            let bytes = tree_bytes(&tree);
            assert!(bytes >= LEVELS as u64 * 4096, "{bytes}");
            remove_tree(&tree).expect("is removed");
            assert!(!tree.exists());
        });
        walk.expect("a thread").join().expect("no panic");
    }

    #[test]
    fn a_wide_tree_is_measured_and_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let tree = dir.path().join("tree");
        // More entries than a buffer holds, and none of them empty.
        for number in 0..2000 {
            let inner = tree.join(format!("directory-with-a-long-name-{number}"));
            fs::create_dir_all(&inner).expect("made");
            fs::write(inner.join("file"), [7; 4096]).expect("written");
        }
        let bytes = tree_bytes(&tree);
        assert!((2000 * 4096..4 * 2000 * 4096).contains(&bytes), "{bytes}");
        remove_tree(&tree).expect("is removed");
        assert!(!tree.exists());
    }
}
