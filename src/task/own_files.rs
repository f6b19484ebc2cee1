//! Keeps the pilot's own files from tasks. Existing files are known by device and inode, because the same
//! file may have come with the job or have a second name; files that the pilot will create or replace are
//! known by path.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::container::MountTable;

/// A path of the pilot's own. It need not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnPath {
    /// Absolute.
    pub path: PathBuf,
    /// Its description in an error's text.
    pub what: &'static str,
    pub privacy: Privacy,
}

/// How far a path is kept from tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privacy {
    /// A directory that holds the pilot's files beside others: no external directory may show it as a whole.
    Home,
    /// A file, or a directory of them, that no task may see.
    Secret,
    /// As `Secret`, and no external directory may be below it.
    Store,
    /// Not among the input files that tasks see. An external directory may show it.
    NoInput,
}

/// The files and directories that are kept out of the job's input files.
#[derive(Debug, Clone)]
pub struct HiddenFiles {
    identities: HashSet<(u64, u64)>,
    /// Without links.
    paths: HashSet<PathBuf>,
    is_own_name: fn(&OsStr) -> bool,
}

impl HiddenFiles {
    /// Hides all paths in `own` except for homes, and all files for which `is_own_name` is true: other pilots
    /// in the same place make such files at any time.
    #[must_use]
    pub fn of(own: &[OwnPath], is_own_name: fn(&OsStr) -> bool) -> Self {
        let hidden = || own.iter().filter(|own| own.privacy != Privacy::Home);
        let found = hidden().filter_map(|own| fs::metadata(&own.path).ok());
        Self {
            identities: found.map(|found| identity(&found)).collect(),
            paths: hidden().map(|own| real(&own.path)).collect(),
            is_own_name,
        }
    }

    /// Whether the path, which is without links, is hidden. It need not exist.
    #[must_use]
    pub fn contain_path(&self, path: &Path) -> bool {
        self.paths.contains(path) || path.file_name().is_some_and(self.is_own_name)
    }

    /// Whether this file is hidden, by whatever path it was found.
    #[must_use]
    pub fn contain(&self, found: &Metadata) -> bool {
        self.identities.contains(&identity(found))
    }
}

fn identity(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

/// The first of the pilot's own paths that a bind of `directory` would show to tasks, or that contains
/// `directory`. `directory` is absolute and without links.
#[must_use]
pub fn shown_by<'a>(
    directory: &Path,
    own: &'a [OwnPath],
    mounts: &MountTable,
) -> Option<&'a OwnPath> {
    own.iter().find(|own| {
        let real = real(&own.path);
        match own.privacy {
            Privacy::Home | Privacy::Secret => shows(directory, &real, mounts),
            Privacy::Store => shows(directory, &real, mounts) || shows(&real, directory, mounts),
            Privacy::NoInput => false,
        }
    })
}

/// Whether a bind of `directory` shows the file at `path`, by its path or through another mount.
fn shows(directory: &Path, path: &Path, mounts: &MountTable) -> bool {
    let is_same = |alias: &PathBuf| match (fs::metadata(alias), fs::metadata(path)) {
        (Ok(one), Ok(other)) => identity(&one) == identity(&other),
        _ => false,
    };
    path.starts_with(directory) || mounts.aliases(directory, path).iter().any(is_same)
}

/// The path with its links resolved, as far as it exists.
fn real(path: &Path) -> PathBuf {
    for existing in path.ancestors() {
        if let Ok(real) = fs::canonicalize(existing) {
            let rest = path.strip_prefix(existing).unwrap_or(Path::new(""));
            // Joining an empty path would add a slash.
            return if rest.as_os_str().is_empty() {
                real
            } else {
                real.join(rest)
            };
        }
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn own(path: PathBuf, privacy: Privacy) -> OwnPath {
        OwnPath {
            path,
            what: "own",
            privacy,
        }
    }

    #[test]
    fn a_directory_shows_what_is_in_it_by_its_real_path_even_before_it_is_there() {
        let top = tempfile::tempdir().expect("a directory");
        let top = fs::canonicalize(top.path()).expect("it is there");
        fs::create_dir_all(top.join("job/data")).expect("made");
        fs::create_dir(top.join("beside")).expect("made");
        symlink(top.join("job"), top.join("link")).expect("linked");
        let table = MountTable::read().expect("there is a /proc");
        let shows = |directory: &str, path: &str, privacy: Privacy| {
            let own = [own(top.join(path), privacy)];
            shown_by(&top.join(directory), &own, &table).is_some()
        };
        for (privacy, inside) in [
            (Privacy::Home, false),
            (Privacy::Secret, false),
            (Privacy::Store, true),
        ] {
            assert!(shows("job", "link/data", privacy));
            assert!(shows("job", "link/unsent", privacy), "not there yet");
            assert!(shows("job", "job", privacy));
            assert!(!shows("beside", "job", privacy));
            assert_eq!(shows("job/data", "link", privacy), inside);
        }
        assert!(!shows("job", "job/data", Privacy::NoInput));
    }
}
