//! Timeouts, and that nothing of a task runs once it is over, however it ended.

use std::fs;
use std::time::{Duration, Instant};

use super::{assert_no_scratch, failure_of, hub, python_task, sh, shell_task};
use crate::support::scene::Scene;
use crate::support::{SOON, images, processes};

const TIMED_OUT: &str = "RuntimeError: 1 TASK(S) FAILED: \
    ContainerRunError('task failed: [Timeout-Error] timed out after 1s')";

fn one_second(scene: Scene, grace: &str) -> Scene {
    scene
        .set("EWMS_PILOT_TASK_TIMEOUT", "1")
        .set("EWMS_PILOT_KILL_GRACE", grace)
}

#[test]
fn a_task_that_ignores_sigterm_is_killed_when_its_grace_is_over() {
    let script = "trap '' TERM; while :; do sleep 79.25; done";
    let began = Instant::now();
    let (scene, outcome) = failure_of(one_second(shell_task(script), "1"));
    assert_eq!(outcome.last_line(), TIMED_OUT);
    let took = began.elapsed();
    assert!(
        took >= Duration::from_secs(2),
        "{took:?}: it had a grace period"
    );
    assert!(took < Duration::from_secs(12), "{took:?}");
    processes::assert_nothing_runs("sleep 79.25", Duration::ZERO);
    assert_no_scratch(&scene);
}

#[test]
fn a_task_that_heeds_sigterm_ends_at_once_and_has_failed_even_with_exit_code_0() {
    let script = "trap 'echo heeded >>{{DATA_HUB}}/told; exit 0' TERM; echo half >{{OUTFILE}}; while :; do sleep 0.1; done";
    // The grace is longer than what failure_of waits.
    let (scene, outcome) = failure_of(one_second(shell_task(script), "600"));
    assert_eq!(outcome.last_line(), TIMED_OUT);
    assert_eq!(
        fs::read(hub(&scene).join("told")).expect("it was told"),
        b"heeded\n"
    );
}

#[test]
fn children_of_a_shell_that_timed_out_die_with_it() {
    let script =
        "trap '' TERM; sleep 80.25 & (trap '' TERM; sleep 80.25 & wait) & sleep 80.25; wait";
    let (_, outcome) = failure_of(one_second(shell_task(script), "0.2"));
    assert_eq!(outcome.last_line(), TIMED_OUT);
    processes::assert_nothing_runs("sleep 80.25", Duration::ZERO);
}

/// A task that leaves a daemon behind, in a session of its own, which ignores what it can; it ends as
/// `end` says once the daemon is up.
fn daemonized(seconds: &str, end: &str) -> Scene {
    let source = format!(
        "
import os, signal, sys, time
up = os.environ['EWMS_TASK_DATA_HUB_DIR'] + '/up'
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        open(up, 'w').close()
        os.execvp('sleep', ['sleep', '{seconds}'])
    os._exit(0)
while not os.path.exists(up):
    time.sleep(0.01)
{end}
"
    );
    python_task(&source)
}

#[test]
fn a_daemon_does_not_outlive_a_task_that_succeeds() {
    let (scene, incoming, _) = daemonized("81.25", "").spool();
    incoming.put("event.txt", "");
    let mut pilot = scene.start();
    pilot.wait_for_line("task succeeded", SOON);
    processes::assert_nothing_runs("sleep 81.25", Duration::ZERO);
    assert!(hub(&scene).join("up").exists(), "there was a daemon");
    pilot.wait(SOON).assert_code(0);
}

#[test]
fn a_daemon_does_not_outlive_a_task_that_fails() {
    let (scene, _) = failure_of(daemonized("82.25", "sys.exit(1)"));
    processes::assert_nothing_runs("sleep 82.25", Duration::ZERO);
    assert!(hub(&scene).join("up").exists(), "there was a daemon");
}

#[test]
fn a_daemon_does_not_outlive_a_task_that_times_out() {
    let scene = one_second(daemonized("83.25", "time.sleep(83.25)"), "10");
    let (scene, outcome) = failure_of(scene);
    assert_eq!(outcome.last_line(), TIMED_OUT);
    processes::assert_nothing_runs("sleep 83.25", Duration::ZERO);
    assert!(hub(&scene).join("up").exists(), "there was a daemon");
}

#[test]
fn a_sif_image_leaves_no_process_and_no_mount_behind_a_timeout() {
    let scene = one_second(Scene::new(), "0.2");
    // A name that no other test's processes have in their command lines.
    let image = scene.dir().join("own.sif");
    fs::copy(images::busybox_sif(), &image).expect("copied");
    let work = scene.dir().join("work");
    fs::create_dir(&work).expect("made");
    let marker = scene.dir().to_str().expect("UTF-8").to_owned();
    let scene = scene
        .set("EWMS_PILOT_TASK_IMAGE", &image)
        .set(
            "EWMS_PILOT_TASK_ARGS",
            sh("trap '' TERM; sleep 84.25; sleep 84.25"),
        )
        .set(
            "_EWMS_PILOT_APPTAINER_IMAGE_DIRECTORY_MUST_BE_PRESENT",
            "False",
        )
        .set("_EWMS_PILOT_APPTAINER_BUILD_WORKDIR", &work);
    let (_, outcome) = failure_of(scene);
    assert_eq!(outcome.last_line(), TIMED_OUT);
    for own in ["sleep 84.25", &marker] {
        processes::assert_nothing_runs(own, Duration::ZERO);
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("it is there");
    assert!(!mounts.contains(&marker), "{mounts}");
}
