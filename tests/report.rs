//! `ewms-pilot report`: it counts records, names lines and files that it can't read, and finds bad places.
//! The records are made up, because real pilots have no thousand sites here.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::condor::{Submission, python};
use crate::support::scene::{Outcome, Scene};
use crate::support::{SOON, pilot_binary, source_dir};

/// Files below a directory of its own.
fn scene(files: &[(&str, &[Value])]) -> Scene {
    let scene = Scene::new().arg("report");
    for (name, lines) in files {
        let text: Vec<String> = lines.iter().map(Value::to_string).collect();
        let text = text.join("\n");
        fs::write(scene.dir().join(name), text).expect("the scene is writable");
    }
    scene
}

fn task(pilot: &str, task: u32, outcome: &str) -> Value {
    let failed = outcome != "done";
    json!({
        "format": 1, "kind": "task", "pilot_id": pilot, "host": "h1", "site": "S1",
        "task_id": format!("{pilot}-{task}"), "slot": 1, "received_unix_secs": 1_790_000_000.0,
        "started_unix_secs": 1_790_000_000.0 + f64::from(task), "ended_unix_secs": 1_790_000_010.0 + f64::from(task),
        "wall_time_secs": 10.0, "container_time_secs": 10.0, "cpu_user_secs": 4.0, "cpu_system_secs": 1.0,
        "max_rss_bytes": 600 << 20, "disk_bytes": 10 << 20, "outcome": outcome,
        "fault_class": failed.then_some("task"), "error": failed.then_some("it didn't converge"),
    })
}

fn start(pilot: &str) -> Value {
    json!({
        "format": 1, "kind": "pilot_start", "pilot_id": pilot, "host": "h1", "site": "S1", "slots": 2, "window": 2,
        "requested_cpus": 2, "requested_memory_bytes": 1_u64 << 30, "requested_disk_bytes": 1_u64 << 30,
    })
}

fn end(pilot: &str) -> Value {
    json!({
        "format": 1, "kind": "pilot_end", "pilot_id": pilot, "host": "h1", "site": "S1", "slots": 2,
        "started_unix_secs": 1_790_000_000.0, "connected_unix_secs": 1_790_000_010.0,
        "intake_closed_unix_secs": 1_790_000_090.0, "ended_unix_secs": 1_790_000_100.0, "busy_secs": 100.0,
        "init_time_secs": 5.0, "first_event_wait_secs": 3.0, "broker_outages": 2, "broker_outage_secs": 10.0,
        "duplicates": 7, "started": 4, "exit_code": 1,
    })
}

/// A table's row, its white space as one blank.
#[track_caller]
fn row<'a>(outcome: &'a Outcome, first: &str) -> Vec<&'a str> {
    let line = outcome
        .stdout
        .lines()
        .find(|line| line.trim_start().starts_with(&format!("{first}  ")));
    let line = line.unwrap_or_else(|| panic!("no row `{first}`:\n{}", outcome.stdout));
    line.split("  ")
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .collect()
}

#[test]
fn the_table_adds_up_what_two_pilots_wrote() {
    let first = [
        start("a"),
        task("a", 1, "done"),
        task("a", 2, "failed"),
        task("a", 3, "done"),
        end("a"),
    ];
    let second = [
        start("b"),
        task("b", 1, "dead_lettered"),
        task("b", 2, "given_back"),
    ];
    let outcome = scene(&[("a.jsonl", &first), ("b.jsonl", &second)])
        .arg(".")
        .run(SOON);
    outcome.assert_code(0);
    assert!(
        outcome
            .stdout
            .starts_with("8 records of 2 pilots in 2 files; "),
        "{}",
        outcome.stdout
    );
    for (name, value) in [
        ("seen", "2"),
        ("ended with a record", "1"),
        ("ended without a record", "1"),
        ("exit code 1", "1"),
        ("taken from the queue", "5"),
        ("done", "2"),
        ("failed", "2"),
        ("of these dead-lettered", "1"),
        ("given back", "1"),
        ("duplicates", "7"),
        ("run time, median", "10.0 s"),
        ("wait for the first event", "3.00 s"),
        // Of 200 s: 100 busy, 20 starting, 20 at most in outages, 20 less the tasks' none draining.
        ("slots busy", "50 %"),
        ("starting", "10 %"),
        ("broker outage", "10 %"),
        ("draining", "10 %"),
        ("idle", "20 %"),
        ("reconnects", "2"),
        ("CPU efficiency", "50 %"),
        ("memory requested", "512 MiB"),
        ("memory that fits 99 %", "600 MiB"),
    ] {
        assert_eq!(row(&outcome, name)[1], value, "{name}:\n{}", outcome.stdout);
    }
    assert_eq!(
        row(&outcome, "memory that fits 99 %")[2],
        "request_memory = 1280MB for 2 slots and the pilot"
    );
    assert_eq!(
        row(&outcome, "memory requested")[2],
        "median; 5 tasks used more, of 5"
    );
    assert!(
        outcome
            .stdout
            .contains("3  task       1  it didn't converge"),
        "{}",
        outcome.stdout
    );
}

