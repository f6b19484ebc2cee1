//! The quarantine, which keeps HTCondor from sending the next pilot at once to a machine on which one failed.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::scene::Scene;
use crate::support::{SOON, images};

const LINE: &str = "quarantining this EP";

/// A pilot with one event and a quarantine of so many seconds.
fn scene(arguments: &str, seconds: u32) -> Scene {
    let (scene, incoming, _) = Scene::task(images::busybox(), arguments).spool();
    incoming.put("a", "event");
    scene
        .set("EWMS_PILOT_QUARANTINE_TIME", seconds.to_string())
        .set("EWMS_PILOT_KILL_GRACE", "0.2")
}

#[test]
fn a_pilot_that_failed_stays_as_long_as_configured() {
    let scene = scene("false", 3);
    let mut pilot = scene.start();
    pilot.wait_for_line(LINE, SOON);
    let since = Instant::now();
    pilot.wait(SOON).assert_code(1);
    // Less than it was told, as the line was read a little after it was written.
    assert!(
        since.elapsed() >= Duration::from_secs(2),
        "{:?}",
        since.elapsed()
    );
}

#[test]
fn the_reason_is_known_before_the_quarantine_is_over() {
    let scene = scene("sh -c 'echo cause >&2; exit 3'", 600);
    let mut pilot = scene.start();
    pilot.wait_for_line(LINE, SOON);
    let told = pilot.stderr();
    assert!(
        told.contains("1 TASK(S) FAILED: ContainerRunError('task failed (exit code 3): cause')"),
        "{told}"
    );
}

#[test]
fn a_signal_ends_the_quarantine_with_the_exit_code_of_the_failure() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let scene = scene("false", 600);
        let mut pilot = scene.start();
        pilot.wait_for_line(LINE, SOON);
        pilot.signal(signal);
        let outcome = pilot.wait(SOON);
        outcome.assert_code(1);
        let line = outcome.last_line();
        assert!(line.starts_with("RuntimeError: 1 TASK(S) FAILED"), "{line}");
    }
}

#[test]
fn an_image_that_cannot_be_used_is_quarantined_too() {
    let scene = scene("true", 600).set("EWMS_PILOT_TASK_IMAGE", "/nowhere/image");
    let mut pilot = scene.start();
    pilot.wait_for_line(LINE, SOON);
    pilot.signal(Signal::SIGTERM);
    pilot.wait(SOON).assert_code(6);
}

#[test]
fn success_is_not_quarantined() {
    let scene = scene("true", 600);
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert!(!outcome.stderr.contains(LINE), "{}", outcome.stderr);
}

#[test]
fn a_pilot_that_is_told_to_end_is_not_quarantined() {
    let scene = scene("sleep 8431", 600);
    let mut pilot = scene.start();
    pilot.wait_for_line("task started", SOON);
    pilot.signal(Signal::SIGTERM);
    let outcome = pilot.wait(SOON);
    outcome.assert_code(143);
    assert!(!outcome.stderr.contains(LINE), "{}", outcome.stderr);
}

#[test]
fn a_pilot_that_goes_on_after_failures_can_have_no_quarantine() {
    let scene = scene("true", 5).set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "no");
    let outcome = scene.run(SOON);
    outcome.assert_code(2);
    let named = outcome.stderr.lines().any(|line| {
        line.contains("`EWMS_PILOT_QUARANTINE_TIME`")
            && line.contains("`EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR`")
    });
    assert!(named, "{}", outcome.stderr);
    assert!(fs::exists(scene.dir().join("spool/events/a")).expect("it can be looked at"));
}
