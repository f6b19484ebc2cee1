//! Makes a [`Config`] of the environment: reads every variable, whatever was wrong with the ones
//! before, and checks what concerns more than one of them. Touches the file system only to read the
//! env file and HTCondor's machine ad.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::num::NonZeroU32;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::ca_certs::authorities;
use super::chirp::{ChirpConfig, DESTINATIONS};
use super::grace::kill_grace;
use super::limits::limits;
use super::problem::{ConfigErrors, ConfigProblem, MissingSetting, one_line};
use super::queues::{INCOMING, OUTGOING, dead_letter, queues, refuse_mixed_kinds, trust};
use super::reader::{VariableReader, shown};
use super::variables::{self as var, ALL, DefaultValue, Variable};
use super::{
    CondorJob, Config, ContainerConfig, DumpOutput, HostVariables, ImagePolicy, KeepFiles,
    LogLevels, OnTaskError, Preflight, QueueConfig, Verbosity, cores, envfile, python_values,
    token,
};

pub type Environment = BTreeMap<OsString, OsString>;

/// What every name of a variable of ours starts with, an optional `_` aside.
const PREFIX: &str = "EWMS_PILOT_";

/// Reads the settings from the environment and the job's env file. Relative paths start at `cwd`,
/// which is absolute.
///
/// # Errors
/// Everything that is wrong with them, at once.
pub fn load(environment: &Environment, cwd: &Path) -> Result<Config, ConfigErrors> {
    let mut problems = Vec::new();
    let environment = envfile::merge(environment, cwd, &mut problems);
    let mut reader = VariableReader::new(&environment, problems);
    let mut warnings = unknown_variables(&environment);

    let task = task(&mut reader, &mut warnings);
    let init = init(&mut reader, &mut warnings);
    let (incoming, outgoing) = both_directions(&mut reader, cwd);
    let data_parent = reader.directory(&var::DATA_DIR_PARENT, cwd);
    let task_log = reader.file(&var::TASK_LOG, &data_parent);
    let infile_ext = reader.suffix(&var::INFILE_EXT);
    let outfile_ext = reader.suffix(&var::OUTFILE_EXT);
    let prefetch = reader.count(&var::PREFETCH);
    let first = reader.seconds(&var::TIMEOUT_FIRST);
    let idle = reader.seconds(&var::TIMEOUT_INCOMING).unwrap_or_default();
    let reconnect_timeout = reader.duration(&var::RECONNECT_TIMEOUT);
    let external_directories = reader.directories(&var::EXTERNAL_DIRECTORIES);
    let slots = reader.cores(&var::MAX_CONCURRENT_TASKS);
    let on_task_error = on_task_error(&mut reader);
    let keep_files = reader.policy(&var::KEEP_ALL_TASK_FILES, KeepFiles::All, KeepFiles::Failed);
    let dump_output = reader.policy(&var::DUMP_TASK_OUTPUT, DumpOutput::All, DumpOutput::Failed);
    let condor = CondorJob::find(&environment, &mut warnings);
    let kill_grace = kill_grace(&mut reader, condor.vacate_time, &mut warnings);
    let limits = limits(&mut reader);
    let dead_letter = dead_letter(&mut reader, incoming.as_deref());
    let quarantine = quarantine(&mut reader);
    let log = LogLevels {
        own: reader.level(&var::CL_LOG),
        third_party: reader.level(&var::CL_LOG_THIRD_PARTY),
    };
    let verbosity = reader.policy(&var::CONTAINER_DEBUG, Verbosity::Debug, Verbosity::Normal);
    let preflight = reader.policy(&var::PREFLIGHT, Preflight::Check, Preflight::Skip);
    let chirp = chirp(&mut reader);
    platform(&mut reader);
    let images = images(&mut reader, cwd);
    let ca_file = reader.file(&var::BROKER_CA_FILE, cwd);

    let (task, incoming, outgoing) = match (task, incoming, outgoing) {
        (Some(task), Some(incoming), Some(outgoing)) if reader.problems.is_empty() => {
            (task, incoming, outgoing)
        }
        _ => return Err(ConfigErrors::new(reader.problems, lacking(&environment))),
    };
    let slots = slots.map_or_else(|| cores::allotted(&environment), at_least_one);
    let limits = limits(&condor, slots.get());
    let first_event_timeout = first.unwrap_or(idle);
    let token_end = token::end(
        &[&incoming, &outgoing],
        first_event_timeout,
        SystemTime::now(),
        &mut warnings,
    );
    Ok(Config {
        task,
        init,
        incoming,
        outgoing,
        cwd: cwd.to_owned(),
        data_parent,
        infile_ext,
        outfile_ext,
        prefetch: prefetch.map_or(NonZeroU32::MIN, at_least_one),
        slots,
        first_event_timeout,
        idle_timeout: idle,
        reconnect_timeout,
        external_directories,
        on_task_error,
        quarantine,
        kill_grace,
        keep_files,
        limits,
        token_end,
        dead_letter,
        task_log,
        dump_output,
        verbosity,
        images,
        preflight,
        log,
        host: host(&environment),
        ca_file,
        condor,
        chirp,
        warnings,
        shown: dump(&environment, slots),
    })
}

