//! The settings of a trial as a pilot's variables, and those to submit pilots with that do the same. Text in,
//! text out: runs nothing.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::TrialRequest;
use super::input_batch::InputBatch;
use crate::config::variables::{self as var, Variable};
use crate::config::{ConfigErrors, Environment};

/// Where a trial keeps its files while it runs.
pub(super) struct TrialPlaces<'a> {
    pub(super) work: &'a Path,
    /// For converted images; they stay.
    pub(super) cache: &'a Path,
}

/// The variables that mean what an option of `ewms-pilot try` means, for error texts.
static OPTIONS: [(&Variable, &str); 8] = [
    (&var::TASK_IMAGE, "IMAGE"),
    (&var::TASK_ARGS, "--args"),
    (&var::INIT_IMAGE, "--init-image"),
    (&var::INIT_ARGS, "--init-args"),
    (&var::TASK_GPUS, "--gpus"),
    (&var::MAX_CONCURRENT_TASKS, "-j"),
    (&var::TASK_TIMEOUT, "--timeout"),
    (&var::BUILD_WORKDIR, "XDG_CACHE_HOME"),
];

/// `${XDG_CACHE_HOME:-~/.cache}/ewms-pilot`; `None` without a home.
pub(super) fn cache(environment: &Environment) -> Option<PathBuf> {
    let absolute = |name: &str| {
        let path = Path::new(environment.get(OsStr::new(name))?);
        path.is_absolute().then(|| path.to_owned())
    };
    let base = absolute("XDG_CACHE_HOME");
    let base = base.or_else(|| Some(absolute("HOME")?.join(".cache")));
    base.map(|base| base.join("ewms-pilot"))
}

/// A pilot's environment for this trial. Variables that are set already count where no option does: external
/// directories or a task's variables, for example.
pub(super) fn environment(
    user: &Environment,
    request: &TrialRequest,
    batch: &InputBatch,
    places: &TrialPlaces<'_>,
) -> Environment {
    let mut environment = user.clone();
    let mut set = |variable: &Variable, value: OsString| {
        environment.insert(variable.name.into(), value);
    };
    for (variable, value) in wanted(request, batch) {
        set(variable, value.into());
    }
    for (queue, name) in [(&var::QUEUE_INCOMING, "in"), (&var::QUEUE_OUTGOING, "out")] {
        set(queue, name.into());
    }
    for kind in [
        &var::QUEUE_INCOMING_BROKER_TYPE,
        &var::QUEUE_OUTGOING_BROKER_TYPE,
    ] {
        set(kind, "spool".into());
    }
    for address in [
        &var::QUEUE_INCOMING_BROKER_ADDRESS,
        &var::QUEUE_OUTGOING_BROKER_ADDRESS,
    ] {
        set(address, places.work.join("spool").into());
    }
    for unused in [
        &var::QUEUE_INCOMING_AUTH_TOKEN,
        &var::QUEUE_INCOMING_AUTH_TOKEN_FILE,
        &var::QUEUE_OUTGOING_AUTH_TOKEN,
        &var::QUEUE_OUTGOING_AUTH_TOKEN_FILE,
        &var::QUEUE_DEAD_LETTER,
        &var::BROKER_CA_FILE,
        &var::TASK_LOG,
    ] {
        set(unused, OsString::new());
    }
    if request.init_image.is_none() {
        set(&var::INIT_IMAGE, OsString::new());
        set(&var::INIT_ARGS, OsString::new());
    }
    set(&var::DATA_DIR_PARENT, places.work.into());
    set(&var::BUILD_WORKDIR, places.cache.into());
    set(&var::DIRECTORY_MUST_BE_PRESENT, "False".into());
    set(&var::KEEP_ALL_TASK_FILES, "True".into());
    set(&var::HTCHIRP, "False".into());
    if request.gpus.is_some() && !names_gpus(user) {
        set_gpus(&mut environment, request);
    }
    environment
}

