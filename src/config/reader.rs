//! Reads variables out of an environment, each as its [`ValueKind`] says, and collects all problems instead
//! of stopping at the first.

use std::ffi::OsStr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use super::WarmStart;
use super::address;
use super::env_json;
use super::environment::Environment;
use super::problem::{ConfigProblem, one_line};
use super::python_values::{self, list, list_or};
use super::variables::{DefaultValue, MOST_SECONDS, ValueKind, Variable};

/// An environment, with the problems and warnings found in it so far. After a problem a reading function
/// returns a placeholder, because no configuration is made then.
pub(super) struct VariableReader<'a> {
    pub(super) environment: &'a Environment,
    pub(super) problems: Vec<ConfigProblem>,
    pub(super) warnings: Vec<String>,
}

/// The value of a limit on memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryLimit {
    /// The slot's memory, divided by the number of tasks.
    Auto,
    Bytes(u64),
}

/// The GPUs that each task is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GpuRequest {
    /// Those of the job, divided evenly.
    Auto,
    Each(NonZeroU32),
    None,
}

impl<'a> VariableReader<'a> {
    pub(super) fn new(environment: &'a Environment, problems: Vec<ConfigProblem>) -> Self {
        Self {
            environment,
            problems,
            warnings: Vec::new(),
        }
    }

