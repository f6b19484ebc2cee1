//! Pilots that can't do their work: which are tried elsewhere, which are held, and what that says.

use std::fs;

use serde_json::Value;

use super::{
    AT_ONCE, assert_given_back, assert_results, fill, on_the_ep, pilots, sh, shell_pilots,
};
use crate::support::condor::{FIRST, Happened, SECOND};
use crate::support::images;

#[test]
fn a_pilot_without_its_image_takes_no_event_and_is_tried_on_another_machine() {
    let (submission, incoming, outgoing) = shell_pilots("cp {{INFILE}} {{OUTFILE}}");
    let events = fill(&incoming, 2);
    let jobs = submission
        // A rank would not do: a claim that an earlier job left is used again without asking for one.
        .set(
            "machines",
            &format!("TARGET.Machine == \"{SECOND}\" || MY.NumJobCompletions > 0"),
        )
        .set("avoid_seconds", "600")
        .submit();
    jobs.wait_for(Happened::Terminated, 1);
    jobs.wait_for_ends(1);
    assert_results(&outgoing, &events);
    let ads = jobs.history(1);
    assert_eq!(ads[0]["ExitCode"], 0);
    assert_eq!(ads[0]["NumJobCompletions"], 2);
    assert_eq!(ads[0]["MachineAttrMachine0"], FIRST);
    assert_eq!(ads[0]["MachineAttrMachine1"], SECOND);
    // Each run keeps its files: those of the first name the machine that it failed on.
    let records = jobs.files(0, "tasks.jsonl");
    let host = |run: &String| run.contains(&format!("\"host\":\"{SECOND}\""));
    let hosts: Vec<bool> = records.iter().map(host).collect();
    assert_eq!(hosts, [true, false], "{records:?}");
    for (run, machine) in jobs.files(0, "out").iter().zip([SECOND, FIRST]) {
        assert!(run.contains(&format!("Machine={machine}\n")), "{run}");
    }
    let logs = jobs.files(0, "err");
    assert_eq!(logs.len(), 2, "{logs:?}");
    assert!(
        logs[0].contains("`/images/busybox` does not exist"),
        "{logs:?}"
    );
    // The first run's error is of no meaning to the second one's readers.
    let log = fs::read_to_string(jobs.log()).expect("it is there");
    assert!(
        log.contains("/images/busybox"),
        "the first run told none: {log}"
    );
    let named = format!("MachineAttrMachine0 = \"{SECOND}\"");
    assert!(log.contains(&named), "{log}");
    for attribute in ["Error", "ErrorTraceback", "ErrorClass"] {
        assert_eq!(ads[0][format!("HTChirpEWMSPilot{attribute}")], Value::Null);
    }
}

#[test]
fn a_pilot_that_finds_its_image_nowhere_is_held_with_the_reason_and_took_no_event() {
    let (submission, incoming, _outgoing) = shell_pilots("true");
    fill(&incoming, 1);
    let jobs = submission
        .set("task_image", "/images/none")
        .set("retries", "0")
        .submit();
    jobs.wait_for(Happened::Held, 1);
    let ads = jobs.queue();
    assert_eq!(ads[0]["HoldReasonSubCode"], 6);
    let reason = ads[0]["HoldReason"].as_str().expect("there is one");
    assert!(
        reason.starts_with("ewms-pilot on localhost: exit code 6, image: "),
        "{reason}"
    );
    assert!(reason.contains("`/images/none`"), "{reason}");
    assert_eq!(incoming.delivery_counts(), [0]);
}

#[test]
fn a_wrong_configuration_is_held_at_once_with_what_is_wrong() {
    let (submission, incoming, _outgoing) = shell_pilots("true");
    fill(&incoming, 1);
    let jobs = submission.export("EWMS_PILOT_PREFETCH", "many").submit();
    jobs.wait_for(Happened::Held, 1);
    let ads = jobs.queue();
    assert_eq!(ads[0]["HoldReasonSubCode"], 2);
    assert_eq!(ads[0]["NumJobStarts"], 1);
    assert_eq!(ads[0]["HoldReason"], HELD_FOR_PREFETCH);
    assert_eq!(ads[0]["HTChirpEWMSPilotStatus"], "FatalError");
    assert!(
        jobs.file(0, "err").contains("`EWMS_PILOT_PREFETCH`"),
        "{}",
        jobs.story()
    );
    assert_eq!(incoming.delivery_counts(), [0]);
}

