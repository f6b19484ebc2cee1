//! A row for each observed end of a container, in Apptainer's own words, as it writes them without and with
//! `--debug`.

use super::*;
use crate::fault::FaultClass;

/// The exit code, stderr, and the cause if a probe gives the same.
const SEEN: &[(i32, &str, Cause)] = &[
    (
        255,
        "FATAL:   While checking container encryption: could not open image /x: failed to retrieve path for /x: lstat /x: no such file or directory",
        Cause::ImageMissing,
    ),
    (
        255,
        "FATAL:   While checking container encryption: could not open image /x: open /x: permission denied",
        Cause::ImageMissing,
    ),
    (
        255,
        "FATAL:   While checking container encryption: could not open image /x: image format not recognized",
        Cause::ImageFormat,
    ),
    (
        255,
        "FATAL:   While checking container encryption: could not open image /x: while checking image: not a valid squashfs image",
        Cause::ImageFormat,
    ),
    (
        255,
        "FATAL:   container creation failed: image driver mount failure: squashfuse_ll exited: Something went wrong trying to read the squashfs image.",
        Cause::ImageDamaged,
    ),
    (
        255,
        "FATAL:   container creation failed: mount hook function failure: mount /dev->/dev error: while mounting /dev: destination /dev doesn't exist in container",
        Cause::ImageIncomplete,
    ),
    (
        255,
        "FATAL:   container creation failed: mount hook function failure: mount /a->/a error: while mounting /a: mount source /a doesn't exist",
        Cause::BindSource,
    ),
    (
        1,
        "\x1b[91mERROR  : Failed to create user namespace: maximum number of user namespaces exceeded, check /proc/sys/user/max_user_namespaces\n\x1b[0m",
        Cause::Namespaces,
    ),
    (
        1,
        "ERROR  : Failed to create mount namespace: mount namespace not supported by your system",
        Cause::Namespaces,
    ),
    (
        1,
        "ERROR  : Failed to create ipc namespace: No space left on device",
        Cause::Namespaces,
    ),
    (
        1,
        "ERROR  : Failed to create container process: No space left on device",
        Cause::Namespaces,
    ),
    (
        255,
        "FATAL:   container creation failed: image driver mount failure: squashfuse_ll exited: fuse: device not found, try 'modprobe fuse' first",
        Cause::Fuse,
    ),
    (
        255,
        "FATAL:   container creation failed: image driver mount failure: failed to open /dev/fuse: Permission denied",
        Cause::Fuse,
    ),
    (
        255,
        "FATAL:   container creation failed: mount hook function failure: mount proc->/proc error: while mounting proc: can't mount proc filesystem to /proc: operation not permitted",
        Cause::MaskedProc,
    ),
    (
        255,
        "\x1b[31mFATAL:  \x1b[0m Couldn't determine user account information: user: unknown userid 4242",
        Cause::Account,
    ),
    (
        255,
        "FATAL:   container creation failed: while applying cgroups config: cannot use cgroups - cannot use systemd cgroups manager",
        Cause::Cgroups,
    ),
    (
        255,
        "FATAL:   container creation failed: while creating session directory: mkdir /s: no space left on device",
        Cause::DiskFull,
    ),
    (
        255,
        "FATAL:   container creation failed: open /data: disk quota exceeded",
        Cause::DiskFull,
    ),
    (
        255,
        "FATAL:   container creation failed: lstat /cvmfs/x: transport endpoint is not connected",
        Cause::Storage,
    ),
    (
        255,
        "FATAL:   exec /bin/bash failed: fork/exec /bin/bash: input/output error",
        Cause::Storage,
    ),
    (
        255,
        "FATAL:   container creation failed: mount hook function failure: mount overlay->/ error: fuse-overlayfs: cannot mount: Operation not permitted",
        Cause::Mount,
    ),
    (
        2,
        "fatal error: failed to reserve page summary memory\n\nruntime stack:\nruntime.throw({0x1, 0x2})",
        Cause::Limits,
    ),
    (
        134,
        "runtime/cgo: pthread_create failed: Resource temporarily unavailable\nSIGABRT: abort",
        Cause::Limits,
    ),
    (
        2,
        "runtime/cgo: runtime/cgo: pthread_create failed: Resource temporarily unavailablepthread_create failed: Resource temporarily unavailable\n\nSIGABRT: abortSIGABRT: abort",
        Cause::Limits,
    ),
    (
        139,
        "runtime/cgo: pthread_create failed: Resource temporarily unavailable\n",
        Cause::Limits,
    ),
    (
        2,
        "runtime: out of memory: cannot allocate 4194304-byte block (0 in use)\nfatal error: out of memory\n",
        Cause::Limits,
    ),
    (
        1,
        "Error for command \"exec\": unknown flag: --no-eval\n\nOptions for exec command:",
        Cause::ApptainerTooOld,
    ),
    (
        255,
        "FATAL:   something that nobody has seen yet",
        Cause::Unknown,
    ),
    (135, "", Cause::Unknown),
];

