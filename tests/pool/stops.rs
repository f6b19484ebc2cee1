//! Pilots that HTCondor stops, sends elsewhere or lets wait: no event is lost and nothing runs on.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{assert_given_back, assert_results, fill, on_the_ep, shell_pilots};
use crate::support::condor::{BY_THEN, Happened};
use crate::support::{SOON, eventually, processes};

/// The grace that the jobs here are submitted with, in seconds, and what the pilot needs after it.
const GRACE: &str = "2";
const GRACE_AND_CLEANUP: Duration = Duration::from_secs(15);

/// A task that doesn't listen, and that only this test has.
fn stubborn(marker: &str) -> String {
    format!(
        "trap '' TERM INT HUP; sleep {marker}; sleep {marker}; cp {{{{INFILE}}}} {{{{OUTFILE}}}}"
    )
}

/// Panics if a reader of the ad sees an error.
#[track_caller]
fn assert_no_error(ad: &Value) {
    for attribute in ["Error", "ErrorTraceback", "ErrorClass"] {
        assert_eq!(ad[format!("HTChirpEWMSPilot{attribute}")], Value::Null);
    }
}

#[track_caller]
fn assert_stopped_without_error(ad: &Value) {
    assert_eq!(ad["HTChirpEWMSPilotStatus"], "PendingRemainingTasks");
    assert_no_error(ad);
}

/// Sleeps the first time that it runs on an event, not the second: the hub doesn't survive a job,
/// a directory of the execution point does.
fn slow_at_first(memory: &Path, marker: &str) -> String {
    let memory = memory.display();
    format!("test -e {memory}/go || sleep {marker}; cp {{{{INFILE}}}} {{{{OUTFILE}}}}")
}

#[test]
fn condor_rm_during_a_task_gives_its_event_back_within_the_grace_and_leaves_no_process() {
    let marker = "81.13";
    let (submission, incoming, _outgoing) = shell_pilots(&stubborn(marker));
    fill(&incoming, 2);
    let jobs = submission
        .set("kill_grace", GRACE)
        .export("EWMS_PILOT_PREFETCH", "2")
        .submit();
    jobs.wait_for_process(&format!("sleep {marker}"));
    let began = Instant::now();
    jobs.tell("condor_rm");
    processes::assert_nothing_runs(&format!("sleep {marker}"), GRACE_AND_CLEANUP);
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "no grace was given"
    );
    jobs.wait_for(Happened::Aborted, 1);
    assert_given_back(&incoming, 2);
    processes::assert_nothing_runs(marker, SOON);
    let ads = jobs.history(1);
    assert_eq!(ads[0]["JobStatus"], 3);
    assert_stopped_without_error(&ads[0]);
}

#[test]
fn a_vacated_pilot_runs_again_and_no_event_is_lost() {
    let marker = "82.17";
    let memory = on_the_ep();
    let (submission, incoming, outgoing) = shell_pilots(&slow_at_first(memory.path(), marker));
    let events = fill(&incoming, 4);
    let jobs = submission
        .set("kill_grace", GRACE)
        .export(
            "EWMS_PILOT_EXTERNAL_DIRECTORIES",
            &memory.path().display().to_string(),
        )
        .export("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "10")
        .submit();
    jobs.wait_for_process(&format!("sleep {marker}"));
    fs::write(memory.path().join("go"), "").expect("written");
    jobs.tell("condor_vacate_job");
    jobs.wait_for(Happened::Evicted, 1);
    jobs.wait_for_ends(1);
    assert_eq!(jobs.count(Happened::Executing), 2);
    assert_results(&outgoing, &events);
    assert_eq!(incoming.depth(), 0);
    let ads = jobs.history(1);
    assert_eq!(ads[0]["ExitCode"], 0);
    assert_eq!(ads[0]["NumJobCompletions"], 1, "an eviction is no retry");
    assert_eq!(ads[0]["HTChirpEWMSPilotStatus"], "Done");
    assert_no_error(&ads[0]);
}

#[test]
fn an_idle_pilot_that_is_removed_leaves_no_error_in_the_event_log_either() {
    let (submission, _incoming, _outgoing) = shell_pilots("true");
    let jobs = submission
        .set("chirp_dest", "JOB_EVENT_LOG")
        .export("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "600")
        .submit();
    let log = || fs::read_to_string(jobs.log()).unwrap_or_default();
    let waits = || log().contains("HTChirpEWMSPilotStatus: \"AwaitingFirstMessage\"");
    assert!(eventually(BY_THEN, waits), "{}", jobs.story());
    jobs.tell("condor_rm");
    jobs.wait_for(Happened::Aborted, 1);
    let stopped = || log().contains("HTChirpEWMSPilotStatus: \"PendingRemainingTasks\"");
    assert!(eventually(SOON, stopped), "{}", jobs.story());
    for wrong in ["HTChirpEWMSPilotError", "FatalError"] {
        assert!(!log().contains(wrong), "{}", log());
    }
}

#[test]
fn a_held_pilot_gives_its_event_back_and_goes_on_when_released() {
    let marker = "83.19";
    let memory = on_the_ep();
    let (submission, incoming, outgoing) = shell_pilots(&slow_at_first(memory.path(), marker));
    let events = fill(&incoming, 2);
    let jobs = submission
        .set("kill_grace", GRACE)
        .export(
            "EWMS_PILOT_EXTERNAL_DIRECTORIES",
            &memory.path().display().to_string(),
        )
        .export("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "10")
        .submit();
    jobs.wait_for_process(&format!("sleep {marker}"));
    jobs.tell("condor_hold");
    jobs.wait_for(Happened::Held, 1);
    assert_stopped_without_error(&jobs.queue()[0]);
    processes::assert_nothing_runs(&format!("sleep {marker}"), GRACE_AND_CLEANUP);
    assert_given_back(&incoming, 2);
    fs::write(memory.path().join("go"), "").expect("written");
    jobs.tell("condor_release");
    jobs.wait_for(Happened::Released, 1);
    jobs.wait_for(Happened::Terminated, 1);
    assert_results(&outgoing, &events);
    assert_eq!(jobs.history(1)[0]["ExitCode"], 0);
}

#[test]
fn a_suspended_pilot_stands_still_with_its_task_and_then_goes_on() {
    let marker = "3.0841";
    let script = format!("sleep {marker}; cp {{{{INFILE}}}} {{{{OUTFILE}}}}");
    let (submission, incoming, outgoing) = shell_pilots(&script);
    let events = fill(&incoming, 2);
    let jobs = submission.submit();
    let task = jobs.wait_for_process(&format!("sleep {marker}"));
    jobs.tell("condor_suspend");
    jobs.wait_for(Happened::Suspended, 1);
    let stopped = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains("State:\tT")
    };
    let still = eventually(SOON, || stopped(task.pid));
    assert!(still, "the task goes on: {task:?}");
    jobs.tell("condor_continue");
    jobs.wait_for(Happened::Unsuspended, 1);
    jobs.wait_for_ends(1);
    assert_results(&outgoing, &events);
    assert_eq!(jobs.count(Happened::Executing), 1);
    assert_eq!(jobs.history(1)[0]["ExitCode"], 0);
}
