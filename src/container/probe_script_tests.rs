//! The probe script's output and its evaluation. A shell of this machine runs the script here; in the
//! integration tests Apptainer's own does.

use std::process::Command;

use super::*;
use crate::container::ProcMount;
use crate::fault::FaultClass;

const WORD: &str = "probe-1";

fn needs() -> RunscriptNeeds {
    RunscriptNeeds {
        programs: vec!["/bin/sh".to_owned(), "/no/such".to_owned()],
        in_path: Some("no-such-name".to_owned()),
    }
}

fn trials(needs: &RunscriptNeeds) -> Trials<'_> {
    Trials {
        word: WORD,
        needs,
        copy: None,
        own: "/nowhere/at/all",
    }
}

/// The complete output except for `lacking`.
fn all_but(lacking: &[&str]) -> String {
    let said = [
        "tmp",
        "var-tmp",
        "home",
        "null",
        "shm",
        "proc",
        "io",
        "question",
        "hub",
        "program /bin/sh",
        "program /no/such",
        "name no-such-name",
        "end",
    ];
    let lines: Vec<String> = said
        .iter()
        .filter(|what| !lacking.contains(what))
        .map(|what| format!("{WORD} {what}\n"))
        .collect();
    lines.concat()
}

fn judged(stdout: &str, proc: ProcMount) -> ProbeFinding {
    let needs = needs();
    let trials = Trials {
        copy: Some(("/in", "/out")),
        ..trials(&needs)
    };
    let has_no_tmp = |path: &str| match path {
        "/var/tmp" => InImage::Nothing,
        _ => InImage::Directory,
    };
    found(
        &trials,
        (stdout.as_bytes(), b""),
        &ProbeResult::Works,
        proc,
        has_no_tmp,
    )
}

#[test]
fn each_lack_has_its_cause_and_is_named() {
    for (lacking, cause, name) in [
        ("tmp", Cause::MountsOff, "`/tmp` (`mount tmp`)"),
        ("home", Cause::MountsOff, "`$HOME` (`mount home`)"),
        ("null", Cause::MountsOff, "`/dev/null` (`mount dev`)"),
        ("shm", Cause::MountsOff, "`/dev/shm` (`mount dev`)"),
        ("proc", Cause::MountsOff, "`/proc` (`mount proc`)"),
        ("io", Cause::BindsUseless, "task's directory"),
        ("question", Cause::BindsUseless, "read a file"),
        ("hub", Cause::BindsUseless, "data directory"),
        ("program /bin/sh", Cause::ImageIncomplete, "`/bin/sh`"),
        ("program /no/such", Cause::ImageRunscript, "`/no/such`"),
        ("name no-such-name", Cause::ImageRunscript, "`no-such-name`"),
    ] {
        let ProbeFinding::Broken { cause: found, said } =
            judged(&all_but(&[lacking]), ProcMount::Own)
        else {
            panic!("{lacking} is missed");
        };
        assert_eq!(found, cause, "{lacking}");
        assert!(said.contains(name), "{lacking}: {said}");
    }
    assert_eq!(Cause::MountsOff.class(), FaultClass::Ep);
    assert_eq!(Cause::ImageRunscript.class(), FaultClass::Image);
}

#[test]
fn what_the_site_cannot_give_is_noted_and_no_fault_of_its() {
    let well = |found: ProbeFinding| match found {
        ProbeFinding::Well { notes } => notes,
        other => panic!("{other:?}"),
    };
    assert_eq!(well(judged(&all_but(&[]), ProcMount::Own)), [""; 0]);
    // A masked `/proc` was detected before.
    assert_eq!(well(judged(&all_but(&["proc"]), ProcMount::None)), [""; 0]);
    let notes = well(judged(&all_but(&["var-tmp"]), ProcMount::Own));
    assert!(notes[0].contains("`/var/tmp`"), "{notes:?}");
}

#[test]
fn a_start_that_the_image_ended_is_told_from_one_that_apptainer_ended() {
    let needs = needs();
    let judged = |stderr: &str, cause: Cause| {
        let said = "something".to_owned();
        let answer = ProbeResult::Broken { cause, said };
        let streams = (&b""[..], stderr.as_bytes());
        found(&trials(&needs), streams, &answer, ProcMount::Own, |_| {
            InImage::Directory
        })
    };
    assert_eq!(
        judged("X: unbound variable\n", Cause::Unknown),
        ProbeFinding::Ended
    );
    assert_eq!(judged("", Cause::Unknown), ProbeFinding::Ended);
    for (stderr, cause) in [
        ("FATAL:   something\n", Cause::Unknown),
        ("FATAL:   no space left on device\n", Cause::DiskFull),
    ] {
        assert!(
            matches!(judged(stderr, cause), ProbeFinding::Broken { cause: found, .. } if found == cause)
        );
    }
    let none = found(
        &trials(&needs),
        (b"", b""),
        &ProbeResult::Works,
        ProcMount::Own,
        |_| InImage::Directory,
    );
    assert_eq!(none, ProbeFinding::Silent);
}

#[test]
fn a_shell_that_stops_at_every_trouble_gets_through_the_script() {
    let needs = needs();
    let script = format!("set -eu\nunset HOME\n{}", script(&trials(&needs)));
    let output = Command::new("bash")
        .args(["-c", &script])
        .output()
        .expect("there is bash");
    assert!(output.status.success(), "{output:?}");
    let said = ScriptOutput::of(WORD, &output.stdout);
    assert!(
        said.has("null") && said.has("end") && said.has("program /bin/sh"),
        "{output:?}"
    );
    for lacking in ["io", "program /no/such", "name no-such-name"] {
        assert!(!said.has(lacking), "{lacking}");
    }
    let _ = std::fs::remove_file(format!("/tmp/.{WORD}"));
    let _ = std::fs::remove_file(format!("/var/tmp/.{WORD}"));
    let _ = std::fs::remove_file(format!("/dev/shm/.{WORD}"));
}

#[test]
fn the_first_script_that_was_not_left_is_found() {
    let names = ["10-a.sh", "90-b.sh", "99-c.sh"].map(str::to_owned);
    let stdout = format!("noise\n{WORD} past 10-a.sh\n");
    assert_eq!(not_past(WORD, &names, stdout.as_bytes()), Some("90-b.sh"));
    let all = names
        .each_ref()
        .map(|name| format!("{WORD} past {name}\n"))
        .concat();
    assert_eq!(not_past(WORD, &names, all.as_bytes()), None);
}

#[test]
fn a_file_is_read_whole_or_not_at_all() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("file");
    let text = "#!/bin/sh\n\n  exec \"$@\" \\\n # %s\n";
    std::fs::write(&path, text).expect("written");
    let script = reader(WORD, &path.to_string_lossy());
    let output = Command::new("bash")
        .args(["-c", &script])
        .output()
        .expect("there is bash");
    assert_eq!(read_by(WORD, &output.stdout).as_deref(), Some(text));
    let half = &output.stdout[..output.stdout.len() - 3];
    assert_eq!(read_by(WORD, half), None);
    assert_eq!(read_by(WORD, &output.stdout[WORD.len() + 1..]), None);
}
