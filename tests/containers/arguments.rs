//! From `EWMS_PILOT_TASK_ARGS`, one string, to what the task's program gets as its arguments.

use super::{python_task, result_of};
use crate::support::images;
use crate::support::scene::Scene;

#[test]
fn a_bash_command_line_copies_the_event_to_the_result() {
    let scene = Scene::task(
        images::python(),
        r#"bash -c "sleep 0.1 && cp {{INFILE}} {{OUTFILE}}""#,
    );
    assert_eq!(result_of(scene), "the event");
}

#[test]
fn a_space_at_the_end_adds_no_argument() {
    let scene = Scene::task(
        images::python(),
        "bash -c \"echo \\$# >{{OUTFILE}} && test -d '{{DATA_HUB}}'\" ",
    );
    assert_eq!(result_of(scene), "0\n");
}

#[test]
fn a_python_program_of_several_lines_is_one_argument() {
    let scene = Scene::task(
        images::python(),
        "python3 -c \"\nimport sys\nif True:\n    text = open('{{INFILE}}').read()\nopen('{{OUTFILE}}', 'w').write(repr((text, sys.argv)))\n\"",
    );
    assert_eq!(result_of(scene), "('the event', ['-c'])");
}

const TELL: &str = "import json, os, sys\n\
    json.dump(sys.argv[1:], open(os.environ['EWMS_TASK_OUTFILE'], 'w'))";

fn words(args: &str) -> Vec<String> {
    let scene = python_task(TELL);
    let args = format!("python3 -c {} {args}", shell_words::quote(TELL));
    let told = result_of(scene.set("EWMS_PILOT_TASK_ARGS", args));
    serde_json::from_str(&told).expect("Python writes JSON")
}

#[test]
fn every_spelling_of_a_placeholder_is_replaced_and_unknown_ones_stay() {
    let words = words(
        "{{INFILE}} {{IN_FILE}} {{OUTFILE}} {{OUT_FILE}} {{DATA_HUB}} {{DATAHUB}} \
         --in={{INFILE}}x '{{INFILE}} {{INFILE}}' {{OTHER}} {INFILE} {{infile}}",
    );
    let infile = words[0].as_str();
    assert!(
        infile.starts_with("/ewms-pilot-data/task-io/infile-"),
        "{infile}"
    );
    let outfile = words[2].as_str();
    assert!(
        outfile.starts_with("/ewms-pilot-data/task-io/outfile-"),
        "{outfile}"
    );
    let hub = "/ewms-pilot-data/data-hub";
    let (joined, twice) = (format!("--in={infile}x"), format!("{infile} {infile}"));
    assert_eq!(
        words,
        [
            infile,
            infile,
            outfile,
            outfile,
            hub,
            hub,
            &joined,
            &twice,
            "{{OTHER}}",
            "{INFILE}",
            "{{infile}}"
        ]
    );
}

#[test]
fn nothing_expands_the_arguments() {
    let words =
        words(r#"$HOME '$HOME' "$(id)" `id` * ~ a;b '|' & > # '' "" '\n' "tab	" %s {a,b} é😀"#);
    assert_eq!(
        words,
        [
            "$HOME", "$HOME", "$(id)", "`id`", "*", "~", "a;b", "|", "&", ">", "#", "", "", "\\n",
            "tab\t", "%s", "{a,b}", "é😀"
        ]
    );
}

#[test]
fn flags_among_the_arguments_are_the_tasks_not_apptainers() {
    assert_eq!(
        words("--bind /etc:/mnt --debug -- --fakeroot"),
        ["--bind", "/etc:/mnt", "--debug", "--", "--fakeroot"]
    );
}

#[test]
fn an_argument_of_a_hundred_kilobytes_arrives_whole() {
    let long = "x y ".repeat(25_000);
    assert_eq!(words(&format!("'{long}'")), [long]);
}
