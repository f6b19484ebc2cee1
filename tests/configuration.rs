//! The pilot's settings: it reports all problems at once and does nothing else, and takes the settings of the
//! Python pilot as they are.

use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use crate::support::rabbitmq::Queue;
use crate::support::scene::{Outcome, Scene};
use crate::support::{SOON, eventually, images, pilot_binary};

/// Wrong variables: name, value, and a piece of what is said to be expected.
const WRONG: [(&str, &str, &str); 11] = [
    ("EWMS_PILOT_PREFETCH", "0", "an integer from 1 to"),
    ("EWMS_PILOT_MAX_CONCURRENT_TASKS", "many", "or `auto`"),
    (
        "EWMS_PILOT_TIMEOUT_QUEUE_INCOMING",
        "1.0",
        "whole seconds, 1 or more",
    ),
    ("EWMS_PILOT_TASK_TIMEOUT", "None", "whole seconds"),
    (
        "EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR",
        "",
        "`y yes t true on 1`",
    ),
    (
        "EWMS_PILOT_HTCHIRP_DEST",
        "JOB",
        "`JOB_ATTR` or `JOB_EVENT_LOG`",
    ),
    // Chirp is off, and its destination wrong as well.
    (
        "EWMS_PILOT_HTCHIRP_RATELIMIT_INTERVAL",
        "fast",
        "seconds, 0 or more",
    ),
    // The variable is for RabbitMQ, the queue a spool.
    (
        "EWMS_PILOT_QUEUE_OUTGOING_AUTH_TOKEN_FILE",
        "/nowhere/token",
        "can't be read",
    ),
    ("EWMS_PILOT_CL_LOG", "LOUD", "`DEBUG`, `INFO`"),
    ("EWMS_PILOT_KILL_GRACE", "soon", "seconds, 0 or more"),
    ("EWMS_PILOT_OKAY_ERRORS", "[TimeoutError", "['A', 'B']"),
];

/// A pilot that would take events from whoever listens at `listener`.
fn listening(listener: &TcpListener) -> Scene {
    let address = listener.local_addr().expect("it is bound").to_string();
    let mut scene = Scene::task(images::busybox(), "true");
    for direction in ["INCOMING", "OUTGOING"] {
        let variable = format!("EWMS_PILOT_QUEUE_{direction}");
        scene = scene
            .set(&variable, "queue")
            .set(&format!("{variable}_BROKER_TYPE"), "rabbitmq")
            .set(&format!("{variable}_BROKER_ADDRESS"), &address);
    }
    scene
}

fn listener() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener
        .set_nonblocking(true)
        .expect("it can be asked without waiting");
    listener
}

fn wrong(scene: Scene) -> Scene {
    WRONG
        .into_iter()
        .fold(scene, |scene, (name, value, _)| scene.set(name, value))
}

#[track_caller]
fn assert_refused<'a>(outcome: &'a Outcome, name: &str, expected: &str) -> &'a str {
    outcome.assert_code(2);
    let start = format!("`{name}` ");
    let line = outcome
        .stderr
        .lines()
        .find(|line| line.starts_with(&start) && line.contains(expected));
    line.unwrap_or_else(|| panic!("nothing about {name} with `{expected}`: {}", outcome.stderr))
}

#[test]
fn every_wrong_variable_is_told_at_once_and_nothing_else() {
    let (scene, incoming, _) = wrong(Scene::task(images::busybox(), "true")).spool();
    incoming.put("a", "untouched");
    // Whoever starts the pilot may want Rust's backtraces; a person's mistake has none.
    for backtrace in ["0", "1", "full"] {
        let scene = wrong(Scene::task(images::busybox(), "true")).set("RUST_BACKTRACE", backtrace);
        let (scene, _, _) = scene.spool();
        let outcome = scene.run(SOON);
        for (name, value, expected) in WRONG {
            let line = assert_refused(&outcome, name, expected);
            assert!(
                line.starts_with(&format!("`{name}` is `{value}`: ")),
                "{line}"
            );
        }
        assert_eq!(
            outcome.last_line(),
            "RuntimeError: 11 configuration problem(s), see above."
        );
        let lines = outcome.stderr.lines().count();
        assert_eq!(lines, WRONG.len() + 1, "{}", outcome.stderr);
        assert_eq!(outcome.stdout, "");
    }
    scene.run(SOON).assert_code(2);
    assert_eq!(incoming.files()["a"], b"untouched");
    assert!(!scene.dir().join("ewms-pilot-data").exists());
}

