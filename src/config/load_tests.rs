//! Tests of the settings as a whole: the configuration and its dump for an accepted environment, and the
//! errors for a refused one.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use tracing::level_filters::LevelFilter;

use super::*;
use crate::config::{BrokerConfig, ENV_FILE_NAME, QueueConfig, Transport};

#[path = "load_queue_tests.rs"]
mod queues;

const CWD: &str = "/job/scratch";

/// An environment with which a pilot runs, plus the additions of a test.
fn environment(more: &[(&str, &str)]) -> Environment {
    let enough = [
        ("EWMS_PILOT_TASK_IMAGE", "/images/task"),
        ("EWMS_PILOT_QUEUE_INCOMING", "in"),
        ("EWMS_PILOT_QUEUE_INCOMING_BROKER_TYPE", "rabbitmq"),
        ("EWMS_PILOT_QUEUE_OUTGOING", "out"),
        ("EWMS_PILOT_QUEUE_OUTGOING_BROKER_TYPE", "rabbitmq"),
    ];
    enough
        .iter()
        .chain(more)
        .map(|&(name, value)| (name.into(), value.into()))
        .collect()
}

fn read(more: &[(&str, &str)]) -> Config {
    load(&environment(more), Path::new(CWD)).unwrap_or_else(|errors| panic!("{more:?}: {errors}"))
}

fn errors(environment: &Environment) -> String {
    match load(environment, Path::new(CWD)) {
        Ok(config) => panic!("was accepted: {config:?}"),
        Err(errors) => errors.to_string(),
    }
}

/// The only problem that the additions make. They may make warnings.
fn problem(more: &[(&str, &str)]) -> String {
    let text = errors(&environment(more));
    let is_problem = |line: &&str| !line.starts_with("warning: ");
    let lines: Vec<&str> = text.lines().filter(is_problem).collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(
        lines[1],
        "RuntimeError: 1 configuration problem(s), see above."
    );
    lines[0].to_owned()
}

#[test]
fn apptainers_program_is_an_absolute_path_or_none() {
    let of = |path: &str| read(&[("EWMS_PILOT_APPTAINER", path)]).host.apptainer;
    assert_eq!(of("/opt/bin/apptainer"), Some("/opt/bin/apptainer".into()));
    assert_eq!(of(""), None);
    assert_eq!(
        problem(&[("EWMS_PILOT_APPTAINER", "bin/apptainer")]),
        "`EWMS_PILOT_APPTAINER` is `bin/apptainer`: expected an absolute path; empty: none"
    );
}

#[test]
fn a_time_with_a_unit_is_refused_with_the_seconds_to_write() {
    let advice = |name: &str, text: &str| problem(&[(name, text)]);
    assert_eq!(
        advice("EWMS_PILOT_TASK_TIMEOUT", "5m"),
        "`EWMS_PILOT_TASK_TIMEOUT` is `5m`: expected whole seconds, 1 or more; write `300`"
    );
    assert_eq!(
        advice("EWMS_PILOT_KILL_GRACE", "1 min"),
        "`EWMS_PILOT_KILL_GRACE` is `1 min`: expected seconds, 0 or more, fractions allowed; write `60`"
    );
    for (text, seconds) in [("2h", "`7200`"), ("1D", "`86400`"), ("90s", "`90`")] {
        let advice = advice("EWMS_PILOT_MAX_RUNTIME", text);
        assert!(advice.ends_with(&format!("; write {seconds}")), "{advice}");
    }
    for text in ["5x", "m", "1.5h"] {
        assert!(
            !advice("EWMS_PILOT_INIT_TIMEOUT", text).contains("write"),
            "{text}"
        );
    }
    assert!(!advice("EWMS_PILOT_PREFETCH", "5m").contains("write"));
}

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