/// The variables that the options stand for.
fn wanted(request: &TrialRequest, batch: &InputBatch) -> Vec<(&'static Variable, String)> {
    let mut wanted = vec![
        (&var::TASK_IMAGE, request.image.clone()),
        (&var::TASK_ARGS, request.args.clone()),
        (&var::INFILE_EXT, format!(".{}", batch.infile_ext)),
        (&var::OUTFILE_EXT, format!(".{}", batch.outfile_ext)),
    ];
    if let Some(image) = &request.init_image {
        wanted.push((&var::INIT_IMAGE, image.clone()));
        wanted.push((&var::INIT_ARGS, request.init_args.clone()));
    }
    if let Some(seconds) = request.timeout_secs {
        wanted.push((&var::TASK_TIMEOUT, seconds.to_string()));
    }
    if let Some(jobs) = &request.jobs {
        wanted.push((&var::MAX_CONCURRENT_TASKS, jobs.clone()));
    }
    if let Some(gpus) = request.gpus {
        wanted.push((&var::TASK_GPUS, gpus.to_string()));
    }
    wanted
}

/// Whether HTCondor, or the user, said which GPUs are to be used.
fn names_gpus(user: &Environment) -> bool {
    [
        "_CONDOR_AssignedGPUs",
        "CUDA_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
    ]
    .iter()
    .any(|name| user.contains_key(OsStr::new(name)))
}

/// Names the first GPUs of the machine, as many as the tasks need.
fn set_gpus(environment: &mut Environment, request: &TrialRequest) {
    let jobs = request.jobs.as_deref().and_then(|jobs| jobs.parse().ok());
    let count = u32::from(request.gpus.unwrap_or(0)).saturating_mul(jobs.unwrap_or(1));
    let numbers: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    environment.insert("CUDA_VISIBLE_DEVICES".into(), numbers.join(",").into());
}

/// The problems of the settings, a line each, in the words of the command line.
pub(super) fn problems(errors: &ConfigErrors) -> Vec<String> {
    let problems = errors.problems().iter();
    problems
        .map(|problem| in_options(&problem.to_string()))
        .collect()
}

/// A text about a pilot's variables, in the words of the command line.
pub(super) fn in_options(text: &str) -> String {
    OPTIONS
        .iter()
        .fold(text.to_owned(), |text, (variable, option)| {
            text.replace(&format!("`{}`", variable.name), &format!("`{option}`"))
                .replace(variable.name, option)
        })
}

/// Lines for an env file and the line that submits pilots, which together do the same as this trial. The lines
/// of the env file can be read as they are, once the queues are filled in. `user` is the environment of the
/// trial; `is_directory` says whether the image is a sandbox as it is.
pub(super) fn to_submit(
    request: &TrialRequest,
    batch: &InputBatch,
    user: &Environment,
    cwd: &Path,
    image: ImageForm,
) -> String {
    let mut text = String::from(
        "# To run the same as pilots, put these lines into a file my.env, with queues of yours:\n",
    );
    for (variable, value) in wanted(request, batch) {
        if !std::ptr::eq(variable, &raw const var::TASK_IMAGE) {
            let _ = writeln!(text, "export {}={}", variable.name, quoted(&value));
        }
    }
    if image == ImageForm::Converted {
        let _ = writeln!(text, "export {}=False", var::DIRECTORY_MUST_BE_PRESENT.name);
    }
    for (queue, kind, address, token) in [
        (
            &var::QUEUE_INCOMING,
            &var::QUEUE_INCOMING_BROKER_TYPE,
            &var::QUEUE_INCOMING_BROKER_ADDRESS,
            &var::QUEUE_INCOMING_AUTH_TOKEN,
        ),
        (
            &var::QUEUE_OUTGOING,
            &var::QUEUE_OUTGOING_BROKER_TYPE,
            &var::QUEUE_OUTGOING_BROKER_ADDRESS,
            &var::QUEUE_OUTGOING_AUTH_TOKEN,
        ),
    ] {
        let _ = writeln!(text, "export {}='YOUR QUEUE'", queue.name);
        let _ = writeln!(text, "export {}=rabbitmq", kind.name);
        let _ = writeln!(text, "export {}='YOUR BROKER'", address.name);
        let _ = writeln!(text, "export {}='YOUR TOKEN'", token.name);
    }
    let others = own_variables(user, &wanted(request, batch));
    if !others.is_empty() {
        let _ = writeln!(
            text,
            "# and these, as they are set here: {}",
            others.join(", ")
        );
    }
    text.push_str("# Put each input into the incoming queue as one event, then submit:\n");
    text.push_str(&submit_line(request, cwd));
    text
}

