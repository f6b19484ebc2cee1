//! Binds: the directories that a container sees, and their paths in it. Every [`Bind`] from [`Bind::new`] has
//! passed the rules that protect the machine. Resolves links of a source; reads nothing else.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// No bind may have its source below these.
const SOURCES_FORBIDDEN: &[&str] = &["/proc", "/dev", "/sys", "/run", "/boot"];
/// No writable bind may have its source or target below these.
const SYSTEM: &[&str] = &[
    "/etc",
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/sbin",
    "/root",
    "/var/log",
    "/var/cache",
    "/var/spool",
];
/// No writable bind may have its target below these either.
const TARGETS_FORBIDDEN: &[&str] = &["/proc", "/dev", "/sys"];

/// The access of a container to a bound directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// A directory of the execution point that a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    source: PathBuf,
    /// The source without links.
    real: PathBuf,
    target: PathBuf,
    access: Access,
}

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("bind path `{path}` must be absolute; write it from `/` on")]
    Relative { path: PathBuf },
    /// The source doesn't exist or can't be read.
    #[error(
        "bind source `{path}` can't be used: {source}; make the directory, or remove it from the binds"
    )]
    Source { path: PathBuf, source: io::Error },
    #[error("bind source `{path}` is no directory; name the directory that holds it")]
    NoDirectory { path: PathBuf },
    /// The source shows parts of the machine that no container may see.
    #[error(
        "bind source `{path}` is below `{root}`, which no container may see; choose another directory"
    )]
    ForbiddenSource { path: PathBuf, root: &'static str },
    /// The source may be read but not written.
    #[error(
        "bind source `{path}` is below `{root}`, which may not be writable; choose another directory"
    )]
    ReadOnlySource { path: PathBuf, root: &'static str },
    /// A writable directory would cover parts of the image that must not change.
    #[error(
        "bind target `{path}` is below `{root}`, which may not be writable; choose another target"
    )]
    ForbiddenTarget { path: PathBuf, root: &'static str },
    /// Apptainer's options can't express this target.
    #[error(
        "bind target `{path}` holds `{what}`, which Apptainer can't take there; rename the directory \
         or bind one above it"
    )]
    Unspeakable { path: PathBuf, what: &'static str },
    #[error("two directories are bound to `{path}`; remove one of them")]
    SharedTarget { path: PathBuf },
}

impl Bind {
    /// Binds the directory `source` to `target` in the container.
    ///
    /// # Errors
    /// When a rule forbids it: the source must be an existing directory, and neither path may give a
    /// container access that the machine or the image must keep for itself.
    pub fn new(
        source: impl Into<PathBuf>,
        target: impl Into<PathBuf>,
        access: Access,
    ) -> Result<Self, BindError> {
        let (source, target) = (source.into(), target.into());
        for path in [&source, &target] {
            if !path.is_absolute() {
                return Err(BindError::Relative { path: path.clone() });
            }
        }
        let unusable = |error| BindError::Source {
            path: source.clone(),
            source: error,
        };
        // The real path, so that no link evades the rules.
        let real = fs::canonicalize(&source).map_err(unusable)?;
        if !fs::metadata(&real).map_err(unusable)?.is_dir() {
            return Err(BindError::NoDirectory { path: source });
        }
        if let Some(root) = root_of(&real, SOURCES_FORBIDDEN) {
            return Err(BindError::ForbiddenSource { path: source, root });
        }
        if let Some(what) = unspeakable(&target) {
            return Err(BindError::Unspeakable { path: target, what });
        }
        if access == Access::ReadWrite {
            if let Some(root) = root_of(&real, SYSTEM) {
                return Err(BindError::ReadOnlySource { path: source, root });
            }
            if let Some(root) =
                root_of(&target, SYSTEM).or_else(|| root_of(&target, TARGETS_FORBIDDEN))
            {
                return Err(BindError::ForbiddenTarget { path: target, root });
            }
        }
        Ok(Self {
            source,
            real,
            target,
            access,
        })
    }

    /// A read-only bind of the mount at `point`, below this directory, to the path where the container sees
    /// it through this bind. A bind's access does not extend to mounts below it.
    ///
    /// # Errors
    /// When Apptainer's options can't express the path. `point` itself is not accessed.
    pub fn read_only_below(&self, point: &Path) -> Result<Self, BindError> {
        let target = match point.strip_prefix(&self.real) {
            Ok(rest) => self.target.join(rest),
            Err(_) => point.to_owned(),
        };
        if let Some(what) = unspeakable(&target) {
            return Err(BindError::Unspeakable { path: target, what });
        }
        Ok(Self {
            source: point.to_owned(),
            real: point.to_owned(),
            target,
            access: Access::ReadOnly,
        })
    }

    /// The source without links.
    #[must_use]
    pub fn real(&self) -> &Path {
        &self.real
    }

    /// A read-only bind of the pilot's own file `source` among the files that Apptainer reads from an image.
    /// The rules for users' directories don't apply to it.
    #[must_use]
    pub fn script(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        let source = source.into();
        Self {
            real: source.clone(),
            source,
            target: target.into(),
            access: Access::ReadOnly,
        }
    }

