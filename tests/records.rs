//! The file of records: its content for each task and for the pilot, and that no problem with the file costs
//! an event.

use std::fs;

use serde_json::Value;

use crate::support::rabbitmq::Queue;
use crate::support::scene::Scene;
use crate::support::{SOON, images};

const LOG: &str = "ewms-pilot-tasks.jsonl";

/// All lines of a scene's records.
#[track_caller]
pub(crate) fn lines(scene: &Scene) -> Vec<Value> {
    let text = fs::read_to_string(scene.dir().join(LOG)).expect("there are records");
    let lines = text.lines().map(serde_json::from_str);
    lines.map(|line| line.expect("each is JSON")).collect()
}

/// The lines of one kind.
#[track_caller]
pub(crate) fn of_kind(scene: &Scene, kind: &str) -> Vec<Value> {
    let mut lines = lines(scene);
    lines.retain(|line| line["kind"] == kind);
    lines
}

fn seconds(record: &Value, field: &str) -> f64 {
    record[field]
        .as_f64()
        .unwrap_or_else(|| panic!("`{field}` is a number in {record}"))
}

#[test]
fn a_pilot_leaves_its_start_each_task_and_its_end() {
    let burn =
        "sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; cp {{INFILE}} {{OUTFILE}}'";
    let scene = Scene::task(images::busybox(), burn).set("GLIDEIN_Site", "Northpole");
    let (scene, incoming, _) = scene.spool();
    incoming.put("a.txt", "12345");
    incoming.put("b.txt", "12345");
    scene.run(SOON).assert_code(0);
    let lines = lines(&scene);
    let kinds: Vec<_> = lines.iter().map(|line| line["kind"].clone()).collect();
    assert_eq!(kinds, ["pilot_start", "task", "task", "pilot_end"]);
    for line in &lines {
        assert_eq!(line["format"], 1);
        assert_eq!(line["pilot_id"], lines[0]["pilot_id"]);
        assert_eq!(
            (&line["host"], &line["site"]),
            (&"ep".into(), &"Northpole".into())
        );
    }
    for task in &lines[1..3] {
        let times: Vec<f64> = ["received", "started", "ended", "published", "settled"]
            .iter()
            .map(|name| seconds(task, &format!("{name}_unix_secs")))
            .collect();
        assert!(times.is_sorted() && times[0] > 1.7e9, "{task}");
        assert!(seconds(task, "cpu_user_secs") > 0.01, "{task}");
        assert!(seconds(task, "container_time_secs") <= seconds(task, "wall_time_secs"));
        assert!(seconds(task, "max_rss_bytes") > 100_000.0);
        assert!(seconds(task, "disk_bytes") > 4_000.0);
        assert_eq!(
            (&task["input_bytes"], &task["output_bytes"]),
            (&5.into(), &5.into())
        );
        assert_eq!(
            (&task["outcome"], &task["exit_code"]),
            (&"done".into(), &0.into())
        );
        assert_eq!(
            (&task["slot"], &task["earlier_deliveries"]),
            (&1.into(), &0.into())
        );
        assert!(task["error"].is_null() && task["fault_class"].is_null());
    }
    let end = &lines[3];
    assert_eq!(
        (&end["succeeded"], &end["exit_code"]),
        (&2.into(), &0.into())
    );
    let wall: f64 = lines[1..3]
        .iter()
        .map(|task| seconds(task, "wall_time_secs"))
        .sum();
    assert!((seconds(end, "busy_secs") - wall).abs() < 0.01, "{end}");
    assert!(seconds(end, "first_event_wait_secs") < 5.0);
    assert!(end["error"].is_null() && end["init_time_secs"].is_null());
}

#[test]
fn a_failed_task_has_its_fault_and_the_pilot_its_last_line() {
    let (scene, incoming, _) =
        Scene::task(images::busybox(), "sh -c 'echo the cause >&2; exit 9'").spool();
    incoming.put("a.txt", "x");
    let outcome = scene.run(SOON);
    outcome.assert_code(1);
    let task = &of_kind(&scene, "task")[0];
    assert_eq!(task["outcome"], "failed");
    assert_eq!(task["fault_class"], "task");
    assert_eq!(task["error_name"], "ContainerRunError");
    assert_eq!(task["error"], "task failed (exit code 9): the cause");
    assert_eq!(task["exit_code"], 9);
    let end = &of_kind(&scene, "pilot_end")[0];
    assert_eq!((&end["failed"], &end["exit_code"]), (&1.into(), &1.into()));
    assert_eq!(end["error"], outcome.last_line());
}

