//! What is wrong, and how to fix it, as two texts that stay apart up to the person or the JSON that gets
//! them.

use std::fmt;

use super::Cause;

/// Displays as `seen; fix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// A lower-case fragment. May hold words of others, `; ` included.
    pub seen: String,
    pub fix: Option<String>,
}

impl Diagnosis {
    /// A known cause, and what was seen of it.
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

    /// Something that nobody can advise about.
    #[must_use]
    pub fn without_fix(seen: impl Into<String>) -> Self {
        Self {
            seen: seen.into(),
            fix: None,
        }
    }

    /// Reads one of the pilot's own error texts, which say what was seen, then after the first `; ` what to
    /// do.
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
