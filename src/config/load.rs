//! Makes a [`Config`] of the environment and the job's env file. Every variable is read even if others are
//! wrong, so that all problems are reported at once. Reads the env file, the files that variables name
//! (tokens, CA certificates) and the ads that HTCondor leaves beside a job.

use std::ffi::{OsStr, OsString};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::condor::allotted_cores;
use super::early_chirp::{EnvFileState, early_chirp};
use super::environment::{env_files, with_env_file};
use super::gpus::{given, most_slots, share_out};
use super::limits::{kill_grace, limits};
use super::problem::{ConfigErrors, ConfigProblem, MissingSetting, SettingsOrigin, one_line};
use super::queues::{both_directions, dead_letter, token_end};
use super::reader::{VariableReader, shown};
use super::variables::{self as var, ALL, DefaultValue, OF_PYTHON_ALONE, Variable};
use super::{
    ChirpConfig, ChirpDestination, ClientSide, CondorJob, Config, ContainerConfig, CvmfsPolicy,
    DumpOutput, Environment, HostVariables, ImagePolicy, KeepFiles, LogFormat, LogLevels,
    OnTaskError, Preflight, TaskGpus, Verbosity, python_values,
};

/// The prefix of the pilot's variables, after an optional `_`.
const PREFIX: &str = "EWMS_PILOT_";

/// Reads the settings from the environment and the job's env file. Relative paths start at `cwd`,
/// which is absolute.
///
/// # Errors
/// Returns everything that is wrong with them, at once.
pub fn load(environment: &Environment, cwd: &Path) -> Result<Config, ConfigErrors> {
    let mut problems = Vec::new();
    let environment = with_env_file(environment, cwd, &mut problems);
    let env_file = if problems.is_empty() {
        EnvFileState::Read
    } else {
        EnvFileState::Broken
    };
    let mut reader = VariableReader::new(&environment, problems);
    warn_of_unknown_variables(&mut reader);
    let mut config = read(&mut reader, cwd);
    if !reader.problems.is_empty() {
        let missing = missing_setting(&environment);
        let of_job = [Some(cwd), config.condor.scratch.as_deref()];
        let of_job = of_job.into_iter().flatten().map(Path::to_owned).collect();
        let origin = origin(&environment, env_file, &config.condor);
        let chirp = early_chirp(&environment, env_file, config.condor);
        let errors = ConfigErrors::new(reader.problems, missing, of_job, chirp);
        return Err(errors.with_warnings(reader.warnings).with_origin(origin));
    }
    config.token_end = token_end(
        &[&config.incoming, &config.outgoing],
        config.first_event_timeout,
        SystemTime::now(),
        &mut config.token_warnings,
    );
    config.warnings = reader.warnings;
    Ok(config)
}

/// A pilot in a job was meant to be one, whatever it lacks.
fn origin(environment: &Environment, env_file: EnvFileState, condor: &CondorJob) -> SettingsOrigin {
    let is_ours = |name: &OsString| {
        let name = name.to_string_lossy();
        name.trim_start_matches('_').starts_with(PREFIX)
    };
    let is_given = env_file == EnvFileState::Broken
        || condor.scratch.is_some()
        || environment.keys().any(is_ours);
    if is_given {
        SettingsOrigin::Given
    } else {
        SettingsOrigin::Nowhere
    }
}

/// As [`load`], for a person who will submit pilots: they need not name the image here.
///
/// # Errors
/// Returns the errors of [`load`].
pub fn load_to_submit(environment: &Environment, cwd: &Path) -> Result<Config, ConfigErrors> {
    let name = OsStr::new(var::TASK_IMAGE.name);
    let settings = with_env_file(environment, cwd, &mut Vec::new());
    if settings.get(name).is_some_and(|image| !image.is_empty()) {
        return load(environment, cwd);
    }
    let mut environment = environment.clone();
    environment.insert(name.to_owned(), "given to condor_submit".into());
    let warning = format!(
        "`{}` is not set: give condor_submit `task_image=…` or `task_sif=…`",
        var::TASK_IMAGE.name
    );
    match load(&environment, cwd) {
        Ok(mut config) => {
            config.warnings.push(warning);
            Ok(config)
        }
        Err(errors) => Err(errors.with_warning(warning)),
    }
}

