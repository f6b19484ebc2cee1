//! What a container writes to stdout and stderr, where that stays and how long, and what it reads.

use std::fs;

use super::{assert_only_the_hub_is_left, failure_of, kept, names, result_of, sh, shell_task};
use crate::support::scene::{Outcome, Scene};
use crate::support::{SOON, images, pilot_binary};

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

/// The lines of a stream between the marks around what the container of this kind wrote to it, and that
/// container's id.
#[track_caller]
fn dumped<'a>(text: &'a str, container: &str, stream: &str) -> (Vec<&'a str>, &'a str) {
    let lines: Vec<&str> = text.lines().collect();
    let position = |which: &str| {
        let start = format!("--- {which}: {container} ");
        let found = lines.iter().position(|line| line.starts_with(&start));
        let found = found.unwrap_or_else(|| panic!("no `{start}` in:\n{text}"));
        let (id, rest) = lines[found][start.len()..].split_once(' ').expect("a name");
        assert!(rest.starts_with(&format!("({stream}) ---")), "{text}");
        (found, id)
    };
    let ((start, id), (end, id_at_end)) = (position("start"), position("end"));
    assert_eq!(id, id_at_end);
    (lines[start + 1..end].to_vec(), id)
}

/// Panics unless each stream of the pilot has what the task wrote to that stream, with its id, and stdout
/// nothing else.
#[track_caller]
fn assert_dumped(outcome: &Outcome, on_stdout: &[&str], on_stderr: &[&str]) -> String {
    let (stdout, id) = dumped(&outcome.stdout, "task", "stdout");
    assert_eq!(stdout, on_stdout);
    assert_eq!(outcome.stdout.lines().count(), on_stdout.len() + 2);
    let (stderr, same_id) = dumped(&outcome.stderr, "task", "stderr");
    assert_eq!(stderr, on_stderr);
    assert_eq!(id, same_id);
    assert!(!outcome.stderr.contains("(stdout)"), "{}", outcome.stderr);
    id.to_owned()
}

const SPEAK: &str = "echo 'on stdout'; echo 'on stderr' >&2; echo 'an unended line' >&2";

#[test]
fn a_failed_tasks_output_is_shown_between_marks() {
    let (scene, outcome) = failure_of(shell_task(&format!("{SPEAK}; printf unended >&2; exit 1")));
    let on_stderr = ["on stderr", "an unended line", "unended"];
    let id = assert_dumped(&outcome, &["on stdout"], &on_stderr);
    assert!(kept(&scene).ends_with(id));
}

/// Panics unless each stream has both ends of what the container wrote to it, says where all of it is, and it
/// is there.
#[track_caller]
pub(super) fn assert_ends_are_shown(outcome: &Outcome, container: &str) {
    for (text, stream) in [(&outcome.stdout, "stdout"), (&outcome.stderr, "stderr")] {
        let (shown, _) = dumped(text, container, stream);
        assert_eq!((shown[0], shown[shown.len() - 1]), ("first", "last"));
        let bytes: usize = shown.iter().map(|line| line.len() + 1).sum();
        assert!(bytes < 70_000, "{bytes}");
        let note = shown.iter().find_map(|line| line.split_once("all of it: "));
        let (_, path) = note.expect("it says where all of it is");
        let whole = fs::read_to_string(path.trim_end_matches(" ---")).expect("it is there");
        assert!(whole.starts_with("first\n1\n2\n") && whole.ends_with("\n200000\nlast\n"));
    }
}

pub(super) const SPEAK_AT_LENGTH: &str =
    "{ echo first; seq 200000; echo last; } | tee /dev/stderr; exit 1";

#[test]
fn of_a_failed_tasks_long_output_both_ends_are_shown_and_where_it_is() {
    let (_scene, outcome) = failure_of(shell_task(SPEAK_AT_LENGTH));
    assert_ends_are_shown(&outcome, "task");
}

#[test]
fn on_request_the_output_of_tasks_that_succeed_is_shown_between_marks() {
    let scene = shell_task(SPEAK).set("EWMS_PILOT_DUMP_TASK_OUTPUT", "True");
    let (scene, incoming, _) = scene.spool();
    incoming.put("event.txt", "the event");
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert_dumped(&outcome, &["on stdout"], &["on stderr", "an unended line"]);
    assert_only_the_hub_is_left(&scene);
}

#[test]
fn of_a_container_that_wrote_nothing_no_block_is_shown() {
    for (script, shown) in [("true", [false, false]), ("echo here >&2", [false, true])] {
        for script in [script.to_owned(), format!("{script}; false")] {
            let (scene, incoming, _) = shell_task(&script)
                .set("EWMS_PILOT_DUMP_TASK_OUTPUT", "True")
                .set("EWMS_PILOT_INIT_IMAGE", images::busybox())
                .set(
                    "EWMS_PILOT_INIT_ARGS",
                    sh(script.trim_end_matches("; false")),
                )
                .spool();
            incoming.put("event.txt", "the event");
            let outcome = scene.run(SOON);
            for (text, shown) in [&outcome.stdout, &outcome.stderr].into_iter().zip(shown) {
                let marks = text.matches("--- start: ").count();
                assert_eq!(marks, if shown { 2 } else { 0 }, "{script}: {text}");
            }
        }
    }
}

#[test]
fn where_both_streams_are_one_no_log_line_stands_within_an_output() {
    // 20 outputs of half a megabyte each, of four tasks at once.
    let scene = shell_task("seq 80000")
        .set("EWMS_PILOT_DUMP_TASK_OUTPUT", "True")
        .set("EWMS_PILOT_CL_LOG", "DEBUG")
        .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "4");
    let (scene, incoming, _) = redirected(scene, "2>&1 | cat >both").spool();
    for number in 0..20 {
        incoming.put(&format!("{number}.txt"), "the event");
    }
    scene.run(SOON).assert_code(0);
    let both = fs::read_to_string(scene.dir().join("both")).expect("it is written");
    let lines: Vec<&str> = both.lines().collect();
    let is_start = |line: &str| line.starts_with("--- start: task ");
    let starts = (0..lines.len()).filter(|number| is_start(lines[*number]));
    let starts: Vec<usize> = starts.collect();
    assert_eq!(starts.len(), 20);
    for start in starts {
        let output = lines[start + 1..=start + 80_000].iter();
        assert!(
            output.eq((1..=80_000)
                .map(|number| number.to_string())
                .collect::<Vec<_>>()
                .iter())
        );
        assert!(lines[start + 80_001].starts_with("--- end: task "));
    }
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
    assert_dumped(&outcome, &["on stdout"], &["on stderr", "an unended line"]);
}

/// Has a shell start the pilot with these redirections.
fn redirected(scene: Scene, redirections: &str) -> Scene {
    let script = format!("\"$0\" {redirections}");
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
