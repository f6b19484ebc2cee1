//! What a failed task is called: the pilot's last line, which people and services read.

use super::{failure_of, python_task, shell_task};
use crate::support::scene::Scene;
use crate::support::{SOON, images};

/// The one failure in a pilot's last line.
#[track_caller]
fn error_of(scene: Scene) -> String {
    let (_, outcome) = failure_of(scene);
    let line = outcome.last_line();
    let error = line.strip_prefix("RuntimeError: 1 TASK(S) FAILED: ");
    error
        .unwrap_or_else(|| panic!("{}", outcome.stderr))
        .to_owned()
}

#[test]
fn a_python_traceback_is_the_reason_from_its_first_line_to_the_end() {
    let error = error_of(python_task(
        "import sys\n\
         print('Traceback of nothing, then more', file=sys.stderr)\n\
         raise ValueError('it\\'s \"bad\",\\n\\tgrüße \\\\')\n",
    ));
    assert_eq!(
        error,
        concat!(
            r"ContainerRunError('task failed (exit code 1): Traceback (most recent call last):\n",
            r#"  File "<string>", line 3, in <module>\n"#,
            r#"    raise ValueError(\'it\\\'s "bad",\\n\\tgrüße \\\\\')\n"#,
            r#"ValueError: it\'s "bad",\n\tgrüße \\')"#,
        )
    );
}

#[test]
fn without_a_traceback_the_last_line_of_stderr_is_the_reason() {
    assert_eq!(
        error_of(shell_task(
            "echo first >&2; echo out; echo 'the last' >&2; echo >&2; exit 7"
        )),
        "ContainerRunError('task failed (exit code 7): the last')"
    );
}

#[test]
fn a_task_that_says_nothing_has_no_reason_but_its_exit_code() {
    assert_eq!(
        error_of(shell_task("exit 9")),
        "ContainerRunError('task failed (exit code 9): <no stderr logs>')"
    );
}

#[test]
fn exit_code_255_is_the_tasks_own() {
    assert_eq!(
        error_of(shell_task("echo mine >&2; exit 255")),
        "ContainerRunError('task failed (exit code 255): mine')"
    );
}

#[test]
fn a_crash_has_the_exit_code_that_a_shell_gives_it() {
    assert_eq!(
        error_of(shell_task("kill -SEGV $$")),
        "ContainerRunError('task failed (exit code 139): <no stderr logs>')"
    );
}

#[test]
fn a_task_that_kills_its_whole_process_group_fails_alone() {
    assert_eq!(
        error_of(shell_task("kill -9 0; sleep 76.25")),
        "ContainerRunError('task failed (exit code -9): <no stderr logs>')"
    );
}

#[test]
fn a_command_that_the_image_lacks_is_named() {
    assert_eq!(
        error_of(Scene::task(images::busybox(), "no-such-command --flag")),
        "ContainerRunError('task failed (exit code 127): \
         /.singularity.d/runscript: exec: line 2: no-such-command: not found')"
    );
}

#[test]
fn quotes_newlines_and_bytes_are_written_as_python_writes_them() {
    assert_eq!(
        error_of(shell_task(
            r#"printf "it's \"x\"\t\\ \033 é \377" >&2; exit 1"#
        )),
        r#"ContainerRunError('task failed (exit code 1): it\'s "x"\t\\ \x1b é �')"#
    );
    assert_eq!(
        error_of(shell_task(r#"echo "it's" >&2; exit 1"#)),
        r#"ContainerRunError("task failed (exit code 1): it's")"#
    );
}

#[test]
fn equal_failures_have_equal_texts_though_tasks_differ_in_id_and_paths() {
    let scene = shell_task(
        "echo Traceback >&2; cat {{INFILE}}x {{OUTFILE}}; ls /ewms-pilot-data/task-io >&2; exit 1",
    )
    .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False");
    let (scene, incoming, _) = scene.spool();
    for name in ["one.txt", "two.txt"] {
        incoming.put(name, "");
    }
    let outcome = scene.run(SOON);
    outcome.assert_code(1);
    let line = outcome.last_line();
    let list = line
        .strip_prefix("RuntimeError: 6 TASK(S) FAILED: ")
        .unwrap_or_else(|| panic!("{}", outcome.stderr));
    let first = &list[..(list.len() - 5 * ", ".len()) / 6];
    assert_eq!(list, [first; 6].join(", "));
    assert!(
        first.contains("{{INFILE}}x") && first.contains("{{OUTFILE}}"),
        "{first}"
    );
}
