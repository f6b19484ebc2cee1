//! Problems of the settings, and the list of them for a person. Values arrive here in the form in which they
//! may be shown, so no text holds a secret.

use std::fmt;
use std::path::PathBuf;

use super::EarlyChirp;

/// The longest value that is quoted whole, in characters.
const SHOWN: usize = 160;

/// The most bytes of whole problems in a chirped error. A report to HTCondor holds 950, in which quotes and
/// characters outside ASCII take more room than here.
const CHIRPED: usize = 700;

/// A problem of the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigProblem {
    /// A variable's value can't be used.
    #[error("`{variable}` is `{shown}`: {advice}")]
    Value {
        variable: String,
        /// The value, or as much of it as may be shown.
        shown: String,
        advice: String,
    },
    /// A variable that is needed has no value.
    #[error("`{variable}` is not set: {advice}")]
    Missing { variable: String, advice: String },
    /// Several variables don't fit together.
    #[error("{0}")]
    Conflict(String),
    /// A line of the env file can't be used.
    #[error("`{file}`, line {line}: {advice}")]
    EnvFile {
        /// The file as it was found.
        file: String,
        /// Number of the line, from 1.
        line: usize,
        /// The problem and the expected form.
        advice: String,
    },
    /// The env file can't be read.
    #[error("`{file}` can't be read: {reason}")]
    UnreadableEnvFile {
        /// The file as it was found.
        file: String,
        reason: String,
    },
}

impl ConfigProblem {
    /// A value that can't be used. `shown` is shortened when it is long.
    pub(super) fn value(variable: &str, shown: &str, advice: impl Into<String>) -> Self {
        let mut short: String = shown.chars().take(SHOWN).collect();
        if short.len() < shown.len() {
            short.push('…');
        }
        Self::Value {
            variable: variable.to_owned(),
            shown: short,
            advice: advice.into(),
        }
    }

    /// A value that is needed and isn't there.
    pub(super) fn missing(variable: &str, advice: impl Into<String>) -> Self {
        Self::Missing {
            variable: variable.to_owned(),
            advice: advice.into(),
        }
    }
}

/// A missing setting whose error services know by its text, which becomes the last line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MissingSetting {
    TaskImage,
    Queues,
    Nothing,
}

/// All problems of the settings. `Display` writes one line for each warning and problem, and a last line that
/// starts with `RuntimeError: `, which services search for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    problems: Vec<ConfigProblem>,
    lacking: MissingSetting,
    /// Directories that belong to this job alone.
    of_job: Vec<PathBuf>,
    chirp: Option<Box<EarlyChirp>>,
    warnings: Box<[String]>,
    origin: SettingsOrigin,
}

/// Whether anybody set anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingsOrigin {
    Given,
    /// No variable of the pilot, no env file, and no job of HTCondor.
    Nowhere,
}

impl ConfigErrors {
    pub(super) fn new(
        problems: Vec<ConfigProblem>,
        lacking: MissingSetting,
        of_job: Vec<PathBuf>,
        chirp: Option<EarlyChirp>,
    ) -> Self {
        Self {
            problems,
            lacking,
            of_job,
            chirp: chirp.map(Box::new),
            warnings: Box::default(),
            origin: SettingsOrigin::Given,
        }
    }

    pub(super) fn with_origin(self, origin: SettingsOrigin) -> Self {
        Self { origin, ..self }
    }

    #[must_use]
    pub fn origin(&self) -> SettingsOrigin {
        self.origin
    }

    /// Adds warnings: a variable may be missing because its name is misspelt.
    pub(super) fn with_warnings(self, warnings: Vec<String>) -> Self {
        Self {
            warnings: warnings.into(),
            ..self
        }
    }

    #[must_use]
    pub fn problems(&self) -> &[ConfigProblem] {
        &self.problems
    }

    pub(super) fn with_warning(self, warning: String) -> Self {
        let mut warnings = self.warnings.into_vec();
        warnings.push(warning);
        Self {
            warnings: warnings.into(),
            ..self
        }
    }

    /// The problems, a line each.
    pub fn problem_lines(&self) -> impl Iterator<Item = String> {
        let problems = self.problems.iter();
        problems.map(|problem| one_line(&problem.to_string()))
    }

    /// The warnings, a line each.
    pub fn warning_lines(&self) -> impl Iterator<Item = String> {
        self.warnings.iter().map(|warning| one_line(warning))
    }

    /// Where to chirp the problems, if anywhere.
    #[must_use]
    pub fn chirp(&self) -> Option<&EarlyChirp> {
        self.chirp.as_deref()
    }

