//! Signals to the pilot: what becomes of its tasks, their events, and its exit code.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::{assert_no_scratch, await_file, hub, sh, shell_task};
use crate::support::scene::{Pilot, Scene};
use crate::support::spool::SpoolQueue;
use crate::support::{SOON, images, processes};

/// Ready, and then busy until told; does `when_told`.
fn until_told(when_told: &str) -> Scene {
    shell_task(&format!(
        "trap '{when_told}' TERM INT HUP; touch {{{{DATA_HUB}}}}/ready; while :; do sleep 0.02; done"
    ))
}

/// A pilot whose only slot runs the first of two events.
fn busy(scene: Scene) -> (Scene, Pilot, SpoolQueue, SpoolQueue) {
    let (scene, incoming, outgoing) = scene.spool();
    incoming.put("1.txt", "the first");
    incoming.put("2.txt", "the second");
    let pilot = scene.start();
    await_file(&hub(&scene).join("ready"));
    (scene, pilot, incoming, outgoing)
}

#[track_caller]
fn assert_finishing_task_is_published(signal: Signal) {
    let scene = until_told("cp {{INFILE}} {{OUTFILE}}; exit 0");
    let (scene, mut pilot, incoming, outgoing) = busy(scene);
    pilot.signal(signal);
    let line = pilot.wait_for_line("signal received", SOON);
    assert!(line.contains(signal.as_str()), "{line}");
    let outcome = pilot.wait(SOON);
    outcome.assert_code(128 + signal as i32);
    let last = outcome.last_line();
    assert!(
        last.starts_with(&format!("RuntimeError: ended by signal {}", signal as i32)),
        "{last}"
    );
    assert!(!outcome.stderr.contains(r#"status="Done""#), "it is not");
    let results: Vec<_> = outgoing.files().into_values().collect();
    assert_eq!(results, [b"the first"]);
    assert!(
        incoming.done().contains_key("1.txt"),
        "{:?}",
        incoming.done()
    );
    assert_eq!(incoming.files().into_keys().collect::<Vec<_>>(), ["2.txt"]);
    assert_eq!(
        outcome.stderr.matches("task started").count(),
        1,
        "{}",
        outcome.stderr
    );
    assert_no_scratch(&scene);
}

#[test]
fn on_sigterm_a_task_that_finishes_is_published_and_no_other_event_is_taken() {
    assert_finishing_task_is_published(Signal::SIGTERM);
}

#[test]
fn on_sigint_a_task_that_finishes_is_published_and_no_other_event_is_taken() {
    assert_finishing_task_is_published(Signal::SIGINT);
}

#[test]
fn on_sighup_a_task_that_finishes_is_published_and_no_other_event_is_taken() {
    assert_finishing_task_is_published(Signal::SIGHUP);
}

#[track_caller]
fn assert_given_back(incoming: &SpoolQueue, outgoing: &SpoolQueue) {
    let waiting = incoming.files();
    assert_eq!(waiting.into_keys().collect::<Vec<_>>(), ["1.txt", "2.txt"]);
    for (name, files) in [
        ("claimed", incoming.claimed()),
        ("done", incoming.done()),
        ("failed", incoming.failed()),
        ("results", outgoing.files()),
    ] {
        assert!(files.is_empty(), "{name}: {files:?}");
    }
}

#[test]
fn a_task_that_the_signal_ends_is_given_back_and_no_try_is_counted() {
    // Three failed tries would move it to `failed/`.
    let (scene, incoming, outgoing) = shell_task(
        "echo half >{{OUTFILE}}; touch {{DATA_HUB}}/ready; while :; do sleep 0.02; done",
    )
    .spool();
    incoming.put("1.txt", "the first");
    incoming.put("2.txt", "the second");
    for _ in 0..4 {
        let pilot = scene.start();
        let ready = hub(&scene).join("ready");
        await_file(&ready);
        pilot.signal(Signal::SIGTERM);
        let outcome = pilot.wait(SOON);
        outcome.assert_code(128 + 15);
        assert_given_back(&incoming, &outgoing);
        assert!(!outcome.stderr.contains("FAILED"), "{}", outcome.stderr);
        std::fs::remove_file(ready).expect("it was there");
    }
}

#[test]
fn a_task_that_exits_with_an_error_when_told_is_given_back() {
    let (_scene, pilot, incoming, outgoing) = busy(until_told("echo stopped >&2; exit 3"));
    pilot.signal(Signal::SIGTERM);
    let outcome = pilot.wait(SOON);
    outcome.assert_code(128 + 15);
    assert_given_back(&incoming, &outgoing);
    assert!(!outcome.stderr.contains("FAILED"), "{}", outcome.stderr);
}

#[test]
fn a_task_that_ignores_the_signal_is_killed_when_its_grace_is_over() {
    let script = "trap \"\" TERM; touch {{DATA_HUB}}/ready; while :; do sleep 85.25; done";
    let scene = shell_task(script).set("EWMS_PILOT_KILL_GRACE", "0.5");
    let (scene, pilot, incoming, outgoing) = busy(scene);
    pilot.signal(Signal::SIGTERM);
    pilot.wait(SOON).assert_code(128 + 15);
    assert_given_back(&incoming, &outgoing);
    processes::assert_nothing_runs("sleep 85.25", Duration::ZERO);
    assert_no_scratch(&scene);
}

#[test]
fn a_second_signal_kills_at_once_and_the_first_gives_the_exit_code() {
    let script = "trap \"\" TERM INT; touch {{DATA_HUB}}/ready; while :; do sleep 86.25; done";
    let scene = shell_task(script).set("EWMS_PILOT_KILL_GRACE", "600");
    let (scene, mut pilot, incoming, outgoing) = busy(scene);
    pilot.signal(Signal::SIGINT);
    pilot.wait_for_line("SIGINT", SOON);
    pilot.signal(Signal::SIGTERM);
    pilot.wait_for_line("SIGTERM", SOON);
    pilot.wait(SOON).assert_code(128 + 2);
    assert_given_back(&incoming, &outgoing);
    processes::assert_nothing_runs("sleep 86.25", Duration::ZERO);
    assert_no_scratch(&scene);
}

#[test]
fn every_running_task_is_told() {
    let script = "trap 'cp {{INFILE}} {{OUTFILE}}; exit 0' TERM; touch {{DATA_HUB}}/ready-$(cat {{INFILE}}); while :; do sleep 0.02; done";
    let scene = shell_task(script).set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "3");
    let (scene, incoming, outgoing) = scene.spool();
    for name in ["1", "2", "3"] {
        incoming.put(&format!("{name}.txt"), name);
    }
    let pilot = scene.start();
    for name in ["1", "2", "3"] {
        await_file(&hub(&scene).join(format!("ready-{name}")));
    }
    pilot.signal(Signal::SIGTERM);
    pilot.wait(SOON).assert_code(128 + 15);
    let mut results: Vec<_> = outgoing.files().into_values().collect();
    results.sort();
    assert_eq!(results, [b"1", b"2", b"3"]);
}

#[test]
fn a_signal_ends_the_wait_for_the_first_event() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let scene = shell_task("true").set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "600");
        let (scene, _, _) = scene.spool();
        let mut pilot = scene.start();
        pilot.wait_for_line("AwaitingFirstMessage", SOON);
        pilot.signal(signal);
        let outcome = pilot.wait(SOON);
        outcome.assert_code(128 + signal as i32);
        assert!(
            outcome.stderr.contains(signal.as_str()),
            "{}",
            outcome.stderr
        );
    }
}