/// Reads every variable. After a problem the result holds placeholders and must not be used.
fn read(reader: &mut VariableReader<'_>, cwd: &Path) -> Config {
    let task = task(reader);
    let init = init(reader);
    let (mut incoming, mut outgoing) = both_directions(reader, cwd);
    let data_parent = reader.directory(&var::DATA_DIR_PARENT, cwd);
    let task_log = reader.file(&var::TASK_LOG, &data_parent);
    let infile_ext = reader.suffix(&var::INFILE_EXT);
    let outfile_ext = reader.suffix(&var::OUTFILE_EXT);
    let prefetch = reader.count(&var::PREFETCH);
    let first_event = reader.seconds(&var::TIMEOUT_FIRST);
    let idle_timeout = reader.seconds(&var::TIMEOUT_INCOMING).unwrap_or_default();
    let reconnect_timeout = reader.duration(&var::RECONNECT_TIMEOUT);
    let external_directories = reader.directories(&var::EXTERNAL_DIRECTORIES);
    let cores = reader.cores(&var::MAX_CONCURRENT_TASKS);
    let on_task_error = on_task_error(reader);
    let keep_files = reader.policy(&var::KEEP_ALL_TASK_FILES, KeepFiles::All, KeepFiles::Failed);
    let dump_output = reader.policy(&var::DUMP_TASK_OUTPUT, DumpOutput::All, DumpOutput::Failed);
    let condor = CondorJob::find(reader.environment, &mut reader.warnings);
    let host = host(reader.environment);
    let client = client_side(&condor, &host);
    for queue in incoming.iter_mut().chain(&mut outgoing) {
        queue.broker.set_client(&client);
    }
    let (slots, gpus) = slots_and_gpus(reader, cores, &condor);
    Config {
        cvmfs: reader.policy(&var::CVMFS, CvmfsPolicy::Bind, CvmfsPolicy::LeaveOut),
        kill_grace: kill_grace(reader, condor.vacate_time),
        limits: limits(reader, &condor, slots),
        dead_letter: dead_letter(reader, &incoming),
        quarantine: quarantine(reader),
        log_format: log_format(reader),
        log: LogLevels {
            own: reader.level(&var::CL_LOG),
            third_party: reader.level(&var::CL_LOG_THIRD_PARTY),
        },
        verbosity: reader.policy(&var::CONTAINER_DEBUG, Verbosity::Debug, Verbosity::Normal),
        warm_start: reader.warm_start(&var::WARM_START),
        cores: allotted_cores(&condor, reader.environment),
        preflight: reader.policy(&var::PREFLIGHT, Preflight::Check, Preflight::Skip),
        chirp: chirp(reader),
        images: images(reader, cwd),
        ca_file: reader.file(&var::BROKER_CA_FILE, cwd),
        host: HostVariables {
            apptainer: reader.program(&var::APPTAINER),
            ..host
        },
        shown: dump(reader.environment, slots, &gpus),
        cwd: cwd.to_owned(),
        env_files: env_files(reader.environment, cwd),
        prefetch: prefetch.unwrap_or(NonZeroU32::MIN),
        first_event_timeout: first_event.unwrap_or(idle_timeout),
        // Set once there is no problem.
        token_end: None,
        warnings: Vec::new(),
        token_warnings: Vec::new(),
        task,
        init,
        incoming,
        outgoing,
        data_parent,
        task_log,
        infile_ext,
        outfile_ext,
        idle_timeout,
        reconnect_timeout,
        external_directories,
        slots,
        gpus,
        on_task_error,
        keep_files,
        dump_output,
        condor,
    }
}

fn client_side(condor: &CondorJob, host: &HostVariables) -> ClientSide {
    let names_proxy = |name: &str| {
        ["http_proxy", "https_proxy"]
            .iter()
            .any(|proxy| name.eq_ignore_ascii_case(proxy))
    };
    let mut names = host
        .proxies
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .filter_map(|(name, _)| name.to_str());
    ClientSide {
        machine: condor.names.machine.clone(),
        proxy: names.find(|name| names_proxy(name)).map(str::to_owned),
    }
}

/// How many tasks may run at once, and the GPUs of each. `cores` is `None` for `auto`.
fn slots_and_gpus(
    reader: &mut VariableReader<'_>,
    cores: Option<NonZeroU32>,
    condor: &CondorJob,
) -> (NonZeroU32, TaskGpus) {
    let request = reader.gpus(&var::TASK_GPUS);
    let gpus = given(reader.environment, &condor.gpus);
    let slots = cores.unwrap_or_else(|| {
        let cores = allotted_cores(condor, reader.environment);
        let most = most_slots(gpus.as_ref(), request);
        most.map_or(cores, |most| cores.min(most))
    });
    (slots, share_out(reader, gpus, request, slots))
}

/// The machine's variables in the pilot's own environment.
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
        apptainer: None,
        path: value("PATH").unwrap_or_default(),
        home: value("HOME"),
        lang: value("LANG"),
        proxies: PROXIES
            .into_iter()
            .filter_map(|name| Some((name.into(), value(name)?)))
            .collect(),
        cvmfs_mount_dir: value("CVMFS_MOUNT_DIR").map(PathBuf::from),
    }
}

fn task(reader: &mut VariableReader<'_>) -> ContainerConfig {
    ContainerConfig {
        image: reader
            .required(&var::TASK_IMAGE)
            .unwrap_or_default()
            .to_owned(),
        args: reader.arguments(&var::TASK_ARGS),
        env: reader.env_json(&var::TASK_ENV_JSON),
        timeout: task_timeout(reader),
    }
}

