//! The rows are observed outputs of Apptainer.

use super::*;

const TRACEBACK: &str = "Traceback (most recent call last):
  File \"/usr/lib/python3.10/runpy.py\", line 196, in _run_module_as_main
    return _run_code(code, main_globals, None,
  File \"/usr/local/lib/python3.10/dist-packages/skymap_scanner/client/reco.py\", line 151, in reco_pixel
    reco.setup_reco()
RuntimeError: Error reading table coefficients";

const DEBUG_END: &str = "
DEBUG   [U=59925,P=95]     CleanupContainer()            Cleanup container
DEBUG   [U=59925,P=95]     umount()                      Umount /var/lib/apptainer/mnt/session/final
DEBUG   [U=59925,P=95]     Master()                      Child exited with exit status 1
";

fn reason_of(stderr: &str) -> String {
    reason(stderr.as_bytes())
}

#[test]
fn the_last_traceback_is_the_reason() {
    let noise = "...\nfoo\n\nTraceback (most recent call last):\n    not this one\n...\n";
    assert_eq!(reason_of(&format!("{noise}{TRACEBACK}\n")), TRACEBACK);
    assert_eq!(
        reason_of(&format!("{noise}{TRACEBACK}\n{DEBUG_END}")),
        TRACEBACK
    );
    assert_eq!(
        reason_of(&format!(
            "{noise}{TRACEBACK}\nINFO:    Cleaning up image...\n"
        )),
        TRACEBACK
    );
}

#[test]
fn blank_lines_and_apptainers_lines_within_a_traceback_are_dropped() {
    let stderr = TRACEBACK.replace(
        "RuntimeError",
        "\n  \nDEBUG   [U=1,P=2]  f()  x\nRuntimeError",
    );
    assert_eq!(reason_of(&stderr), TRACEBACK);
}

const GROUP: &str = "  + Exception Group Traceback (most recent call last):
  |   File \"/tmp/eg.py\", line 4, in <module>
  |     f()
  | ExceptionGroup: many (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File \"/tmp/eg.py\", line 1, in g
    | ValueError: a
    +---------------- 2 ----------------
    | ExceptionGroup: inner (1 sub-exception)
    +-+---------------- 1 ----------------
      | TypeError: b
      +------------------------------------";

#[test]
fn an_exception_groups_traceback_is_the_reason_with_all_its_exceptions() {
    let chained = "The above exception was the direct cause of the following exception:\n";
    for before in ["...\n".to_owned(), format!("{TRACEBACK}\n\n{chained}\n")] {
        assert_eq!(reason_of(&format!("{before}{GROUP}\n")), GROUP);
    }
    assert_eq!(
        reason_of(&format!("{GROUP}\n\n{chained}\n{TRACEBACK}\n")),
        TRACEBACK
    );
    assert_eq!(reason_of(&format!("{GROUP}\n{DEBUG_END}")), GROUP);
}

#[test]
fn a_fault_handlers_report_is_the_reason_and_holds_nothing_that_changes() {
    let report = |thread: &str, pid: u32| {
        format!(
            "Fatal Python error: Segmentation fault\n\n\
             Thread 0x00007efe89a2e6c0 (most recent call first):\n  File \"threading.py\", line {pid} in run\n\n\
             Current thread {thread} (most recent call first):\n  File \"<string>\", line 4 in f\n  \
             File \"<string>\", line 5 in <module>\n\n\
             Extension modules: numpy.core._multiarray_umath (total: 1)\n\
             bash: line 1: {pid} Segmentation fault      python3\n"
        )
    };
    let reason = "Fatal Python error: Segmentation fault\nCurrent thread (most recent call first):\n  \
                  File \"<string>\", line 4 in f\n  File \"<string>\", line 5 in <module>";
    let first = report("0x00007efe8a7bfb80", 12);
    assert_eq!(reason_of(&format!("{TRACEBACK}\n{first}")), reason);
    // Python 3.14 also names the thread.
    assert_eq!(
        reason_of(&report("0x00001efe8a7bfb80 [python]", 4711)),
        reason
    );
    assert_eq!(reason_of(&format!("{first}{TRACEBACK}\n")), TRACEBACK);
    let early = "Fatal Python error: init_fs_encoding: failed to get the Python codec\n\
                 Python runtime state: core initialized\nModuleNotFoundError: No module named 'encodings'";
    let thread = "Current thread 0x00007f (most recent call first):\n  <no Python frame>";
    assert_eq!(
        reason_of(&format!("{early}\n\n{thread}\n")),
        format!("{early}\n{}", thread.replace(" 0x00007f", ""))
    );
}

#[test]
fn without_a_traceback_it_is_the_last_line_that_is_not_apptainers() {
    let curl = "curl: (22) The requested URL returned error: 404";
    for stderr in [
        format!("...\nfoo\n{curl}\n"),
        format!("...\nfoo\n{curl}{DEBUG_END}"),
        format!(
            "WARNING: Ignoring /a bind mount: user bind control disabled by system administrator\n{curl}"
        ),
        format!("{curl}\r\n\r\n"),
        format!("10%\r50%\r100%\r{curl}\r"),
    ] {
        assert_eq!(reason_of(&stderr), curl, "{stderr:?}");
    }
}

#[test]
fn when_only_apptainer_spoke_its_worst_message_is_the_reason() {
    let rows = [
        (
            "FATAL:   \"x\": executable file not found in $PATH\n",
            "\"x\": executable file not found in $PATH",
        ),
        (
            "FATAL:   stat /x: no such file or directory\n",
            "stat /x: no such file or directory",
        ),
        ("FATAL:   permission denied\n", "permission denied"),
        (
            "WARNING: something small\nFATAL:   While checking container encryption: could not open image /i: x\n",
            "While checking container encryption: could not open image /i: x",
        ),
        (
            "\x1b[31mERROR  : Failed to create user namespace: maximum number of user namespaces exceeded\x1b[0m\n",
            "Failed to create user namespace: maximum number of user namespaces exceeded",
        ),
        (
            "ERROR:   No runscript and no /bin/sh executable found in container, failing\n",
            "No runscript and no /bin/sh executable found in container, failing",
        ),
        (
            "INFO:    x\nWARNING: y\nINFO:    Cleaning up image...\n",
            "y",
        ),
        (
            "DEBUG   [U=613,P=1]        sylogBuiltin()                Running action command run\n\
             FATAL   [U=613,P=1]        StageTwo()                    exec /bin/bash failed: fork/exec /bin/bash: input/output error\n\
             DEBUG   [U=613,P=47]       startContainer()              stage 2 process reported an error, waiting status\n\
             DEBUG   [U=613,P=47]       Master()                      Child exited with exit status 255\n",
            "exec /bin/bash failed: fork/exec /bin/bash: input/output error",
        ),
        (DEBUG_END, "Child exited with exit status 1"),
        (
            "VERBOSE [U=0,P=42]       message without a function\n",
            "message without a function",
        ),
    ];
    for (stderr, message) in rows {
        assert_eq!(
            reason_of(stderr),
            format!("[Apptainer-Error] {message}"),
            "{stderr:?}"
        );
    }
}

#[test]
fn nothing_at_all_and_chatter_is_said_so() {
    let chatter = "INFO:    gocryptfs not found, will not be able to use gocryptfs\n";
    for stderr in ["", "\n", " \n\r\n\t\n", "\x1b[0m\n", chatter] {
        assert_eq!(reason_of(stderr), "<no stderr logs>", "{stderr:?}");
    }
}

#[test]
fn a_tasks_own_lines_only_look_like_apptainers() {
    for line in [
        "ERROR: no such pixel",
        "ERROR:root:no such pixel",
        "FATAL: no such pixel",
        "INFO: x",
        "DEBUG   [U=x,P=1] f() y",
        "DEBUG   [U=1,P=] f() y",
        "debug   [U=1,P=1] f() y",
        "[U=1,P=1] f() y",
        "FATALITY:   x",
    ] {
        assert_eq!(reason_of(line), line);
    }
}

#[test]
fn any_bytes_give_a_reason() {
    assert_eq!(reason(b"caf\xe9\n"), "caf\u{fffd}");
    assert_eq!(reason(b"\xff\xfe\x00"), "\u{fffd}\u{fffd}\0");
    assert_eq!(
        reason("é\u{1b}[31mrot\u{1b}[0m \u{1b}[2Kx \u{1b}[".as_bytes()),
        "érot \u{1b}[2Kx \u{1b}["
    );
}

#[test]
fn apptainers_errors_are_found_beside_the_tasks_lines() {
    let stderr = b"starting\nERROR  : Failed to create user namespace: x\nFATAL:   y\nbye\n";
    assert_eq!(
        apptainer_error(stderr).as_deref(),
        Some("Failed to create user namespace: x; y")
    );
    assert_eq!(
        apptainer_error(b"INFO:    Starting build...\nhello\n"),
        None
    );
    let many = b"ERROR:   1\nERROR:   2\nERROR:   3\nFATAL:   4\n";
    assert_eq!(apptainer_error(many).as_deref(), Some("2; 3; 4"));
}

#[test]
fn scrubbed_reasons_of_two_tasks_are_equal() {
    let reason = |id: &str| {
        format!("mount /data/{id}/task-io->/ewms-pilot-data/task-io error: no space for {id}")
    };
    let scrubbed = |id: &str| scrub(&reason(id), &[(id, "<id>"), ("", "never")]);
    assert_eq!(scrubbed("a1"), scrubbed("b2"));
    assert_eq!(
        scrubbed("a1"),
        "mount /data/<id>/task-io->/ewms-pilot-data/task-io error: no space for <id>"
    );
}
