//! What HTCondor and glideins tell a job about the Apptainers of its machine: paths in variables and in the
//! machine ad, and HTCondor's own directory. Nothing is looked at here: the paths may be on a file system that
//! hangs, or belong to the machine outside of the job's container.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::environment::Environment;

/// An Apptainer that a variable or an attribute of the machine ad names. It need not exist, nor be Apptainer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedApptainer {
    /// The name of the variable and of the attribute, which are the same.
    pub by: &'static str,
    pub program: PathBuf,
}

/// What glideins say that they found, in the order in which it counts.
const NAMES: [&str; 2] = ["GWMS_SINGULARITY_PATH", "SINGULARITY_PATH"];

/// The directory of HTCondor's programs, in the environment of every job (seen with 23.9).
const CONDOR_BIN: &str = "_CONDOR_BIN";

/// The Apptainers that the environment and the machine ad name; `attribute` reads a string of the ad.
pub(super) fn named_apptainers(
    environment: &Environment,
    attribute: impl Fn(&str) -> Option<String>,
) -> Vec<NamedApptainer> {
    let mut found = Vec::new();
    for by in NAMES {
        let variable = environment.get(OsStr::new(by)).cloned();
        let said = [variable, attribute(by).map(OsString::from)];
        for program in said.into_iter().flatten().map(PathBuf::from) {
            let named = NamedApptainer { by, program };
            if !named.program.as_os_str().is_empty() && !found.contains(&named) {
                found.push(named);
            }
        }
    }
    found
}

/// The directory that HTCondor is installed in. Its programs are in `bin` there, in `usr/bin` or, if the system
/// has it as a package, in `/usr/bin`.
pub(super) fn condor_root(environment: &Environment) -> Option<PathBuf> {
    let programs = Path::new(environment.get(OsStr::new(CONDOR_BIN))?);
    if !programs.is_absolute() || !programs.ends_with("bin") {
        return None;
    }
    let above = programs.parent()?;
    let root = match above.parent() {
        Some(root) if above.ends_with("usr") => root,
        _ => above,
    };
    Some(root.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (name.into(), value.into()))
            .collect()
    }

    #[test]
    fn variables_and_the_machine_ad_name_apptainers_by_the_same_names() {
        let environment = environment(&[
            ("SINGULARITY_PATH", "/site/singularity"),
            ("GWMS_SINGULARITY_PATH", ""),
        ]);
        let attribute = |name: &str| match name {
            "GWMS_SINGULARITY_PATH" => Some("/glidein/apptainer".to_owned()),
            "SINGULARITY_PATH" => Some("/site/singularity".to_owned()),
            _ => None,
        };
        let named = named_apptainers(&environment, attribute);
        let named: Vec<(&str, &Path)> = named
            .iter()
            .map(|named| (named.by, named.program.as_path()))
            .collect();
        assert_eq!(
            named,
            [
                ("GWMS_SINGULARITY_PATH", Path::new("/glidein/apptainer")),
                ("SINGULARITY_PATH", Path::new("/site/singularity")),
            ]
        );
    }

    #[test]
    fn condors_root_lies_above_its_programs() {
        for (programs, root) in [
            ("/usr/bin", Some("/")),
            ("/bin", Some("/")),
            ("/glidein/main/condor/bin", Some("/glidein/main/condor")),
            ("/glidein/condor/usr/bin", Some("/glidein/condor")),
            ("bin", None),
            ("/opt/condor", None),
            ("", None),
        ] {
            let environment = environment(&[(CONDOR_BIN, programs)]);
            assert_eq!(
                condor_root(&environment).as_deref(),
                root.map(Path::new),
                "{programs}"
            );
        }
        assert_eq!(condor_root(&Environment::new()), None);
    }
}
