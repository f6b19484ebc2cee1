//! The init container: once, first, and fatal when it fails.

use super::outputs::{SPEAK_AT_LENGTH, assert_ends_are_shown};
use super::{assert_only_the_hub_is_left, hub, kept, names, sh, shell_task};
use crate::support::scene::Scene;
use crate::support::{SOON, images, processes};

fn with_init(task: &str, init: &str) -> Scene {
    shell_task(task)
        .set("EWMS_PILOT_INIT_IMAGE", images::busybox())
        .set("EWMS_PILOT_INIT_ARGS", sh(init))
}

#[test]
fn it_runs_once_and_every_task_finds_what_it_left_in_the_hub() {
    let scene = with_init(
        "cp {{DATA_HUB}}/startup {{OUTFILE}}",
        "echo once >>{{DATA_HUB}}/startup",
    );
    let (scene, incoming, outgoing) = scene.spool();
    for name in ["a.txt", "b.txt", "c.txt"] {
        incoming.put(name, "");
    }
    scene.run(SOON).assert_code(0);
    let results: Vec<_> = outgoing.files().into_values().collect();
    assert_eq!(results, [b"once\n"; 3]);
    assert_only_the_hub_is_left(&scene);
}

/// A broker that nobody can reach.
fn unreachable(scene: Scene) -> Scene {
    ["INCOMING", "OUTGOING"].iter().fold(scene, |scene, way| {
        let name = format!("EWMS_PILOT_QUEUE_{way}");
        scene
            .set(&name, "nowhere")
            .set(&format!("{name}_BROKER_TYPE"), "rabbitmq")
            .set(&format!("{name}_BROKER_ADDRESS"), "localhost:9")
    })
}

#[test]
fn it_runs_though_no_broker_can_be_reached() {
    let scene = unreachable(with_init("true", "touch {{DATA_HUB}}/ran"));
    scene.run(SOON).assert_code(4);
    assert!(hub(&scene).join("ran").exists());
}

#[test]
fn its_failure_is_told_before_that_of_a_broker() {
    let scene = unreachable(with_init("true", "echo 'no luck' >&2; exit 3"));
    let outcome = scene.run(SOON);
    assert_eq!(
        outcome.assert_code(5).last_line(),
        "ContainerRunError: init-container failed (exit code 3): no luck"
    );
}

#[test]
fn of_its_long_output_both_ends_are_shown_and_where_it_is() {
    let scene = unreachable(with_init("true", SPEAK_AT_LENGTH));
    let outcome = scene.run(SOON);
    outcome.assert_code(5);
    assert_ends_are_shown(&outcome, "init-container");
}

#[track_caller]
fn assert_takes_no_event(scene: Scene, last_line: &str) -> Scene {
    let (scene, incoming, outgoing) = scene.spool();
    incoming.put("event.txt", "the event");
    let outcome = scene.run(SOON);
    assert_eq!(outcome.assert_code(5).last_line(), last_line);
    assert_eq!(incoming.files().len(), 1);
    assert!(outgoing.files().is_empty());
    assert!(
        !outcome.stderr.contains("task started"),
        "{}",
        outcome.stderr
    );
    scene
}

#[test]
fn after_its_failure_no_event_is_taken_and_its_output_is_kept() {
    let init = "echo to stdout; echo \"it's over\" >&2; exit 1";
    let scene = assert_takes_no_event(
        with_init("cp {{INFILE}} {{OUTFILE}}", init),
        "ContainerRunError: init-container failed (exit code 1): it's over",
    );
    let kept = kept(&scene);
    let name = kept
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    assert!(name.starts_with("init-"), "{name}");
    let stdout = std::fs::read_to_string(kept.join("outputs/stdoutfile"));
    assert_eq!(stdout.expect("it is kept"), "to stdout\n");
    assert!(!names(&kept).contains("task-io"));
}

#[test]
fn its_timeout_is_a_failure() {
    let scene = with_init(
        "cp {{INFILE}} {{OUTFILE}}",
        "trap '' TERM; sleep 77.25; sleep 77.25",
    )
    .set("EWMS_PILOT_INIT_TIMEOUT", "1")
    .set("EWMS_PILOT_KILL_GRACE", "0.2");
    assert_takes_no_event(
        scene,
        "ContainerRunError: init-container failed: [Timeout-Error] timed out after 1s",
    );
    processes::assert_nothing_runs("sleep 77.25", SOON);
}

#[test]
fn it_has_variables_of_its_own_and_no_tasks_files() {
    let scene = with_init(
        "{ cat {{DATA_HUB}}/told; env; } >{{OUTFILE}}",
        "env >{{DATA_HUB}}/told; ls /ewms-pilot-data >>{{DATA_HUB}}/told; echo {{INFILE}} >>{{DATA_HUB}}/told",
    )
    .set("EWMS_PILOT_INIT_ENV_JSON", r#"{"FOR_INIT": "a,b"}"#)
    .set("EWMS_PILOT_TASK_ENV_JSON", r#"{"FOR_TASK": "c,d"}"#);
    let (scene, incoming, outgoing) = scene.spool();
    incoming.put("event.txt", "");
    scene.run(SOON).assert_code(0);
    let told = std::fs::read_to_string(hub(&scene).join("told")).expect("the init container ran");
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines.contains(&"FOR_INIT=a,b"), "{told}");
    assert!(
        lines.contains(&"EWMS_TASK_DATA_HUB_DIR=/ewms-pilot-data/data-hub"),
        "{told}"
    );
    assert!(lines.contains(&"{{INFILE}}"), "{told}");
    for absent in [
        "FOR_TASK",
        "EWMS_TASK_INFILE",
        "EWMS_TASK_OUTFILE",
        "task-io",
    ] {
        assert!(!told.contains(absent), "{absent}: {told}");
    }
    let result = outgoing.files().into_values().next().expect("a result");
    let result = String::from_utf8(result).expect("UTF-8");
    let task = result.strip_prefix(&told).expect("the hub is shared");
    assert!(
        task.contains("FOR_TASK=c,d") && !task.contains("FOR_INIT"),
        "{task}"
    );
}
