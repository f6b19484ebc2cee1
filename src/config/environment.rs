//! The environment of a pilot: that of its process and, for variables that it lacks, the env file that the
//! submitting service ships with a job: `export NAME=<quoted>` lines between `set -x` and `set +x`. The file
//! is parsed, never run: text that a shell would expand or execute is an error. It holds tokens, so no error
//! from here holds a value.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use super::env_file_syntax::commands;
use super::problem::ConfigProblem;
use super::variables::{DATA_DIR_PARENT, ENV_FILE};
use crate::regular_file;

pub type Environment = BTreeMap<OsString, OsString>;

/// The env file's name, in the working directory or in HTCondor's scratch directory, unless the variable
/// `EWMS_PILOT_ENV_FILE` gives another.
pub const ENV_FILE_NAME: &str = "ewms_htcondor_envfile.sh";

/// The variable that names the directory for a job's files.
pub(super) const SCRATCH: &str = "_CONDOR_SCRATCH_DIR";

/// The environment, with the variables of the env file that it doesn't have itself. Errors in the file are
/// added to `problems`; a missing file is none, unless the environment names it.
pub(super) fn with_env_file(
    environment: &Environment,
    cwd: &Path,
    problems: &mut Vec<ConfigProblem>,
) -> Environment {
    let mut merged = environment.clone();
    match EnvFile::find(environment, cwd) {
        Some(file) => {
            problems.extend(file.problems);
            for (name, value) in file.variables {
                merged.entry(name).or_insert(value);
            }
        }
        None => problems.extend(not_found(environment, cwd)),
    }
    merged
}

/// A file that the environment names has to be there.
fn not_found(environment: &Environment, cwd: &Path) -> Option<ConfigProblem> {
    let name = named(environment).filter(|name| !name.as_os_str().is_empty())?;
    let advice = format!(
        "there is no such file in `{}`; name one that is there, with its directory if it is elsewhere",
        cwd.display()
    );
    let name = name.display().to_string();
    Some(ConfigProblem::value(ENV_FILE.name, &name, advice))
}

/// The env file that the environment names; an empty name means none.
pub(super) fn named(environment: &Environment) -> Option<&Path> {
    environment.get(OsStr::new(ENV_FILE.name)).map(Path::new)
}

/// Where a file of this name is looked for, in order.
fn places(environment: &Environment, cwd: &Path, name: &Path) -> Vec<PathBuf> {
    let scratch = environment.get(OsStr::new(SCRATCH)).map(Path::new);
    let directories = [Some(cwd), scratch].into_iter().flatten();
    directories.map(|directory| directory.join(name)).collect()
}

/// All paths at which the job may have an env file: a job that names one may have the usual one, too.
pub(super) fn env_files(environment: &Environment, cwd: &Path) -> Vec<PathBuf> {
    let own = named(environment).filter(|name| !name.as_os_str().is_empty());
    own.into_iter()
        .chain([Path::new(ENV_FILE_NAME)])
        .flat_map(|name| places(environment, cwd, name))
        .collect()
}

/// The env file of a job, as it was read.
#[derive(Debug, Clone)]
pub struct EnvFile {
    pub path: PathBuf,
    pub variables: Environment,
    pub problems: Vec<ConfigProblem>,
}

impl EnvFile {
    /// The file that a pilot with this environment reads when it starts in `cwd`, which is absolute.
    #[must_use]
    pub fn find(environment: &Environment, cwd: &Path) -> Option<Self> {
        let name = named(environment).unwrap_or(Path::new(ENV_FILE_NAME));
        if name.as_os_str().is_empty() {
            return None;
        }
        let places = places(environment, cwd, name);
        places.iter().find_map(|path| Self::read(path))
    }