    /// The directory on the execution point, as it was given.
    #[must_use]
    pub fn source(&self) -> &Path {
        &self.source
    }

    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }
}

/// Refuses binds with the same target: Apptainer would keep the first and only warn.
///
/// # Errors
/// When two binds have the same target; names the first.
pub fn check_distinct(binds: &[Bind]) -> Result<(), BindError> {
    let mut seen = HashSet::new();
    // Path's equality ignores `/./` and a trailing slash, as the mount does.
    match binds
        .iter()
        .find(|bind| !seen.insert(bind.target.as_path()))
    {
        Some(bind) => Err(BindError::SharedTarget {
            path: bind.target.clone(),
        }),
        None => Ok(()),
    }
}

/// The member of `roots` that contains `path` or equals it.
fn root_of(path: &Path, roots: &'static [&'static str]) -> Option<&'static str> {
    roots.iter().copied().find(|root| path.starts_with(root))
}

/// The part of a target that Apptainer's options can't express.
fn unspeakable(target: &Path) -> Option<&'static str> {
    let Some(text) = target.to_str() else {
        return Some("bytes that are not UTF-8");
    };
    if target
        .components()
        .any(|component| component == Component::ParentDir)
    {
        return Some("..");
    }
    // A carriage return before a line feed would be lost.
    ["\r", "\0"].into_iter().find(|what| text.contains(what))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn refusal(source: &Path, target: &str, access: Access) -> String {
        Bind::new(source, target, access)
            .expect_err("is refused")
            .to_string()
    }

    #[test]
    fn an_existing_directory_can_be_bound() {
        let dir = tempfile::tempdir().expect("a directory");
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let bind =
                Bind::new(dir.path(), "/ewms-pilot-data/data-hub", access).expect("is allowed");
            assert_eq!((bind.source(), bind.access()), (dir.path(), access));
        }
    }

    #[test]
    fn a_source_must_be_absolute_existing_and_a_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        fs::write(&file, "").expect("written");
        let read = |path: &Path| refusal(path, "/x", Access::ReadOnly);
        assert!(read(Path::new("relative")).contains("`relative` must be absolute"));
        assert!(read(&dir.path().join("missing")).contains("can't be used: No such file"));
        assert!(read(&file).contains("is no directory"));
        assert!(
            refusal(dir.path(), "relative", Access::ReadOnly)
                .contains("`relative` must be absolute")
        );
    }

    #[test]
    fn a_link_leads_around_no_rule() {
        let dir = tempfile::tempdir().expect("a directory");
        let link = dir.path().join("link");
        symlink("/proc", &link).expect("linked");
        assert!(refusal(&link, "/x", Access::ReadOnly).contains("below `/proc`"));
    }

    #[test]
    fn the_systems_own_directories_are_never_sources() {
        for root in ["/proc", "/dev", "/sys"] {
            assert!(
                refusal(Path::new(root), "/x", Access::ReadOnly).contains("no container may see"),
                "{root}"
            );
        }
    }

    #[test]
    fn system_directories_can_be_read_but_not_written() {
        for root in [
            "/etc",
            "/usr",
            "/usr/share",
            "/var/log",
            "/var/cache",
            "/var/spool",
        ] {
            assert!(Bind::new(root, "/x", Access::ReadOnly).is_ok(), "{root}");
            assert!(
                refusal(Path::new(root), "/x", Access::ReadWrite).contains("may not be writable"),
                "{root}"
            );
        }
    }

    #[test]
    fn a_writable_directory_covers_nothing_of_the_system() {
        let dir = tempfile::tempdir().expect("a directory");
        for root in SYSTEM.iter().chain(TARGETS_FORBIDDEN) {
            let below = format!("{root}/x");
            assert!(
                refusal(dir.path(), root, Access::ReadWrite).contains("may not be writable"),
                "{root}"
            );
            assert!(
                refusal(dir.path(), &below, Access::ReadWrite).contains("may not be writable"),
                "{below}"
            );
            assert!(
                Bind::new(dir.path(), &below, Access::ReadOnly).is_ok(),
                "{below}"
            );
        }
        assert!(Bind::new(dir.path(), "/etcetera", Access::ReadWrite).is_ok());
    }

    #[test]
    fn a_target_that_apptainer_cannot_take_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        for target in ["/a\rb", "/a/../b"] {
            assert!(
                refusal(dir.path(), target, Access::ReadOnly).contains("can't take"),
                "{target}"
            );
        }
    }

    #[test]
    fn two_binds_share_no_target() {
        let dir = tempfile::tempdir().expect("a directory");
        let bind =
            |target: &str| Bind::new(dir.path(), target, Access::ReadOnly).expect("is allowed");
        assert!(check_distinct(&[bind("/a"), bind("/b"), bind("/a/b")]).is_ok());
        let error = check_distinct(&[bind("/a"), bind("/b"), bind("/a/")]).expect_err("is refused");
        assert!(error.to_string().contains("bound to `/a/`"), "{error}");
    }
}
