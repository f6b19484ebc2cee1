//! Where a pilot with these settings keeps its data, for commands that look for one. Settings that are
//! wrong are the pilot's to report; here they are just not known.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::envfile::{self, SCRATCH};
use super::load::Environment;
use super::variables::DATA_DIR_PARENT;

/// The directories in which `ewms-pilot-data/` may be: the working directory, HTCondor's scratch
/// directory, and the one that the environment or the job's env file names. `cwd` is absolute.
#[must_use]
pub fn data_parents(environment: &Environment, cwd: &Path) -> Vec<PathBuf> {
    let merged = envfile::merge(environment, cwd, &mut Vec::new());
    let named = |name: &str| {
        let value = merged.get(OsStr::new(name))?;
        (!value.is_empty()).then(|| PathBuf::from(value))
    };
    let mut places = vec![cwd.to_owned()];
    places.extend(named(SCRATCH));
    if let Some(parent) = named(DATA_DIR_PARENT.name) {
        // Relative to the pilot's working directory, which is one of these.
        let joined: Vec<PathBuf> = places.iter().map(|base| base.join(&parent)).collect();
        places.extend(joined);
    }
    let mut different: Vec<PathBuf> = Vec::new();
    for place in places {
        if !different.contains(&place) {
            different.push(place);
        }
    }
    different
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pilot_is_looked_for_where_it_may_have_been_told_to_keep_its_data() {
        let scratch = tempfile::tempdir().expect("a directory");
        let scratch = scratch.path();
        let set = |variables: &[(&str, &str)]| -> Environment {
            let variables = variables.iter();
            variables
                .map(|(name, value)| (name.into(), value.into()))
                .collect()
        };
        let cwd = Path::new("/here");
        assert_eq!(data_parents(&set(&[]), cwd), [cwd]);
        let scratch_text = scratch.to_str().expect("text");
        let both = set(&[(SCRATCH, scratch_text), (DATA_DIR_PARENT.name, "data")]);
        let expected = [cwd, scratch, Path::new("/here/data"), &scratch.join("data")];
        assert_eq!(data_parents(&both, cwd), expected);
        let line = format!("export {}=/elsewhere\n", DATA_DIR_PARENT.name);
        std::fs::write(scratch.join(envfile::FILE_NAME), line).expect("written");
        let of_file = set(&[(SCRATCH, scratch_text)]);
        let expected = [cwd, scratch, Path::new("/elsewhere")];
        assert_eq!(data_parents(&of_file, cwd), expected);
    }
}