    /// `None` if there is no file.
    fn read(path: &Path) -> Option<Self> {
        let shown = path.display().to_string();
        let mut file = Self {
            path: path.to_owned(),
            variables: Environment::new(),
            problems: Vec::new(),
        };
        let unreadable = |reason: &str| ConfigProblem::UnreadableEnvFile {
            file: shown.clone(),
            reason: reason.to_owned(),
        };
        match regular_file::read(path).map(String::from_utf8) {
            Ok(Ok(text)) => file.take(&text),
            Ok(Err(_secret)) => file.problems.push(unreadable(
                "it is not UTF-8 text; write it again or remove it",
            )),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return None;
            }
            Err(error) => file.problems.push(unreadable(&format!(
                "{error}; make it readable or remove it"
            ))),
        }
        Some(file)
    }

    fn take(&mut self, text: &str) {
        for command in commands(text) {
            let advice = match command.assignment() {
                Ok(None) => continue,
                Ok(Some((name, _))) if name == ENV_FILE.name => {
                    format!(
                        "`{name}` has no effect in an env file: set it in the pilot's environment"
                    )
                }
                Ok(Some((name, value))) => {
                    self.variables.insert(name.into(), value.into());
                    continue;
                }
                Err(advice) => advice,
            };
            self.problems.push(ConfigProblem::EnvFile {
                file: self.path.display().to_string(),
                line: command.line,
                advice,
            });
        }
    }
}

/// The directories in which a pilot with these settings may keep `ewms-pilot-data/`: the working directory,
/// HTCondor's scratch directory, and the one that the environment or the job's env file names. `cwd` is
/// absolute. Settings that are wrong count as not set; the pilot itself reports them.
#[must_use]
pub fn data_parents(environment: &Environment, cwd: &Path) -> Vec<PathBuf> {
    let merged = with_env_file(environment, cwd, &mut Vec::new());
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

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        pairs
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect()
    }

    #[test]
    fn variables_already_set_win_over_the_file() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(
            directory.path().join(ENV_FILE_NAME),
            "export A=file\nexport B=1\nexport B=2\n",
        )
        .expect("written");
        let mut problems = Vec::new();
        let merged = with_env_file(
            &environment(&[("A", "set")]),
            directory.path(),
            &mut problems,
        );
        assert_eq!(problems, []);
        assert_eq!(merged, environment(&[("A", "set"), ("B", "2")]));
    }

    #[test]
    fn the_scratch_directory_is_looked_at_when_the_working_directory_has_no_file() {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let cwd = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(scratch.path().join(ENV_FILE_NAME), "export A=scratch\n").expect("written");
        let mut base = Environment::new();
        base.insert(SCRATCH.into(), scratch.path().into());
        let a = |base: &Environment| {
            with_env_file(base, cwd.path(), &mut Vec::new()).remove(OsStr::new("A"))
        };
        assert_eq!(a(&base), Some("scratch".into()));
        std::fs::write(cwd.path().join(ENV_FILE_NAME), "export A=cwd\n").expect("written");
        assert_eq!(a(&base), Some("cwd".into()));
    }

    #[test]
    fn another_file_may_be_named_and_must_be_there() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let write = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).expect("written");
        };
        write(ENV_FILE_NAME, "export A=usual\n");
        write("my.env", "export A=mine\n");
        let read = |name: &str| {
            let mut problems = Vec::new();
            let base = environment(&[(ENV_FILE.name, name)]);
            let mut merged = with_env_file(&base, directory.path(), &mut problems);
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            (merged.remove(OsStr::new("A")), problems.join("\n"))
        };
        for name in ["my.env", "./my.env"] {
            assert_eq!(read(name), (Some("mine".into()), String::new()));
        }
        let absolute = directory.path().join("my.env");
        let absolute = absolute.to_str().expect("text");
        assert_eq!(read(absolute), (Some("mine".into()), String::new()));
        assert_eq!(read(""), (None, String::new()), "an empty name means none");
        let (value, problem) = read("your.env");
        assert_eq!(value, None);
        let expected = format!(
            "`{}` is `your.env`: there is no such file in `",
            ENV_FILE.name
        );
        assert!(problem.starts_with(&expected), "{problem}");
        write("my.env", &format!("export {}=other\n", ENV_FILE.name));
        let (_, problem) = read("my.env");
        assert!(
            problem.contains("line 1: ") && problem.contains("has no effect"),
            "{problem}"
        );
    }

    #[test]
    fn a_file_that_is_no_text_is_a_problem() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join(ENV_FILE_NAME), b"export A='\xff'\n")
            .expect("written");
        let mut problems = Vec::new();
        with_env_file(&Environment::new(), directory.path(), &mut problems);
        assert!(
            problems[0].to_string().contains("not UTF-8"),
            "{problems:?}"
        );
    }

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
        std::fs::write(scratch.join(ENV_FILE_NAME), line).expect("written");
        let of_file = set(&[(SCRATCH, scratch_text)]);
        let expected = [cwd, scratch, Path::new("/elsewhere")];
        assert_eq!(data_parents(&of_file, cwd), expected);
    }
}