const WRONG_PREFETCH: &str =
    "RuntimeError: `EWMS_PILOT_PREFETCH` is `many`: expected an integer from 1 to 65535";
const HELD_FOR_PREFETCH: &str = "ewms-pilot on localhost: exit code 2, configuration: RuntimeError: \
                                 `EWMS_PILOT_PREFETCH` is `many`: expected an integer from 1 to 65535";

#[test]
fn a_wrong_configuration_is_in_the_event_log_too_where_services_read_it() {
    let (submission, _incoming, _outgoing) = shell_pilots("true");
    let jobs = submission
        .set("chirp_dest", "JOB_EVENT_LOG")
        .export("EWMS_PILOT_PREFETCH", "many")
        .submit();
    jobs.wait_for(Happened::Held, 1);
    assert_eq!(jobs.queue()[0]["HoldReason"], HELD_FOR_PREFETCH);
    let lines: Vec<String> = jobs
        .events()
        .iter()
        .filter_map(|event| event["Info"].as_str().map(str::to_owned))
        .collect();
    for expected in [
        format!("HTChirpEWMSPilotError: \"{WRONG_PREFETCH}\""),
        "HTChirpEWMSPilotStatus: \"FatalError\"".to_owned(),
    ] {
        assert!(lines.contains(&expected), "{expected}: {lines:?}");
    }
}

#[test]
fn a_task_over_the_slots_memory_gets_the_pilot_held_and_its_event_back() {
    let source = "import time; b = bytearray(1_500_000_000); time.sleep(84.23)";
    let args = format!("python3 -c {}", shell_words::quote(source));
    let (submission, incoming, _outgoing) = pilots(&images::python(), &args);
    fill(&incoming, 1);
    let jobs = submission.set("kill_grace", "2").submit();
    jobs.wait_for(Happened::Held, 1);
    let ads = jobs.queue();
    let reason = ads[0]["HoldReason"].as_str().expect("there is one");
    assert!(reason.to_lowercase().contains("memory"), "{reason}");
    assert_given_back(&incoming, 1);
    crate::support::processes::assert_nothing_runs("84.23", crate::support::SOON);
}

#[test]
fn a_task_image_that_travels_runs_where_there_is_none_and_the_env_file_has_any_name() {
    let list = "ls \"$EWMS_TASK_INPUT_FILES_DIR\" >{{OUTFILE}}";
    let (submission, incoming, outgoing) = shell_pilots(list);
    fill(&incoming, 4);
    let jobs = submission
        .env_file("conf/my.env")
        .set("task_sif", &images::busybox_sif().display().to_string())
        .set("machines", "true")
        .set("excluded_machines", FIRST)
        .set("n_pilots", "2")
        .set("max_idle", "1")
        .submit();
    jobs.wait_for_ends(2);
    let mut results = outgoing.consume(5, AT_ONCE);
    results.dedup();
    // Tasks see the image, as any input file, and not the settings.
    assert_eq!(results, [r#""busybox.sif\n""#], "{}", jobs.story());
    assert_eq!(incoming.depth(), 0);
    for ad in jobs.history(2) {
        assert_eq!(ad["ExitCode"], 0);
        assert_eq!(ad["MachineAttrMachine0"], SECOND);
    }
}

#[test]
fn two_pilots_on_one_machine_share_one_converted_image() {
    let (submission, incoming, outgoing) = pilots(
        &images::busybox_sif(),
        &sh("sleep 0.5; cp {{INFILE}} {{OUTFILE}}"),
    );
    let events = fill(&incoming, 8);
    let shared = on_the_ep();
    let jobs = submission
        .set("n_pilots", "2")
        .export(
            "_EWMS_PILOT_APPTAINER_IMAGE_DIRECTORY_MUST_BE_PRESENT",
            "False",
        )
        .export(
            "_EWMS_PILOT_APPTAINER_BUILD_WORKDIR",
            &shared.path().display().to_string(),
        )
        .submit();
    jobs.wait_for_ends(2);
    assert_results(&outgoing, &events);
    let store = fs::read_dir(shared.path())
        .expect("it is there")
        .flatten()
        .next();
    let store = store.expect("the images were converted there").path();
    let entries = fs::read_dir(store).expect("it is a directory").flatten();
    // Beside them lie the locks.
    let paths = entries.map(|entry| entry.path());
    let sandboxes: Vec<_> = paths.filter(|path| path.is_dir()).collect();
    assert_eq!(sandboxes.len(), 1, "{sandboxes:?}");
}
