//! HTCondor's `ClassAd`s as it leaves them beside a job: long form, one `Name = expression` a line.
//! Only literals are read; an expression is as good as nothing. Names have no case.

use std::ffi::OsStr;
use std::path::Path;

use super::load::Environment;

/// One ad, or an empty one where there is none.
#[derive(Debug, Default)]
pub(super) struct Ad(String);

impl Ad {
    /// The ad of the slot that the job runs in.
    pub(super) fn of_machine(environment: &Environment) -> Self {
        Self::named_by(environment, "_CONDOR_MACHINE_AD")
    }

    /// The ad of the job.
    pub(super) fn of_job(environment: &Environment) -> Self {
        Self::named_by(environment, "_CONDOR_JOB_AD")
    }

    fn named_by(environment: &Environment, variable: &str) -> Self {
        environment
            .get(OsStr::new(variable))
            .and_then(|path| std::fs::read(Path::new(path)).ok())
            .map(|ad| Self(String::from_utf8_lossy(&ad).into_owned()))
            .unwrap_or_default()
    }

    fn expression(&self, wanted: &str) -> Option<&str> {
        self.0
            .lines()
            .filter_map(|line| line.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case(wanted))
            .map(|(_, expression)| expression.trim())
    }

    /// An integer literal.
    pub(super) fn integer(&self, name: &str) -> Option<i64> {
        self.expression(name)?.parse().ok()
    }

    /// A string literal, `\"` and `\\` undone.
    pub(super) fn string(&self, name: &str) -> Option<String> {
        let quoted = self
            .expression(name)?
            .strip_prefix('"')?
            .strip_suffix('"')?;
        let mut text = String::new();
        let mut letters = quoted.chars();
        while let Some(letter) = letters.next() {
            match letter {
                '"' => return None,
                '\\' => text.push(letters.next()?),
                other => text.push(other),
            }
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ad(text: &str) -> Ad {
        Ad(text.to_owned())
    }

    #[test]
    fn literals_are_found_whatever_the_case_of_their_name() {
        let ad = ad("TotalCpus = 64\ncpus = 4\nTransferInput = \"a,b\"\n");
        assert_eq!(ad.integer("Cpus"), Some(4));
        assert_eq!(ad.string("transferinput").as_deref(), Some("a,b"));
    }

    #[test]
    fn quotes_and_backslashes_in_a_string_are_undone() {
        assert_eq!(
            ad(r#"A = "x\"y\\z""#).string("A").as_deref(),
            Some(r#"x"y\z"#)
        );
    }

    #[test]
    fn expressions_are_as_good_as_nothing() {
        let ad = ad("Cpus = ifThenElse(true, 1, 2)\nSite = strcat(\"a\", \"b\")\n");
        assert_eq!(ad.integer("Cpus"), None);
        assert_eq!(ad.string("Site"), None);
        assert_eq!(ad.string("Missing"), None);
    }
}