fn init(script: &str, grace: &str) -> (Scene, SpoolQueue) {
    let scene = shell_task("cp {{INFILE}} {{OUTFILE}}")
        .set("EWMS_PILOT_INIT_IMAGE", images::busybox())
        .set("EWMS_PILOT_INIT_ARGS", sh(script))
        .set("EWMS_PILOT_KILL_GRACE", grace);
    let (scene, incoming, _) = scene.spool();
    incoming.put("1.txt", "the first");
    (scene, incoming)
}

#[test]
fn a_signal_during_the_init_container_ends_it_and_no_event_is_taken() {
    let script = "touch {{DATA_HUB}}/ready; trap 'touch {{DATA_HUB}}/told; exit 0' TERM; while :; do sleep 0.02; done";
    let (scene, incoming) = init(script, "600");
    let pilot = scene.start();
    await_file(&hub(&scene).join("ready"));
    pilot.signal(Signal::SIGTERM);
    let outcome = pilot.wait(SOON);
    outcome.assert_code(128 + 15);
    assert!(hub(&scene).join("told").exists(), "the signal is forwarded");
    assert_eq!(incoming.files().len(), 1);
    assert!(
        !outcome.stderr.contains("task started"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_second_signal_during_the_init_container_kills_it_at_once() {
    let script = "trap \"\" TERM HUP; touch {{DATA_HUB}}/ready; while :; do sleep 87.25; done";
    let (scene, incoming) = init(script, "600");
    let mut pilot = scene.start();
    await_file(&hub(&scene).join("ready"));
    pilot.signal(Signal::SIGHUP);
    pilot.wait_for_line("SIGHUP", SOON);
    pilot.signal(Signal::SIGTERM);
    pilot.wait(SOON).assert_code(128 + 1);
    assert_eq!(incoming.files().len(), 1);
    processes::assert_nothing_runs("sleep 87.25", Duration::ZERO);
    assert_no_scratch(&scene);
}
