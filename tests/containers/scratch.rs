//! A task's /tmp, /var/tmp and home: room, emptiness, and that nothing stays.

use super::{
    assert_no_scratch, assert_only_the_hub_is_left, failure_of, names, result_of, shell_task,
};
use crate::support::SOON;

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
