//! `ewms-pilot check --submit`: what can be known on a submit node before a pilot runs. Needs no Apptainer, no image
//! and no place on an execution point; takes no event and declares nothing.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::check::check_brokers;
use super::setting_warnings;
use crate::config::{
    BrokerConfig, Config, ENV_FILE_NAME, EnvFile, Environment, QueueConfig, expiry,
};
use crate::exit::Exit;
use crate::fault::Diagnosis;
use crate::human::{counted, one_line, seconds, utc};
use crate::preflight::{Check, CheckNote, Findings};

/// How long a pilot of the bundled template runs at most, unless told otherwise: its `max_seconds`.
const PILOT_TIME: Duration = Duration::from_hours(12);

/// Checks that there is an env file, which a submitted job has to bring along.
#[must_use]
pub fn check_env_file(environment: &Environment, cwd: &Path, findings: &mut Findings) -> Exit {
    let Some(file) = EnvFile::find(environment, cwd) else {
        let seen = format!("no env file is in `{}`", cwd.display());
        let fix = format!(
            "write the settings to `{ENV_FILE_NAME}` there, or name the file with --env-file FILE here and \
             env_file=FILE for condor_submit"
        );
        findings.failed(Check::EnvFile, &Diagnosis::new(seen, fix));
        return Exit::Configuration;
    };
    let path = file.path.display();
    // Its problems are told with those of the settings.
    let number = counted(file.variables.len() as u64, "variable");
    findings.seen(
        Check::EnvFile,
        CheckNote::Fine(format!("`{path}` sets {number}")),
    );
    let others = std::fs::metadata(&file.path).is_ok_and(|found| found.mode() & 0o044 != 0);
    if others && has_token(&file.variables) {
        findings.seen(
            Check::EnvFile,
            CheckNote::WorkedAround(
                format!("`{path}` holds a token, and other users of this machine may read it"),
                format!("chmod 600 {}", shell_words::quote(&path.to_string())),
            ),
        );
    }
    Exit::Success
}

fn has_token(variables: &Environment) -> bool {
    variables
        .iter()
        .any(|(name, value)| name.to_string_lossy().ends_with("_AUTH_TOKEN") && !value.is_empty())
}

/// Checks the settings that could be read, the tokens and the queues.
pub async fn check_submission(config: &Config, findings: &mut Findings) -> Exit {
    let mut warnings = setting_warnings(config);
    // The tokens have lines of their own here.
    warnings.retain(|warning| !config.token_warnings.contains(warning));
    if warnings.is_empty() {
        let seen = "every setting can be read".to_owned();
        findings.seen(Check::Configuration, CheckNote::Fine(seen));
    }
    for warning in warnings {
        findings.seen(Check::Configuration, CheckNote::Odd(warning));
    }
    let mut exit = Exit::Success;
    for queue in config.incoming.iter().chain(&config.outgoing) {
        exit = first_failure(exit, token(queue, findings));
    }
    let brokers = check_brokers(config, findings).await;
    first_failure(
        exit,
        brokers.map_or_else(|error| error.exit(), |()| Exit::Success),
    )
}

fn first_failure(first: Exit, second: Exit) -> Exit {
    if first == Exit::Success {
        second
    } else {
        first
    }
}

fn unix_secs(time: SystemTime) -> f64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

/// Says when the token of a queue ends, if it says so itself.
fn token(queue: &QueueConfig, findings: &mut Findings) -> Exit {
    let BrokerConfig::RabbitMq(address) = &queue.broker else {
        return Exit::Success;
    };
    let Some(end) = expiry(address.password.reveal()) else {
        return Exit::Success;
    };
    let name = one_line(&queue.name, usize::MAX);
    let at = utc(unix_secs(end));
    match end.duration_since(SystemTime::now()) {
        Err(past) => {
            let ago = seconds(past.duration().as_secs_f64());
            let seen = format!("the token of queue `{name}` ended {ago} ago, at {at} UTC");
            findings.failed(Check::Token, &Diagnosis::new(seen, "get a new one"));
            return Exit::Broker;
        }
        Ok(left) => {
            let seen = format!(
                "the token of queue `{name}` ends in {}, at {at} UTC",
                seconds(left.as_secs_f64())
            );
            let is_renewed = address.token_file.is_some();
            findings.seen(
                Check::Token,
                if left < PILOT_TIME && !is_renewed {
                    let fix = "pilots end with it, and none can start later: get one that lives longer, or keep it \
                               up to date in a file";
                    CheckNote::WorkedAround(seen, fix.to_owned())
                } else {
                    CheckNote::Fine(seen)
                },
            );
        }
    }
    Exit::Success
}
