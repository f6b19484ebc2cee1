//! The names, texts and classes of the faults.

use super::*;

fn run_error(reason: &str) -> TaskError {
    TaskError::ContainerRun {
        role: ContainerRole::Task,
        exit_code: Some(1),
        reason: reason.to_owned(),
        class: FaultClass::Task,
    }
}

#[test]
fn container_errors_read_as_the_python_pilot_writes_them() {
    assert_eq!(
        run_error("Traceback (most recent call last):\n  boom").repr(),
        r"ContainerRunError('task failed (exit code 1): Traceback (most recent call last):\n  boom')"
    );
    let timeout = TaskError::Timeout {
        role: ContainerRole::Task,
        after: Duration::from_secs(5),
    };
    assert_eq!(
        timeout.repr(),
        "ContainerRunError('task failed: [Timeout-Error] timed out after 5s')"
    );
    let init = TaskError::ContainerRun {
        role: ContainerRole::Init,
        exit_code: None,
        reason: "<no stderr logs>".to_owned(),
        class: FaultClass::Ep,
    };
    assert_eq!(init.message(), "init-container failed: <no stderr logs>");
}

/// One row for each variant: name, names that `EWMS_PILOT_OKAY_ERRORS` matches, class.
#[test]
fn every_variant_has_its_name_its_aliases_and_its_class() {
    use FaultClass::{Broker, Ep, Event, Image, Task};
    let text = || "text".to_owned();
    let timeout = TaskError::Timeout {
        role: ContainerRole::Task,
        after: Duration::from_millis(1500),
    };
    let setup = TaskError::ContainerSetup {
        message: text(),
        class: Image,
    };
    let publish = TaskError::Publish {
        message: text(),
        class: Broker,
    };
    let infile = TaskError::InvalidDataForInfile(text());
    let outfile = TaskError::InvalidDataFromOutfile(text());
    let rows: &[(TaskError, &[&str], FaultClass)] = &[
        (run_error("x"), &["ContainerRunError"], Task),
        (timeout, &["ContainerRunError", "TimeoutError"], Task),
        (
            TaskError::Memory { limit: 1 },
            &["ContainerRunError", "MemoryError"],
            Task,
        ),
        (
            TaskError::OutOfMemory {
                role: ContainerRole::Task,
                limit: None,
            },
            &["ContainerRunError", "MemoryError"],
            Task,
        ),
        (
            TaskError::Stalled {
                after: Duration::from_secs(1),
            },
            &["ContainerRunError", "StallError"],
            Task,
        ),
        (setup, &["ContainerSetupError"], Image),
        (infile, &["InvalidDataForInfileException"], Event),
        (outfile, &["InvalidDataFromOutfileException"], Task),
        (
            TaskError::InvalidBindMount(text()),
            &["InvalidBindMountError"],
            Ep,
        ),
        (TaskError::EventDecode(text()), &["EventDecodeError"], Event),
        (publish, &["PublishError"], Broker),
        (
            TaskError::ResultTooLarge { bytes: 2, limit: 1 },
            &["PublishError"],
            Task,
        ),
        (TaskError::Os(text()), &["OSError"], Ep),
    ];
    for (error, names, class) in rows {
        assert_eq!(error.names(), *names, "{error:?}");
        assert_eq!(error.name(), names[0], "{error:?}");
        assert_eq!(error.class(), *class, "{error:?}");
    }
}

