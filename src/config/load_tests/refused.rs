//! What is said about an environment that the pilot refuses.

use std::os::unix::ffi::OsStringExt;

use super::*;
use crate::config::BrokerConfig;

#[test]
fn every_single_problem_names_variable_value_and_expectation() {
    for (name, value, expectation) in [
        ("EWMS_PILOT_PREFETCH", "0", "an integer from 1 to 65535"),
        ("EWMS_PILOT_PREFETCH", "", "an integer from 1 to 65535"),
        ("EWMS_PILOT_PREFETCH", "65536", "an integer from 1 to 65535"),
        ("EWMS_PILOT_PREFETCH", "auto", "an integer from 1 to 65535"),
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
fn the_broker_type_has_no_default() {
    let text = problem(&[("EWMS_PILOT_QUEUE_OUTGOING_BROKER_TYPE", "")]);
    assert!(
        text.starts_with("`EWMS_PILOT_QUEUE_OUTGOING_BROKER_TYPE` is not set: "),
        "{text}"
    );
}

#[test]
fn a_spool_needs_a_directory_and_a_file_name() {
    let spool = ("EWMS_PILOT_QUEUE_INCOMING_BROKER_TYPE", "spool");
    let address = ("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", "/spool");
    assert!(problem(&[spool]).contains("BROKER_ADDRESS` is not set"));
    for name in ["a/b", ".", "..", ".hidden"] {
        assert!(
            problem(&[spool, address, ("EWMS_PILOT_QUEUE_INCOMING", name)]).contains("a file name")
        );
    }
    let config = read(&[spool, address]);
    assert!(
        matches!(&config.incoming[0].broker, BrokerConfig::Spool(path) if path == Path::new("/spool"))
    );
}

#[test]
fn several_outgoing_queues_are_of_one_kind() {
    let text = problem(&[
        ("EWMS_PILOT_QUEUE_OUTGOING", "a;b"),
        ("EWMS_PILOT_QUEUE_OUTGOING_BROKER_TYPE", "rabbitmq;spool"),
        ("EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS", "x;/y"),
    ]);
    assert!(text.contains("queues of one kind only"), "{text}");
}

#[test]
fn a_name_missing_among_several_is_refused() {
    for names in ["a;", ";a"] {
        let text = problem(&[
            ("EWMS_PILOT_QUEUE_INCOMING", names),
            ("EWMS_PILOT_QUEUE_INCOMING_BROKER_TYPE", "rabbitmq;rabbitmq"),
            ("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", "x;y"),
        ]);
        assert!(text.contains("a name is missing"), "{text}");
    }
}

#[test]
fn lists_of_different_lengths_are_named_as_such() {
    let text = problem(&[("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", "me:p;w@x;y")]);
    assert!(
        text.contains("lists of different lengths, 1 and 2") && !text.contains("p;w"),
        "{text}"
    );
    let text = errors(&environment(&[
        ("EWMS_PILOT_QUEUE_INCOMING", "a;b"),
        ("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN", "t;u;v"),
    ]));
    assert_eq!(
        text.matches("lists of different lengths").count(),
        2,
        "{text}"
    );
}

#[test]
fn a_queue_that_is_named_twice_is_refused_unless_it_is_another_brokers() {
    let twice = |kind, addresses| {
        errors(&environment(&[
            ("EWMS_PILOT_QUEUE_OUTGOING", "a;b;a"),
            ("EWMS_PILOT_QUEUE_OUTGOING_BROKER_TYPE", kind),
            ("EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS", addresses),
            // So that there is a problem in any case.
            ("EWMS_PILOT_PREFETCH", "x"),
        ]))
    };
    let (rabbitmq, spool) = ("rabbitmq;rabbitmq;rabbitmq", "spool;spool;spool");
    for (kind, addresses) in [(rabbitmq, "mq/v;mq/v;mq:5672/v"), (spool, "x;x;x")] {
        let text = twice(kind, addresses);
        let refusal = "`EWMS_PILOT_QUEUE_OUTGOING` is `a`: it is there twice";
        assert_eq!(text.matches(refusal).count(), 1, "{text}");
    }
    for (kind, addresses) in [(rabbitmq, "mq;mq;other"), (spool, "x;x;y")] {
        let text = twice(kind, addresses);
        assert!(!text.contains("twice"), "{text}");
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
fn a_token_has_one_home_and_its_file_must_hold_one() {
    let both = problem(&[
        ("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN", "hush"),
        ("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN_FILE", "/nowhere"),
    ]);
    assert!(both.contains("AUTH_TOKEN_FILE` are both set"), "{both}");
    assert!(!both.contains("hush"), "{both}");
    let text = problem(&[("EWMS_PILOT_QUEUE_OUTGOING_AUTH_TOKEN_FILE", "/nowhere")]);
    let start = "`EWMS_PILOT_QUEUE_OUTGOING_AUTH_TOKEN_FILE` is `/nowhere`: ";
    assert!(
        text.starts_with(start) && text.contains("can't be read"),
        "{text}"
    );
}

#[test]
fn a_file_of_authorities_must_be_there() {
    let text = problem(&[("EWMS_PILOT_BROKER_CA_FILE", "/nowhere")]);
    let start = "`EWMS_PILOT_BROKER_CA_FILE` is `/nowhere`: can't be read: ";
    assert!(text.starts_with(start), "{text}");
}
