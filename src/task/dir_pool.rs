//! Directories that a task left unchanged, kept for further tasks. Blocks.
//!
//! Making them anew for each task takes a fifth of the pilot's own CPU time, 1 of 5 ms (`scripts/bench --only a`
//! with containers that wait; ext4, whose search for a free inode takes longer after many were freed), and 10 ms
//! of an event's 82 with one slot. Two renames replace that.
//! Everything that a task could have changed is checked first, and directories with any change are removed.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::lgetxattr;
use rustix::io::Errno;

use crate::container::remove_tree;

/// The name of a waiting task directory within its waiting scratch directory.
const WAITING: &str = "task";

/// Directories still in the pool are removed on drop.
#[derive(Debug, Default)]
pub(super) struct DirPool(Mutex<Vec<PathBuf>>);

#[derive(Debug, Clone, Copy)]
pub(super) struct UsedDirs<'a> {
    /// The task's directory. The task saw only `io`, below it.
    pub(super) dir: &'a Path,
    /// The outputs' directory, which the task didn't see.
    pub(super) outputs: &'a Path,
    /// The directory that the task could write to; `files` belong there.
    pub(super) io: &'a Path,
    pub(super) files: &'a [PathBuf],
    pub(super) scratch: &'a Path,
    /// The directories in `scratch`, and their mode.
    pub(super) scratch_parts: (&'a [&'a str], u32),
}

impl DirPool {
    /// Renames a waiting pair of directories to these paths, if there is one. A failure counts as none.
    pub(super) fn take(&self, dir: &Path, scratch: &Path) -> bool {
        let Some(spare) = self.trees().pop() else {
            return false;
        };
        let moved = fs::rename(spare.join(WAITING), dir).and_then(|()| fs::rename(&spare, scratch));
        if moved.is_err() {
            for path in [&spare, dir] {
                // The disk fails, and staging will report that.
                let _left = remove_tree(path);
            }
        }
        moved.is_ok()
    }

    /// Keeps a task's directories if they are unchanged.
    pub(super) fn offer(&self, left: &UsedDirs<'_>) -> bool {
        let kept = is_as_it_was(left).and_then(|is| {
            if is {
                fs::rename(left.dir, left.scratch.join(WAITING))?;
            }
            Ok(is)
        });
        let kept = kept.unwrap_or(false);
        if kept {
            self.trees().push(left.scratch.to_owned());
        }
        kept
    }

    fn trees(&self) -> std::sync::MutexGuard<'_, Vec<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DirPool {
    fn drop(&mut self) {
        for tree in self.trees().drain(..) {
            // The clean-up of the pilot's scratch removes the rest.
            let _left = remove_tree(&tree);
        }
    }
}

fn is_as_it_was(left: &UsedDirs<'_>) -> io::Result<bool> {
    for file in left.files {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let outputs = fs::symlink_metadata(left.outputs)?;
    if !is_untouched(left.io, mode(&outputs))? {
        return Ok(false);
    }
    let (parts, part_mode) = left.scratch_parts;
    for part in parts {
        if !is_untouched(&left.scratch.join(part), part_mode)? {
            return Ok(false);
        }
    }
    if fs::read_dir(left.scratch)?.count() != parts.len() {
        return Ok(false);
    }
    for entry in fs::read_dir(left.outputs)? {
        let path = entry?.path();
        if fs::symlink_metadata(&path)?.len() > 0 {
            File::create(&path)?;
        }
    }
    Ok(true)
}

/// Whether this is an empty directory of this mode, with no ACL that new files would inherit.
fn is_untouched(path: &Path, wanted: u32) -> io::Result<bool> {
    let found = fs::symlink_metadata(path)?;
    Ok(found.is_dir()
        && mode(&found) == wanted
        && has_no_list(path, "system.posix_acl_default")
        && has_no_list(path, "system.posix_acl_access")
        && fs::read_dir(path)?.next().is_none())
}

fn has_no_list(path: &Path, name: &str) -> bool {
    let mut nothing: [u8; 0] = [];
    matches!(
        lgetxattr(path, name, &mut nothing),
        Err(Errno::NODATA | Errno::OPNOTSUPP)
    )
}

fn mode(found: &Metadata) -> u32 {
    found.permissions().mode() & 0o7777
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Scene {
        top: tempfile::TempDir,
        dir_pool: DirPool,
    }

    impl Scene {
        fn new() -> Self {
            let top = tempfile::tempdir().expect("a directory");
            for part in ["one/outputs", "one/task-io", "scratch/tmp"] {
                fs::create_dir_all(top.path().join(part)).expect("made");
            }
            let tmp = top.path().join("scratch/tmp");
            fs::set_permissions(tmp, PermissionsExt::from_mode(0o700)).expect("set");
            fs::write(top.path().join("one/outputs/stdoutfile"), "said").expect("written");
            fs::write(top.path().join("one/task-io/infile"), "1").expect("written");
            let dir_pool = DirPool::default();
            Self { top, dir_pool }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.top.path().join(name)
        }

        fn offer(&self) -> bool {
            self.dir_pool.offer(&UsedDirs {
                dir: &self.path("one"),
                outputs: &self.path("one/outputs"),
                io: &self.path("one/task-io"),
                files: &[
                    self.path("one/task-io/infile"),
                    self.path("one/task-io/outfile"),
                ],
                scratch: &self.path("scratch"),
                scratch_parts: (&["tmp"], 0o700),
            })
        }
    }

    #[test]
    fn directories_that_a_task_left_as_they_were_serve_another_and_hold_nothing_of_it() {
        let scene = Scene::new();
        assert!(scene.offer());
        assert!(!scene.path("one").exists());
        assert!(
            scene
                .dir_pool
                .take(&scene.path("two"), &scene.path("other"))
        );
        assert_eq!(
            fs::read(scene.path("two/outputs/stdoutfile")).expect("there"),
            b""
        );
        assert_eq!(
            fs::read_dir(scene.path("two/task-io"))
                .expect("there")
                .count(),
            0
        );
        assert!(scene.path("other/tmp").is_dir());
        assert!(
            !scene
                .dir_pool
                .take(&scene.path("three"), &scene.path("more"))
        );
    }

    #[test]
    fn directories_that_a_task_changed_serve_nobody() {
        type Change = fn(&Scene);
        let changes: [Change; 6] = [
            |scene| fs::write(scene.path("one/task-io/more"), "").expect("written"),
            |scene| fs::write(scene.path("scratch/tmp/more"), "").expect("written"),
            |scene| fs::write(scene.path("scratch/more"), "").expect("written"),
            |scene| {
                let open = PermissionsExt::from_mode(0o777);
                fs::set_permissions(scene.path("scratch/tmp"), open).expect("set");
            },
            |scene| {
                let closed = PermissionsExt::from_mode(0o500);
                fs::set_permissions(scene.path("one/task-io"), closed).expect("set");
            },
            |scene| {
                fs::remove_dir(scene.path("scratch/tmp")).expect("removed");
                symlink("/", scene.path("scratch/tmp")).expect("linked");
            },
        ];
        for change in changes {
            let scene = Scene::new();
            change(&scene);
            assert!(!scene.offer());
            assert!(scene.path("one").exists(), "whoever made them removes them");
        }
    }

    #[test]
    fn what_serves_nobody_in_the_end_is_removed() {
        let scene = Scene::new();
        assert!(scene.offer());
        let Scene { top, dir_pool } = scene;
        drop(dir_pool);
        assert_eq!(fs::read_dir(top.path()).expect("there").count(), 0);
    }
}