/// How the image was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ImageForm {
    Sandbox,
    Converted,
}

/// The user's variables of the pilot that took part in the trial. No values: they may be secrets.
fn own_variables(
    user: &Environment,
    replaced: &[(&'static Variable, String)],
) -> Vec<&'static str> {
    let names = var::ALL.iter().map(|variable| variable.name);
    let is_ours = |name: &&str| {
        let unused = [
            "QUEUE", "IMAGE", "_ARGS", "DATA_DIR", "HTCHIRP", "TASK_LOG", "ENV_FILE",
        ];
        let is_unused = unused.iter().any(|part| name.contains(part)) || name.starts_with('_');
        !is_unused && replaced.iter().all(|(variable, _)| variable.name != *name)
    };
    names
        .filter(is_ours)
        .filter(|name| user.contains_key(OsStr::new(name)))
        .collect()
}

/// An image file travels with the jobs; a directory must be there.
fn submit_line(request: &TrialRequest, cwd: &Path) -> String {
    let here = cwd.join(&request.image);
    let image = match (here.is_file(), here.exists()) {
        (true, _) => format!("task_sif={}", here.display()),
        (false, true) => format!("task_image={}", here.display()),
        (false, false) => format!("task_image={}", request.image),
    };
    let mut line = format!(
        "condor_submit n_pilots=10 env_file=my.env {}",
        quoted(&image)
    );
    let jobs = request.jobs.as_deref();
    let jobs: u32 = jobs.and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    if jobs > 1 {
        let _ = write!(line, " cpus={jobs}");
    }
    if let Some(gpus) = request.gpus {
        let _ = write!(line, " gpus={}", u32::from(gpus).saturating_mul(jobs));
    }
    line.push_str(" condor/ewms-pilot.sub\n");
    if here.is_dir() && !here.starts_with("/cvmfs") {
        line.push_str(
            "# task_image must be where the execution points see it, below /cvmfs for example\n",
        );
    }
    line
}

/// A word as a shell and an env file take it.
fn quoted(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./_-".contains(c);
    if !value.is_empty() && value.chars().all(is_plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_as_a_shell_takes_them() {
        for value in ["", "plain.json", "two words", "it's {{INFILE}}", "$x\n`y`"] {
            let split = shell_words::split(&quoted(value)).expect("it is quoted");
            assert_eq!(split, [value]);
        }
    }

    #[test]
    fn texts_about_variables_name_the_options_instead() {
        assert_eq!(
            in_options(
                "`EWMS_PILOT_TASK_ARGS` is `'`: close it; set _EWMS_PILOT_APPTAINER_BUILD_WORKDIR"
            ),
            "`--args` is `'`: close it; set XDG_CACHE_HOME"
        );
    }

    #[test]
    fn converted_images_are_kept_in_the_users_cache() {
        let of = |variables: &[(&str, &str)]| {
            let pairs = variables.iter();
            cache(
                &pairs
                    .map(|&(name, value)| (name.into(), value.into()))
                    .collect(),
            )
        };
        let (home, xdg) = (("HOME", "/home/a"), ("XDG_CACHE_HOME", "/fast"));
        assert_eq!(of(&[home, xdg]), Some("/fast/ewms-pilot".into()));
        assert_eq!(
            of(&[home, ("XDG_CACHE_HOME", "here")]),
            Some("/home/a/.cache/ewms-pilot".into())
        );
        assert_eq!(of(&[home]), Some("/home/a/.cache/ewms-pilot".into()));
        assert_eq!(of(&[]), None);
    }
}
