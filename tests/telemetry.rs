//! The pilot's log without a terminal: its content and levels, and that no problem with it stops the work.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::rabbitmq::Queue;
use crate::support::scene::{Outcome, Pilot, Scene};
use crate::support::spool::SpoolQueue;
use crate::support::{SOON, eventually, images, pilot_binary};

/// A pilot with these events, each a script for its task.
fn scene(events: &[(&str, &str)]) -> (Scene, SpoolQueue, SpoolQueue) {
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), "sh {{INFILE}}").spool();
    for (name, event) in events {
        incoming.put(name, event);
    }
    (scene, incoming, outgoing)
}

/// The levels of all lines.
fn levels(outcome: &Outcome) -> BTreeSet<&str> {
    let words = outcome
        .stderr
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1));
    words
        .filter(|word| ["TRACE", "DEBUG", "INFO", "WARN", "ERROR"].contains(word))
        .collect()
}

#[test]
fn the_pilots_own_lines_have_the_level_that_is_set() {
    for (level, expected) in [
        ("DEBUG", &["DEBUG", "ERROR", "INFO"][..]),
        ("info", &["ERROR", "INFO"]),
        ("WARNING", &["ERROR"]),
        ("CRITICAL", &["ERROR"]),
    ] {
        let (scene, _, _) = scene(&[("1", "false")]);
        let scene = scene.set("EWMS_PILOT_CL_LOG", level);
        let outcome = scene.run(SOON);
        outcome.assert_code(1);
        let levels: Vec<&str> = levels(&outcome).into_iter().collect();
        assert_eq!(levels, expected, "{}", outcome.stderr);
    }
}

#[test]
fn a_token_is_in_no_line_at_any_level() {
    let token = "Xyzzy1977";
    let (incoming, outgoing) = (Queue::unique("secret"), Queue::unique("secret-results"));
    let scene = Scene::task(images::busybox(), "true")
        .rabbitmq(&incoming, &outgoing)
        .set("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN", token)
        .set(
            "EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS",
            format!("guest:{token}@localhost:5672"),
        )
        .set("EWMS_PILOT_CL_LOG", "NOTSET")
        .set("EWMS_PILOT_CL_LOG_THIRD_PARTY", "NOTSET");
    let outcome = scene.run(2 * SOON);
    // It is the wrong one: the error may be tempted to show it.
    outcome.assert_code(4);
    assert!(outcome.stderr.contains(" DEBUG "), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains(token), "{}", outcome.stderr);
    let bytes = format!("{:?}", token.as_bytes());
    let numbers = bytes.trim_matches(['[', ']']);
    assert!(!outcome.stderr.contains(numbers), "{}", outcome.stderr);
}

#[test]
fn times_are_utc_wherever_the_machine_is() {
    let now = || {
        let output = Command::new("date")
            .args(["--utc", "+%Y-%m-%dT%H:%M:%S"])
            .output();
        let text = output.expect("there is date").stdout;
        String::from_utf8(text).expect("ASCII").trim().to_owned()
    };
    let (scene, _, _) = scene(&[("1", "true")]);
    let scene = scene.set("TZ", "Asia/Tokyo");
    let before = now();
    let outcome = scene.run(SOON);
    let after = now();
    for line in outcome.assert_code(0).stderr.lines() {
        let time = line.split(' ').next().expect("a line has a word");
        assert!(time.ends_with('Z'), "{line}");
        let second = &time[..before.len()];
        assert!(
            *before <= *second && *second <= *after,
            "{before} {line} {after}"
        );
    }
}

#[test]
fn a_task_has_one_line_at_its_start_and_one_at_its_end_with_its_id() {
    let (scene, _, _) = scene(&[("1", "true"), ("2", "echo x > $EWMS_TASK_OUTFILE")]);
    let scene = scene.set("EWMS_PILOT_KEEP_ALL_TASK_FILES", "True");
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    let data = fs::read_dir(scene.dir().join("ewms-pilot-data")).expect("it is there");
    let names = data
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let ids: Vec<String> = names.filter(|name| name != "data-hub").collect();
    assert_eq!(ids.len(), 2, "{ids:?}");
    for id in ids {
        let lines: Vec<&str> = outcome
            .stderr
            .lines()
            .filter(|line| line.contains(&format!("task{{task_id={id}}}")))
            .collect();
        assert_eq!(lines.len(), 2, "{lines:#?}");
        assert!(lines[0].ends_with("task started"), "{lines:#?}");
        assert!(lines[1].contains("task succeeded wall_secs="), "{lines:#?}");
    }
}