const DOESNT_EXIST: &str =
    "FATAL:   stat /.ewms-pilot-probe/no-such-command: no such file or directory\n";
const FORBIDDEN: &str = "WARNING: Ignoring /home/x/hub bind mount: user bind control disabled by system administrator\nWARNING: User bind control is disabled by system administrator\n";
const NO_PID_NAMESPACE: &str = "WARNING: Not virtualizing pid namespace by configuration\n";

/// The same as `--debug` writes it. Apptainer's C part and Go's runtime ignore `--debug`.
fn debugged(stderr: &str) -> Option<String> {
    let (level, message) = ["FATAL", "WARNING"]
        .iter()
        .find_map(|level| Some((level, stderr.strip_prefix(level)?.strip_prefix(':')?)))?;
    Some(format!(
        "DEBUG   [U=1000,P=1]       Master()                      chatter\n{level:<7} [U=1000,P=1]       StageTwo()                    {}\nDEBUG   [U=1000,P=1]       Master()                      Child exited with exit status 255\n",
        message.trim()
    ))
}

#[test]
fn a_probes_answer_names_the_cause_of_every_row() {
    for (code, stderr, cause) in SEEN {
        for stderr in [Some((*stderr).to_owned()), debugged(stderr)]
            .into_iter()
            .flatten()
        {
            let ProbeResult::Broken { cause: found, said } = answer(*code, stderr.as_bytes())
            else {
                panic!("{stderr} is taken for a container that works");
            };
            assert_eq!(found, *cause, "{stderr}");
            assert!(!said.is_empty(), "{stderr}");
        }
    }
}

/// The task or Apptainer may have written the row: it points at Apptainer or at nothing.
#[test]
fn every_row_is_worth_a_probe() {
    for (code, stderr, _) in SEEN {
        for stderr in [Some((*stderr).to_owned()), debugged(stderr)]
            .into_iter()
            .flatten()
        {
            let next_step = suspect(*code, stderr.as_bytes());
            assert!(
                matches!(next_step, NextStep::Probe | NextStep::ProbeAndRead),
                "{next_step:?}: {stderr}"
            );
        }
    }
}

#[test]
fn a_command_that_doesnt_exist_proves_that_all_else_does() {
    assert_eq!(answer(255, DOESNT_EXIST.as_bytes()), ProbeResult::Works);
    let debugged = debugged(DOESNT_EXIST).expect("it is Apptainer's");
    assert_eq!(answer(255, debugged.as_bytes()), ProbeResult::Works);
    let without_proc = format!(
        "WARNING: Error getting executable path, using default: readlink /proc/self/exe: no such file or directory\n{DOESNT_EXIST}"
    );
    assert_eq!(answer(255, without_proc.as_bytes()), ProbeResult::Works);
    for (code, other) in [
        (0, ""),
        (1, DOESNT_EXIST),
        (255, "FATAL:   stat /other: no such file or directory\n"),
        (
            255,
            "stat /.ewms-pilot-probe/no-such-command: no such file or directory\n",
        ),
    ] {
        assert!(
            matches!(answer(code, other.as_bytes()), ProbeResult::Broken { .. }),
            "{other}"
        );
    }
}