#[test]
fn tasks_that_run_at_once_have_slots_of_their_own() {
    let scene =
        Scene::task(images::busybox(), "sleep 1").set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "3");
    let (scene, incoming, _) = scene.spool();
    for name in ["a.txt", "b.txt", "c.txt"] {
        incoming.put(name, "x");
    }
    scene.run(SOON).assert_code(0);
    let mut slots: Vec<_> = of_kind(&scene, "task")
        .iter()
        .map(|task| task["slot"].as_u64())
        .collect();
    slots.sort_unstable();
    assert_eq!(slots, [Some(1), Some(2), Some(3)]);
}

#[test]
fn a_pilot_that_ends_before_any_event_leaves_its_end_with_the_reason() {
    let (scene, _, _) = Scene::task("/images/nowhere", "true").spool();
    let outcome = scene.run(SOON);
    let end = &of_kind(&scene, "pilot_end")[0];
    assert_eq!(end["exit_code"], outcome.code.expect("a code"));
    assert_eq!(end["error"], outcome.last_line());
    assert!(end["connected_unix_secs"].is_null());
}

#[test]
fn an_evicted_pilot_records_what_it_gave_back() {
    let (scene, incoming, _) = Scene::task(images::busybox(), "sleep 1000").spool();
    incoming.put("a.txt", "x");
    let mut pilot = scene.start();
    pilot.wait_for_line("task started", SOON);
    pilot.signal(nix::sys::signal::Signal::SIGTERM);
    pilot.wait_for_line("signal received", SOON);
    pilot.signal(nix::sys::signal::Signal::SIGTERM);
    pilot.wait(SOON).assert_code(143);
    assert_eq!(of_kind(&scene, "task")[0]["outcome"], "given_back");
    assert_eq!(of_kind(&scene, "pilot_end")[0]["exit_code"], 143);
}

#[test]
fn a_full_disk_loses_the_records_and_no_event() {
    let (incoming, outgoing) = (
        Queue::unique("records-full"),
        Queue::unique("records-full-out"),
    );
    incoming.produce(["\"a\"", "\"b\"", "\"c\""]);
    let scene = Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}")
        .rabbitmq(&incoming, &outgoing)
        .set("EWMS_PILOT_TASK_LOG", "/dev/full");
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert_eq!(outgoing.depth(), 3);
    assert_eq!(
        outcome.stderr.matches("record can't be written").count(),
        1,
        "{}",
        outcome.stderr
    );
}

#[test]
fn records_go_where_they_are_told_or_nowhere() {
    let event = |value: &str| {
        let scene = Scene::task(images::busybox(), "true").set("EWMS_PILOT_TASK_LOG", value);
        let (scene, incoming, _) = scene.spool();
        incoming.put("a.txt", "x");
        scene.run(SOON).assert_code(0);
        assert!(!scene.dir().join(LOG).exists());
        scene
    };
    let elsewhere = event("elsewhere.jsonl");
    let text = fs::read_to_string(elsewhere.dir().join("elsewhere.jsonl")).expect("it is there");
    assert_eq!(text.lines().count(), 3);
    event("");
}

#[test]
fn a_disk_for_records_that_hangs_holds_up_no_event() {
    let (scene, incoming, outgoing) =
        Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}").spool();
    let log = scene.dir().join("records.jsonl");
    // To open it for writing waits for a reader.
    nix::unistd::mkfifo(&log, nix::sys::stat::Mode::S_IRWXU).expect("made");
    let scene = scene.set("EWMS_PILOT_TASK_LOG", &log);
    for number in 0..3 {
        incoming.put(&format!("{number}.txt"), "x");
    }
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert_eq!(outgoing.files().len(), 3);
    let said = "records are not written yet";
    assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
}
