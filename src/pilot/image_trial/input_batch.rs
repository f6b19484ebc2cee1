//! The input files of a trial: checked before anything runs, each with the name by which it is shown and the
//! paths of its result and stderr. Knows nothing of containers.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::ExistingResults;
use crate::regular_file;

/// An input file, which becomes one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TrialInput {
    /// Absolute.
    pub(super) path: PathBuf,
    /// Its file name, with as much of its path as tells it from other inputs.
    pub(super) label: PathBuf,
    /// Relative to the working directory, as the user named the directory.
    pub(super) result: PathBuf,
    pub(super) stderr: PathBuf,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct InputBatch {
    pub(super) inputs: Vec<TrialInput>,
    /// Without a leading dot.
    pub(super) infile_ext: String,
    pub(super) outfile_ext: String,
}

/// Where results go.
pub(super) struct ResultPlaces<'a> {
    pub(super) directory: &'a Path,
    /// The suffix of results; that of the inputs, unless set.
    pub(super) extension: Option<&'a str>,
    pub(super) existing: ExistingResults,
}

/// A file as it was named, and its absolute path with nothing in it that a link or `..` hides.
struct Named<'a> {
    path: &'a Path,
    real: PathBuf,
}

impl InputBatch {
    /// Checks the files. One that is named twice is taken once.
    ///
    /// # Errors
    /// Returns all problems, a line each.
    pub(super) fn of(
        paths: &[PathBuf],
        cwd: &Path,
        destination: &ResultPlaces<'_>,
    ) -> Result<Self, Vec<String>> {
        let mut seen = BTreeSet::new();
        let (mut files, mut problems) = (Vec::new(), Vec::new());
        for path in paths {
            match real(&cwd.join(path)) {
                Ok(real) if seen.insert(real.clone()) => files.push(Named { path, real }),
                Ok(_) => {}
                Err(error) => problems.push(format!("input `{}`: {error}", path.display())),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let (infile_ext, outfile_ext) = extensions(&files, destination.extension)?;
        let inputs: Vec<TrialInput> = labels(&files)
            .into_iter()
            .zip(&files)
            .map(|(label, file)| input(file, label, &outfile_ext, destination))
            .collect();
        check_results(&inputs, cwd, destination)?;
        Ok(Self {
            inputs,
            infile_ext: infile_ext.unwrap_or_else(|| "in".to_owned()),
            outfile_ext,
        })
    }
}

/// The path of a file that can be read. A link as the last part stays: its name is the input's.
fn real(path: &Path) -> Result<PathBuf, String> {
    regular_file::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "there is no such file; is the path right?".to_owned(),
        _ => error.to_string(),
    })?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err("it has no file name".to_owned());
    };
    let parent = fs::canonicalize(parent).map_err(|error| error.to_string())?;
    Ok(parent.join(name))
}