#[test]
fn defaults_are_those_of_the_table() {
    let config = read(&[]);
    assert_eq!(config.task.image, "/images/task");
    assert_eq!(config.task.args, "");
    assert!(config.task.env.is_empty());
    assert_eq!(config.task.timeout, None);
    assert!(config.init.is_none());
    assert_eq!(config.data_parent, Path::new(CWD));
    assert_eq!((&*config.infile_ext, &*config.outfile_ext), ("in", "out"));
    assert_eq!((config.prefetch.get(), config.slots.get()), (1, 1));
    assert_eq!(
        (config.first_event_timeout, config.idle_timeout),
        (seconds(1), seconds(1))
    );
    assert!(config.external_directories.is_empty());
    assert_eq!(
        config.on_task_error,
        OnTaskError::StopListening { except: [].into() }
    );
    assert_eq!(config.quarantine, Duration::ZERO);
    assert_eq!(config.kill_grace, seconds(10));
    assert_eq!(config.keep_files, KeepFiles::Failed);
    assert_eq!(config.dump_output, DumpOutput::Failed);
    assert_eq!(config.verbosity, Verbosity::Normal);
    assert_eq!(config.images, ImagePolicy::DirectoryOnly);
    assert_eq!(
        config.log,
        LogLevels {
            own: LevelFilter::INFO,
            third_party: LevelFilter::WARN
        }
    );
    assert_eq!(config.chirp, None);
    assert!(config.warnings.is_empty());
    let BrokerConfig::RabbitMq(address) = &config.incoming[0].broker else {
        panic!("is RabbitMQ")
    };
    assert_eq!((&*address.host, address.port), ("localhost", 5672));
}

