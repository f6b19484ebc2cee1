//! Image references: whether a user's word for an image means a directory, a file or a remote image. Reads
//! the file system and changes nothing.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

/// Kinds of image written as `KIND:PATH`, with the path of a local file or directory.
const LOCAL_KINDS: &[&str] = &["docker-archive", "oci-archive", "oci"];
/// Suffixes of files. A name without one is looked up in a registry.
const FILE_ENDINGS: &[&str] = &[
    ".sif",
    ".simg",
    ".img",
    ".sqfs",
    ".squashfs",
    ".tar",
    ".tar.gz",
    ".tgz",
    ".def",
];

/// The meaning of an image's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reference {
    /// A directory. Absolute.
    Directory(PathBuf),
    /// An archive of a named kind, or a directory in a format that is no sandbox.
    Archive {
        /// As `apptainer build` takes it.
        source: String,
        /// Changes with the content.
        identity: String,
    },
    /// A file, not yet known to be an image.
    File {
        /// Absolute.
        path: PathBuf,
        /// As `apptainer build` takes it.
        source: String,
        /// Changes with the file's content.
        identity: String,
    },
    /// A remote image, as `apptainer build` takes it.
    Remote(String),
    /// A path that doesn't exist.
    Missing,
}

/// Resolves `image`. An existing path is that file or directory. Otherwise a reference with a source
/// (`docker://…`) is remote, anything that looks like a path is missing, and a bare name means Docker's
/// registry.
pub(super) fn resolve(image: &str, cwd: &Path) -> io::Result<Reference> {
    if image.is_empty() {
        return Ok(Reference::Missing);
    }
    let path = cwd.join(image);
    if let Some(found) = look(&path)? {
        return Ok(if found.is_dir() {
            Reference::Directory(path)
        } else {
            let source = path.to_string_lossy().into_owned();
            Reference::File {
                identity: identity(&source, &path, &found),
                source,
                path,
            }
        });
    }
    for kind in LOCAL_KINDS {
        if let Some(rest) = image
            .strip_prefix(kind)
            .and_then(|rest| rest.strip_prefix(':'))
        {
            return local(kind, rest.strip_prefix("//").unwrap_or(rest), cwd);
        }
    }
    if image.contains("://") || image.starts_with("docker-daemon:") {
        return Ok(Reference::Remote(image.to_owned()));
    }
    let looks_like_a_path =
        image.starts_with(['/', '.', '~']) || FILE_ENDINGS.iter().any(|end| image.ends_with(end));
    if looks_like_a_path {
        return Ok(Reference::Missing);
    }
    Ok(Reference::Remote(format!("docker://{image}")))
}

/// Resolves `oci:` and the archives, which may have `:TAG` after the path.
fn local(kind: &str, rest: &str, cwd: &Path) -> io::Result<Reference> {
    let untagged = rest.rsplit_once(':').map_or(rest, |(path, _)| path);
    for path in [rest, untagged] {
        let absolute = cwd.join(path);
        if let Some(found) = look(&absolute)? {
            let source = format!("{kind}:{}{}", absolute.display(), &rest[path.len()..]);
            // The directory's own time changes only with new entries, but its index contains a digest of the
            // rest.
            let (path, found) = match look(&absolute.join("index.json"))? {
                Some(index) => (absolute.join("index.json"), index),
                None => (absolute, found),
            };
            return Ok(Reference::Archive {
                identity: identity(&source, &path, &found),
                source,
            });
        }
    }
    Ok(Reference::Missing)
}

fn identity(source: &str, path: &Path, found: &fs::Metadata) -> String {
    format!(
        "{source}\n{}\n{} {}.{:09}",
        fs::canonicalize(path)
            .unwrap_or_else(|_| path.to_owned())
            .display(),
        found.len(),
        found.mtime(),
        found.mtime_nsec()
    )
}

fn look(path: &Path) -> io::Result<Option<fs::Metadata>> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some(found)),
        // ENOTDIR: `x.sif/y`; ENAMETOOLONG and similar: not a path.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::InvalidFilename
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A short name that a person recognizes, safe as a file name.
pub(super) fn label(image: &str) -> String {
    let last = image
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or(image);
    let safe = last.chars().map(|letter| match letter {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_' => letter,
        _ => '_',
    });
    safe.skip_while(|letter| matches!(letter, '.' | '-'))
        .take(60)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_a_path_are_in_dockers_registry() {
        for name in [
            "busybox",
            "python:3.11",
            "icecube/skymap_scanner:v4.5.6",
            "ghcr.io/x/y:1",
        ] {
            let expected = Reference::Remote(format!("docker://{name}"));
            assert_eq!(
                resolve(name, Path::new("/nonexistent")).expect("looked"),
                expected
            );
        }
        for source in [
            "docker://x",
            "oras://x/y",
            "library://x",
            "https://x/y.sif",
            "docker-daemon:x:y",
        ] {
            let expected = Reference::Remote(source.to_owned());
            assert_eq!(
                resolve(source, Path::new("/nonexistent")).expect("looked"),
                expected
            );
        }
    }

    #[test]
    fn what_looks_like_a_path_is_missing_rather_than_fetched() {
        for path in [
            "",
            "/a/b",
            "./a",
            "../a",
            "a.sif",
            "a/b.sif",
            "docker-archive:a.tar",
            "oci:a:tag",
        ] {
            assert_eq!(
                resolve(path, Path::new("/nonexistent")).expect("looked"),
                Reference::Missing,
                "{path}"
            );
        }
    }

    #[test]
    fn what_exists_wins_over_the_registry() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("busybox")).expect("made");
        fs::write(dir.path().join("python:3.11"), "x").expect("written");
        let found = resolve("busybox", dir.path()).expect("looked");
        assert_eq!(found, Reference::Directory(dir.path().join("busybox")));
        let Reference::File { source, .. } = resolve("python:3.11", dir.path()).expect("looked")
        else {
            panic!("it is a file");
        };
        assert_eq!(source, dir.path().join("python:3.11").display().to_string());
    }

    #[test]
    fn local_kinds_get_absolute_paths_and_keep_their_tag() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("a.tar"), "x").expect("written");
        let root = dir.path().display();
        for (image, expected) in [
            (
                "docker-archive:a.tar",
                format!("docker-archive:{root}/a.tar"),
            ),
            (
                "docker-archive:a.tar:x",
                format!("docker-archive:{root}/a.tar:x"),
            ),
            ("oci-archive:a.tar", format!("oci-archive:{root}/a.tar")),
        ] {
            let Reference::Archive { source, .. } = resolve(image, dir.path()).expect("looked")
            else {
                panic!("{image} is an archive");
            };
            assert_eq!(source, expected);
        }
    }

    #[test]
    fn labels_are_short_and_safe() {
        assert_eq!(
            label("docker://icecube/skymap_scanner:v1"),
            "skymap_scanner_v1"
        );
        assert_eq!(label("/a/b c'd/"), "b_c_d");
        assert_eq!(label("../..-x"), "x");
        assert_eq!(label(&"x".repeat(300)).len(), 60);
    }
}
