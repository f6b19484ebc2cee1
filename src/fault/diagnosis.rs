//! An observation and its fix. The two texts stay apart up to the log line, the last line or the JSON that
//! shows them.

use std::fmt;

use super::Cause;

/// Displays as `seen; fix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// A lower-case fragment. It may quote Apptainer or the kernel, and so contain a `; ` itself.
    pub seen: String,
    pub fix: Option<String>,
}

impl Diagnosis {
    /// A known cause and its observation.
    #[must_use]
    pub fn of(cause: Cause, seen: impl fmt::Display) -> Self {
        Self {
            seen: format!("{seen} ({cause})"),
            fix: Some(cause.remedy().to_owned()),
        }
    }

    #[must_use]
    pub fn new(seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            seen: seen.into(),
            fix: Some(fix.into()),
        }
    }

    /// A problem without known advice.
    #[must_use]
    pub fn without_fix(seen: impl Into<String>) -> Self {
        Self {
            seen: seen.into(),
            fix: None,
        }
    }

    /// Splits one of the pilot's own error texts, which name the observation and, after the first `; `, the
    /// fix.
    #[must_use]
    pub fn of_text(text: &str) -> Self {
        match text.split_once("; ") {
            Some((seen, fix)) => Self {
                seen: seen.to_owned(),
                fix: Some(fix.to_owned()),
            },
            None => Self::without_fix(text),
        }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.seen)?;
        match &self.fix {
            Some(fix) => write!(f, "; {fix}"),
            None => Ok(()),
        }
    }
}