#[test]
fn the_line_of_a_failed_task_says_why() {
    let (scene, _, _) = scene(&[("1", "echo cause >&2; exit 4")]);
    let outcome = scene.run(SOON);
    let line = outcome
        .stderr
        .lines()
        .find(|line| line.contains("task failed wall_secs="))
        .unwrap_or_else(|| panic!("{}", outcome.stderr));
    assert!(line.contains(" ERROR task{task_id="), "{line}");
    assert!(line.contains("task failed (exit code 4): cause"), "{line}");
}

#[test]
fn without_a_terminal_there_is_neither_progress_nor_colour() {
    let (scene, _, _) = scene(&[("1", "true"), ("2", "false")]);
    let outcome = scene.run(SOON);
    outcome.assert_code(1);
    for text in ["\r", "\x1b", " waiting, "] {
        assert!(
            !outcome.stderr.contains(text),
            "{text:?}: {}",
            outcome.stderr
        );
    }
}

/// Runs the pilot below a shell, its stderr being what `redirection` says; gives its exit code.
#[track_caller]
fn code_below_a_shell(scene: Scene, redirection: &str) -> (Scene, String) {
    let pilot = pilot_binary();
    let script = format!("{{ {}; echo $? >code; }} {redirection}", pilot.display());
    let scene = scene.program("/bin/sh").arg("-c").arg(script);
    scene.run(SOON).assert_code(0);
    let code = fs::read_to_string(scene.dir().join("code")).expect("the shell wrote it");
    (scene, code.trim().to_owned())
}

/// Where a log can't be written: a full disk, nowhere, a reader that is gone.
const BROKEN: [&str; 3] = ["2>/dev/full", "2>&-", "2>&1 | :"];

#[test]
fn a_log_that_cannot_be_written_stops_no_work() {
    for redirection in BROKEN {
        let (scene, incoming, outgoing) = scene(&[("1", "echo x > $EWMS_TASK_OUTFILE; echo y")]);
        let scene = scene.set("EWMS_PILOT_DUMP_TASK_OUTPUT", "True");
        let (_scene, code) = code_below_a_shell(scene, redirection);
        assert_eq!(code, "0", "{redirection}");
        assert_eq!(incoming.done().len(), 1, "{redirection}");
        assert_eq!(outgoing.files().len(), 1, "{redirection}");
    }
}

#[test]
fn a_log_that_cannot_be_written_changes_no_exit_code() {
    for redirection in BROKEN {
        let (failing, _, _) = scene(&[("1", "false")]);
        let (_scene, code) = code_below_a_shell(failing, redirection);
        assert_eq!(code, "1", "{redirection}");
        let (wrong, _, _) = scene(&[]);
        let wrong = wrong.set("EWMS_PILOT_PREFETCH", "0");
        let (_scene, code) = code_below_a_shell(wrong, redirection);
        assert_eq!(code, "2", "{redirection}");
    }
}

#[test]
fn the_output_of_a_task_is_shown_between_marked_lines_when_asked_for_or_when_it_failed() {
    for (dump, event, shown) in [
        ("False", "echo from-task; echo err-task >&2", false),
        ("True", "echo from-task; echo err-task >&2", true),
        ("False", "echo from-task; echo err-task >&2; false", true),
    ] {
        let (scene, _, _) = scene(&[("1", event)]);
        let scene = scene.set("EWMS_PILOT_DUMP_TASK_OUTPUT", dump);
        let outcome = scene.run(SOON);
        for (stream, text, mark) in [
            (&outcome.stdout, "from-task", "(stdout) ---"),
            (&outcome.stderr, "err-task", "(stderr) ---"),
        ] {
            let alone = stream.lines().any(|line| line == text);
            assert_eq!(alone, shown, "{text}: {stream}");
            let marked = stream.matches(mark).count();
            assert_eq!(marked >= 2, shown, "{mark}: {stream}");
        }
    }
}

#[test]
fn the_pilot_itself_writes_nothing_to_stdout() {
    let loud = "echo here; echo there >&2; echo x >$EWMS_TASK_OUTFILE";
    for (event, code) in [(loud, 0), ("echo there >&2; false", 1)] {
        let (scene, _, _) = scene(&[("1", event)]);
        let scene = scene
            .set("EWMS_PILOT_CL_LOG", "DEBUG")
            .set("EWMS_PILOT_INIT_IMAGE", images::busybox())
            .set("EWMS_PILOT_INIT_ARGS", "echo made");
        let outcome = scene.run(SOON);
        outcome.assert_code(code);
        assert_eq!(outcome.stdout, "");
    }
}

