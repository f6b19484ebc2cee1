//! Reads the ads that HTCondor leaves beside a job. Knows only what a job may ask of them.

use std::ffi::OsStr;
use std::path::Path;

use super::environment::Environment;
use super::problem::one_line;
use super::python_values;
use crate::regular_file;

/// The variable that names the file of the job's ad.
pub(super) const JOB_AD: &str = "_CONDOR_JOB_AD";
/// The variable that names the file of the slot's ad.
pub(super) const MACHINE_AD: &str = "_CONDOR_MACHINE_AD";

/// A `ClassAd` as HTCondor leaves it beside a job: long form, one `Name = expression` a line. Only literals
/// are read; an expression counts as absent. Names have no case. Strings are written as in old
/// `ClassAds`: `\"` is a quote, any other backslash stands for itself.
#[derive(Debug, Default)]
pub(super) struct ClassAd(String);

impl ClassAd {
    #[cfg(test)]
    pub(super) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The ad of the slot that the job runs in; empty, with a warning, if it can't be read.
    pub(super) fn of_machine(environment: &Environment, warnings: &mut Vec<String>) -> Self {
        Self::named_by(environment, MACHINE_AD, warnings)
    }

    /// The ad of the job; empty, with a warning, if it can't be read.
    pub(super) fn of_job(environment: &Environment, warnings: &mut Vec<String>) -> Self {
        Self::named_by(environment, JOB_AD, warnings)
    }

    fn named_by(environment: &Environment, variable: &str, warnings: &mut Vec<String>) -> Self {
        let Some(path) = environment.get(OsStr::new(variable)).map(Path::new) else {
            return Self::default();
        };
        match regular_file::read(path) {
            Ok(ad) => Self(String::from_utf8_lossy(&ad).into_owned()),
            Err(error) => {
                warnings.push(format!(
                    "`{variable}` is `{}`, which can't be read: {error}; what this ad says is not known, \
                     so limits that depend on it must be set",
                    one_line(&path.to_string_lossy())
                ));
                Self::default()
            }
        }
    }

    fn expression(&self, wanted: &str) -> Option<&str> {
        self.0
            .lines()
            .filter_map(|line| line.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case(wanted))
            .map(|(_, expression)| expression.trim())
    }

    /// A number literal; a real one, as `3600.0` or `3.6E3`, without its fraction.
    pub(super) fn integer(&self, name: &str) -> Option<i64> {
        let literal = self.expression(name)?;
        literal.parse().ok().or_else(|| whole_part(literal))
    }

    /// A string literal.
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
                '\\' if letters.as_str().starts_with('"') => text.extend(letters.next()),
                other => text.push(other),
            }
        }
        Some(text)
    }
}

/// `None` for text that only Python takes for a number, and for 1e15 or more.
fn whole_part(literal: &str) -> Option<i64> {
    let is_plain = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
    if !literal.bytes().all(is_plain) {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the fraction is to go, and the range is checked"
    )]
    python_values::float(literal)
        .filter(|number| number.abs() < 1e15)
        .map(|number| number as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ad(text: &str) -> ClassAd {
        ClassAd::new(text)
    }

    #[test]
    fn literals_are_found_whatever_the_case_of_their_name() {
        let ad = ad("TotalCpus = 64\ncpus = 4\nTransferInput = \"a,b\"\n");
        assert_eq!(ad.integer("Cpus"), Some(4));
        assert_eq!(ad.string("transferinput").as_deref(), Some("a,b"));
    }

    #[test]
    fn only_quotes_are_escaped_in_a_string() {
        // The form in which HTCondor 23.9 wrote the names of files to transfer.
        for (written, meant) in [
            (r#""x\"y""#, r#"x"y"#),
            (r#""a\b.txt,data/x\y.txt""#, r"a\b.txt,data/x\y.txt"),
            (r#""x\\y""#, r"x\\y"),
        ] {
            let ad = ad(&format!("A = {written}"));
            assert_eq!(ad.string("A").as_deref(), Some(meant));
        }
        assert_eq!(ad(r#"A = "x" + "y""#).string("A"), None);
    }

    #[test]
    fn real_literals_are_numbers_too() {
        for (literal, number) in [
            ("3600", Some(3600)),
            ("3600.0", Some(3600)),
            ("1e3", Some(1000)),
            ("3.6E3", Some(3600)),
            ("3.6e+03", Some(3600)),
            ("-1.5", Some(-1)),
            ("1e400", None),
            ("1e15", None),
            ("inf", None),
            ("NaN", None),
            ("real(\"INF\")", None),
            ("3600.0 * 2", None),
            ("3600 + 60", None),
            ("\"3600\"", None),
            ("", None),
            (".", None),
        ] {
            let ad = ad(&format!("OriginalTime = {literal}\n"));
            assert_eq!(ad.integer("OriginalTime"), number, "{literal}");
        }
    }

    #[test]
    fn expressions_are_as_good_as_nothing() {
        let ad = ad("Cpus = ifThenElse(true, 1, 2)\nSite = strcat(\"a\", \"b\")\n");
        assert_eq!(ad.integer("Cpus"), None);
        assert_eq!(ad.string("Site"), None);
        assert_eq!(ad.string("Missing"), None);
    }
}