/// Where events come from and results go.
fn both_directions(
    reader: &mut VariableReader<'_>,
    cwd: &Path,
) -> (Option<Vec<QueueConfig>>, Option<Vec<QueueConfig>>) {
    let mut incoming = queues(reader, &INCOMING, cwd);
    let mut outgoing = queues(reader, &OUTGOING, cwd);
    let authorities = authorities(reader, cwd);
    for queues in [&mut incoming, &mut outgoing].into_iter().flatten() {
        trust(queues, &authorities);
    }
    if let Some(outgoing) = &outgoing {
        refuse_mixed_kinds(reader, &OUTGOING, outgoing);
    }
    (incoming, outgoing)
}

fn host(environment: &Environment) -> HostVariables {
    const PROXIES: [&str; 8] = [
        "http_proxy",
        "https_proxy",
        "ftp_proxy",
        "no_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "FTP_PROXY",
        "NO_PROXY",
    ];
    let value = |name: &str| environment.get(OsStr::new(name)).cloned();
    HostVariables {
        path: value("PATH").unwrap_or_default(),
        home: value("HOME"),
        lang: value("LANG"),
        proxies: PROXIES
            .into_iter()
            .filter_map(|name| Some((name.into(), value(name)?)))
            .collect(),
    }
}

fn task(reader: &mut VariableReader<'_>, warnings: &mut Vec<String>) -> Option<ContainerConfig> {
    let image = reader.required(&var::TASK_IMAGE).map(str::to_owned);
    let args = reader.arguments(&var::TASK_ARGS);
    let env = reader.env_json(&var::TASK_ENV_JSON);
    let timeout = task_timeout(reader, warnings);
    Some(ContainerConfig {
        image: image?,
        args,
        env,
        timeout,
    })
}

/// The old variable counts only when the new one isn't set, and, as in the Python pilot, not when
/// it is empty.
fn task_timeout(reader: &mut VariableReader<'_>, warnings: &mut Vec<String>) -> Option<Duration> {
    let (new, old) = (&var::TASK_TIMEOUT, &var::SUBPROC_TIMEOUT);
    if reader.set(old).is_none_or(str::is_empty) {
        return reader.seconds(new);
    }
    if reader.set(new).is_some() {
        // A value that has no effect is checked all the same: it is a mistake in either case.
        reader.seconds(old);
        warnings.push(format!(
            "`{}` is ignored, since `{}` is set",
            old.name, new.name
        ));
        return reader.seconds(new);
    }
    warnings.push(format!(
        "`{}` is an old name: set `{}` instead",
        old.name, new.name
    ));
    reader.seconds(old)
}

fn init(reader: &mut VariableReader<'_>, warnings: &mut Vec<String>) -> Option<ContainerConfig> {
    let image = reader.text(&var::INIT_IMAGE);
    let args = reader.arguments(&var::INIT_ARGS);
    let env = reader.env_json(&var::INIT_ENV_JSON);
    let timeout = reader.seconds(&var::INIT_TIMEOUT);
    if image.is_empty() {
        if !args.is_empty() || !env.is_empty() {
            warnings.push(format!(
                "`{}` is not set, so no init container runs, though it has arguments or variables",
                var::INIT_IMAGE.name
            ));
        }
        return None;
    }
    Some(ContainerConfig {
        image,
        args,
        env,
        timeout,
    })
}

fn on_task_error(reader: &mut VariableReader<'_>) -> OnTaskError {
    let except = reader.list(&var::OKAY_ERRORS).into_iter().collect();
    if reader.boolean(&var::STOP_LISTENING) {
        OnTaskError::StopListening { except }
    } else {
        OnTaskError::Continue
    }
}

