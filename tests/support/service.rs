//! A small submitting service, which does what the real one does: container universe, an image on CVMFS, no
//! arguments, an env file, nothing brought home, one event log for all its pilots, two of them in each task
//! force. HTCondor's own Python package submits them and reads the log.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::condor::{run, start_pool};
use super::rabbitmq::{self, PYTHON};

/// What the statuses and errors of a task force's pilots add up to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct StatusCounts {
    /// Pilots by their last status.
    pub(crate) statuses: BTreeMap<String, usize>,
    /// The ten most frequent errors.
    pub(crate) errors: Vec<(String, usize)>,
}

/// What both pilots of a task force shall have come to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Awaited {
    Status(&'static str),
    Eviction,
    /// They have left the queue.
    End,
}

/// Two pilots with the same settings.
#[derive(Debug, Clone)]
pub(crate) struct Taskforce {
    cluster: String,
}

impl Taskforce {
    /// Runs an HTCondor command on both pilots.
    #[track_caller]
    pub(crate) fn tell(&self, program: &str) {
        run(Command::new(program).arg(&self.cluster));
    }
}

#[derive(Debug)]
pub(crate) struct Service {
    directory: tempfile::TempDir,
    image: PathBuf,
}

impl Service {
    /// A service that runs the pilots in `image`. The pool is started if it doesn't run.
    pub(crate) fn new(image: &Path) -> Self {
        start_pool();
        Self {
            directory: tempfile::tempdir().expect("a temporary directory can be made"),
            image: image.to_owned(),
        }
    }

    /// Submits two pilots; an array in their environment is written as Python prints it.
    #[track_caller]
    pub(crate) fn submit(&self, name: &str, environment: &Map<String, Value>) -> Taskforce {
        let directory = self.directory.path().join(name);
        fs::create_dir(&directory).expect("each has a name of its own");
        let mut environment = environment.clone();
        environment.insert("EWMS_PILOT_HTCHIRP".into(), json!("True"));
        environment.insert("EWMS_PILOT_HTCHIRP_DEST".into(), json!("JOB_EVENT_LOG"));
        let image = self.image.display().to_string();
        let mut command = python("submit", &self.log(), &image);
        command.current_dir(directory);
        let said = rabbitmq::finish(command, &Value::from(environment).to_string());
        Taskforce {
            cluster: said.trim().to_owned(),
        }
    }

    /// Waits for all of this; gives what each task force adds up to then.
    #[track_caller]
    pub(crate) fn wait_for(
        &self,
        awaited: &[(&Taskforce, Awaited)],
        deadline: Duration,
    ) -> Summary {
        let conditions: Vec<Value> = awaited
            .iter()
            .map(|(taskforce, awaited)| {
                let (field, value) = match awaited {
                    Awaited::Status(status) => ("HTChirpEWMSPilotStatus", json!(status)),
                    Awaited::Eviction => ("evictions", json!(1)),
                    Awaited::End => ("left", json!(true)),
                };
                json!([taskforce.cluster, field, value])
            })
            .collect();
        let command = python("watch", &self.log(), &deadline.as_secs().to_string());
        let said = rabbitmq::finish(command, &Value::from(conditions).to_string());
        Summary(serde_json::from_str(&said).expect("it prints counts"))
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("pilots.log")
    }

    /// What the pilots of a task force said, for whoever looks into a failure.
    pub(crate) fn story(&self, name: &str) -> String {
        let mut story = String::new();
        for file in ["0.out", "0.err", "1.out", "1.err"] {
            let text = fs::read(self.directory.path().join(name).join(file)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            write!(story, "--- {file}\n{text}").expect("a string takes it");
        }
        story
    }
}

/// The log, added up.
#[derive(Debug)]
pub(crate) struct Summary(BTreeMap<String, StatusCounts>);

impl Summary {
    pub(crate) fn of(&self, taskforce: &Taskforce) -> StatusCounts {
        self.0.get(&taskforce.cluster).cloned().unwrap_or_default()
    }
}

fn python(verb: &str, log: &Path, argument: &str) -> Command {
    let mut command = Command::new(PYTHON);
    let script = include_str!("service.py");
    command.args(["-c", script, verb]).arg(log).arg(argument);
    command
}
