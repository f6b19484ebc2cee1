//! A pilot whose wall time is limited: it starts nothing that it can't finish, and is gone in time.

use std::time::{Duration, Instant};

use crate::records::of_kind;
use crate::support::scene::Scene;
use crate::support::{SOON, images, processes};

#[test]
fn no_task_is_started_that_would_not_end_in_time() {
    let scene = Scene::task(images::busybox(), "sleep 3").set("EWMS_PILOT_MAX_RUNTIME", "12");
    let (scene, incoming, _) = scene.set("EWMS_PILOT_KILL_GRACE", "1").spool();
    for number in 0..9 {
        incoming.put(&format!("{number}.txt"), "x");
    }
    let began = Instant::now();
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert!(
        began.elapsed() < Duration::from_secs(12),
        "{:?}",
        began.elapsed()
    );
    let done = incoming.done().len();
    assert!((2..=3).contains(&done), "{done} of 9");
    assert_eq!(incoming.files().len(), 9 - done);
    let tasks = of_kind(&scene, "task");
    assert!(
        tasks.iter().all(|task| task["outcome"] == "done"),
        "{tasks:#?}"
    );
}

#[test]
fn a_task_that_does_not_end_in_time_is_given_back_and_the_pilot_exits_with_0() {
    let scene = Scene::task(images::busybox(), "sleep 83.5").set("EWMS_PILOT_MAX_RUNTIME", "8");
    let (scene, incoming, _) = scene.set("EWMS_PILOT_KILL_GRACE", "1").spool();
    incoming.put("a.txt", "x");
    let began = Instant::now();
    scene.run(SOON).assert_code(0);
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    assert!(incoming.files().contains_key("a.txt"));
    processes::assert_nothing_runs("sleep 83.5", SOON);
    assert_eq!(of_kind(&scene, "task")[0]["outcome"], "given_back");
}

#[test]
fn the_job_ads_original_time_limits_as_well() {
    // Pools write it as an integer or as a real number.
    for time in ["6", "6.0", "0.6E1"] {
        assert_limited_by(time);
    }
}

#[track_caller]
fn assert_limited_by(original_time: &str) {
    let scene = Scene::task(images::busybox(), "sleep 83.25").set("EWMS_PILOT_KILL_GRACE", "1");
    let ad = scene.dir().join(".job.ad");
    std::fs::write(
        &ad,
        format!("OriginalTime = {original_time}\nRequestMemory = 512.0\n"),
    )
    .expect("written");
    let (scene, incoming, _) = scene.set("_CONDOR_JOB_AD", &ad).spool();
    incoming.put("a.txt", "x");
    scene.run(SOON).assert_code(0);
    assert!(incoming.files().contains_key("a.txt"));
    let start = &of_kind(&scene, "pilot_start")[0];
    assert_eq!(start["max_runtime_secs"], 6.0);
    assert_eq!(start["requested_memory_bytes"], 512 << 20);
}