/// The old variable counts only when the new one isn't set, and, as in the Python pilot, not when
/// it is empty.
fn task_timeout(reader: &mut VariableReader<'_>) -> Option<Duration> {
    let (new, old) = (&var::TASK_TIMEOUT, &var::SUBPROC_TIMEOUT);
    if reader.set(old).is_none_or(str::is_empty) {
        return reader.seconds(new);
    }
    if reader.set(new).is_some() {
        // A value that has no effect is checked all the same: it is a mistake in either case.
        reader.seconds(old);
        reader.warnings.push(format!(
            "`{}` is ignored, since `{}` is set",
            old.name, new.name
        ));
        return reader.seconds(new);
    }
    reader.warnings.push(format!(
        "`{}` is an old name: set `{}` instead",
        old.name, new.name
    ));
    reader.seconds(old)
}

fn init(reader: &mut VariableReader<'_>) -> Option<ContainerConfig> {
    let init = ContainerConfig {
        image: reader.text(&var::INIT_IMAGE),
        args: reader.arguments(&var::INIT_ARGS),
        env: reader.env_json(&var::INIT_ENV_JSON),
        timeout: reader.seconds(&var::INIT_TIMEOUT),
    };
    if !init.image.is_empty() {
        return Some(init);
    }
    if !init.args.is_empty() || !init.env.is_empty() {
        reader.warnings.push(format!(
            "`{}` is not set, so no init container runs, though it has arguments or variables",
            var::INIT_IMAGE.name
        ));
    }
    None
}

fn on_task_error(reader: &mut VariableReader<'_>) -> OnTaskError {
    let except = reader.list(&var::OKAY_ERRORS).into_iter().collect();
    if reader.boolean(&var::STOP_LISTENING) {
        OnTaskError::StopListening { except }
    } else {
        OnTaskError::Continue
    }
}

/// How long a failed pilot keeps its slot. A pilot that goes on after failures has no fatal end for a
/// quarantine to follow, so setting both is refused.
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

fn log_format(reader: &mut VariableReader<'_>) -> LogFormat {
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    reader
        .choice(&var::LOG_FORMAT, &formats)
        .unwrap_or_default()
}

fn chirp(reader: &mut VariableReader<'_>) -> Option<ChirpConfig> {
    let enabled = reader.boolean(&var::HTCHIRP);
    let destination = reader.choice(
        &var::HTCHIRP_DEST,
        &[
            ("JOB_ATTR", ChirpDestination::JobAttributes),
            ("JOB_EVENT_LOG", ChirpDestination::JobEventLog),
        ],
    );
    let interval = reader.duration(&var::HTCHIRP_INTERVAL);
    enabled.then_some(ChirpConfig {
        destination: destination?,
        interval,
    })
}

fn images(reader: &mut VariableReader<'_>, cwd: &Path) -> ImagePolicy {
    let platform = reader.text(&var::CONTAINER_PLATFORM);
    if platform.to_lowercase() != "apptainer" {
        let advice =
            "this pilot is Apptainer-native: leave the variable out, or set it to `apptainer`";
        reader.refuse(&var::CONTAINER_PLATFORM, &platform, advice);
    }
    let workdir = reader.directory(&var::BUILD_WORKDIR, cwd);
    if reader.boolean(&var::DIRECTORY_MUST_BE_PRESENT) {
        ImagePolicy::DirectoryOnly
    } else {
        ImagePolicy::Convert { workdir }
    }
}

/// Finds a missing setting whose error services know.
fn missing_setting(environment: &Environment) -> MissingSetting {
    let missing = |variable: &Variable| {
        environment
            .get(OsStr::new(variable.name))
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

/// Every variable with its value or default, fit for a log.
fn dump(
    environment: &Environment,
    slots: NonZeroU32,
    gpus: &TaskGpus,
) -> Vec<(&'static str, String)> {
    ALL.iter()
        .map(|&variable| {
            let value = environment
                .get(OsStr::new(variable.name))
                .and_then(|value| value.to_str());
            let text = match (value, variable.otherwise) {
                (Some("auto"), _) if variable.name == var::MAX_CONCURRENT_TASKS.name => {
                    format!("auto ({slots})")
                }
                (Some("auto") | None, _)
                    if variable.name == var::TASK_GPUS.name && gpus.each > 0 =>
                {
                    let given = gpus.given.as_ref().map_or(0, |given| given.gpus.len());
                    format!("auto ({} of {given})", gpus.each)
                }
                (Some(value), _) => shown(variable, value),
                (None, DefaultValue::Default(text)) => text.to_owned(),
                (None, otherwise) => otherwise.shown(),
            };
            (variable.name, text)
        })
        .collect()
}

/// Warns of variables that look like the pilot's but aren't. Most are misspelt, so each warning names the
/// nearest one.
fn warn_of_unknown_variables(reader: &mut VariableReader<'_>) {
    let bare = |name: &str| {
        name.trim_start_matches('_')
            .to_uppercase()
            .strip_prefix(PREFIX)
            .map(str::to_owned)
    };
    for name in reader.environment.keys().map(|name| name.to_string_lossy()) {
        let Some(rest) = bare(&name) else { continue };
        let is_known = ALL.iter().any(|variable| variable.name == name);
        if is_known || OF_PYTHON_ALONE.contains(&&*name) {
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
        reader.warnings.push(format!(
            "`{}` is no variable of this pilot and has no effect{help}",
            one_line(&name)
        ));
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