#[test]
fn binds_that_a_site_forbids_are_found_whatever_the_task_makes_of_it() {
    for (warning, cause) in [
        (FORBIDDEN, Cause::BindsForbidden),
        (NO_PID_NAMESPACE, Cause::PidNamespace),
    ] {
        for code in [0, 1, 3, 127, 255] {
            let stderr =
                format!("{warning}Traceback (most recent call last):\nOSError: no infile\n");
            assert_eq!(suspect(code, stderr.as_bytes()), NextStep::Probe, "{code}");
        }
        let ProbeResult::Broken { cause: found, .. } =
            answer(255, format!("{warning}{DOESNT_EXIST}").as_bytes())
        else {
            panic!("{warning} works");
        };
        assert_eq!(found, cause);
        assert_eq!(cause.class(), FaultClass::Ep);
    }
}

#[test]
fn a_tasks_own_end_needs_no_probe() {
    for (code, stderr) in [
        (0, ""),
        (0, "INFO:    gocryptfs not found\nERROR: mine\n"),
        (1, "Traceback (most recent call last):\nValueError: x\n"),
        (2, "usage: reco [-h]\n"),
        (3, ""),
        (127, "sh: nonsense: not found\n"),
        // A program for another architecture: the shell tries to read it.
        (2, "/usr/bin/reco: line 1: \u{7f}ELF: not found\n"),
        (137, "working\n"),
        (255, "ssh: connection refused\n"),
        (42, "FATAL:   I only pretend\n"),
    ] {
        assert_eq!(
            suspect(code, stderr.as_bytes()),
            NextStep::Task,
            "{code} {stderr}"
        );
    }
}

#[test]
fn what_only_looks_like_apptainers_asks_for_a_probe_and_no_more() {
    for (code, stderr) in [
        (255, "FATAL:   container creation failed: I am the task\n"),
        (255, ""),
        (1, ""),
        (134, ""),
        (137, ""),
        (255, "FATAL:   \"x\": executable file not found in $PATH\n"),
        (255, "FATAL:   stat /x: no such file or directory\n"),
        (255, "FATAL:   permission denied\n"),
        (
            255,
            "FATAL:   exec /x failed: fork/exec /x: exec format error\n",
        ),
    ] {
        assert_eq!(
            suspect(code, stderr.as_bytes()),
            NextStep::Probe,
            "{code} {stderr}"
        );
    }
}

#[test]
fn a_page_or_file_that_cannot_be_read_asks_to_read_the_image() {
    for (code, stderr) in [
        (135, ""),
        (
            1,
            "OSError: [Errno 5] Input/output error: '/usr/lib/x.so'\n",
        ),
        (126, "sh: /bin/x: Input/output error\n"),
        (
            1,
            "ls: /cvmfs/icecube: Transport endpoint is not connected\n",
        ),
        (2, "cp: Stale file handle\n"),
    ] {
        assert_eq!(
            suspect(code, stderr.as_bytes()),
            NextStep::ProbeAndRead,
            "{code} {stderr}"
        );
    }
}

#[test]
fn an_image_without_a_shell_is_found_by_a_probe_and_no_tasks_word_is_believed() {
    for text in [
        "ERROR:   No runscript and no /bin/sh executable found in container, failing\n",
        "FATAL:   No runscript and no /bin/sh executable found\n",
    ] {
        for stderr in [text.to_owned(), format!("hello\n{text}")] {
            assert_eq!(suspect(1, stderr.as_bytes()), NextStep::Probe, "{stderr}");
        }
    }
}