    /// The error to chirp: as many whole problems as a report has room for, then the names of others. It is
    /// the same for all pilots with these settings, since services count equal texts.
    #[must_use]
    pub fn chirped(&self) -> String {
        if self.lacking != MissingSetting::Nothing {
            return self.last_line();
        }
        let problems: Vec<String> = self
            .problems
            .iter()
            .map(|one| self.countable(one))
            .collect();
        if let [problem] = &problems[..] {
            return format!("RuntimeError: {problem}");
        }
        let (whole, rest) = problems.split_at(fitting(&problems, CHIRPED));
        let mut text = format!("RuntimeError: {} configuration problems", problems.len());
        for problem in whole {
            text.push_str("; ");
            text.push_str(problem);
        }
        let subjects: Vec<String> = rest.iter().map(|problem| subject(problem)).collect();
        let named = fitting(&subjects, CHIRPED / 5);
        if named > 0 {
            text.push_str("; also ");
            text.push_str(&subjects[..named].join(", "));
        }
        match rest.len() - named {
            0 => text,
            unnamed => format!("{text}; and {unnamed} more"),
        }
    }

    /// The text of a problem without the paths of this job's own directories.
    fn countable(&self, problem: &ConfigProblem) -> String {
        let mut text = one_line(&problem.to_string());
        // A job in `/` has no directory of its own.
        for directory in self.of_job.iter().filter(|path| path.parent().is_some()) {
            text = text.replace(&format!("{}/", directory.display()), "");
        }
        text
    }

    /// The line that sums them up.
    #[must_use]
    pub fn last_line(&self) -> String {
        match self.lacking {
            MissingSetting::TaskImage => "RuntimeError: Task image was not provided.".to_owned(),
            MissingSetting::Queues => {
                "RuntimeError: Incoming and/or outgoing queues were not provided.".to_owned()
            }
            MissingSetting::Nothing => {
                format!(
                    "RuntimeError: {} configuration problem(s), see above.",
                    self.problems.len()
                )
            }
        }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for warning in self.warning_lines() {
            writeln!(f, "warning: {warning}")?;
        }
        for problem in self.problem_lines() {
            writeln!(f, "{problem}")?;
        }
        f.write_str(&self.last_line())
    }
}

/// How many of the texts, each with a separator, fit into `room` bytes.
fn fitting(texts: &[String], room: usize) -> usize {
    let mut used = 0;
    texts
        .iter()
        .take_while(|text| {
            used += text.len() + 2;
            used <= room
        })
        .count()
}

/// The variable or file that a problem is about: each begins with a name between backticks.
fn subject(problem: &str) -> String {
    let name = problem.split('`').nth(1).unwrap_or_default();
    format!("`{name}`")
}

/// Writes control characters as escapes: a value must not break the line, or steer a terminal.
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(problems: Vec<ConfigProblem>, lacking: MissingSetting) -> ConfigErrors {
        ConfigErrors::new(problems, lacking, vec!["/job".into(), "/".into()], None)
    }

    #[test]
    fn what_is_chirped_names_the_variables_and_no_path_of_the_job() {
        let wrong = |name: &str| ConfigProblem::value(name, "many", "expected an integer");
        let chirped = |problems, lacking| errors(problems, lacking).chirped();
        let text = chirped(vec![wrong("A")], MissingSetting::Nothing);
        assert_eq!(text, "RuntimeError: `A` is `many`: expected an integer");
        let file = ConfigProblem::EnvFile {
            file: "/job/env.sh".to_owned(),
            line: 3,
            advice: "expected `/x/y`".to_owned(),
        };
        assert_eq!(
            chirped(vec![wrong("A"), file.clone()], MissingSetting::Nothing),
            "RuntimeError: 2 configuration problems; `A` is `many`: expected an integer; \
             `env.sh`, line 3: expected `/x/y`"
        );
        assert_eq!(
            chirped(vec![file], MissingSetting::TaskImage),
            "RuntimeError: Task image was not provided."
        );
    }

    #[test]
    fn more_problems_than_a_report_holds_are_named_and_then_counted() {
        let name = |number| format!("EWMS_PILOT_NUMBER_{number:02}");
        let problems = (0..40).map(|number| ConfigProblem::value(&name(number), "x", "wrong"));
        let text = errors(problems.collect(), MissingSetting::Nothing).chirped();
        assert!(text.len() <= 900, "{}: {text}", text.len());
        assert!(text.contains("; also `EWMS_PILOT_NUMBER_"), "{text}");
        let named = text.matches("`EWMS_PILOT_NUMBER_").count();
        assert!(
            text.ends_with(&format!("; and {} more", 40 - named)),
            "{text}"
        );
    }

    #[test]
    fn every_problem_is_one_line_above_the_last() {
        let errors = errors(
            vec![
                ConfigProblem::value("A", "1\n2\x1b[0m", "expected 3"),
                ConfigProblem::missing("B", "name it"),
            ],
            MissingSetting::Nothing,
        );
        assert_eq!(
            errors.to_string(),
            "`A` is `1\\n2\\u{1b}[0m`: expected 3\n`B` is not set: name it\n\
             RuntimeError: 2 configuration problem(s), see above."
        );
    }

    #[test]
    fn a_long_value_is_shortened() {
        let text = ConfigProblem::value("A", &"ä".repeat(5000), "too long").to_string();
        assert_eq!(text.chars().filter(|&c| c == 'ä').count(), SHOWN);
        assert!(text.contains("ä…`: too long"), "{text}");
    }
}
