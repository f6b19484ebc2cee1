//! From a failure to its log: the job, host and task that `ewms-pilot report` names for each error, and the tasks
//! that `--tasks` lists.

use std::fs;

use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::scene::{Outcome, Scene};

/// Three pilots: at A all is well but for a slow task, at B the machine fails, at C a task does.
fn three_pilots() -> Scene {
    let scene = Scene::new().arg("report").arg(".");
    let pilots = [
        ("a", "4711.0", "SITE-A", 0, None),
        ("b", "4711.1", "SITE-B", 3, Some("no user namespaces")),
        ("c", "4711.2", "SITE-C", 143, Some("stopped by SIGTERM")),
    ];
    for (pilot, job, site, exit_code, error) in pilots {
        let line = |kind: &str, fields: Value| {
            let mut record = json!({"format": 1, "kind": kind, "pilot_id": pilot, "host": format!("{pilot}.example.org"),
                "site": site});
            let fields = fields.as_object().expect("fields").clone();
            record.as_object_mut().expect("fields").extend(fields);
            record.to_string()
        };
        let mut lines = vec![line("pilot_start", json!({"job_id": job, "slots": 1}))];
        for number in 0..40 {
            let (outcome, class, error) = match (site, number) {
                ("SITE-B", 7) => (
                    "given_back",
                    Some("ep"),
                    Some("mount hook function failure"),
                ),
                ("SITE-C", 3 | 9) => (
                    "failed",
                    Some("task"),
                    Some("AssertionError: bad pixel\nmore"),
                ),
                _ => ("done", None, None),
            };
            let ran = if (site, number) == ("SITE-A", 5) {
                500.0
            } else {
                10.0 + f64::from(number)
            };
            lines.push(line(
                "task",
                json!({"task_id": format!("task-{pilot}{number}"), "slot": 1, "outcome": outcome,
                "fault_class": class, "error": error, "wall_time_secs": ran,
                "started_unix_secs": 1_790_000_000.0, "ended_unix_secs": 1_790_000_000.0 + ran}),
            ));
        }
        lines.push(line(
            "pilot_end",
            json!({"exit_code": exit_code, "error": error, "started": 40}),
        ));
        let name = format!("{pilot}.jsonl");
        fs::write(scene.dir().join(name), lines.join("\n")).expect("the scene is writable");
    }
    scene
}

fn run(scene: Scene, arguments: &[&str]) -> Outcome {
    arguments.iter().fold(scene, Scene::arg).run(SOON)
}

fn lines(outcome: &Outcome) -> Vec<&str> {
    outcome.stdout.lines().collect()
}

#[test]
fn each_error_names_a_job_a_host_and_a_task_to_look_at() {
    let scene = three_pilots().arg("--html").arg("page.html");
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    let shown = [
        (
            "2  task",
            "for example job 4711.2 on c.example.org, task task-c3",
        ),
        (
            "1  ep",
            "for example job 4711.1 on b.example.org, task task-b7",
        ),
        ("1  ep", "for example job 4711.1 on b.example.org"),
    ];
    for (error, example) in shown {
        let mut rows = lines(&outcome)
            .into_iter()
            .skip_while(|line| !line.trim().starts_with(error));
        assert!(
            rows.any(|row| row.trim() == example),
            "{example}:\n{}",
            outcome.stdout
        );
    }
    let page = fs::read_to_string(scene.dir().join("page.html")).expect("it was written");
    assert!(page.contains("job 4711.2 on c.example.org, task task-c3"));
    let numbers: Value =
        serde_json::from_str(&run(three_pilots(), &["--json"]).stdout).expect("JSON");
    let expected = json!({"job_id": "4711.2", "host": "c.example.org", "task_id": "task-c3"});
    assert_eq!(numbers["errors"][0]["example"], expected);
}

#[test]
fn pilots_that_failed_are_classed_by_their_exit_code() {
    let outcome = run(three_pilots(), &["--json"]);
    let numbers: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    let errors = numbers["pilots"]["errors"].as_array().expect("a list");
    let classes: Vec<(&str, &str)> = errors
        .iter()
        .map(|error| {
            (
                error["error"].as_str().expect("text"),
                error["fault_class"].as_str().expect("text"),
            )
        })
        .collect();
    assert_eq!(
        classes,
        [
            ("no user namespaces", "ep"),
            ("stopped by SIGTERM", "stopped")
        ]
    );
}

#[test]
fn tasks_are_listed_a_line_each_with_the_job_that_has_their_log() {
    let failed = run(three_pilots(), &["--tasks", "failed"]);
    failed.assert_code(0);
    assert_eq!(failed.stderr, "ewms-pilot report: 2 tasks failed\n");
    let listed = lines(&failed);
    assert_eq!(listed.len(), 2, "{}", failed.stdout);
    let cells: Vec<&str> = listed[0]
        .split("  ")
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .collect();
    let expected = [
        "4711.2",
        "task-c3",
        "c.example.org",
        "SITE-C",
        "2026-09-21 14:13:33",
        "failed (task)",
        "13.0 s",
        "AssertionError: bad pixel … more",
    ];
    // The error keeps the row to one line.
    assert_eq!(cells, expected);

    let given_back = run(
        three_pilots(),
        &[
            "--tasks",
            "given-back",
            "--site",
            "SITE-B",
            "--error",
            "hook",
        ],
    );
    assert!(
        given_back.stdout.starts_with("4711.1  task-b7 "),
        "{}",
        given_back.stdout
    );
    assert_eq!(lines(&given_back).len(), 1);

    // Of 117 that succeeded one in twenty; the longest first.
    let slow = run(three_pilots(), &["--tasks", "slow"]);
    assert!(
        slow.stdout.starts_with("4711.0  task-a5 "),
        "{}",
        slow.stdout
    );
    assert!((5..9).contains(&lines(&slow).len()), "{}", slow.stdout);
    assert!(
        slow.stderr.contains("tasks that ran 48.0 s or longer"),
        "{}",
        slow.stderr
    );

    let as_json = run(three_pilots(), &["--tasks", "failed", "--json"]);
    let records: Vec<Value> = lines(&as_json)
        .iter()
        .map(|line| serde_json::from_str(line).expect("a record"))
        .collect();
    assert_eq!(records.len(), 2);
    assert_eq!(
        (&records[0]["job_id"], &records[0]["task_id"]),
        (&json!("4711.2"), &json!("task-c3"))
    );
}

#[test]
fn a_list_without_a_task_says_where_they_are() {
    let outcome = run(
        three_pilots(),
        &["--tasks", "failed", "--error", "mount hook"],
    );
    outcome.assert_code(0);
    let said = "ewms-pilot report: 0 tasks failed; but 1 task given back: --tasks given-back\n";
    assert_eq!((&*outcome.stdout, &*outcome.stderr), ("", said));
    let outcome = run(three_pilots(), &["--tasks", "failed", "--site", "SITE-D"]);
    outcome.assert_code(2);
    let said =
        "ewms-pilot report: no record is of a site `SITE-D`; there are SITE-A, SITE-B, SITE-C\n";
    assert_eq!(outcome.stderr, said);
}

#[test]
fn a_task_whose_file_is_there_twice_is_listed_once() {
    let scene = three_pilots();
    fs::copy(scene.dir().join("c.jsonl"), scene.dir().join("copy.jsonl")).expect("writable");
    let outcome = run(scene, &["--tasks", "failed"]);
    assert_eq!(lines(&outcome).len(), 2, "{}", outcome.stdout);
}
