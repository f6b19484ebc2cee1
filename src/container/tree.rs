//! Removing a directory that containers or builders wrote into. Talks to the file system only. Apart,
//! because both leave directories that not even their owner may enter.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Removes `path` and all below it, whatever the modes. No link is followed; a path that isn't there is
/// no error.
///
/// # Errors
/// When something can't be removed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) if !found.is_dir() => return fs::remove_file(path),
        Ok(_) => {}
    }
    // Most trees have ordinary modes; the second walk is for those that haven't.
    if fs::remove_dir_all(path).is_ok() {
        return Ok(());
    }
    let mut directories: Vec<PathBuf> = vec![path.to_owned()];
    while let Some(directory) = directories.pop() {
        fs::set_permissions(&directory, Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    fs::remove_dir_all(path)
}

#[cfg(test)]
mod tests {
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
    fn what_is_not_there_is_removed_already() {
        assert!(remove_tree(Path::new("/nonexistent/x")).is_ok());
    }
}
