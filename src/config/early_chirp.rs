//! Finds where to chirp a wrong configuration, from the settings that could be read. The file that leads to
//! HTCondor's chirp server is there only if the job asked for one, so an unreadable setting counts as a yes.

use std::ffi::OsStr;

use super::variables::{HTCHIRP, HTCHIRP_DEST, Variable};
use super::{ChirpDestination, CondorJob, EarlyChirp, Environment, python_values};

/// Whether all of the job's env file could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EnvFileState {
    Read,
    /// Variables that are missing may be set there.
    Broken,
}

/// `None` if the settings turn chirp off, and outside of HTCondor.
pub(super) fn early_chirp(
    environment: &Environment,
    env_file: EnvFileState,
    condor: CondorJob,
) -> Option<EarlyChirp> {
    if !is_wanted(environment, env_file) {
        return None;
    }
    Some(EarlyChirp {
        destinations: destinations(environment, env_file),
        file: condor.chirp_file?,
        names: condor.names,
    })
}

fn is_wanted(environment: &Environment, env_file: EnvFileState) -> bool {
    match value(environment, &HTCHIRP) {
        Some(text) => python_values::boolean(text) != Some(false),
        None => env_file == EnvFileState::Broken,
    }
}

fn destinations(environment: &Environment, env_file: EnvFileState) -> Vec<ChirpDestination> {
    let default = (env_file == EnvFileState::Read).then_some("JOB_ATTR");
    match value(environment, &HTCHIRP_DEST).or(default) {
        Some("JOB_ATTR") => vec![ChirpDestination::JobAttributes],
        Some("JOB_EVENT_LOG") => vec![ChirpDestination::JobEventLog],
        _ => vec![
            ChirpDestination::JobEventLog,
            ChirpDestination::JobAttributes,
        ],
    }
}

/// The value of a variable. One that isn't text counts as empty, which no variable here may be.
fn value<'a>(environment: &'a Environment, variable: &Variable) -> Option<&'a str> {
    let value = environment.get(OsStr::new(variable.name))?;
    Some(value.to_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::ChirpDestination::{JobAttributes, JobEventLog};
    use super::EnvFileState::{Broken, Read};
    use super::*;

    fn found(variables: &[(&str, &str)], env_file: EnvFileState) -> Vec<ChirpDestination> {
        let environment = variables
            .iter()
            .map(|&(name, value)| (name.into(), value.into()))
            .collect();
        let condor = CondorJob {
            chirp_file: Some("/job/.chirp.config".into()),
            ..CondorJob::default()
        };
        early_chirp(&environment, env_file, condor)
            .map_or_else(Vec::new, |chirp| chirp.destinations)
    }

    #[test]
    fn what_can_be_read_decides_and_what_cannot_counts_as_a_yes() {
        let (on, dest) = ("EWMS_PILOT_HTCHIRP", "EWMS_PILOT_HTCHIRP_DEST");
        let log = (dest, "JOB_EVENT_LOG");
        let both = vec![JobEventLog, JobAttributes];
        for (variables, env_file, expected) in [
            (&[][..], Read, vec![]),
            (&[log], Read, vec![]),
            (&[(on, "False"), log], Broken, vec![]),
            (&[(on, "True")], Read, vec![JobAttributes]),
            (&[(on, "True"), log], Read, vec![JobEventLog]),
            (&[(on, "maybe"), log], Read, vec![JobEventLog]),
            (&[(on, "True"), (dest, "JOB")], Read, both.clone()),
            (&[], Broken, both.clone()),
            (&[(on, "True")], Broken, both),
            (&[(on, ""), log], Broken, vec![JobEventLog]),
        ] {
            assert_eq!(
                found(variables, env_file),
                expected,
                "{variables:?} {env_file:?}"
            );
        }
    }
}
