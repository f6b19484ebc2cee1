//! Pilots that nobody disturbs: what they deliver and what HTCondor is told meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{assert_results, fill, on_the_ep, shell_pilots};
use crate::support::condor::{FIRST, Happened, run};
use crate::support::scene::Scene;
use crate::support::{SOON, eventually, source_dir};

const PREFIX: &str = "HTChirpEWMSPilot";

/// A pilot's reports: name without prefix, and value, in order.
type Reports = Vec<(String, String)>;

#[test]
fn three_pilots_do_sixty_events_and_the_event_log_tells_every_status_and_the_counts() {
    let (submission, incoming, outgoing) = shell_pilots("sleep 0.1; cp {{INFILE}} {{OUTFILE}}");
    let events = fill(&incoming, 60);
    let jobs = submission
        .set("n_pilots", "3")
        .set("chirp_dest", "JOB_EVENT_LOG")
        .submit();
    jobs.wait_for_ends(3);
    assert_results(&outgoing, &events);
    assert_eq!(incoming.depth(), 0);

    let progress_reporter = reports_in_event_log(&jobs.events());
    assert_eq!(progress_reporter.len(), 3, "{}", jobs.story());
    let mut done = 0;
    for (process, progress_reporter) in &progress_reporter {
        let statuses: Vec<&str> = of(progress_reporter, "Status");
        assert_eq!(
            statuses,
            [
                "Started",
                "AwaitingFirstMessage",
                "Tasking",
                "PendingRemainingTasks",
                "Done"
            ],
            "{process}: {progress_reporter:?}"
        );
        let count = |name: &str| -> u32 {
            let last = of(progress_reporter, name).pop().expect("it was reported");
            last.parse().expect("it is a number")
        };
        assert_eq!(count("TasksTotal"), count("TasksSuccess"));
        assert_eq!(of(progress_reporter, "TasksFailed"), [""; 0]);
        assert!(count("StartedTimestamp") > 1_600_000_000);
        assert_eq!(
            progress_reporter.last().map(|(name, _)| name.as_str()),
            Some("LastUpdatedTimestamp")
        );
        done += count("TasksSuccess");
    }
    assert_eq!(done, 60);
}

#[test]
fn one_task_is_told_in_no_more_lines_of_the_event_log_than_by_the_python_pilot() {
    let (submission, incoming, _outgoing) = shell_pilots("cp {{INFILE}} {{OUTFILE}}");
    fill(&incoming, 1);
    let jobs = submission.set("chirp_dest", "JOB_EVENT_LOG").submit();
    jobs.wait_for_ends(1);
    let reports = reports_in_event_log(&jobs.events())
        .remove(&0)
        .expect("it reported");
    // Which the Python pilot writes, seen on this pool.
    assert!(reports.len() <= 13, "{}: {reports:?}", reports.len());
    let known = [
        "StartedTimestamp",
        "Status",
        "TasksTotal",
        "TasksSuccess",
        "LastUpdatedTimestamp",
    ];
    for (name, _) in &reports {
        assert!(known.contains(&name.as_str()), "{name}: {reports:?}");
    }
    let log = fs::read_to_string(jobs.log()).expect("it is there");
    assert_eq!(log.matches(PREFIX).count(), reports.len(), "{log}");
}

