//! Limits that end a task (memory, stall, disk), and limits on the outputs and files that are kept.

use std::fs;
use std::time::{Duration, Instant};

use crate::records::of_kind;
use crate::support::scene::Scene;
use crate::support::{SOON, eventually, images, processes};

fn python(source: &str) -> Scene {
    let args = format!("python3 -c {}", shell_words::quote(source));
    Scene::task(images::python(), args)
}

fn one_event(scene: Scene) -> (Scene, crate::support::scene::Outcome) {
    let (scene, incoming, _) = scene.spool();
    incoming.put("a.txt", "x");
    let outcome = scene.run(SOON);
    (scene, outcome)
}

#[test]
fn a_task_that_takes_too_much_memory_is_killed_and_told_why() {
    let source = "b = bytearray(300 << 20)\nimport time; time.sleep(84.5)";
    let (scene, outcome) = one_event(python(source).set("EWMS_PILOT_TASK_MEMORY", "200M"));
    outcome.assert_code(1);
    let expected = "task failed: [Memory-Error] more than 209715200 bytes of memory used";
    assert!(
        outcome.last_line().contains(expected),
        "{}",
        outcome.last_line()
    );
    processes::assert_nothing_runs("time.sleep(84.5)", SOON);
    let task = &of_kind(&scene, "task")[0];
    assert_eq!(task["fault_class"], "task");
    assert!(
        task["container_memory_bytes"].as_u64() > Some(200 << 20),
        "{task}"
    );
}

#[test]
fn the_processes_of_a_container_are_counted_together_and_shared_memory_once() {
    let children = |own: &str| {
        python(&format!(
            "import os, time\nb = bytearray(150 << 20)\nfor _ in range(4):\n  if not os.fork():\n    {own}\n    time.sleep(4)\n    os._exit(0)\nwhile True:\n  try: os.wait()\n  except ChildProcessError: break"
        ))
        .set("EWMS_PILOT_TASK_MEMORY", "400M")
    };
    let (_, shared) = one_event(children("pass"));
    shared.assert_code(0);
    let (_, own) = one_event(children("c = bytearray(100 << 20)"));
    assert!(
        own.last_line().contains("[Memory-Error]"),
        "{}",
        own.last_line()
    );
}

#[test]
fn a_task_within_its_memory_is_left_alone() {
    let (scene, outcome) = one_event(
        python("b = bytearray(50 << 20)\nimport time; time.sleep(2)")
            .set("EWMS_PILOT_TASK_MEMORY", "1G"),
    );
    outcome.assert_code(0);
    let seen = of_kind(&scene, "task")[0]["container_memory_bytes"].as_u64();
    assert!(seen > Some(50 << 20) && seen < Some(1 << 30), "{seen:?}");
}

#[test]
fn a_task_that_neither_works_nor_writes_is_ended() {
    let scene = Scene::task(images::busybox(), "sleep 84.25").set("EWMS_PILOT_TASK_STALL", "3");
    let (_, outcome) = one_event(scene.set("EWMS_PILOT_KILL_GRACE", "1"));
    outcome.assert_code(1);
    let expected = "[Stall-Error] neither CPU time nor output for 3s";
    assert!(
        outcome.last_line().contains(expected),
        "{}",
        outcome.last_line()
    );
    processes::assert_nothing_runs("sleep 84.25", SOON);
}

#[test]
fn a_task_that_works_or_writes_does_not_stall() {
    for script in [
        "for i in 1 2 3 4 5 6; do echo $i; sleep 1; done",
        "for i in 1 2 3 4 5 6; do echo $i >>{{OUTFILE}}; sleep 1; done",
        "end=$(($(date +%s) + 6)); while [ $(date +%s) -lt $end ]; do :; done",
    ] {
        let scene = Scene::task(
            images::busybox(),
            format!("sh -c {}", shell_words::quote(script)),
        );
        let (_, outcome) = one_event(scene.set("EWMS_PILOT_TASK_STALL", "3"));
        outcome.assert_code(0);
    }
}

#[test]
fn tasks_come_before_the_pilot_when_memory_runs_out() {
    let (scene, incoming, _) = Scene::task(images::busybox(), "sleep 84.75").spool();
    incoming.put("a.txt", "x");
    let pilot = scene.start();
    let adjusted = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap_or_default();
        text.trim().parse::<i32>().unwrap_or(-1)
    };
    assert!(eventually(SOON, || {
        let own = adjusted(pilot.pid());
        let mut task = processes::matching("sleep 84.75");
        task.retain(|process| process.command_line.starts_with("sleep"));
        !task.is_empty()
            && task
                .iter()
                .all(|process| adjusted(process.pid) >= own + 500)
    }));
}

#[test]
fn below_the_disk_floor_no_event_is_taken_and_tasks_are_told() {
    let scene = Scene::task(images::busybox(), "sleep 85.5")
        .set("EWMS_PILOT_MIN_FREE_DISK", "999T")
        .set("EWMS_PILOT_KILL_GRACE", "1");
    let (scene, incoming, _) = scene.spool();
    incoming.put("a.txt", "x");
    let outcome = scene.run(SOON);
    outcome.assert_code(3);
    assert!(
        outcome.last_line().contains("EWMS_PILOT_MIN_FREE_DISK"),
        "{}",
        outcome.last_line()
    );
    assert!(incoming.files().contains_key("a.txt"));
    processes::assert_nothing_runs("sleep 85.5", SOON);
}

#[test]
fn a_runaway_writer_fills_no_disk_and_its_last_words_are_kept() {
    let script = "head -c 300000000 /dev/zero; echo the end; echo last words >&2; exit 1";
    let scene = Scene::task(
        images::busybox(),
        format!("sh -c {}", shell_words::quote(script)),
    )
    .set("EWMS_PILOT_TASK_OUTPUT_MAX", "1M");
    let began = Instant::now();
    let (scene, outcome) = one_event(scene);
    assert!(
        outcome.last_line().contains("last words"),
        "{}",
        outcome.last_line()
    );
    assert!(began.elapsed() < Duration::from_secs(20));
    let id = of_kind(&scene, "task")[0]["task_id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let outputs = scene.dir().join("ewms-pilot-data").join(id).join("outputs");
    let stdout = fs::read(outputs.join("stdoutfile")).expect("it is kept");
    assert!(stdout.len() < (1 << 20) + 200, "{}", stdout.len());
    let text = String::from_utf8_lossy(&stdout);
    assert!(text.ends_with("the end\n"));
    assert!(text.contains("bytes are left out here: EWMS_PILOT_TASK_OUTPUT_MAX"));
}

#[test]
fn kept_directories_of_failed_tasks_have_a_cap_together() {
    let script = "head -c 3000000 /dev/zero >{{OUTFILE}}; echo why >&2; exit 1";
    let scene = Scene::task(
        images::busybox(),
        format!("sh -c {}", shell_words::quote(script)),
    )
    .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False")
    .set("EWMS_PILOT_KEPT_FILES_MAX", "4M");
    let (scene, outcome) = one_event(scene);
    outcome.assert_code(1);
    let kept = fs::read_dir(scene.dir().join("ewms-pilot-data")).expect("it is there");
    let dirs: Vec<_> = kept
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| !path.ends_with("data-hub"))
        .collect();
    assert_eq!(dirs.len(), 3, "the spool gives an event three tries");
    let outfiles = dirs
        .iter()
        .filter(|dir| dir.join("task-io").exists())
        .count();
    let outputs = dirs
        .iter()
        .filter(|dir| dir.join("outputs/stderrfile").exists())
        .count();
    assert_eq!((outfiles, outputs), (1, 3));
}
