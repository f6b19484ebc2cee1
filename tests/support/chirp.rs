//! A chirp server that takes everything and remembers it, for what can't be seen in a pool: what a pilot says in
//! which order, and how many lines that is. It proves nothing about HTCondor; the tests of `pool` do.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::scene::Scene;

/// What the attributes' names begin with.
const PREFIX: &str = "HTChirpEWMSPilot";

/// Ends with the tests.
#[derive(Debug)]
pub(crate) struct ChirpServer {
    directory: tempfile::TempDir,
    /// One command each, cookies left out.
    seen: Arc<Mutex<Vec<String>>>,
}

/// One report: the attribute without its prefix, and its value as it was sent, in quotes or not.
pub(crate) type Report = (String, String);

impl ChirpServer {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let contact = format!("127.0.0.1 {port} s3cret\n");
        fs::write(directory.path().join("chirp"), contact).expect("it can be written");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let heard = Arc::clone(&heard);
                thread::spawn(move || converse(&stream, &heard));
            }
        });
        Self { directory, seen }
    }

    /// A pilot that finds this server, and is to chirp to `destination`.
    pub(crate) fn told_by(&self, scene: Scene, destination: &str) -> Scene {
        scene
            .set("_CONDOR_CHIRP_CONFIG", self.file())
            .set("EWMS_PILOT_HTCHIRP", "True")
            .set("EWMS_PILOT_HTCHIRP_DEST", destination)
    }

    /// The file that says where it is.
    pub(crate) fn file(&self) -> PathBuf {
        self.directory.path().join("chirp")
    }

    /// What went into the job's ad, in order.
    pub(crate) fn attributes(&self) -> Vec<Report> {
        self.reports("set_job_attr ", " ")
    }

    /// What went into the job event log, in order.
    pub(crate) fn log_lines(&self) -> Vec<Report> {
        self.reports("ulog ", ": ")
    }

    fn reports(&self, command: &str, separator: &str) -> Vec<Report> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let of_command = seen.iter().filter_map(|line| line.strip_prefix(command));
        of_command
            .map(|report| {
                let (name, value) = report.split_once(separator).expect("a name and a value");
                let name = name
                    .strip_prefix(PREFIX)
                    .expect("every name has the prefix");
                (name.to_owned(), value.to_owned())
            })
            .collect()
    }
}

/// The values that `reports` has of one attribute, in order, without quotes around them.
pub(crate) fn values(reports: &[Report], attribute: &str) -> Vec<String> {
    let of_it = reports.iter().filter(|(name, _)| name == attribute);
    of_it
        .map(|(_, value)| value.trim_matches('"').to_owned())
        .collect()
}

fn converse(stream: &TcpStream, heard: &Mutex<Vec<String>>) {
    let mut replies = stream;
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        if !line.starts_with("cookie ") {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.push(unescape(&line));
        }
        if replies.write_all(b"0\n").is_err() {
            return;
        }
    }
}

/// Undoes the escapes of the wire.
fn unescape(line: &str) -> String {
    let mut letters = line.chars();
    let mut text = String::new();
    while let Some(letter) = letters.next() {
        text.push(if letter == '\\' {
            letters.next().expect("an escape escapes something")
        } else {
            letter
        });
    }
    text
}
