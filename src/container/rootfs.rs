//! Resolves paths inside a sandbox directory as a container does: a link in the image never leads to a file
//! of the machine.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// The number of links that the kernel follows (`MAXSYMLINKS`).
const MOST_LINKS: usize = 40;

/// The path on this machine of the file that a container of `image` would open as `path`.
///
/// # Errors
/// `NotFound` when it doesn't exist or a link dangles; otherwise the kernel's error.
pub(super) fn resolve(image: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut left: VecDeque<OsString> = names(path).collect();
    let mut inside: Vec<OsString> = Vec::new();
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        if name == ".." {
            inside.pop();
            continue;
        }
        let here = on_host(image, &inside).join(&name);
        let found = fs::symlink_metadata(&here)?;
        if !found.is_symlink() {
            inside.push(name);
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(io::Error::other("too many levels of symbolic links"));
        }
        let target = fs::read_link(&here)?;
        if target.is_absolute() {
            inside.clear();
        }
        for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
            left.push_front(name);
        }
    }
    Ok(on_host(image, &inside))
}

fn on_host(image: &Path, inside: &[OsString]) -> PathBuf {
    let mut path = image.to_owned();
    path.extend(inside);
    path
}

fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_stay_inside_the_image() {
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path().join("image");
        fs::create_dir_all(image.join("usr/bin")).expect("made");
        fs::write(image.join("usr/bin/busybox"), "").expect("written");
        symlink("/usr/bin", image.join("bin")).expect("linked");
        symlink("busybox", image.join("usr/bin/sh")).expect("linked");
        symlink("../../../../usr/bin/sh", image.join("usr/above")).expect("linked");
        symlink("/etc/passwd", image.join("usr/outside")).expect("linked");
        symlink("loop", image.join("loop")).expect("linked");
        let at = |path: &str| resolve(&image, Path::new(path));
        let busybox = image.join("usr/bin/busybox");
        for path in ["/bin/sh", "/usr/bin/sh", "/usr/above", "bin/../bin/sh"] {
            assert_eq!(at(path).expect("is there"), busybox, "{path}");
        }
        assert_eq!(at("/..").expect("is there"), image);
        for path in ["/usr/outside", "/nothing", "/bin/nothing"] {
            let error = at(path).expect_err("nothing is there");
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{path}");
        }
        assert!(at("/loop").is_err());
    }
}