#[test]
fn what_cannot_be_read_is_counted_and_named_and_ends_nothing() {
    let scene = scene(&[("good.jsonl", &[task("a", 1, "done")])]);
    let odd = format!(
        "{}\n{{\"format\":1,\"kind\":\"ta\n\n{}\n{}\n{}",
        task("b", 1, "done"),
        json!({"format": 2, "kind": "task", "slot": "first"}),
        json!({"format": 1, "kind": "weather", "pilot_id": "b", "host": "h", "sky": [1]}),
        task("b", 2, "done"),
    );
    fs::write(scene.dir().join("odd.jsonl"), odd).expect("the scene is writable");
    fs::write(scene.dir().join("torn.jsonl.gz"), b"\x1f\x8b\x08\x00junk")
        .expect("the scene is writable");
    let outcome = scene.arg(".").run(SOON);
    outcome.assert_code(0);
    assert_eq!(row(&outcome, "done")[1], "3");
    for said in [
        "1 line can't be read: ./odd.jsonl:2 (",
        "1 record of a later format, not counted",
        "1 record of a kind unknown to this ewms-pilot, not counted",
        "./torn.jsonl.gz: ",
    ] {
        assert!(outcome.stdout.contains(said), "{said}:\n{}", outcome.stdout);
    }
}

#[test]
fn gzip_and_zstd_count_like_the_plain_file_and_copies_count_once() {
    let lines = [start("a"), task("a", 1, "done"), end("a")];
    let scene = scene(&[("a.jsonl", &lines), ("copy.jsonl", &lines)]);
    let text = |pilot: &str| format!("{}\n{}\n", start(pilot), task(pilot, 1, "failed"));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut gzip, text("b").as_bytes()).expect("memory takes it");
    fs::write(
        scene.dir().join("b.jsonl.gz"),
        gzip.finish().expect("memory takes it"),
    )
    .expect("writable");
    let zstd = zstd::encode_all(text("c").as_bytes(), 3).expect("memory takes it");
    fs::write(scene.dir().join("c.jsonl.zst"), zstd).expect("writable");
    // By a glob, and by name a second time.
    let outcome = scene.arg("*.jsonl*").arg("a.jsonl").run(SOON);
    outcome.assert_code(0);
    assert!(
        outcome
            .stdout
            .starts_with("7 records of 3 pilots in 4 files"),
        "{}",
        outcome.stdout
    );
    assert!(
        outcome
            .stdout
            .contains("3 records in more than one file, counted once"),
        "{}",
        outcome.stdout
    );
    assert_eq!(
        (row(&outcome, "done")[1], row(&outcome, "failed")[1]),
        ("1", "2")
    );
}

#[test]
fn a_path_that_is_not_there_is_a_usage_error_that_names_it() {
    let outcome = scene(&[("a.jsonl", &[])])
        .arg("a.jsonl")
        .arg("nowhere")
        .arg("*.gz")
        .run(SOON);
    outcome.assert_code(2);
    assert_eq!(outcome.stdout, "");
    assert!(
        outcome.stderr.contains("`nowhere`, `*.gz`"),
        "{}",
        outcome.stderr
    );
    scene(&[]).run(SOON).assert_code(2);
}

