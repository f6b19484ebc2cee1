//! A task's /tmp, /var/tmp and home: room, emptiness, and that nothing stays.

use std::fs;

use super::{
    assert_no_scratch, assert_only_the_hub_is_left, failure_of, names, python_task, result_of,
    shell_task,
};
use crate::support::{SOON, eventually, images, pilot_binary};

/// In the order in which a task could fill one through another.
const PLACES: [&str; 3] = ["/tmp", "/var/tmp", "$HOME"];

#[track_caller]
fn assert_there_is_room_in(place: &str) {
    // Apptainer's own would be 64 MiB of memory for the three together.
    let scene = shell_task(&format!(
        r#"set -e; cd "{place}"; ls -A >"$EWMS_TASK_OUTFILE"
        dd if=/dev/zero of=big bs=1000000 count=200 2>/dev/null
        stat -c %s big >>"$EWMS_TASK_OUTFILE""#
    ));
    let (scene, incoming, outgoing) = scene.spool();
    incoming.put("event.txt", "the event");
    scene.run(SOON).assert_code(0);
    let told: Vec<_> = outgoing.files().into_values().collect();
    assert_eq!(told, [b"200000000\n"], "{place} is empty at first");
    assert_only_the_hub_is_left(&scene);
}

#[test]
fn two_hundred_megabytes_fit_into_tmp_and_are_gone_afterwards() {
    assert_there_is_room_in(PLACES[0]);
}

#[test]
fn two_hundred_megabytes_fit_into_var_tmp_and_are_gone_afterwards() {
    assert_there_is_room_in(PLACES[1]);
}

#[test]
fn two_hundred_megabytes_fit_into_the_home_and_are_gone_afterwards() {
    assert_there_is_room_in(PLACES[2]);
}

#[test]
fn a_task_starts_in_its_home_and_may_write_there() {
    let told = result_of(shell_task(
        r#"touch here && test "$PWD" = "$HOME" && ls -A >"$EWMS_TASK_OUTFILE""#,
    ));
    assert_eq!(told, "here\n");
}

/// Directories that not even their owner may enter, in every place where a task may write.
const CLOSED: &str = r#"for place in /tmp /var/tmp "$HOME" /ewms-pilot-data/task-io; do
    mkdir -p "$place/closed/deep" && touch "$place/closed/deep/file"
    chmod 000 "$place/closed/deep" "$place/closed"
done"#;

#[test]
fn closed_directories_of_a_task_are_removed() {
    let (scene, incoming, _) = shell_task(CLOSED).spool();
    incoming.put("event.txt", "the event");
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert_only_the_hub_is_left(&scene);
    assert!(
        !outcome.stderr.contains("could not be removed"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn the_scratch_of_a_failed_task_is_removed_though_its_files_are_kept() {
    let (scene, _) = failure_of(shell_task(&format!("{CLOSED}; exit 1")));
    assert_no_scratch(&scene);
    let kept = super::kept(&scene);
    let kept = names(&kept.join("task-io"));
    assert!(kept.contains("closed"), "{kept:?}");
}

/// Python that leaves trees which are deeper than a stack, a path, or a table of descriptors allows, where
/// a container may write.
fn deep(in_tmp: usize, in_task_io: usize) -> String {
    format!(
        "import os\n\
         for place, levels in (('/tmp', {in_tmp}), ('/ewms-pilot-data/task-io', {in_task_io})):\n\
         \x20 if levels: os.chdir(place)\n\
         \x20 for _ in range(levels): os.mkdir('d'); os.chdir('d')\n"
    )
}

#[test]
fn a_tree_of_any_depth_costs_no_result_and_is_removed() {
    let source = deep(5_000, 2_500) + "open(os.environ['EWMS_TASK_OUTFILE'], 'w').write('result')";
    let init = format!("python3 -c {}", shell_words::quote(&deep(2_500, 0)));
    let scene = python_task(&source)
        .set("EWMS_PILOT_INIT_IMAGE", images::python())
        .set("EWMS_PILOT_INIT_ARGS", init);
    let (scene, incoming, outgoing) = scene.spool();
    incoming.put("event.txt", "the event");
    let script = format!("ulimit -n 256; exec {}", pilot_binary().display());
    let scene = scene.program("/bin/sh").arg("-c").arg(script);
    let outcome = scene.run(SOON * 4);
    outcome.assert_code(0);
    assert_eq!(outgoing.files().len(), 1, "{}", outcome.stderr);
    assert_only_the_hub_is_left(&scene);
}

#[test]
fn a_failed_tasks_tree_of_any_depth_is_removed_from_its_scratch() {
    let source = deep(2_500, 2_500) + "raise SystemExit(1)";
    let (scene, incoming, _) = python_task(&source)
        .set("EWMS_PILOT_KEPT_FILES_MAX", "1M")
        .spool();
    incoming.put("event.txt", "the event");
    let outcome = scene.run(SOON * 4);
    outcome.assert_code(1);
    assert_no_scratch(&scene);
    // Its own directory takes more than is kept: 2,500 blocks.
    let kept = names(&super::kept(&scene));
    assert!(!kept.contains("task-io"), "{kept:?}");
}

#[test]
fn a_result_is_out_before_what_its_task_left_is_cleared_away() {
    let source = "import os\n\
        for number in range(60000): open(f'/tmp/{number}', 'w').close()\n\
        open(os.environ['EWMS_TASK_OUTFILE'], 'w').write('result')";
    let (scene, incoming, outgoing) = python_task(source).spool();
    incoming.put("event.txt", "the event");
    let pilot = scene.start();
    assert!(
        eventually(SOON * 2, || outgoing.files().len() == 1),
        "{}",
        pilot.stderr()
    );
    let scratch = fs::read_dir(scene.dir().join("ewms-pilot-scratch")).expect("it is there");
    let left = scratch
        .flatten()
        // Others are those of containers that wait for an event.
        .filter(|entry| {
            fs::read_dir(entry.path().join("tmp")).is_ok_and(|files| files.count() > 0)
        });
    assert_eq!(left.count(), 1, "cleared away first");
    pilot.wait(SOON).assert_code(0);
    assert_only_the_hub_is_left(&scene);
}