/// The suffix of the infiles, if they have one, and that of the outfiles.
fn extensions(
    files: &[Named<'_>],
    wanted: Option<&str>,
) -> Result<(Option<String>, String), Vec<String>> {
    let mut found: BTreeMap<Option<String>, usize> = BTreeMap::new();
    for file in files {
        let extension = file.real.extension();
        let extension = extension.map(|text| text.to_string_lossy().to_lowercase());
        *found.entry(extension).or_default() += 1;
    }
    if found.len() > 1 {
        let counts: Vec<String> = found
            .iter()
            .map(|(extension, count)| match extension {
                Some(extension) => format!("`.{extension}`: {count}"),
                None => format!("none: {count}"),
            })
            .collect();
        return Err(vec![format!(
            "the inputs have different extensions ({}), and all events of a pilot get the same one; try them apart",
            counts.join(", ")
        )]);
    }
    let infile = found.into_keys().next().flatten();
    let outfile = match (wanted, &infile) {
        (Some(wanted), _) => wanted.trim_start_matches('.').to_lowercase(),
        (None, Some(infile)) => infile.clone(),
        (None, None) => "out".to_owned(),
    };
    Ok((infile, outfile))
}

/// The files' names, or, if some are equal, their paths below the directory that holds all of them.
fn labels(files: &[Named<'_>]) -> Vec<PathBuf> {
    let names: Vec<&OsStr> = files
        .iter()
        .filter_map(|file| file.real.file_name())
        .collect();
    let different: BTreeSet<&&OsStr> = names.iter().collect();
    if different.len() == files.len() {
        return names.into_iter().map(PathBuf::from).collect();
    }
    let parents = files.iter().filter_map(|file| file.real.parent());
    let common = parents.map(Path::to_owned).reduce(|a, b| common(&a, &b));
    let common = common.unwrap_or_default();
    let below = |file: &Named<'_>| match file.real.strip_prefix(&common) {
        Ok(below) => below.to_owned(),
        Err(_) => file.path.to_owned(),
    };
    files.iter().map(below).collect()
}

fn common(a: &Path, b: &Path) -> PathBuf {
    let pairs = a.components().zip(b.components());
    let same = pairs.take_while(|(a, b)| a == b);
    same.map(|(part, _): (Component<'_>, _)| part).collect()
}

fn input(
    file: &Named<'_>,
    label: PathBuf,
    outfile_ext: &str,
    destination: &ResultPlaces<'_>,
) -> TrialInput {
    let named = match (destination.extension, label.extension()) {
        (None, Some(_)) => label.clone(),
        (Some(_), _) | (None, None) => label.with_extension(outfile_ext),
    };
    let mut stderr = destination.directory.join(&label).into_os_string();
    stderr.push(".stderr");
    TrialInput {
        path: file.real.clone(),
        result: destination.directory.join(named),
        stderr: stderr.into(),
        label,
    }
}

/// Refuses to write over an input, and over files that exist unless the user wants that.
fn check_results(
    inputs: &[TrialInput],
    cwd: &Path,
    destination: &ResultPlaces<'_>,
) -> Result<(), Vec<String>> {
    let sources: BTreeSet<&Path> = inputs.iter().map(|input| input.path.as_path()).collect();
    for written in inputs
        .iter()
        .flat_map(|input| [&input.result, &input.stderr])
    {
        if real(&cwd.join(written)).is_ok_and(|real| sources.contains(&*real)) {
            return Err(vec![format!(
                "`{}` is an input, and a result would replace it; name another directory with `--out`",
                written.display()
            )]);
        }
    }
    // The stderr of an earlier trial is replaced without a question.
    let results = inputs.iter().map(|input| &input.result);
    let existing: Vec<&PathBuf> = results.filter(|path| cwd.join(path).exists()).collect();
    let Some(first) = existing.first() else {
        return Ok(());
    };
    if destination.existing == ExistingResults::Overwrite {
        return Ok(());
    }
    let more = match existing.len() - 1 {
        0 => " exists".to_owned(),
        more => format!(" and {more} more exist"),
    };
    Err(vec![format!(
        "`{}`{more} already; add `--overwrite`, or name another directory with `--out`",
        first.display()
    )])
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files(tempfile::TempDir);

    impl Files {
        fn new(names: &[&str]) -> Self {
            let files = Self(tempfile::tempdir().expect("a directory"));
            for name in names {
                let path = files.0.path().join(name);
                fs::create_dir_all(path.parent().expect("it has one")).expect("made");
                fs::write(path, "1").expect("written");
            }
            files
        }

        fn batch(
            &self,
            names: &[&str],
            destination: &ResultPlaces<'_>,
        ) -> Result<InputBatch, String> {
            let paths: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
            let batch = InputBatch::of(&paths, self.0.path(), destination);
            batch.map_err(|problems| problems.join("\n"))
        }
    }

    fn to(directory: &str) -> ResultPlaces<'_> {
        ResultPlaces {
            directory: Path::new(directory),
            extension: None,
            existing: ExistingResults::Refuse,
        }
    }

    fn results(batch: &InputBatch) -> Vec<&str> {
        let results = batch.inputs.iter().map(|input| input.result.to_str());
        results.map(|path| path.expect("it is text")).collect()
    }

    #[test]
    fn results_are_named_after_inputs_and_have_their_extension() {
        let files = Files::new(&["a.json", "in/b.JSON", "plain"]);
        let batch = files
            .batch(&["a.json", "in/b.JSON"], &to("out"))
            .expect("fine");
        assert_eq!(results(&batch), ["out/a.json", "out/b.JSON"]);
        assert_eq!(batch.inputs[0].stderr, Path::new("out/a.json.stderr"));
        assert_eq!((&*batch.infile_ext, &*batch.outfile_ext), ("json", "json"));

        let plain = files.batch(&["plain"], &to("out")).expect("fine");
        assert_eq!(results(&plain), ["out/plain.out"]);
        assert_eq!((&*plain.infile_ext, &*plain.outfile_ext), ("in", "out"));

        let text = ResultPlaces {
            extension: Some(".txt"),
            ..to("out")
        };
        let batch = files.batch(&["a.json"], &text).expect("fine");
        assert_eq!(results(&batch), ["out/a.txt"]);
        assert_eq!(batch.outfile_ext, "txt");
    }

    #[test]
    fn inputs_of_one_name_keep_as_much_of_their_paths_as_they_need() {
        let files = Files::new(&["x/1/a.json", "x/2/a.json"]);
        let names = ["x/1/a.json", "x/2/a.json", "./x/1/../1/a.json"];
        let batch = files.batch(&names, &to("out")).expect("fine");
        assert_eq!(results(&batch), ["out/1/a.json", "out/2/a.json"]);
    }

    #[test]
    fn what_is_missing_or_no_file_is_said_all_at_once() {
        let files = Files::new(&["in/a.json"]);
        let problems = files.batch(&["in/a.json", "b.json", "in"], &to("out"));
        let problems = problems.expect_err("two are none");
        assert!(
            problems.contains("input `b.json`: there is no such file"),
            "{problems}"
        );
        assert!(
            problems.contains("input `in`: it is a directory"),
            "{problems}"
        );
        assert_eq!(problems.lines().count(), 2);
    }

    #[test]
    fn different_extensions_are_refused_with_their_counts() {
        let files = Files::new(&["a.json", "b.json", "c.txt", "d"]);
        let problem = files.batch(&["a.json", "b.json", "c.txt", "d"], &to("out"));
        let problem = problem.expect_err("they differ");
        assert!(
            problem.contains("(none: 1, `.json`: 2, `.txt`: 1)"),
            "{problem}"
        );
    }

    #[test]
    fn neither_an_input_nor_an_old_result_is_replaced_unless_that_is_wanted() {
        let files = Files::new(&[
            "a.json",
            "b.json",
            "out/a.json",
            "out/b.json",
            "out/b.json.stderr",
        ]);
        let problem = files
            .batch(&["a.json"], &to("."))
            .expect_err("it is the input");
        assert!(problem.contains("`./a.json` is an input"), "{problem}");
        let problem = files
            .batch(&["a.json", "b.json"], &to("out"))
            .expect_err("they are there");
        assert!(
            problem.starts_with("`out/a.json` and 1 more exist already; add `--overwrite`"),
            "{problem}"
        );
        let overwrite = |directory| ResultPlaces {
            existing: ExistingResults::Overwrite,
            ..to(directory)
        };
        assert!(files.batch(&["a.json"], &overwrite("out")).is_ok());
        assert!(files.batch(&["a.json"], &overwrite(".")).is_err());
    }
}
