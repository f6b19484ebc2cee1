//! The statistics that a pilot logs at its end, however it ends.

use crate::support::scene::{Outcome, Scene};
use crate::support::{SOON, images};

/// Runs tasks that do what their event says, going on after failures.
fn run(events: &[(&str, &str)]) -> Outcome {
    let (scene, incoming, _) = Scene::task(images::busybox(), "sh {{INFILE}}").spool();
    for (name, event) in events {
        incoming.put(name, event);
    }
    let scene = scene.set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False");
    scene.run(SOON)
}

#[track_caller]
fn assert_says(outcome: &Outcome, texts: &[&str]) {
    for text in texts {
        assert!(outcome.stderr.contains(text), "{text}: {}", outcome.stderr);
    }
}

#[test]
fn tallies_statistics_and_histogram_are_there_when_all_went_well() {
    let outcome = run(&[
        ("1", "true"),
        ("2", "true"),
        ("3", "echo x > $EWMS_TASK_OUTFILE"),
    ]);
    outcome.assert_code(0);
    assert_says(
        &outcome,
        &[
            "received=3 published=1 no_output=2 given_back=0",
            "0 Pending Tasks 3 Finished Tasks (3 succeeded, 0 failed)",
            "Task runtime stats (successful tasks), in seconds:",
            "(count: 3)",
            "(mean: ",
            "(median: ",
            "(standard deviation: ",
            "(min: ",
            "(max: ",
            "Runtimes distribution:",
        ],
    );
    assert!(
        !outcome.stderr.contains("RuntimeError"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn tallies_statistics_and_histogram_are_there_when_some_tasks_failed() {
    let outcome = run(&[("1", "true"), ("2", "echo boom >&2; exit 7"), ("3", "true")]);
    outcome.assert_code(1);
    assert_says(
        &outcome,
        &[
            // The spool tries the failed one three times.
            "0 Pending Tasks 5 Finished Tasks (2 succeeded, 3 failed)",
            "(count: 2)",
            "Runtimes distribution:",
            "tasks failed alike count=3",
        ],
    );
    let error = r"ContainerRunError('task failed (exit code 7): boom')";
    assert_eq!(
        outcome.last_line(),
        format!("RuntimeError: 3 TASK(S) FAILED: {error}, {error}, {error}")
    );
}

#[test]
fn the_histogram_has_a_mark_for_each_successful_task() {
    let outcome = run(&[("1", "true"), ("2", "true"), ("3", "false")]);
    let (_, after) = outcome
        .stderr
        .split_once("Runtimes distribution:\n")
        .unwrap_or_else(|| panic!("{}", outcome.stderr));
    // `[0.20, 0.25)         | ## 2`
    let rows = after.lines().filter_map(|line| line.rsplit_once(") "));
    let marks: usize = rows
        .filter_map(|(_, row)| row.split_once("| "))
        .map(|(_, bar)| bar.matches('#').count())
        .sum();
    assert_eq!(marks, 2, "{after}");
}

#[test]
fn a_pilot_without_a_successful_task_says_so() {
    let outcome = run(&[("1", "false")]);
    outcome.assert_code(1);
    assert_says(
        &outcome,
        &[
            "0 Pending Tasks 3 Finished Tasks (0 succeeded, 3 failed)",
            "no finished successful tasks",
        ],
    );
}

#[test]
fn a_pilot_without_an_event_warns_and_succeeds() {
    let outcome = run(&[]);
    outcome.assert_code(0);
    let warned = outcome
        .stderr
        .lines()
        .any(|line| line.contains(" WARN ") && line.ends_with("No Messages Were Received."));
    assert!(warned, "{}", outcome.stderr);
}
