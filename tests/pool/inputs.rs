//! Files that came with the job, as tasks and the init container see them.

use std::fs;
use std::process::{Command, Stdio};

use super::{AT_ONCE, fill, pilots, sh};
use crate::support::condor::Submission;
use crate::support::rabbitmq::Queue;
use crate::support::{SOON, eventually, images};

/// Lists all input files with their content, from a task and, through the hub, from the init container,
/// and says whether one could be written.
const LIST: &str = "cd \"$EWMS_TASK_INPUT_FILES_DIR\" && find . -type f | sort | while read -r f; do \
                    echo \"$f=$(head -c 40 \"$f\")\"; done; pwd; \
                    touch here 2>/dev/null || echo read-only";

fn with_inputs(list: &str) -> (Submission, Queue, Queue) {
    let task = sh(&format!(
        "({LIST}; echo {{{{INPUT_FILES}}}}; cat {{{{DATA_HUB}}}}/init) >{{{{OUTFILE}}}}"
    ));
    let (submission, incoming, outgoing) = pilots(&images::busybox(), &task);
    let submission = submission
        .export(
            "EWMS_PILOT_INIT_IMAGE",
            &images::busybox().display().to_string(),
        )
        .export(
            "EWMS_PILOT_INIT_ARGS",
            &sh(&format!("({LIST}) >{{{{DATA_HUB}}}}/init")),
        )
        .set("input_files", list);
    let directory = submission.dir().join("data");
    fs::create_dir_all(directory.join("deep")).expect("writable");
    for (name, content) in [
        ("a.txt", "aaa"),
        ("data/b.txt", "bbb"),
        ("data/deep/c.txt", "ccc"),
    ] {
        fs::write(submission.dir().join(name), content).expect("writable");
    }
    (submission, incoming, outgoing)
}

/// Serves the files of a directory by HTTP while it lives.
struct WebServer {
    process: std::process::Child,
    port: u16,
}

impl WebServer {
    fn start(directory: &std::path::Path) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        drop(listener);
        let process = Command::new("python3")
            .args([
                "-m",
                "http.server",
                "--bind",
                "127.0.0.1",
                &port.to_string(),
            ])
            .current_dir(directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the execution point has Python");
        let answers = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        assert!(eventually(SOON, answers), "no web server");
        Self { process, port }
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn urls_with_a_query_and_names_with_a_backslash_are_seen() {
    let served = tempfile::tempdir().expect("a directory");
    fs::write(served.path().join("data.txt"), "ddd").expect("written");
    fs::write(served.path().join("more.txt"), "mmm").expect("written");
    let web = WebServer::start(served.path());
    let base = format!("http://127.0.0.1:{}", web.port);
    let list = format!(
        "{base}/data.txt?sig=a%2Fb&secret=s3cret, {base}/more.txt?path=x/y, a.txt, odd\\name.txt"
    );
    let (submission, incoming, outgoing) = with_inputs(&list);
    fs::write(submission.dir().join(r"odd\name.txt"), "ooo").expect("writable");
    fill(&incoming, 1);
    let jobs = submission.submit();
    jobs.wait_for_ends(1);
    let results = outgoing.consume(2, AT_ONCE);
    assert_eq!(results.len(), 1, "{}", jobs.story());
    let text: String = serde_json::from_str(&results[0]).expect("a string");
    for line in [
        "./a.txt=aaa",
        "./data.txt=ddd",
        "./more.txt=mmm",
        r"./odd\name.txt=ooo",
    ] {
        assert_eq!(
            text.lines().filter(|seen| *seen == line).count(),
            2,
            "{text}"
        );
    }
    let log = jobs.file(0, "err");
    assert!(!log.contains("no input file"), "{log}");
    assert!(!log.contains("s3cret"), "{log}");
}

#[track_caller]
fn assert_seen(list: &str, expected: &[&str]) {
    let (submission, incoming, outgoing) = with_inputs(list);
    fill(&incoming, 1);
    let jobs = submission.submit();
    jobs.wait_for_ends(1);
    let results = outgoing.consume(2, AT_ONCE);
    assert_eq!(results.len(), 1, "{}", jobs.story());
    let text: String = serde_json::from_str(&results[0]).expect("a string");
    let place = "/ewms-pilot-data/input-files";
    let seen = [expected, &[place, "read-only"]].concat();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines, [&seen[..], &[place], &seen[..]].concat());
}

#[test]
fn input_files_are_seen_read_only_by_tasks_and_init_and_the_pilots_own_are_not() {
    assert_seen("a.txt, data/b.txt", &["./a.txt=aaa", "./b.txt=bbb"]);
}

#[test]
fn a_directory_is_seen_under_its_name() {
    assert_seen(
        "a.txt, data",
        &["./a.txt=aaa", "./data/b.txt=bbb", "./data/deep/c.txt=ccc"],
    );
}

#[test]
fn the_content_of_a_directory_with_a_slash_is_seen_without_its_name() {
    assert_seen(
        "a.txt, data/",
        &["./a.txt=aaa", "./b.txt=bbb", "./deep/c.txt=ccc"],
    );
}
