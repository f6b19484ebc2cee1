//! RabbitMQ seen from its other sides: the real `oms-mqclient` puts events in and takes results out,
//! `rabbitmqctl` runs as the administrator. `scripts/test` has started the broker on loopback.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Where the broker listens, as mqclient and the pilot take addresses. Guest may come in from here.
pub(crate) const ADDRESS: &str = "localhost:5672";

const PYTHON: &str = "/opt/peers/bin/python";

/// One queue, of this test alone. Deleted when dropped.
#[derive(Debug)]
pub(crate) struct Queue {
    name: String,
}

impl Queue {
    /// A queue whose name nobody else has, with `label` in it. It comes into being at its first use.
    pub(crate) fn unique(label: &str) -> Self {
        Self {
            name: format!("{label}-{}", uuid::Uuid::new_v4()),
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Sends events with mqclient; each is the JSON text of one event's data, without a line break.
    pub(crate) fn produce<T: AsRef<str>>(&self, events: impl IntoIterator<Item = T>) {
        let mut lines = String::new();
        for event in events {
            lines.push_str(event.as_ref());
            lines.push('\n');
        }
        python(include_str!("produce.py"), &[ADDRESS, &self.name], &lines);
    }

    /// Takes up to `count` results with mqclient, acknowledging them; fewer if none came for `idle`
    /// (whole seconds, at least one). Each is what Python's `json.dumps` makes of it.
    pub(crate) fn consume(&self, count: usize, idle: Duration) -> Vec<String> {
        let (count, idle) = (count.to_string(), idle.as_secs().max(1).to_string());
        let output = python(
            include_str!("consume.py"),
            &[ADDRESS, &self.name, &count, &idle],
            "",
        );
        output.lines().map(str::to_owned).collect()
    }

    /// Publishes bodies as they are: what no mqclient would send. Each is base64.
    pub(crate) fn publish_raw(&self, bodies: &[&str]) {
        self.call("raw", &(bodies.join("\n") + "\n"));
    }

    /// How many messages are ready; those that a consumer holds don't count.
    pub(crate) fn depth(&self) -> usize {
        let answer = self.call("depth", "");
        answer.trim().parse().expect("the depth is a number")
    }

    /// The `x-delivery-count` of each ready message. Looking adds one: for the end of a test.
    pub(crate) fn delivery_counts(&self) -> Vec<u32> {
        let answer = self.call("peek", "");
        let counts = answer.lines().map(str::parse);
        counts
            .map(|count| count.expect("a count is a number"))
            .collect()
    }

    /// Deletes it under whoever consumes from it.
    pub(crate) fn delete(&self) {
        self.call("delete", "");
    }

    fn call(&self, verb: &str, input: &str) -> String {
        python(
            include_str!("queue.py"),
            &[ADDRESS, &self.name, verb],
            input,
        )
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // A test that is failing already must not panic again; the broker is thrown away anyway.
        if !std::thread::panicking() {
            self.delete();
        }
    }
}

/// Runs `rabbitmqctl` with the broker's rights and gives what it printed. Takes about a second.
#[track_caller]
pub(crate) fn rabbitmqctl(arguments: &[&str]) -> String {
    let mut command = Command::new("sudo");
    command.args(["rabbitmqctl", "--quiet"]).args(arguments);
    finish(command, "")
}

#[track_caller]
fn python(script: &str, arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(PYTHON);
    command.args(["-c", script]).args(arguments);
    finish(command, input)
}

#[track_caller]
fn finish(mut command: Command, input: &str) -> String {
    let pipes = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = pipes
        .spawn()
        .expect("the execution point has it: run the tests with scripts/test");
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    // On a thread of its own: a child that answers line by line would fill its stdout meanwhile.
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A child that fails reads no further; its exit code says so.
            let _ = stdin.write_all(input.as_bytes());
        });
        child.wait_with_output().expect("it can be waited for")
    });
    assert!(
        output.status.success(),
        "{} {}: {}",
        command.get_program().display(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("it prints UTF-8")
}