/// A pilot that goes on after failures has no fatal end that a quarantine could follow: whoever
/// sets both means something else.
fn quarantine(reader: &mut VariableReader<'_>) -> Duration {
    let quarantine = reader.seconds(&var::QUARANTINE_TIME).unwrap_or_default();
    let goes_on = reader
        .set(&var::STOP_LISTENING)
        .and_then(python_values::boolean)
        == Some(false);
    if goes_on && !quarantine.is_zero() {
        reader.problems.push(ConfigProblem::Conflict(format!(
            "`{}` is `{}` while `{}` is false: a pilot that goes on after an error has no quarantine, \
             set one of them only",
            var::QUARANTINE_TIME.name,
            quarantine.as_secs(),
            var::STOP_LISTENING.name
        )));
    }
    quarantine
}

fn chirp(reader: &mut VariableReader<'_>) -> Option<ChirpConfig> {
    let enabled = reader.boolean(&var::HTCHIRP);
    let destination = reader.choice(&var::HTCHIRP_DEST, &DESTINATIONS);
    let interval = reader.duration(&var::HTCHIRP_INTERVAL);
    enabled.then_some(ChirpConfig {
        destination: destination?,
        interval,
    })
}

fn platform(reader: &mut VariableReader<'_>) {
    let text = reader.text(&var::CONTAINER_PLATFORM);
    if text.to_lowercase() != "apptainer" {
        let advice =
            "this pilot is Apptainer-native: leave the variable out, or set it to `apptainer`";
        reader.refuse(&var::CONTAINER_PLATFORM, &text, advice);
    }
}

fn images(reader: &mut VariableReader<'_>, cwd: &Path) -> ImagePolicy {
    let workdir = reader.directory(&var::BUILD_WORKDIR, cwd);
    if reader.boolean(&var::DIRECTORY_MUST_BE_PRESENT) {
        ImagePolicy::DirectoryOnly
    } else {
        ImagePolicy::Convert { workdir }
    }
}

fn at_least_one(number: u16) -> NonZeroU32 {
    NonZeroU32::new(u32::from(number)).unwrap_or(NonZeroU32::MIN)
}

/// Which of the settings with a well-known error is missing.
fn lacking(environment: &Environment) -> MissingSetting {
    let missing = |variable: &Variable| {
        environment
            .get(&OsString::from(variable.name))
            .is_none_or(|value| value.is_empty())
    };
    if missing(&var::TASK_IMAGE) {
        MissingSetting::TaskImage
    } else if missing(&var::QUEUE_INCOMING) || missing(&var::QUEUE_OUTGOING) {
        MissingSetting::Queues
    } else {
        MissingSetting::Nothing
    }
}

fn dump(environment: &Environment, slots: NonZeroU32) -> Vec<(&'static str, String)> {
    ALL.iter()
        .map(|&variable| {
            let value = environment
                .get(&OsString::from(variable.name))
                .and_then(|value| value.to_str());
            let text = match (value, variable.otherwise) {
                (Some("auto"), _) if variable.name == var::MAX_CONCURRENT_TASKS.name => {
                    format!("auto ({slots})")
                }
                (Some(value), _) => shown(variable, value),
                (None, DefaultValue::Default(text)) => text.to_owned(),
                (None, otherwise) => otherwise.shown(),
            };
            (variable.name, text)
        })
        .collect()
}

/// A warning for each variable that looks like ours and isn't: most are misspelt.
fn unknown_variables(environment: &Environment) -> Vec<String> {
    let bare = |name: &str| {
        name.trim_start_matches('_')
            .strip_prefix(PREFIX)
            .map(str::to_owned)
    };
    let mut warnings = Vec::new();
    for name in environment.keys().map(|name| name.to_string_lossy()) {
        let Some(rest) = bare(&name) else { continue };
        if ALL.iter().any(|variable| variable.name == name) {
            continue;
        }
        let nearest = ALL
            .iter()
            .filter_map(|variable| {
                let distance = strsim::damerau_levenshtein(&rest, &bare(variable.name)?);
                Some((distance, variable.name))
            })
            .min_by_key(|&(distance, _)| distance)
            .filter(|&(distance, _)| distance <= 2.max(rest.len() / 3));
        let help = nearest.map_or(String::new(), |(_, name)| format!("; is `{name}` meant?"));
        warnings.push(format!(
            "`{}` is no variable of this pilot and has no effect{help}",
            one_line(&name)
        ));
    }
    warnings
}

#[cfg(test)]
#[path = "load_tests/mod.rs"]
mod tests;