#[test]
fn a_running_pilot_is_a_line_of_condor_q_with_its_first_counts_at_once() {
    let memory = on_the_ep();
    let go = memory.path().join("go");
    let script = format!(
        "case $(cat {{{{INFILE}}}}) in 0) ;; *) until test -e {}; do sleep 0.2; done ;; esac; cp {{{{INFILE}}}} {{{{OUTFILE}}}}",
        go.display()
    );
    let (submission, incoming, outgoing) = shell_pilots(&script);
    let events = fill(&incoming, 2);
    let jobs = submission
        .export(
            "EWMS_PILOT_EXTERNAL_DIRECTORIES",
            &memory.path().display().to_string(),
        )
        .submit();
    let format = source_dir().join("condor/ewms-pilots.cpf");
    let lines = |program: &str| {
        let mut command = Command::new(program);
        run(command
            .arg("-print-format")
            .arg(&format)
            .arg(jobs.cluster()))
    };
    let of_the_pilot = |text: &str| -> Vec<String> {
        let name = format!("{}.0 ", jobs.cluster());
        let line = text.lines().find(|line| line.starts_with(&name));
        let words = line.unwrap_or_default().split_whitespace();
        words.map(str::to_owned).collect()
    };
    let name = format!("{}.0", jobs.cluster());
    jobs.wait_for(Happened::Executing, 1);
    // Less than the interval of a minute.
    let expected = [&name, FIRST, "Tasking", "1", "0"];
    let mut last = String::new();
    let is_so = eventually(Duration::from_secs(30), || {
        last = lines("condor_q");
        of_the_pilot(&last) == expected
    });
    assert!(is_so, "{last}");
    fs::write(&go, "").expect("written");
    jobs.wait_for_ends(1);
    assert_results(&outgoing, &events);
    jobs.history(1);
    let ended = lines("condor_history");
    assert_eq!(
        of_the_pilot(&ended),
        [&name, FIRST, "Done", "2", "0"],
        "{ended}"
    );
}