#[test]
fn nothing_to_report_is_said_and_no_failure() {
    let outcome = scene(&[]).arg(".").arg("--html").arg("page.html").run(SOON);
    outcome.assert_code(0);
    assert!(
        outcome.stderr.contains("no record in 0 files"),
        "{}",
        outcome.stderr
    );
    let outcome = scene(&[("empty.jsonl", &[])]).arg("empty.jsonl").run(SOON);
    outcome.assert_code(0);
    assert!(
        outcome.stderr.contains("no record in 1 file;"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_page_that_cannot_be_written_is_said() {
    let outcome = scene(&[("a.jsonl", &[task("a", 1, "done")])])
        .arg(".")
        .arg("--html")
        .arg("no/page.html")
        .run(SOON);
    outcome.assert_code(3);
    assert!(
        outcome
            .stderr
            .contains("can't write the page `no/page.html`"),
        "{}",
        outcome.stderr
    );
}

/// Runs the generator beside this file.
pub(crate) fn make_up(tasks: u32, pilots: u32, directory: &Path) {
    let status = Command::new("python3")
        .arg(source_dir().join("tests/support/records.py"))
        .args([tasks.to_string(), pilots.to_string()])
        .arg(directory)
        .status()
        .expect("python3 is there");
    assert!(status.success(), "{status}");
}

#[test]
fn the_bad_site_and_the_bad_host_are_excluded_and_no_other() {
    let scene = Scene::new().arg("report").arg(".");
    make_up(20_000, 100, scene.dir());
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    let expected =
        r#"requirements = GLIDEIN_Site =!= "SITE-03" && Machine =!= "h7.site-05.example.org""#;
    let mut last = outcome.stdout.lines().rev();
    assert_eq!(last.next(), Some(expected), "{}", outcome.stdout);
    let command = last.nth(1).expect("there is more");
    let begin =
        "condor_submit excluded_sites=SITE-03 excluded_machines=h7.site-05.example.org memory=";
    assert!(command.starts_with(begin), "{command}");

    // Pasted as it is, before the rest of the command.
    let submission = Submission::new(Path::new("/cvmfs/image"), "true");
    let job = submission.dry_run_as(&format!("{command} task_image=/cvmfs/image"));
    let memory = command.strip_prefix(begin).expect("as above");
    let memory = memory.strip_suffix("MB").expect("in MB");
    assert!(job.contains(&format!("RequestMemory={memory}\n")), "{job}");
    let machine = |site: &str, machine: &str| {
        serde_json::json!({
            "Machine": machine, "GLIDEIN_Site": site, "Arch": "X86_64", "OpSys": "LINUX",
            "Cpus": 8, "Memory": 65536, "Disk": 100_000_000, "HasFileTransfer": true,
            "FileSystemDomain": "ep", "HasUserNamespaces": true, "HasSingularity": true,
        })
    };
    let machines = [
        machine("SITE-03", "h1.site-03.example.org"),
        machine("SITE-05", "h7.site-05.example.org"),
        machine("SITE-05", "h8.site-05.example.org"),
    ];
    let asked = serde_json::json!([job, machines]).to_string();
    assert_eq!(
        python(&["matches"], &asked).trim(),
        "[false, false, true]",
        "{job}"
    );
}

#[test]
fn the_json_has_the_tables_numbers() {
    let make = || {
        let scene = Scene::new().arg("report").arg(".");
        make_up(3000, 20, scene.dir());
        scene
    };
    let table = make().run(SOON);
    let outcome = make().arg("--json").run(SOON);
    outcome.assert_code(0);
    let report: Value = serde_json::from_str(&outcome.stdout).expect("it is JSON");
    let number = |value: &Value| value.as_u64().expect("a count").to_string();
    let shown = |name: &str| row(&table, name)[1].replace(',', "");
    for (pointer, name) in [
        ("/pilots/seen", "seen"),
        ("/pilots/without_end", "ended without a record"),
        ("/events/taken", "taken from the queue"),
        ("/events/done", "done"),
        ("/events/failed", "failed"),
        ("/events/given_back", "given back"),
        ("/broker/reconnects", "reconnects"),
    ] {
        assert_eq!(
            number(report.pointer(pointer).expect(pointer)),
            shown(name),
            "{name}"
        );
    }
    let sites = report["sites"].as_array().expect("a list");
    let total: u64 = sites.iter().filter_map(|site| site["done"].as_u64()).sum();
    assert_eq!(
        report["events"]["done"], total,
        "the sites add up to the whole"
    );
}

/// The release build reads a million records in 60 MiB; what must not grow with their number is what is
/// kept of each. Debug builds are slow, so here it is a fifth of that.
#[test]
fn two_hundred_thousand_records_fit_into_a_hundred_mebibytes() {
    let scene = Scene::new().program("python3").arg("-c").arg(
        "import resource, subprocess, sys\n\
         subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n\
         print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)",
    );
    let scene = scene
        .arg(pilot_binary())
        .arg("report")
        .arg(".")
        .arg("--html")
        .arg("page.html");
    make_up(200_000, 400, scene.dir());
    let outcome = scene.run(4 * SOON);
    outcome.assert_code(0);
    let kib: u64 = outcome.stdout.trim().parse().expect("a number");
    assert!(kib < 100 * 1024, "{kib} KiB");
    let page = fs::metadata(scene.dir().join("page.html"))
        .expect("it was written")
        .len();
    assert!(page < 3 << 20, "{page} bytes: it opens at once");
}
