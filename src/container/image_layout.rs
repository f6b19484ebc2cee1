//! The contents of a sandbox directory, besides a runscript, that Apptainer needs to start a container and
//! set its variables.

use std::fs;
use std::io;
use std::path::Path;

use super::probe_script::{ENV_DIR, InImage, PLACES};
use super::rootfs::resolve;
use super::runscript::{self, RunscriptError, RunscriptNeeds};

/// The script after which Apptainer sets the task's variables.
const BASE_SCRIPT: &str = "99-base.sh";
/// The directories on which Apptainer mounts something in every container.
const MOUNT_POINTS: [&str; 5] = ["/tmp", "/var/tmp", "/dev", "/proc", "/sys"];

/// The properties of a sandbox directory that decide whether tasks can run in it.
#[derive(Debug)]
pub struct ImageShape {
    /// The first path that Apptainer needs as a directory and that is something else.
    pub misshapen: Option<String>,
    pub needs: Result<RunscriptNeeds, RunscriptError>,
    /// The scripts that set its environment, in Apptainer's order.
    pub scripts: Vec<String>,
    /// Paths that tasks may rely on but that are missing in the image.
    absent: Vec<&'static str>,
}

impl ImageShape {
    /// Inspects the image. Blocks as long as its file system does.
    #[must_use]
    pub fn of(image: &Path) -> Self {
        let absent = PLACES
            .iter()
            .map(|(_, path, _)| *path)
            .filter(|path| has_directory(image, path) == InImage::Nothing);
        Self {
            misshapen: misshapen(image),
            needs: runscript::needs(image),
            scripts: env_scripts(image),
            absent: absent.collect(),
        }
    }

    /// Whether the image has a directory for `path`.
    #[must_use]
    pub fn has(&self, path: &str) -> InImage {
        if self.absent.contains(&path) {
            InImage::Nothing
        } else {
            InImage::Directory
        }
    }
}

/// Whether an image has the script after which Apptainer sets the variables of its containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaseScript {
    /// It has one, which also makes the libraries of `--nv` and `--rocm` found.
    Own,
    /// It has other scripts but not this one: its containers would get no variables. Binding an empty script
    /// repairs this.
    Missing,
    /// It has no scripts at all: Apptainer sets the variables in another way, unless one is bound there.
    NoScripts,
}

/// A script for images without one of their own. Where Apptainer finds any script, a gate's for instance, it no
/// longer reads `/environment`, the place of variables in the oldest images; this one does, as Apptainer would.
pub const BASE_SCRIPT_TEXT: &str = r#"if ! test -e /.singularity.d/env/90-environment.sh && test -f /environment; then
    source /environment
    export PATH="$(fixpath)"
fi
"#;

/// As [`BASE_SCRIPT_TEXT`]; it also lets programs find the libraries that `--nv` and `--rocm` put into a container.
pub const LIBRARY_SCRIPT: &str = r#"if ! test -e /.singularity.d/env/90-environment.sh && test -f /environment; then
    source /environment
    export PATH="$(fixpath)"
fi
LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs"
export LD_LIBRARY_PATH
"#;

/// Blocks as long as the image's file system does.
#[must_use]
pub fn base_script_of(image: &Path) -> BaseScript {
    let is_missing = |path: &Path| {
        resolve(image, path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    if has_directory(image, ENV_DIR) == InImage::Nothing {
        BaseScript::NoScripts
    } else if is_missing(&Path::new(ENV_DIR).join(BASE_SCRIPT)) {
        BaseScript::Missing
    } else {
        BaseScript::Own
    }
}

/// The path of that script in a container.
#[must_use]
pub fn base_script() -> String {
    format!("{ENV_DIR}/{BASE_SCRIPT}")
}

/// The scripts that set the environment, in Apptainer's order.
fn env_scripts(image: &Path) -> Vec<String> {
    let Ok(entries) = resolve(image, Path::new(ENV_DIR)).and_then(fs::read_dir) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.') && Path::new(name).extension() == Some("sh".as_ref()))
        .collect();
    names.sort();
    names
}

/// Whether the image has a directory `path` on which a site could mount something. A home needs none.
fn has_directory(image: &Path, path: &str) -> InImage {
    let path = match path {
        "$HOME" => return InImage::Directory,
        "/dev/null" | "/dev/shm" => "/dev",
        path => path,
    };
    match resolve(image, Path::new(path)) {
        Ok(found) if found.is_dir() => InImage::Directory,
        Ok(_) | Err(_) => InImage::Nothing,
    }
}

/// Describes the first path that Apptainer needs as a directory and that is something else.
fn misshapen(image: &Path) -> Option<String> {
    MOUNT_POINTS
        .into_iter()
        .find(|path| resolve(image, Path::new(path)).is_ok_and(|found| !found.is_dir()))
        .map(|path| format!("`{path}` of the image is no directory"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_an_image_with_scripts_but_without_that_one_lacks_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path();
        assert_eq!(base_script_of(image), BaseScript::NoScripts);
        let env = image.join(&ENV_DIR[1..]);
        fs::create_dir_all(&env).expect("made");
        assert_eq!(base_script_of(image), BaseScript::Missing);
        fs::write(env.join("90-environment.sh"), "").expect("written");
        fs::write(env.join("notes"), "").expect("written");
        assert_eq!(base_script_of(image), BaseScript::Missing);
        fs::write(env.join("99-base.sh"), "").expect("written");
        assert_eq!(base_script_of(image), BaseScript::Own);
        assert_eq!(env_scripts(image), ["90-environment.sh", "99-base.sh"]);
    }

    #[test]
    fn files_where_directories_must_be_are_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path();
        fs::create_dir_all(image.join("var")).expect("made");
        assert_eq!(misshapen(image), None);
        assert_eq!(has_directory(image, "/tmp"), InImage::Nothing);
        fs::create_dir(image.join("tmp")).expect("made");
        symlink("/tmp", image.join("var/tmp")).expect("linked");
        assert_eq!(misshapen(image), None);
        assert_eq!(has_directory(image, "/var/tmp"), InImage::Directory);
        fs::remove_dir(image.join("tmp")).expect("removed");
        fs::write(image.join("tmp"), "").expect("written");
        let said = misshapen(image).expect("a file");
        assert!(said.contains("`/tmp`"), "{said}");
    }
}
