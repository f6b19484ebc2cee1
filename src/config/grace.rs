//! How long a container that was told to end may take: what the user says, or what fits into the time
//! that HTCondor gives an evicted job.

use std::time::Duration;

use super::reader::VariableReader;
use super::variables as var;

/// What the pilot needs of an eviction's time for itself: killing what did not end (up to three
/// seconds), giving events back, telling HTCondor.
const OWN_PART: Duration = Duration::from_secs(5);

/// A set value counts even if it can't be kept, which is warned of: not every pool ends a job when its
/// ad says.
pub(super) fn kill_grace(
    reader: &mut VariableReader<'_>,
    vacate_time: Option<Duration>,
    warnings: &mut Vec<String>,
) -> Duration {
    let is_set = reader.set(&var::KILL_GRACE).is_some();
    let grace = reader.duration(&var::KILL_GRACE);
    let Some(vacate_time) = vacate_time else {
        return grace;
    };
    let most = vacate_time.saturating_sub(OWN_PART);
    if !is_set {
        return grace.min(most);
    }
    if grace > most {
        warnings.push(format!(
            "`{}` is `{}`, but HTCondor kills an evicted job after {} s: set at most {} to be sure that \
             events are given back in order",
            var::KILL_GRACE.name,
            grace.as_secs_f64(),
            vacate_time.as_secs(),
            most.as_secs()
        ));
    }
    grace
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::Environment;

    fn grace(value: Option<&str>, vacate_secs: Option<u64>) -> (f64, Vec<String>) {
        let mut environment = Environment::new();
        if let Some(value) = value {
            environment.insert(var::KILL_GRACE.name.into(), value.into());
        }
        let mut reader = VariableReader::new(&environment, Vec::new());
        let mut warnings = Vec::new();
        let vacate_time = vacate_secs.map(Duration::from_secs);
        let grace = kill_grace(&mut reader, vacate_time, &mut warnings);
        assert!(reader.problems.is_empty(), "{:?}", reader.problems);
        (grace.as_secs_f64(), warnings)
    }

    #[test]
    fn the_default_fits_what_htcondor_gives() {
        for (vacate_secs, expected) in [
            (None, 10.0),
            (Some(600), 10.0),
            (Some(15), 10.0),
            (Some(8), 3.0),
            (Some(5), 0.0),
            (Some(0), 0.0),
        ] {
            assert_eq!(
                grace(None, vacate_secs),
                (expected, Vec::new()),
                "{vacate_secs:?}"
            );
        }
    }

    #[test]
    fn a_set_value_wins_and_is_warned_of_when_it_is_too_long() {
        assert_eq!(grace(Some("10"), Some(15)), (10.0, Vec::new()));
        assert_eq!(grace(Some("300"), None), (300.0, Vec::new()));
        let (grace, warnings) = grace(Some("10.5"), Some(15));
        assert!((grace - 10.5).abs() < f64::EPSILON);
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].contains("`10.5`") && warnings[0].contains("at most 10 "),
            "{warnings:?}"
        );
    }
}