/// The expectations come from Python 3.11's `repr`.
#[test]
fn python_repr_escapes_what_python_escapes() {
    for (text, repr) in [
        ("plain", "'plain'"),
        ("", "''"),
        ("it's", "\"it's\""),
        ("say \"hi\"", "'say \"hi\"'"),
        ("it's \"both\"", r#"'it\'s "both"'"#),
        ("a\nb\tc\rd\\e", r"'a\nb\tc\rd\\e'"),
        (
            "\0\x1b\x7f\u{80}\u{a0}\u{ad}\u{ff}",
            r"'\x00\x1b\x7f\x80\xa0\xadÿ'",
        ),
        ("\u{301}e\u{301} ", "'\u{301}e\u{301} '"),
        (
            "\u{200b}\u{2028}\u{3000}\u{d7ff}",
            r"'\u200b\u2028\u3000\ud7ff'",
        ),
        ("\u{e000}\u{feff}\u{ffff}", r"'\ue000\ufeff\uffff'"),
        (
            "\u{1f600}\u{e0001}\u{10ffff}\u{20000}",
            "'\u{1f600}\\U000e0001\\U0010ffff\u{20000}'",
        ),
        (
            "\u{378}\u{5d0}\u{600}\u{1680}",
            "'\\u0378\u{5d0}\\u0600\\u1680'",
        ),
    ] {
        assert_eq!(python_repr(text), repr, "{text:?}");
    }
}

/// The counts are those of Python 3.11 (Unicode 14), over code points that are assigned in Unicode 1.1 to 14
/// or can never be assigned.
#[test]
fn python_repr_agrees_with_python_on_whole_blocks() {
    let escaped = |range: std::ops::RangeInclusive<char>| {
        range
            .filter(|c| !python_repr(&c.to_string()).contains(*c))
            .count()
    };
    for (range, expected) in ESCAPED_IN_PYTHON {
        assert_eq!(escaped(range.clone()), *expected, "{range:?}");
    }
}

const ESCAPED_IN_PYTHON: &[(std::ops::RangeInclusive<char>, usize)] = &[
    ('\u{0}'..='\u{ff}', 67),
    ('\u{100}'..='\u{24f}', 0),
    ('\u{2b0}'..='\u{36f}', 0),
    ('\u{400}'..='\u{52f}', 0),
    ('\u{590}'..='\u{6ff}', 32),
    ('\u{2000}'..='\u{206f}', 41),
    ('\u{3000}'..='\u{30ff}', 4),
    ('\u{4e00}'..='\u{9fff}', 0),
    ('\u{d7b0}'..='\u{d7ff}', 8),
    ('\u{e000}'..='\u{f8ff}', 6400),
    ('\u{fe00}'..='\u{fe0f}', 0),
    ('\u{fff0}'..='\u{ffff}', 14),
    ('\u{1f600}'..='\u{1f64f}', 0),
    ('\u{20000}'..='\u{2a6df}', 0),
    ('\u{e0000}'..='\u{e01ff}', 272),
    ('\u{10ff00}'..='\u{10ffff}', 256),
];

#[test]
fn fatal_line_lists_the_errors_in_their_order() {
    let mut failures = Failures::default();
    assert_eq!(failures.fatal_line(), None);
    failures.record(&run_error("it's"));
    failures.record(&TaskError::EventDecode("bad".to_owned()));
    failures.record(&run_error("it's"));
    assert_eq!(
        failures.fatal_line().as_deref(),
        Some(
            "RuntimeError: 3 TASK(S) FAILED: ContainerRunError(\"task failed (exit code 1): it's\"), \
             EventDecodeError('bad'), ContainerRunError(\"task failed (exit code 1): it's\")"
        )
    );
}

#[test]
fn equal_failures_are_counted_together_most_frequent_first() {
    let mut failures = Failures::default();
    for reason in ["rare", "often", "often"] {
        failures.record(&run_error(reason));
    }
    assert_eq!(
        failures.by_frequency(),
        [
            ("ContainerRunError('task failed (exit code 1): often')", 2),
            ("ContainerRunError('task failed (exit code 1): rare')", 1),
        ]
    );
}

#[test]
fn a_hundred_thousand_different_failures_give_a_bounded_line() {
    let mut failures = Failures::default();
    let long = "é".repeat(20_000);
    for n in 0..100_000 {
        // Only some are long, so that the test is quick.
        let tail = if n % 5_000 == 0 { &long } else { "" };
        failures.record(&run_error(&format!("{n} {tail} end of {n}")));
    }
    let line = failures.fatal_line().unwrap();
    assert!(line.starts_with("RuntimeError: 100000 TASK(S) FAILED: ContainerRunError("));
    assert!(
        line.contains("end of 0')"),
        "an error's end survives the cut"
    );
    assert!(line.ends_with(", … and 99900 more"));
    assert!(line.len() < 100 * 8_300, "{}", line.len());
    assert!(failures.by_frequency().len() <= 100);
}

#[test]
fn texts_from_outside_can_be_edited_and_a_timeouts_stays() {
    let edit = |error: TaskError| error.edited(|text| text.replace("1234", "<id>")).message();
    assert_eq!(
        edit(run_error("no /tmp/1234")),
        "task failed (exit code 1): no /tmp/<id>"
    );
    assert_eq!(edit(TaskError::Os("1234".to_owned())), "<id>");
    let timeout = TaskError::Timeout {
        role: ContainerRole::Task,
        after: Duration::from_secs(1234),
    };
    assert_eq!(edit(timeout.clone()), timeout.message());
}

#[test]
fn every_cause_has_a_name_of_its_own_and_says_what_to_do() {
    let names: std::collections::BTreeSet<_> =
        Cause::ALL.iter().map(|cause| cause.name()).collect();
    assert_eq!(names.len(), Cause::ALL.len());
    for cause in Cause::ALL {
        assert!(cause.remedy().len() > 20, "{cause}");
        assert!(!cause.class().is_events_own(), "{cause}");
    }
}

#[test]
fn classes_have_stable_names_and_exit_codes() {
    use FaultClass::{Broker, Ep, Event, Image, Task};
    for (class, name, exit, is_events_own) in [
        (Task, "task", Exit::TasksFailed, true),
        (Event, "event", Exit::TasksFailed, true),
        (Image, "image", Exit::Image, false),
        (Ep, "ep", Exit::ExecutionPoint, false),
        (Broker, "broker", Exit::Broker, false),
    ] {
        assert_eq!(
            (class.name(), class.exit(), class.is_events_own()),
            (name, exit, is_events_own)
        );
    }
}

#[test]
fn a_kill_for_memory_says_what_the_job_has_and_which_request_is_larger() {
    let killed = |limit| TaskError::OutOfMemory {
        role: ContainerRole::Task,
        limit,
    };
    assert_eq!(
        killed(Some(300 << 20)).message(),
        "task failed: [Memory-Error] the kernel killed it for memory: all of the job's `314572800` bytes \
         were used; let it take less, or use request_memory = 512"
    );
    assert_eq!(
        killed(None).message(),
        "task failed: [Memory-Error] the kernel killed it for memory; let it take less, or raise \
         request_memory"
    );
    for (has, fits) in [(1, 128), (1 << 30, 1536), (2 << 30, 3072)] {
        assert_eq!(larger_request_mib(has), fits, "{has}");
    }
}

#[test]
fn a_failures_text_is_what_the_services_know() {
    let of_task = Attribution::Task.error(ContainerRole::Task, 1, b"x\n");
    assert_eq!(of_task.to_string(), "task failed (exit code 1): x");
    let of_init = TaskError::Timeout {
        role: ContainerRole::Init,
        after: Duration::from_mins(1),
    };
    assert_eq!(
        of_init.to_string(),
        "init-container failed: [Timeout-Error] timed out after 60s"
    );
}

#[test]
fn a_failure_that_is_not_the_tasks_says_whose_it_is_and_what_to_do() {
    let attribution = Attribution::Cause(Cause::Storage, "`/x` can't be read".to_owned());
    let error = attribution.error(ContainerRole::Task, 7, b"read: Input/output error\n");
    assert_eq!(
        error.to_string(),
        "task failed (exit code 7): read: Input/output error; `/x` can't be read; the execution point's fault, \
         not the task's (storage): exclude this machine until its file systems are repaired"
    );
    assert_eq!(error.class(), FaultClass::Ep);
}

#[test]
fn a_fix_is_what_the_pilot_advises_whatever_was_seen() {
    let diagnosis = Diagnosis::of(Cause::Unknown, "no luck; try again");
    assert_eq!(diagnosis.seen, "no luck; try again (unknown)");
    assert_eq!(diagnosis.fix.as_deref(), Some(Cause::Unknown.remedy()));
    let own = Diagnosis::of_text("image `x` is an empty directory; check it; twice");
    assert_eq!(own.fix.as_deref(), Some("check it; twice"));
    assert_eq!(
        own.to_string(),
        "image `x` is an empty directory; check it; twice"
    );
}