#[test]
fn settings_are_shown_for_debugging() {
    let (scene, _, _) = scene(&[]);
    let scene = scene
        .set("EWMS_PILOT_CL_LOG", "DEBUG")
        .set("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN", "Xyzzy1977");
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    for text in [
        r#"name="EWMS_PILOT_PREFETCH" value="1""#,
        r#"name="EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN" value="***""#,
        r#"name="EWMS_PILOT_QUEUE_INCOMING" value="events""#,
    ] {
        assert!(outcome.stderr.contains(text), "{text}: {}", outcome.stderr);
    }
}

#[test]
fn the_log_is_written_as_things_happen() {
    let (scene, _, _) = scene(&[(
        "1",
        "until [ -e $EWMS_TASK_DATA_HUB_DIR/go ]; do sleep 0.05; done",
    )]);
    let mut pilot = scene.start();
    pilot.wait_for_line("task started", SOON);
    assert!(!pilot.has_ended());
    fs::write(scene.dir().join("ewms-pilot-data/data-hub/go"), "").expect("written");
    pilot.wait_for_line("task succeeded", Duration::from_secs(10));
    pilot.wait(SOON).assert_code(0);
}

/// Starts a pilot with two tasks. The first writes a megabyte, for which a pipe has no room, to this stream of
/// its own; the second waits for the test. A reader of both streams of the pilot reads nothing of this one.
fn unread(stream: u8) -> (Scene, SpoolQueue, SpoolQueue, Pilot) {
    let speak = format!(
        "dd if=/dev/zero bs=1000000 count=1 2>/dev/null | tr '\\0' x >&{stream}; echo 1 >$EWMS_TASK_OUTFILE"
    );
    let (scene, incoming, outgoing) = scene(&[
        ("1", &speak),
        (
            "2",
            "until [ -e $EWMS_TASK_DATA_HUB_DIR/go ]; do sleep 0.05; done; echo 2 >$EWMS_TASK_OUTFILE",
        ),
    ]);
    let script = format!(
        "mkfifo unread; exec 3<>unread; exec {} {stream}>unread",
        pilot_binary().display()
    );
    let scene = scene
        .set("EWMS_PILOT_DUMP_TASK_OUTPUT", "True")
        .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "2")
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "120")
        .program("/bin/sh")
        .arg("-c")
        .arg(script);
    let pilot = scene.start();
    (scene, incoming, outgoing, pilot)
}

#[test]
fn a_stream_that_is_not_read_holds_up_no_task_and_no_signal() {
    for stream in [1, 2] {
        let (scene, incoming, outgoing, mut pilot) = unread(stream);
        assert!(eventually(SOON, || scene.hub("").exists()));
        if stream == 1 {
            // Its dump is given up, and said so where somebody reads.
            let line = pilot.wait_for_line("a container's output can't be shown", SOON);
            assert!(
                line.contains("task_id=") && line.contains("stream=stdout"),
                "{line}"
            );
        }
        fs::write(scene.hub("go"), "").expect("written");
        assert!(
            eventually(SOON, || !outgoing.files().is_empty()),
            "{:?}",
            incoming.files()
        );
        let began = Instant::now();
        pilot.signal(Signal::SIGTERM);
        pilot.signal(Signal::SIGTERM);
        let outcome = pilot.wait(SOON);
        outcome.assert_code(143);
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{:?}",
            began.elapsed()
        );
        // What is written to stderr while stdout is stuck is there.
        let told = outcome
            .last_line()
            .starts_with("RuntimeError: ended by signal 15; ");
        assert_eq!(told, stream == 1, "{}", outcome.stderr);
    }
}

#[test]
fn for_collectors_each_line_of_stderr_is_an_object_to_the_last() {
    let arguments = r#"sh -c "echo said by the task >&2; exit 3""#;
    let (scene, incoming, _) = Scene::task(images::busybox(), arguments).spool();
    incoming.put("a", "event");
    let outcome = scene.set("EWMS_PILOT_LOG_FORMAT", "json").run(SOON);
    outcome.assert_code(1);
    let objects: Vec<serde_json::Value> = outcome
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    for object in &objects {
        for member in ["timestamp", "level", "message", "target"] {
            assert!(object[member].is_string(), "{member}: {object}");
        }
    }
    let find = |message: &str| {
        let found = objects.iter().find(|object| object["message"] == message);
        found.unwrap_or_else(|| panic!("{message}: {}", outcome.stderr))
    };
    let failed = find("task failed");
    assert_eq!(failed["level"], "ERROR");
    assert!(failed["wall_secs"].is_f64(), "{failed}");
    assert!(failed["spans"][0]["task_id"].is_string(), "{failed}");
    assert_eq!(find("said by the task")["target"], "container_output");
    let last = objects.last().expect("it said something");
    let last = last["message"].as_str().expect("a text");
    assert!(
        last.starts_with("RuntimeError: 1 TASK(S) FAILED: "),
        "{last}"
    );
}