#[test]
fn wrong_settings_end_the_pilot_within_a_second() {
    let (scene, _, _) = wrong(Scene::task(images::busybox(), "true")).spool();
    // The best of five: other tests keep this machine busy.
    let fastest = (0..5).map(|_| {
        let started = Instant::now();
        scene.run(SOON).assert_code(2);
        started.elapsed()
    });
    let fastest = fastest.min().expect("five runs");
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
}

#[test]
fn wrong_settings_contact_no_broker() {
    let listener = listener();
    let outcome = listening(&listener)
        .set("EWMS_PILOT_PREFETCH", "0")
        .run(SOON);
    assert_refused(&outcome, "EWMS_PILOT_PREFETCH", "an integer");
    assert!(listener.accept().is_err(), "somebody came");
    // With right settings somebody does come.
    let scene = listening(&listener);
    let pilot = scene.start();
    let came = eventually(SOON, || listener.accept().is_ok());
    assert!(came, "{}", pilot.stderr());
}

#[test]
fn no_secret_is_shown_with_what_is_wrong() {
    let secret = "Xyzzy1977";
    let (scene, _, _) = Scene::task(images::busybox(), "true").spool();
    let scene = scene
        .set("EWMS_PILOT_QUEUE_INCOMING_BROKER_TYPE", "rabbitmq")
        .set(
            "EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS",
            format!("amqp://user:{secret}@host:99999/"),
        )
        .set("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN", secret)
        .set(
            "EWMS_PILOT_QUEUE_OUTGOING_AUTH_TOKEN",
            OsStr::from_bytes(&[secret.as_bytes(), b"\xff"].concat()),
        )
        .set(
            "EWMS_PILOT_TASK_ENV_JSON",
            format!(r#"{{"KEY": "{secret}", "LIST": ["{secret}"]}}"#),
        )
        .set("EWMS_PILOT_INIT_ENV_JSON", format!(r#"{{"KEY": {secret}"#));
    let outcome = scene.run(SOON);
    for name in [
        "EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS",
        "EWMS_PILOT_TASK_ENV_JSON",
        "EWMS_PILOT_INIT_ENV_JSON",
    ] {
        assert_refused(&outcome, name, "");
    }
    assert!(!outcome.stderr.contains(secret), "{}", outcome.stderr);
}

#[test]
fn a_missing_task_image_has_the_line_that_services_know() {
    for scene in [
        Scene::bare().set("_CONDOR_SCRATCH_DIR", "/nowhere"),
        Scene::new().spool().0,
        Scene::new().set("EWMS_PILOT_TASK_IMAGE", ""),
    ] {
        let outcome = scene.run(SOON);
        assert_refused(&outcome, "EWMS_PILOT_TASK_IMAGE", "is not set");
        assert_eq!(
            outcome.last_line(),
            "RuntimeError: Task image was not provided."
        );
    }
}

#[test]
fn with_nothing_set_at_all_it_says_what_it_is_and_what_one_can_do() {
    let outcome = Scene::bare().run(SOON);
    let stderr = &outcome.assert_code(2).stderr;
    assert!(stderr.starts_with("ewms-pilot "), "{stderr}");
    for command in [
        "ewms-pilot try IMAGE",
        "ewms-pilot check",
        "condor_submit n_pilots=",
    ] {
        assert!(stderr.contains(command), "{stderr}");
    }
    assert!(!stderr.contains("is not set"), "{stderr}");
    // Programs look for this one.
    assert_eq!(
        outcome.last_line(),
        "RuntimeError: Task image was not provided."
    );

    let pilot = pilot_binary();
    let typescript = Scene::new()
        .program("script")
        .arg("-qec")
        .arg(pilot)
        .arg("/dev/null")
        .run(SOON);
    let screen = &typescript.assert_code(2).stdout;
    assert!(screen.contains("ewms-pilot try IMAGE"), "{screen}");
    assert!(!screen.contains("RuntimeError"), "{screen}");
    for line in screen.lines() {
        assert!(line.trim_end().chars().count() <= 110, "{line}");
    }
}

#[test]
fn missing_queues_have_the_line_that_services_know() {
    let task = || Scene::task(images::busybox(), "true");
    for scene in [
        task(),
        task().spool().0.set("EWMS_PILOT_QUEUE_OUTGOING", ""),
        task().spool().0.set("EWMS_PILOT_QUEUE_INCOMING", ""),
    ] {
        let outcome = scene.run(SOON);
        outcome.assert_code(2);
        assert_eq!(
            outcome.last_line(),
            "RuntimeError: Incoming and/or outgoing queues were not provided."
        );
    }
}

#[test]
fn another_container_platform_is_refused_as_apptainer_native() {
    let (scene, incoming, _) = Scene::task(images::busybox(), "true").spool();
    incoming.put("a", "");
    let scene = scene.set("_EWMS_PILOT_CONTAINER_PLATFORM", "docker");
    let outcome = scene.run(SOON);
    let line = assert_refused(&outcome, "_EWMS_PILOT_CONTAINER_PLATFORM", "`docker`");
    assert!(line.contains("Apptainer-native"), "{line}");
    assert_eq!(incoming.files().len(), 1);
}

#[test]
fn several_queues_out_of_step_are_refused_and_not_taken_for_one_name() {
    let (scene, _, _) = Scene::task(images::busybox(), "true").spool();
    let scene = scene.set("EWMS_PILOT_QUEUE_INCOMING", "one;two");
    let outcome = scene.run(SOON);
    assert_refused(
        &outcome,
        "EWMS_PILOT_QUEUE_INCOMING",
        "lists of different lengths",
    );
    assert!(!scene.dir().join("spool/one;two").exists());
}

#[test]
fn a_misspelt_variable_is_pointed_out() {
    let (scene, _, _) = Scene::task(images::busybox(), "true").spool();
    let outcome = scene.set("EWMS_PILOT_PREFECH", "4").run(SOON);
    outcome.assert_code(0);
    let warned = outcome.stderr.lines().any(|line| {
        line.contains("`EWMS_PILOT_PREFECH`") && line.contains("is `EWMS_PILOT_PREFETCH` meant?")
    });
    assert!(warned, "{}", outcome.stderr);
}

#[test]
fn what_is_odd_is_told_by_the_pilot_and_by_its_check_and_hinders_neither() {
    let odd = |scene: Scene| {
        scene
            .set("EWMS_PILOT_PREFECH", "4")
            .set("EWMS_PILOT_CONTAINER_PLATFORM", "apptainer")
            .set("ewms_pilot_cl_log", "INFO")
            .set("EWMS_PILOT_INIT_IMAGE", images::busybox())
            .set("EWMS_PILOT_INIT_ARGS", "echo {{INFILE}} {{DATA_HUB}}")
            // Known to the Python pilot, and of no use here.
            .set("_EWMS_PILOT_DOCKER_SHM_SIZE", "64m")
    };
    let arguments = "echo {{IN_FLE}} '{{ OUTFILE }}' {{INFILE}}";
    let expected = [
        "`EWMS_PILOT_PREFECH` is no variable of this pilot and has no effect; is `EWMS_PILOT_PREFETCH` meant?",
        "; is `_EWMS_PILOT_CONTAINER_PLATFORM` meant?",
        "; is `EWMS_PILOT_CL_LOG` meant?",
        "`{{IN_FLE}}` in `EWMS_PILOT_TASK_ARGS` is no placeholder and stays as it is; is `{{IN_FILE}}` meant?",
        "`{{ OUTFILE }}` in `EWMS_PILOT_TASK_ARGS` is no placeholder and stays as it is; is `{{OUTFILE}}` meant?",
        "`{{INFILE}}` in `EWMS_PILOT_INIT_ARGS` stays as it is, because an init container works on no event",
    ];
    let (scene, incoming, _) = Scene::task(images::busybox(), arguments).spool();
    incoming.put("a", "event");
    let outcome = odd(scene).run(SOON);
    outcome.assert_code(0);
    let warnings = |text: &str, word: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.contains(word));
        lines.map(str::to_owned).collect()
    };
    let (scene, _, _) = Scene::task(images::busybox(), arguments).spool();
    let checked = odd(scene).arg("check").run(SOON);
    checked.assert_code(0);
    let of_check = warnings(&checked.stdout, "NOTE  configuration");
    assert_eq!(of_check.len(), expected.len(), "{}", checked.stdout);
    for text in expected {
        let is_told = |lines: &[String]| lines.iter().any(|line| line.contains(text));
        assert!(
            is_told(&warnings(&outcome.stderr, "WARN")),
            "{text}: {}",
            outcome.stderr
        );
        assert!(is_told(&of_check), "{text}: {}", checked.stdout);
    }
    assert!(!outcome.stderr.contains("SHM_SIZE"), "{}", outcome.stderr);
}

#[test]
fn a_misspelt_name_of_a_variable_that_is_needed_is_told_beside_the_problem() {
    for arguments in [&[][..], &["check"]] {
        let (scene, _, _) = Scene::task(images::busybox(), "true").spool();
        let scene = scene
            .set("EWMS_PILOT_TASK_IMAGE", "")
            .set("EWMS_PILOT_TASK_IMGE", images::busybox());
        let scene = arguments.iter().fold(scene, Scene::arg);
        let outcome = scene.run(SOON);
        outcome.assert_code(2);
        let said = outcome.stdout.clone() + &outcome.stderr;
        let hint = "`EWMS_PILOT_TASK_IMGE` is no variable of this pilot and has no effect; is \
                    `EWMS_PILOT_TASK_IMAGE` meant?";
        assert!(said.contains(hint), "{said}");
    }
}

#[test]
fn the_least_that_the_python_pilot_needs_is_enough() {
    let (incoming, outgoing) = (Queue::unique("drop-in"), Queue::unique("drop-in-results"));
    incoming.produce([r#""an event""#]);
    let scene = Scene::task(images::busybox(), "cp {{IN_FILE}} {{OUT_FILE}}");
    let scene = scene.rabbitmq(&incoming, &outgoing);
    scene.run(SOON).assert_code(0);
    let results = outgoing.consume(2, Duration::from_secs(1));
    assert_eq!(results, [r#""an event""#]);
}

#[test]
fn a_list_may_be_written_as_a_python_list() {
    let arguments = r#"sh -c "test $(cat {{INFILE}}) != bad""#;
    let (scene, incoming, _) = Scene::task(images::busybox(), arguments).spool();
    incoming.put("1", "bad");
    incoming.put("2", "good");
    let scene = scene.set(
        "EWMS_PILOT_OKAY_ERRORS",
        "['ContainerRunError', 'TimeoutError']",
    );
    scene.run(SOON).assert_code(1);
    assert_eq!(incoming.done().into_keys().collect::<Vec<_>>(), ["2"]);
    assert!(
        incoming.failed().contains_key("1"),
        "an okay error doesn't end the listening"
    );
}

#[test]
fn auto_runs_as_many_tasks_at_once_as_htcondor_allotted_cores() {
    // Each waits until three are there, so that fewer slots would never end.
    let arguments = r#"sh -c "touch {{DATA_HUB}}/$(basename {{INFILE}})
        until [ $(ls {{DATA_HUB}} | wc -l) -ge 3 ]; do sleep 0.05; done""#;
    let (scene, incoming, _) = Scene::task(images::busybox(), arguments).spool();
    for name in ["1", "2", "3"] {
        incoming.put(name, "");
    }
    let machine_ad = scene.dir().join("machine.ad");
    fs::write(&machine_ad, "Machine = \"x\"\nCpus = 3\nTotalCpus = 64\n").expect("written");
    let scene = scene
        .set("_CONDOR_MACHINE_AD", machine_ad)
        .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "auto");
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert_eq!(incoming.done().len(), 3);
    assert!(outcome.stderr.contains("slots=3"), "{}", outcome.stderr);
}

#[test]
fn a_machine_without_apptainer_is_told_before_any_event_is_taken() {
    let (scene, incoming, _) = Scene::task(images::busybox(), "true").spool();
    incoming.put("a", "event");
    let scene = scene.set("PATH", "/nowhere");
    let outcome = scene.run(SOON);
    outcome.assert_code(3);
    assert!(
        outcome.last_line().contains("apptainer"),
        "{}",
        outcome.stderr
    );
    assert!(!incoming.directory().join("claimed").exists());
}

#[test]
fn a_data_directory_that_cannot_be_made_is_told_with_its_variable() {
    let (scene, incoming, _) = Scene::task(images::busybox(), "true").spool();
    incoming.put("a", "event");
    let name = "EWMS_PILOT_DATA_DIR_PARENT_PATH_ON_HOST";
    let scene = scene.set(name, "/proc/nowhere");
    let outcome = scene.run(SOON);
    outcome.assert_code(3);
    let line = outcome.last_line();
    assert!(
        line.contains("`/proc/nowhere`") && line.contains(name),
        "{line}"
    );
    assert!(!incoming.directory().join("claimed").exists());
}
