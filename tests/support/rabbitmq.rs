//! RabbitMQ seen from its other sides: the real `oms-mqclient` puts events in and takes results out,
//! `rabbitmqctl` runs as the administrator. `scripts/test` has started the broker on loopback; a test
//! that has to break one starts its own, see [`super::broker`].

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Where the broker listens, as mqclient and the pilot take addresses. Guest may come in from here.
pub(crate) const ADDRESS: &str = "localhost:5672";

pub(crate) const PYTHON: &str = "/opt/peers/bin/python";

/// One queue, of this test alone. Deleted when dropped.
#[derive(Debug)]
pub(crate) struct Queue {
    name: String,
    address: String,
}

impl Queue {
    /// A queue whose name nobody else has, with `label` in it. It comes into being at its first use.
    pub(crate) fn unique(label: &str) -> Self {
        Self::unique_at(label, ADDRESS)
    }

    /// The same on another broker.
    pub(crate) fn unique_at(label: &str, address: &str) -> Self {
        Self {
            name: format!("{label}-{}", uuid::Uuid::new_v4()),
            address: address.to_owned(),
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where its broker listens.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Sends events with mqclient; each is the JSON text of one event's data, without a line break.
    pub(crate) fn produce<T: AsRef<str>>(&self, events: impl IntoIterator<Item = T>) {
        let mut lines = String::new();
        for event in events {
            lines.push_str(event.as_ref());
            lines.push('\n');
        }
        let arguments = [self.address.as_str(), &self.name];
        python(include_str!("produce.py"), &arguments, &lines);
    }

    /// Takes up to `count` results with mqclient, acknowledging them; fewer if none came for `idle`
    /// (whole seconds, at least one). Each is what Python's `json.dumps` makes of it.
    pub(crate) fn consume(&self, count: usize, idle: Duration) -> Vec<String> {
        let (count, idle) = (count.to_string(), idle.as_secs().max(1).to_string());
        let output = python(
            include_str!("consume.py"),
            &[&self.address, &self.name, &count, &idle],
            "",
        );
        output.lines().map(str::to_owned).collect()
    }

    /// Publishes bodies as they are: what no mqclient would send. Each is base64.
    pub(crate) fn publish_raw(&self, bodies: &[&str]) {
        self.call("raw", &(bodies.join("\n") + "\n"));
    }

    /// Publishes texts, one line each, as they are but compressed.
    pub(crate) fn publish_texts<T: AsRef<str>>(&self, texts: impl IntoIterator<Item = T>) {
        let mut lines = String::new();
        for text in texts {
            lines.push_str(text.as_ref());
            lines.push('\n');
        }
        self.call("texts", &lines);
    }

    /// The same, each with its `message_id`.
    pub(crate) fn publish_named(&self, messages: &[(&str, &str)]) {
        let lines: Vec<String> = messages
            .iter()
            .map(|(id, text)| format!("{id} {text}\n"))
            .collect();
        self.call("named", &lines.concat());
    }

    /// The same, two of them: with a header of 5,000 nested tables, or arrays. (A frame holds
    /// more, but RabbitMQ takes a minute for those.)
    pub(crate) fn publish_nested(&self, texts: [&str; 2]) {
        self.call("nested", &(texts.join("\n") + "\n"));
    }

    /// Takes all messages and gives their texts as they are but decompressed.
    pub(crate) fn take_texts(&self) -> Vec<String> {
        self.call("take", "").lines().map(str::to_owned).collect()
    }

    /// Makes it with these arguments, a JSON object.
    pub(crate) fn declare(&self, arguments: &str) {
        self.call("declare", arguments);
    }

    /// Makes it a connection's alone, until that is dropped.
    pub(crate) fn declare_exclusive(&self) -> Exclusive {
        let mut child = Command::new(PYTHON)
            .args([
                "-c",
                include_str!("queue.py"),
                &self.address,
                &self.name,
                "alone",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the execution point has it: run the tests with scripts/test");
        let mut ready = String::new();
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let read = BufReader::new(stdout).read_line(&mut ready);
        assert_eq!(read.map_err(|error| error.to_string()), Ok(6), "{ready}");
        Exclusive(child)
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

    /// How many messages there are, ready or held by a consumer.
    pub(crate) fn total(&self) -> usize {
        messages_of(&self.name)
    }

    /// How many messages consumers hold.
    #[track_caller]
    pub(crate) fn held(&self) -> usize {
        listed(&self.name, "messages_unacknowledged")
    }

    /// Lets its messages be delivered any number of times, and puts one that is given back at the end.
    /// By default the broker puts it in front and deletes it after 20 deliveries.
    pub(crate) fn lift_delivery_limit(&self) {
        let Some(limit) = no_delivery_limit() else {
            return;
        };
        let pattern = format!("^{}$", self.name);
        rabbitmqctl(&[
            "set_policy",
            &self.name,
            &pattern,
            &format!("{{{limit}}}"),
            "--apply-to",
            "queues",
        ]);
    }

    /// The headers of each ready message. Looking counts as a delivery.
    pub(crate) fn headers(&self) -> Vec<serde_json::Value> {
        let answer = self.call("headers", "");
        let lines = answer.lines().map(serde_json::from_str);
        lines.map(|line| line.expect("it is JSON")).collect()
    }

    /// Deletes it under whoever consumes from it.
    pub(crate) fn delete(&self) {
        self.call("delete", "");
    }

    fn call(&self, verb: &str, input: &str) -> String {
        python(
            include_str!("queue.py"),
            &[&self.address, &self.name, verb],
            input,
        )
    }
}

/// See [`Queue::declare_exclusive`].
#[derive(Debug)]
pub(crate) struct Exclusive(Child);

impl Drop for Exclusive {
    fn drop(&mut self) {
        // The end of stdin ends it.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
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

/// How many messages the queue of this name has, ready or held by a consumer.
#[track_caller]
pub(crate) fn messages_of(queue: &str) -> usize {
    listed(queue, "messages")
}

/// A number of `list_queues`. The broker counts four times a second, which is set where it is started, and
/// `rabbitmqctl` takes longer than that to ask.
#[track_caller]
fn listed(queue: &str, column: &str) -> usize {
    let answer = rabbitmqctl(&["list_queues", "name", column]);
    let mut rows = answer.lines().filter_map(|line| line.split_once('\t'));
    let count = rows.find_map(|(name, count)| (name == queue).then_some(count));
    let count = count.unwrap_or_else(|| panic!("no queue {queue}: {answer}"));
    count.parse().expect("a count is a number")
}

/// The broker's version: major and minor number.
pub(crate) fn server_version() -> (u32, u32) {
    let entries = std::fs::read_dir("/usr/lib/rabbitmq/lib").expect("RabbitMQ is there");
    let names = entries.flatten().map(|entry| entry.file_name());
    let found = names.filter_map(|name| {
        let version = name.to_str()?.strip_prefix("rabbitmq_server-")?.to_owned();
        let mut numbers = version.split('.').map_while(|number| number.parse().ok());
        Some((numbers.next()?, numbers.next()?))
    });
    found.max().expect("one version is installed")
}

/// The field of a policy that lets events be delivered any number of times. Before RabbitMQ 4.0 there is no limit,
/// and no such value.
pub(crate) fn no_delivery_limit() -> Option<&'static str> {
    (server_version() >= (4, 0)).then_some("\"delivery-limit\": -1")
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
pub(crate) fn finish(mut command: Command, input: &str) -> String {
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