#[test]
fn with_job_attributes_the_last_report_is_in_the_history() {
    let (submission, incoming, outgoing) = shell_pilots("cp {{INFILE}} {{OUTFILE}}");
    let events = fill(&incoming, 3);
    let jobs = submission.set("taskforce_uuid", "tf-history").submit();
    jobs.wait_for_ends(1);
    assert_results(&outgoing, &events);
    let ads = jobs.history(1);
    let attribute = |name: &str| &ads[0][format!("{PREFIX}{name}")];
    assert_eq!(*attribute("Status"), "Done");
    assert_eq!(*attribute("TasksTotal"), 3);
    assert_eq!(*attribute("TasksSuccess"), 3);
    assert_eq!(*attribute("TasksFailed"), Value::Null);
    assert_eq!(*attribute("Error"), Value::Null);
    assert!(attribute("LastUpdatedTimestamp").as_i64() >= attribute("StartedTimestamp").as_i64());
    assert_eq!(ads[0]["EWMSTaskforceUUID"], "tf-history");
    // The host's own name is another one.
    assert_eq!(*attribute("Machine"), FIRST);
    assert_eq!(ads[0]["MachineAttrMachine0"], FIRST);
    let records = jobs.file(0, "tasks.jsonl");
    for record in records.lines() {
        let record: Value = serde_json::from_str(record).expect("it is JSON");
        assert_eq!(record["host"], FIRST);
    }
    assert_eq!(records.lines().count(), 5, "{records}");
    assert!(
        records.contains(r#""taskforce_uuid":"tf-history""#),
        "{records}"
    );
    assert_eq!(ads[0]["ExitCode"], 0);
}

#[test]
fn both_modules_of_htcondors_python_package_take_the_template_as_it_is() {
    let mut taken = Vec::new();
    let mut submitted = Vec::new();
    for module in ["htcondor", "htcondor2"] {
        let (submission, incoming, outgoing) = shell_pilots("cp {{INFILE}} {{OUTFILE}}");
        let events = fill(&incoming, 2);
        if let Some(jobs) = submission.submit_by_python(module, 2) {
            taken.push(module);
            submitted.push((jobs, incoming, outgoing, events));
        }
    }
    for (jobs, _incoming, outgoing, events) in &submitted {
        jobs.wait_for_ends(2);
        assert_results(outgoing, events);
        let ads = jobs.history(2);
        assert_eq!(ads[0]["ExitCode"], 0, "{}", jobs.story());
        assert_eq!(ads[0]["JobBatchName"], "ewms-pilot");
    }
    // HTCondor 25 has no `htcondor` any more.
    assert!(taken.ends_with(&["htcondor2"]), "{taken:?}");
}

#[test]
fn crons_command_keeps_as_many_pilots_as_are_wanted_while_events_wait() {
    let memory = on_the_ep();
    let go = memory.path().join("go");
    let script = format!(
        "until test -e {}; do sleep 0.2; done; cp {{{{INFILE}}}} {{{{OUTFILE}}}}",
        go.display()
    );
    let (submission, incoming, outgoing) = shell_pilots(&script);
    let submission = submission.export(
        "EWMS_PILOT_EXTERNAL_DIRECTORIES",
        &memory.path().display().to_string(),
    );
    let taskforce = format!("tf-{}", incoming.name());
    assert_eq!(submission.top_up(2, &taskforce), "", "no event waits");
    let events = fill(&incoming, 3);
    let said = submission.top_up(2, &taskforce);
    assert!(said.contains("2 job(s) submitted to cluster "), "{said}");
    let cluster = said.trim().trim_end_matches('.').rsplit(' ').next();
    let cluster = cluster.expect("it names the cluster").to_owned();
    // They are in the queue, whether they run or not.
    assert_eq!(submission.top_up(2, &taskforce), "");
    let jobs = submission.jobs(&cluster);
    fs::write(&go, "").expect("written");
    jobs.wait_for_ends(2);
    assert_results(&outgoing, &events);
}

#[test]
fn a_failed_task_ends_the_job_with_its_error_in_the_history_and_no_retry() {
    let (submission, incoming, _outgoing) = shell_pilots("echo 'no \"photons\"' >&2; exit 3");
    fill(&incoming, 1);
    let jobs = submission.submit();
    jobs.wait_for_ends(1);
    let ads = jobs.history(1);
    assert_eq!(ads[0]["ExitCode"], 1);
    assert_eq!(ads[0]["NumJobStarts"], 1);
    let error = "RuntimeError: 1 TASK(S) FAILED: \
                 ContainerRunError('task failed (exit code 3): no \"photons\"')";
    assert_eq!(ads[0][format!("{PREFIX}Error")], error);
    assert_eq!(ads[0][format!("{PREFIX}ErrorClass")], "task");
    assert_eq!(ads[0][format!("{PREFIX}Status")], "FatalError");
    assert!(
        jobs.file(0, "err").trim_end().ends_with(error),
        "{}",
        jobs.story()
    );
    assert_eq!(incoming.delivery_counts(), [1]);

    // The report leads from the records to the job whose log has the task.
    let report = Scene::new()
        .arg("report")
        .arg(".")
        .arg("--tasks")
        .arg("failed");
    let records = jobs.file(0, "tasks.jsonl");
    fs::write(report.dir().join("tasks.jsonl"), records).expect("the scene is writable");
    let listed = report.run(SOON).stdout;
    let mut cells = listed.split_whitespace();
    let job = format!("{}.0", jobs.cluster());
    assert_eq!(cells.next(), Some(&*job), "{listed}");
    let task = cells.next().expect("a task");
    assert!(
        jobs.file(0, "err").contains(task),
        "{listed}{}",
        jobs.story()
    );
}

/// By process. A report is a line `NAME: "value"` of a generic event.
fn reports_in_event_log(events: &[Value]) -> BTreeMap<i64, Reports> {
    let mut progress_reporter: BTreeMap<i64, Reports> = BTreeMap::new();
    for event in events {
        let Some((name, value)) = event["Info"]
            .as_str()
            .and_then(|info| info.split_once(": "))
        else {
            continue;
        };
        let Some(name) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let value = value.trim_matches('"').to_owned();
        let process = event["proc"].as_i64().expect("it has one");
        progress_reporter
            .entry(process)
            .or_default()
            .push((name.to_owned(), value));
    }
    progress_reporter
}

/// All values of one report, in order.
fn of<'a>(progress_reporter: &'a Reports, name: &str) -> Vec<&'a str> {
    let same = progress_reporter
        .iter()
        .filter(|(reported, _)| reported == name);
    same.map(|(_, value)| value.as_str()).collect()
}