#[test]
#[expect(
    clippy::too_many_lines,
    reason = "one environment with everything in it, and every field of its result"
)]
fn every_variable_has_its_effect() {
    let config = read(&[
        ("EWMS_PILOT_TASK_ARGS", "cp {{INFILE}} {{OUTFILE}} "),
        ("EWMS_PILOT_TASK_ENV_JSON", r#"{"B": 1, "A": "x"}"#),
        ("EWMS_PILOT_TASK_TIMEOUT", " 1_000 "),
        ("EWMS_PILOT_INIT_IMAGE", "i"),
        ("EWMS_PILOT_INIT_ARGS", "a"),
        ("EWMS_PILOT_INIT_ENV_JSON", r#"{"C": true}"#),
        ("EWMS_PILOT_INIT_TIMEOUT", "7"),
        ("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN", "tok"),
        (
            "EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS",
            "amqps://Me:pw@Host/v",
        ),
        ("EWMS_PILOT_QUEUE_OUTGOING_BROKER_TYPE", "spool"),
        ("EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS", "spool/dir"),
        ("EWMS_PILOT_DATA_DIR_PARENT_PATH_ON_HOST", "data"),
        ("EWMS_PILOT_INFILE_EXT", "..JSON"),
        ("EWMS_PILOT_OUTFILE_EXT", "pkl.b64"),
        ("EWMS_PILOT_PREFETCH", "3"),
        ("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "60"),
        ("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "5"),
        ("EWMS_PILOT_EXTERNAL_DIRECTORIES", "/a,,/b c, /d ,"),
        ("EWMS_PILOT_MAX_CONCURRENT_TASKS", "4"),
        ("EWMS_PILOT_OKAY_ERRORS", "['TimeoutError', 'X']"),
        ("EWMS_PILOT_KEEP_ALL_TASK_FILES", "yes"),
        ("EWMS_PILOT_DUMP_TASK_OUTPUT", "On"),
        ("EWMS_PILOT_KILL_GRACE", "2.5"),
        ("EWMS_PILOT_QUARANTINE_TIME", "30"),
        ("EWMS_PILOT_CL_LOG", "debug"),
        ("EWMS_PILOT_CL_LOG_THIRD_PARTY", "CRITICAL"),
        ("EWMS_PILOT_CONTAINER_DEBUG", "1"),
        ("EWMS_PILOT_HTCHIRP", "t"),
        ("EWMS_PILOT_HTCHIRP_DEST", "JOB_EVENT_LOG"),
        ("EWMS_PILOT_HTCHIRP_RATELIMIT_INTERVAL", "1e2"),
        ("_EWMS_PILOT_CONTAINER_PLATFORM", "Apptainer"),
        ("_EWMS_PILOT_APPTAINER_BUILD_WORKDIR", "/big"),
        (
            "_EWMS_PILOT_APPTAINER_IMAGE_DIRECTORY_MUST_BE_PRESENT",
            "False",
        ),
    ]);
    assert_eq!(config.task.args, "cp {{INFILE}} {{OUTFILE}} ");
    assert_eq!(
        config.task.env,
        [
            ("B".to_owned(), "1".to_owned()),
            ("A".to_owned(), "x".to_owned())
        ]
    );
    assert_eq!(config.task.timeout, Some(seconds(1000)));
    let init = config.init.as_ref().expect("an init container");
    assert_eq!(
        (&*init.image, &*init.args, init.timeout),
        ("i", "a", Some(seconds(7)))
    );
    assert_eq!(init.env, [("C".to_owned(), "True".to_owned())]);
    let BrokerConfig::RabbitMq(address) = &config.incoming[0].broker else {
        panic!("is RabbitMQ")
    };
    assert_eq!(
        (address.transport, &*address.host, &*address.user),
        (Transport::Tls, "host", "Me")
    );
    assert_eq!(address.password.reveal(), "tok");
    let BrokerConfig::Spool(directory) = &config.outgoing[0].broker else {
        panic!("is a spool")
    };
    assert_eq!(directory, Path::new("/job/scratch/spool/dir"));
    assert_eq!(config.data_parent, Path::new("/job/scratch/data"));
    assert_eq!(
        (&*config.infile_ext, &*config.outfile_ext),
        ("json", "pkl.b64")
    );
    assert_eq!((config.prefetch.get(), config.slots.get()), (3, 4));
    assert_eq!(
        (config.first_event_timeout, config.idle_timeout),
        (seconds(60), seconds(5))
    );
    assert_eq!(
        config.external_directories,
        ["/a", "/b c", "/d"].map(Path::new)
    );
    let except = ["TimeoutError".to_owned(), "X".to_owned()].into();
    assert_eq!(config.on_task_error, OnTaskError::StopListening { except });
    assert_eq!(config.quarantine, seconds(30));
    assert_eq!(config.kill_grace, Duration::from_millis(2500));
    assert_eq!(config.keep_files, KeepFiles::All);
    assert_eq!(config.dump_output, DumpOutput::All);
    assert_eq!(config.verbosity, Verbosity::Debug);
    assert_eq!(
        config.images,
        ImagePolicy::Convert {
            workdir: "/big".into()
        }
    );
    assert_eq!(
        config.log,
        LogLevels {
            own: LevelFilter::DEBUG,
            third_party: LevelFilter::ERROR
        }
    );
    let chirp = ChirpConfig {
        destination: ChirpDestination::JobEventLog,
        interval: seconds(100),
    };
    assert_eq!(config.chirp, Some(chirp));
    assert!(config.warnings.is_empty());
}

#[test]
fn stop_listening_false_means_continue() {
    let config = read(&[
        ("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "no"),
        ("EWMS_PILOT_QUARANTINE_TIME", "0"),
    ]);
    assert_eq!(config.on_task_error, OnTaskError::Continue);
}

#[test]
fn the_first_event_may_take_as_long_as_others() {
    assert_eq!(
        read(&[("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "9")]).first_event_timeout,
        seconds(9)
    );
}

#[test]
fn the_old_timeout_is_used_with_a_warning() {
    let config = read(&[("EWMS_PILOT_SUBPROC_TIMEOUT", "5")]);
    assert_eq!(config.task.timeout, Some(seconds(5)));
    assert!(
        config.warnings[0].contains("set `EWMS_PILOT_TASK_TIMEOUT` instead"),
        "{:?}",
        config.warnings
    );
    let config = read(&[
        ("EWMS_PILOT_SUBPROC_TIMEOUT", "5"),
        ("EWMS_PILOT_TASK_TIMEOUT", "6"),
    ]);
    assert_eq!(config.task.timeout, Some(seconds(6)));
    assert!(
        config.warnings[0].contains("is ignored"),
        "{:?}",
        config.warnings
    );
    let config = read(&[("EWMS_PILOT_SUBPROC_TIMEOUT", "")]);
    assert_eq!((config.task.timeout, config.warnings.len()), (None, 0));
}

#[test]
fn a_misspelt_variable_is_a_warning_with_the_nearest_name() {
    let config = read(&[
        ("EWMS_PILOT_PREFECH", "5"),
        ("EWMS_PILOT_CONTAINER_PLATFORM", "apptainer"),
        ("EWMS_PILOT_SOMETHING_ELSE_ALTOGETHER", "1"),
        ("EWMS_OTHER", "1"),
    ]);
    let [platform, prefetch, other] = &config.warnings[..] else {
        panic!("{:?}", config.warnings)
    };
    assert!(
        prefetch.ends_with("is `EWMS_PILOT_PREFETCH` meant?"),
        "{prefetch}"
    );
    assert!(
        platform.ends_with("is `_EWMS_PILOT_CONTAINER_PLATFORM` meant?"),
        "{platform}"
    );
    assert!(other.ends_with("has no effect"), "{other}");
}

#[test]
fn init_settings_without_an_image_are_a_warning() {
    assert!(read(&[("EWMS_PILOT_INIT_ARGS", "x")]).warnings[0].contains("EWMS_PILOT_INIT_IMAGE"));
}

#[test]
fn auto_takes_no_more_slots_than_the_gpus_allow_and_divides_them() {
    for (gpus, set, slots, each) in [
        ("GPU-a,GPU-b", "auto", 2, 1),
        ("GPU-a,GPU-b", "2", 1, 2),
        ("GPU-a,GPU-b", "none", 6, 0),
        ("", "auto", 6, 0),
    ] {
        let config = read(&[
            ("EWMS_PILOT_MAX_CONCURRENT_TASKS", "auto"),
            ("EWMS_PILOT_TASK_GPUS", set),
            ("OMP_NUM_THREADS", "6"),
            ("CUDA_VISIBLE_DEVICES", gpus),
        ]);
        let found = (config.slots.get(), config.gpus.each);
        assert_eq!(found, (slots, each), "{gpus} {set}");
        assert_eq!(config.warnings, [""; 0]);
    }
    let config = read(&[("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")]);
    let shown = ("EWMS_PILOT_TASK_GPUS", "auto (2 of 2)".to_owned());
    assert!(config.dump().contains(&shown), "{:?}", config.dump());
    let problem = problem(&[
        ("EWMS_PILOT_TASK_GPUS", "2"),
        ("EWMS_PILOT_MAX_CONCURRENT_TASKS", "2"),
        ("CUDA_VISIBLE_DEVICES", "0"),
    ]);
    assert!(
        problem.contains("tasks need 4 GPUs, and the job was given 1; request more"),
        "{problem}"
    );
}

#[test]
fn auto_takes_the_cores_that_were_allotted() {
    let config = read(&[
        ("EWMS_PILOT_MAX_CONCURRENT_TASKS", "auto"),
        ("OMP_NUM_THREADS", "6"),
    ]);
    assert_eq!(config.slots.get(), 6);
    assert!(
        config
            .dump()
            .contains(&("EWMS_PILOT_MAX_CONCURRENT_TASKS", "auto (6)".to_owned()))
    );
}

#[test]
fn the_env_file_is_read_and_its_problems_are_told_with_the_others() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join(ENV_FILE_NAME);
    std::fs::write(
        &file,
        "set -x\nexport EWMS_PILOT_TASK_ARGS='a\nb'\nexport EWMS_PILOT_PREFETCH=3\nset +x\n",
    )
    .expect("written");
    let base = environment(&[("EWMS_PILOT_PREFETCH", "2")]);
    let config = load(&base, directory.path()).expect("a configuration");
    assert_eq!((&*config.task.args, config.prefetch.get()), ("a\nb", 2));

    std::fs::write(
        &file,
        "export EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN=$(cat hunter2)\n",
    )
    .expect("written");
    let base = environment(&[("EWMS_PILOT_PREFETCH", "0")]);
    let text = load(&base, directory.path())
        .expect_err("two problems")
        .to_string();
    assert!(
        text.lines()
            .next()
            .is_some_and(|line| line.contains("envfile.sh`, line 1: ")),
        "{text}"
    );
    assert!(
        !text.contains("hunter2") && text.lines().count() == 3,
        "{text}"
    );
}

#[test]
fn no_secret_is_in_dump_debug_or_problems() {
    let secrets = [
        ("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN", "hunter2"),
        (
            "EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS",
            "amqp://me:hunter2@host",
        ),
        ("EWMS_PILOT_TASK_ENV_JSON", r#"{"PASSWORD": "hunter2"}"#),
        ("EWMS_PILOT_INIT_ENV_JSON", r#"{"PASSWORD": "hunter2"}"#),
        ("EWMS_PILOT_INIT_IMAGE", "i"),
    ];
    let config = read(&secrets);
    let debug = format!("{config:?} {config:#?}");
    assert!(
        !debug.contains("hunter2") && debug.contains("PASSWORD"),
        "{debug}"
    );
    let dump = format!("{:?}", config.dump());
    assert!(
        !dump.contains("hunter2") && dump.contains("amqp://me:***@host"),
        "{dump}"
    );
    assert_eq!(config.dump().len(), ALL.len());

    let mut broken = environment(&secrets);
    for (name, value) in [
        (
            "EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS",
            "amqp://me:hunter2",
        ),
        (
            "EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS",
            "amqp://me:hunter2/x@host",
        ),
        ("EWMS_PILOT_TASK_ENV_JSON", r#"{"PASSWORD": ["hunter2"]}"#),
        ("EWMS_PILOT_INIT_ENV_JSON", r#""hunter2""#),
    ] {
        broken.insert(name.into(), value.into());
    }
    let text = errors(&broken);
    assert_eq!(text.lines().count(), 5, "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn the_window_fits_what_can_run() {
    let window = |prefetch, slots| {
        read(&[
            ("EWMS_PILOT_PREFETCH", prefetch),
            ("EWMS_PILOT_MAX_CONCURRENT_TASKS", slots),
        ])
        .window()
        .get()
    };
    assert_eq!(window("1", "16"), 16);
    assert_eq!(window("100", "4"), 8);
    assert_eq!(window("65535", "65535"), 65535);
}

#[test]
fn every_single_problem_names_variable_value_and_expectation() {
    for (name, value, expectation) in [
        ("EWMS_PILOT_PREFETCH", "0", "an integer from 1 to 65535"),
        ("EWMS_PILOT_PREFETCH", "", "an integer from 1 to 65535"),
        ("EWMS_PILOT_PREFETCH", "65536", "an integer from 1 to 65535"),
        ("EWMS_PILOT_PREFETCH", "auto", "an integer from 1 to 65535"),
        ("EWMS_PILOT_TASK_GPUS", "0", "`auto` or `none`"),
        ("EWMS_PILOT_TASK_GPUS", "", "`auto` or `none`"),
        ("EWMS_PILOT_MAX_CONCURRENT_TASKS", "0", "or `auto`"),
        ("EWMS_PILOT_MAX_CONCURRENT_TASKS", "AUTO", "or `auto`"),
        ("EWMS_PILOT_TASK_TIMEOUT", "1.0", "whole seconds, 1 or more"),
        (
            "EWMS_PILOT_TASK_TIMEOUT",
            "None",
            "whole seconds, 1 or more",
        ),
        ("EWMS_PILOT_INIT_TIMEOUT", "0", "whole seconds, 1 or more"),
        (
            "EWMS_PILOT_SUBPROC_TIMEOUT",
            "x",
            "whole seconds, 1 or more",
        ),
        (
            "EWMS_PILOT_TIMEOUT_QUEUE_INCOMING",
            "-1",
            "whole seconds, 1 or more",
        ),
        (
            "EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE",
            "0",
            "whole seconds, 1 or more",
        ),
        (
            "EWMS_PILOT_QUARANTINE_TIME",
            "-1",
            "whole seconds, 0 or more",
        ),
        (
            "EWMS_PILOT_QUARANTINE_TIME",
            "10000000000000",
            "whole seconds, 0 or more",
        ),
        ("EWMS_PILOT_KILL_GRACE", "-0.1", "seconds, 0 or more"),
        ("EWMS_PILOT_KILL_GRACE", "nan", "seconds, 0 or more"),
        ("EWMS_PILOT_KILL_GRACE", "inf", "seconds, 0 or more"),
        (
            "EWMS_PILOT_HTCHIRP_RATELIMIT_INTERVAL",
            "1e300",
            "seconds, 0 or more",
        ),
        ("EWMS_PILOT_HTCHIRP", "", "`y yes t true on 1`"),
        (
            "EWMS_PILOT_HTCHIRP_DEST",
            "job_attr",
            "`JOB_ATTR` or `JOB_EVENT_LOG`",
        ),
        (
            "EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR",
            "maybe",
            "`n no f false off 0`",
        ),
        ("EWMS_PILOT_OKAY_ERRORS", "['A'", "a list like"),
        ("EWMS_PILOT_CL_LOG", "LOUD", "`WARNING`"),
        ("EWMS_PILOT_INFILE_EXT", "", "a suffix"),
        ("EWMS_PILOT_INFILE_EXT", "..", "a suffix"),
        ("EWMS_PILOT_OUTFILE_EXT", "a/b", "a suffix"),
        (
            "EWMS_PILOT_EXTERNAL_DIRECTORIES",
            "/a,b",
            "absolute directories",
        ),
        (
            "EWMS_PILOT_QUEUE_INCOMING_BROKER_TYPE",
            "pulsar",
            "`rabbitmq` or `spool`",
        ),
        (
            "EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS",
            "host:x",
            "the port must be",
        ),
        (
            "_EWMS_PILOT_CONTAINER_PLATFORM",
            "docker",
            "Apptainer-native",
        ),
    ] {
        let text = problem(&[(name, value)]);
        let shown = if value == "host:x" { "host:***" } else { value };
        assert!(
            text.starts_with(&format!("`{name}` is `{shown}`: ")),
            "{text}"
        );
        assert!(text.contains(expectation), "{text}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let text = errors(&environment(&[
        ("EWMS_PILOT_PREFETCH", "0"),
        ("EWMS_PILOT_HTCHIRP", "maybe"),
        ("EWMS_PILOT_TASK_ENV_JSON", r#"{"A-B": 1, "C": null}"#),
    ]));
    assert_eq!(text.lines().count(), 5, "{text}");
    assert!(
        text.ends_with("\nRuntimeError: 4 configuration problem(s), see above."),
        "{text}"
    );
}

#[test]
fn a_missing_image_is_the_last_line() {
    let text = errors(&Environment::new());
    assert!(
        text.ends_with("\nRuntimeError: Task image was not provided."),
        "{text}"
    );
    for name in [
        "TASK_IMAGE",
        "QUEUE_INCOMING",
        "QUEUE_OUTGOING",
        "QUEUE_INCOMING_BROKER_TYPE",
    ] {
        assert!(
            text.contains(&format!("`EWMS_PILOT_{name}` is not set: ")),
            "{text}"
        );
    }
    let text = errors(&environment(&[("EWMS_PILOT_TASK_IMAGE", "")]));
    assert!(
        text.ends_with("\nRuntimeError: Task image was not provided."),
        "{text}"
    );
}

#[test]
fn a_missing_queue_is_the_last_line_when_there_is_an_image() {
    for name in ["EWMS_PILOT_QUEUE_INCOMING", "EWMS_PILOT_QUEUE_OUTGOING"] {
        let text = errors(&environment(&[(name, ""), ("EWMS_PILOT_PREFETCH", "0")]));
        let last = "\nRuntimeError: Incoming and/or outgoing queues were not provided.";
        assert!(text.ends_with(last), "{text}");
        assert_eq!(text.lines().count(), 3, "{text}");
    }
}

#[test]
fn quarantine_and_going_on_exclude_each_other() {
    let text = problem(&[
        ("EWMS_PILOT_QUARANTINE_TIME", "5"),
        ("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False"),
    ]);
    assert!(text.contains("QUARANTINE_TIME` is `5` while"), "{text}");
}

#[test]
fn values_that_are_not_unicode_are_one_problem_each() {
    for name in [
        "EWMS_PILOT_TASK_IMAGE",
        "EWMS_PILOT_SUBPROC_TIMEOUT",
        "EWMS_PILOT_QUEUE_INCOMING_BROKER_TYPE",
    ] {
        let mut environment = environment(&[]);
        environment.insert(name.into(), OsString::from_vec(vec![b'x', 0xff]));
        let text = errors(&environment);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(
            text.starts_with(&format!("`{name}` is `x\u{fffd}`: expected text in UTF-8")),
            "{text}"
        );
    }
}

#[test]
fn a_file_of_authorities_must_be_there() {
    let text = problem(&[("EWMS_PILOT_BROKER_CA_FILE", "/nowhere")]);
    let start = "`EWMS_PILOT_BROKER_CA_FILE` is `/nowhere`: can't be read: ";
    assert!(text.starts_with(start), "{text}");
}
