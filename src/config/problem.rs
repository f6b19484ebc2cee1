//! What can be wrong with the settings, and the list of it that a person reads. Values arrive here in the
//! form in which they may be shown, so no text holds a secret.

use std::fmt;

/// The longest value that is quoted whole, in characters.
const SHOWN: usize = 160;

/// One thing that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigProblem {
    /// A variable's value can't be used.
    #[error("`{variable}` is `{shown}`: {advice}")]
    Value {
        variable: String,
        /// Its value, or as much of it as may be shown.
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
        /// The line's number, from 1.
        line: usize,
        /// What is wrong and what is expected.
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

/// A missing setting whose error services know by its text; it makes the last line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MissingSetting {
    TaskImage,
    Queues,
    Nothing,
}

/// Everything that is wrong with the settings. Displayed, it is one line a problem and a last line
/// that starts with `RuntimeError: `, which services search for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    problems: Vec<ConfigProblem>,
    lacking: MissingSetting,
}

impl ConfigErrors {
    pub(super) fn new(problems: Vec<ConfigProblem>, lacking: MissingSetting) -> Self {
        Self { problems, lacking }
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
        for problem in &self.problems {
            writeln!(f, "{}", one_line(&problem.to_string()))?;
        }
        f.write_str(&self.last_line())
    }
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

    #[test]
    fn every_problem_is_one_line_above_the_last() {
        let errors = ConfigErrors::new(
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
