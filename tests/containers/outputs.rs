//! What a container writes to stdout and stderr, where that stays and how long, and what it reads.

use std::fs;

use super::{assert_only_the_hub_is_left, failure_of, kept, names, result_of, shell_task};
use crate::support::scene::Scene;
use crate::support::{SOON, pilot_binary};

const BOTH: &str = r"printf 'to stdout\377\000\r'; printf 'to stderr\376\n\n' >&2";

#[test]
fn each_stream_of_a_failed_task_is_kept_byte_for_byte() {
    let (scene, _) = failure_of(shell_task(&format!("{BOTH}; exit 1")));
    let outputs = kept(&scene).join("outputs");
    let read = |name: &str| fs::read(outputs.join(name)).expect("it is kept");
    assert_eq!(read("stdoutfile"), b"to stdout\xff\0\r");
    assert_eq!(read("stderrfile"), b"to stderr\xfe\n\n");
    assert_eq!(names(&outputs).len(), 2);
}

#[test]
fn a_failed_tasks_event_and_half_written_result_are_kept() {
    let (scene, _) = failure_of(shell_task("echo half >{{OUTFILE}}; exit 1"));
    let kept = kept(&scene);
    let id = kept
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let read = |name: String| fs::read_to_string(kept.join("task-io").join(name));
    assert_eq!(read(format!("infile-{id}.in")).expect("kept"), "the event");
    assert_eq!(read(format!("outfile-{id}.out")).expect("kept"), "half\n");
    assert_eq!(names(&kept).len(), 2, "{:?}", names(&kept));
}

#[test]
fn nothing_of_a_task_that_succeeded_is_kept() {
    let (scene, incoming, outgoing) =
        shell_task(&format!("{BOTH}; cp {{{{INFILE}}}} {{{{OUTFILE}}}}")).spool();
    incoming.put("event.txt", "the event");
    let outcome = scene.run(SOON);
    assert!(
        !outcome.assert_code(0).stderr.contains("to stdout"),
        "{}",
        outcome.stderr
    );
    assert_eq!(outgoing.files().len(), 1);
    assert_only_the_hub_is_left(&scene);
}

#[test]
fn on_request_the_files_of_all_tasks_are_kept() {
    let scene = shell_task(BOTH).set("EWMS_PILOT_KEEP_ALL_TASK_FILES", "True");
    let (scene, incoming, _) = scene.spool();
    incoming.put("event.txt", "the event");
    scene.run(SOON).assert_code(0);
    let stdout = fs::read(kept(&scene).join("outputs/stdoutfile")).expect("it is kept");
    assert_eq!(stdout, b"to stdout\xff\0\r");
}

/// The lines of `log` between the marks around `name`'s output.
#[track_caller]
fn dumped<'a>(log: &'a str, name: &str) -> Vec<&'a str> {
    let (start, end) = (
        format!("--- start: {name} ---"),
        format!("--- end: {name} ---"),
    );
    let lines: Vec<&str> = log.lines().collect();
    let position = |mark: &str| {
        let found = lines.iter().position(|line| line.starts_with(mark));
        found.unwrap_or_else(|| panic!("no `{mark}` in:\n{log}"))
    };
    lines[position(&start) + 1..position(&end)].to_vec()
}

const SPEAK: &str = "echo 'on stdout'; echo 'on stderr' >&2; echo 'an unended line' >&2";

#[test]
fn a_failed_tasks_output_is_shown_between_marks() {
    let (_, outcome) = failure_of(shell_task(&format!("{SPEAK}; printf unended >&2; exit 1")));
    assert_eq!(dumped(&outcome.stderr, "task (stdout)"), ["on stdout"]);
    assert_eq!(
        dumped(&outcome.stderr, "task (stderr)"),
        ["on stderr", "an unended line", "unended"]
    );
}

/// Panics unless the log has both ends of the output, says where all of it is, and it is there.
#[track_caller]
pub(super) fn assert_ends_are_shown(log: &str, name: &str) {
    let shown = dumped(log, name);
    assert_eq!((shown[0], shown[shown.len() - 1]), ("first", "last"));
    let bytes: usize = shown.iter().map(|line| line.len() + 1).sum();
    assert!(bytes < 70_000, "{bytes}");
    let note = shown.iter().find_map(|line| line.split_once("all of it: "));
    let (_, path) = note.expect("it says where all of it is");
    let whole = fs::read_to_string(path.trim_end_matches(" ---")).expect("it is there");
    assert!(whole.starts_with("first\n1\n2\n") && whole.ends_with("\n200000\nlast\n"));
}

pub(super) const SPEAK_AT_LENGTH: &str =
    "{ echo first; seq 200000; echo last; } | tee /dev/stderr; exit 1";

#[test]
fn of_a_failed_tasks_long_output_the_log_has_both_ends_and_where_it_is() {
    let (_scene, outcome) = failure_of(shell_task(SPEAK_AT_LENGTH));
    for name in ["task (stdout)", "task (stderr)"] {
        assert_ends_are_shown(&outcome.stderr, name);
    }
}

#[test]
fn on_request_the_output_of_tasks_that_succeed_is_shown_between_marks() {
    let scene = shell_task(SPEAK).set("EWMS_PILOT_DUMP_TASK_OUTPUT", "True");
    let (scene, incoming, _) = scene.spool();
    incoming.put("event.txt", "the event");
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert_eq!(dumped(&outcome.stderr, "task (stdout)"), ["on stdout"]);
    assert_eq!(
        dumped(&outcome.stderr, "task (stderr)"),
        ["on stderr", "an unended line"]
    );
    assert_only_the_hub_is_left(&scene);
}

#[test]
fn a_task_whose_result_is_refused_shows_its_output_too() {
    let scene = shell_task(&format!("{SPEAK}; printf '\\377' >{{{{OUTFILE}}}}"));
    let (_, outcome) = failure_of(scene);
    assert!(
        outcome
            .last_line()
            .contains("InvalidDataFromOutfileException(")
    );
    assert_eq!(dumped(&outcome.stderr, "task (stdout)"), ["on stdout"]);
}

/// Has a shell start the pilot with these redirections.
fn redirected(scene: Scene, redirections: &str) -> Scene {
    let script = format!("exec \"$0\" {redirections}");
    scene
        .program("/bin/sh")
        .arg("-c")
        .arg(script)
        .arg(pilot_binary())
}

#[test]
fn a_tasks_stdin_is_empty_whatever_the_pilots_is() {
    let scene = shell_task(r#"{ readlink /proc/self/fd/0; cat; } >"$EWMS_TASK_OUTFILE""#);
    assert_eq!(result_of(redirected(scene, "</etc/passwd")), "/dev/null\n");
}

#[test]
fn a_task_inherits_no_open_file() {
    let scene = shell_task(
        r#"for file in /proc/$$/fd/*; do readlink "$file" && echo "${file##*/}" >>/tmp/open; done
        cp /tmp/open "$EWMS_TASK_OUTFILE""#,
    );
    let scene = redirected(scene, "3</etc/passwd 7>>/dev/null 9</etc");
    assert_eq!(result_of(scene), "0\n1\n2\n");
}