    /// The value as it is, when it is set. A value that isn't Unicode is a problem.
    pub(super) fn set(&mut self, variable: &Variable) -> Option<&'a str> {
        let value = self.environment.get(OsStr::new(variable.name))?;
        let text = value.to_str();
        if text.is_none() {
            let shown = match variable.kind {
                ValueKind::Token | ValueKind::EnvJson | ValueKind::Address => "***".to_owned(),
                _ => value.to_string_lossy().into_owned(),
            };
            let problem = ConfigProblem::value(variable.name, &shown, "expected text in UTF-8");
            // A variable may be read twice.
            if !self.problems.contains(&problem) {
                self.problems.push(problem);
            }
        }
        text
    }

    /// The value of a variable that the pilot can't run without; an empty one is none.
    pub(super) fn required(&mut self, variable: &Variable) -> Option<&'a str> {
        if self
            .environment
            .get(OsStr::new(variable.name))
            .is_none_or(|value| value.is_empty())
        {
            let advice = match variable.kind {
                ValueKind::Text => format!("expected the {}", variable.meaning),
                kind => format!("expected {}", kind.expected()),
            };
            self.problems
                .push(ConfigProblem::missing(variable.name, advice));
            return None;
        }
        self.set(variable)
    }

    /// The value, else the default, else `None`.
    fn text_or_default(&mut self, variable: &Variable) -> Option<&'a str> {
        self.set(variable).or(match variable.otherwise {
            DefaultValue::Default(text) => Some(text),
            DefaultValue::Required | DefaultValue::Phrase(_) => None,
        })
    }

    /// Parses the value or default; text that doesn't parse is a problem that names the expected form.
    fn parse<T>(&mut self, variable: &Variable, parser: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.text_or_default(variable)?;
        let value = parser(text);
        if value.is_none() {
            let expected = variable.kind.expected();
            self.refuse(
                variable,
                text,
                format!("expected {expected}{}", in_seconds(variable.kind, text)),
            );
        }
        value
    }

    /// Notes that a value can't be used.
    pub(super) fn refuse(&mut self, variable: &Variable, text: &str, advice: impl Into<String>) {
        self.problems.push(ConfigProblem::value(
            variable.name,
            &shown(variable, text),
            advice,
        ));
    }

    /// Returns `yes` or `no` for a Boolean value.
    pub(super) fn policy<T>(&mut self, variable: &Variable, yes: T, no: T) -> T {
        if self.boolean(variable) { yes } else { no }
    }

    pub(super) fn boolean(&mut self, variable: &Variable) -> bool {
        self.parse(variable, python_values::boolean)
            .unwrap_or_default()
    }

    pub(super) fn count(&mut self, variable: &Variable) -> Option<NonZeroU32> {
        self.parse(variable, count)
    }

    /// `None` stands for `auto`.
    pub(super) fn cores(&mut self, variable: &Variable) -> Option<NonZeroU32> {
        let cores = |text: &str| {
            if text == "auto" {
                Some(None)
            } else {
                count(text).map(Some)
            }
        };
        self.parse(variable, cores).flatten()
    }

    pub(super) fn gpus(&mut self, variable: &Variable) -> GpuRequest {
        let request = |text: &str| match text {
            "auto" => Some(GpuRequest::Auto),
            "none" => Some(GpuRequest::None),
            number => count(number).map(GpuRequest::Each),
        };
        // After a problem nothing is run.
        self.parse(variable, request).unwrap_or(GpuRequest::None)
    }

    pub(super) fn warm_start(&mut self, variable: &Variable) -> WarmStart {
        let setting = |text: &str| match (text, python_values::boolean(text)) {
            ("auto", _) => Some(WarmStart::Auto),
            (_, Some(false)) => Some(WarmStart::Off),
            (number, _) => count(number).map(WarmStart::Containers),
        };
        // After a problem nothing is run.
        self.parse(variable, setting).unwrap_or(WarmStart::Off)
    }

    pub(super) fn seconds(&mut self, variable: &Variable) -> Option<Duration> {
        let least = match variable.kind {
            ValueKind::Seconds { least } => u64::from(least),
            _ => 0,
        };
        self.parse(variable, |text| {
            let seconds = u64::try_from(python_values::integer(text)?).ok()?;
            (least..=MOST_SECONDS)
                .contains(&seconds)
                .then(|| Duration::from_secs(seconds))
        })
    }

    pub(super) fn duration(&mut self, variable: &Variable) -> Duration {
        let most = Duration::from_secs(MOST_SECONDS);
        self.parse(variable, |text| {
            Duration::try_from_secs_f64(python_values::float(text)?)
                .ok()
                .filter(|duration| *duration <= most)
        })
        .unwrap_or_default()
    }

    pub(super) fn size(&mut self, variable: &Variable) -> Option<u64> {
        self.parse(variable, python_values::size)
    }

    pub(super) fn size_above_zero(&mut self, variable: &Variable) -> Option<u64> {
        self.parse(variable, |text| {
            python_values::size(text).filter(|bytes| *bytes > 0)
        })
    }

    pub(super) fn memory(&mut self, variable: &Variable) -> Option<MemoryLimit> {
        self.parse(variable, |text| match text {
            "auto" => Some(MemoryLimit::Auto),
            _ => python_values::size(text)
                .filter(|bytes| *bytes > 0)
                .map(MemoryLimit::Bytes),
        })
    }

    pub(super) fn list(&mut self, variable: &Variable) -> Vec<String> {
        self.parse(variable, list).unwrap_or_default()
    }

    pub(super) fn level(&mut self, variable: &Variable) -> LevelFilter {
        self.parse(variable, python_values::level)
            .unwrap_or(LevelFilter::INFO)
    }

    /// Reads a value that is one of the words, and returns its meaning.
    pub(super) fn choice<T: Copy>(
        &mut self,
        variable: &Variable,
        words: &[(&str, T)],
    ) -> Option<T> {
        self.parse(variable, |text| {
            words
                .iter()
                .find(|(word, _)| *word == text)
                .map(|&(_, meaning)| meaning)
        })
    }

    pub(super) fn text(&mut self, variable: &Variable) -> String {
        self.text_or_default(variable)
            .unwrap_or_default()
            .to_owned()
    }

    /// A container's arguments, not split yet: placeholders are replaced first. No replacement holds a quote,
    /// so arguments that can be split now can be split then.
    pub(super) fn arguments(&mut self, variable: &Variable) -> String {
        // shell_words takes `#` for the start of a comment; in arguments it is a letter like others.
        let splits = |text: &str| shell_words::split(&text.replace('#', "_")).is_ok();
        self.parse(variable, |text| splits(text).then(|| text.to_owned()))
            .unwrap_or_default()
    }

    /// A suffix without leading dots, in lower case, as in the Python pilot.
    pub(super) fn suffix(&mut self, variable: &Variable) -> String {
        self.parse(variable, |text| {
            let suffix = text.trim_start_matches('.').to_lowercase();
            let fits = !suffix.is_empty() && suffix.len() <= 100 && !suffix.contains('/');
            fits.then_some(suffix)
        })
        .unwrap_or_default()
    }

    /// An absolute path; relative ones start at `base`. Empty means `base`.
    pub(super) fn directory(&mut self, variable: &Variable, base: &Path) -> PathBuf {
        match self.text_or_default(variable) {
            None | Some("") => base.to_owned(),
            Some(text) => base.join(text),
        }
    }

    /// Like [`VariableReader::directory`], but empty means none.
    pub(super) fn file(&mut self, variable: &Variable, base: &Path) -> Option<PathBuf> {
        self.text_or_default(variable)
            .filter(|text| !text.is_empty())
            .map(|text| base.join(text))
    }

    /// An absolute path; empty means none.
    pub(super) fn program(&mut self, variable: &Variable) -> Option<PathBuf> {
        let absolute = |text: &str| {
            let path = Some(PathBuf::from(text)).filter(|path| !path.as_os_str().is_empty());
            let is_usable = path.as_ref().is_none_or(|path| path.is_absolute());
            is_usable.then_some(path)
        };
        self.parse(variable, absolute).flatten()
    }

    pub(super) fn directories(&mut self, variable: &Variable) -> Vec<PathBuf> {
        self.parse(variable, |text| {
            let parts = list_or(text, |text| {
                text.split(',').map(|part| part.trim().to_owned()).collect()
            })?;
            let parts = parts.into_iter().filter(|part| !part.is_empty());
            parts
                .map(|part| Path::new(&part).is_absolute().then(|| PathBuf::from(part)))
                .collect()
        })
        .unwrap_or_default()
    }

    pub(super) fn env_json(&mut self, variable: &Variable) -> Vec<(String, String)> {
        let text = self.text_or_default(variable).unwrap_or_default();
        env_json::parse(text).unwrap_or_else(|problems| {
            for problem in problems {
                self.refuse(variable, text, problem);
            }
            Vec::new()
        })
    }
}

/// A value in a form that may be logged and reported: without control characters and secrets.
pub(super) fn shown(variable: &Variable, text: &str) -> String {
    let text = match variable.kind {
        ValueKind::Token if text.is_empty() => String::new(),
        ValueKind::Token => "***".to_owned(),
        ValueKind::Address => address::masked(text),
        ValueKind::EnvJson => env_json::masked(text),
        _ => text.to_owned(),
    };
    one_line(&text)
}

/// The remedy for a time with a unit, which Python would refuse.
fn in_seconds(kind: ValueKind, text: &str) -> String {
    let is_time = matches!(kind, ValueKind::Seconds { .. } | ValueKind::Duration);
    let meant = python_values::time(text).filter(|_| is_time);
    meant.map_or_else(String::new, |seconds| format!("; write `{seconds}`"))
}

/// A number from 1 to the type's maximum, [`MOST`](super::variables::MOST).
fn count(text: &str) -> Option<NonZeroU32> {
    let number = u16::try_from(python_values::integer(text)?).ok()?;
    NonZeroU32::new(u32::from(number))
}
