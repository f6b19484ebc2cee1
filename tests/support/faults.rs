//! Ways in which a broker fails, done to a [`Broker`] of a test's own. Each is undone by the value it
//! gives, or is over at once.

use std::process::Command;

use nix::sys::signal::Signal;

use super::broker::Broker;
use super::rabbitmq::no_delivery_limit;

/// No packet from or to a broker arrives while this lives. Only in this execution point's own network.
#[derive(Debug)]
pub(crate) struct DroppedPackets {
    table: String,
}

impl DroppedPackets {
    pub(crate) fn of(broker: &Broker) -> Self {
        let port = broker.port();
        let table = format!("outage_{port}");
        let rules = format!(
            "table inet {table} {{ chain packets {{ type filter hook input priority 0; \
             tcp dport {port} drop; tcp sport {port} drop; }}; }}"
        );
        nft(&[&rules]);
        Self { table }
    }
}

impl Drop for DroppedPackets {
    fn drop(&mut self) {
        nft(&[&format!("delete table inet {}", self.table)]);
    }
}

fn nft(arguments: &[&str]) {
    let status = Command::new("sudo").arg("nft").args(arguments).status();
    let status = status.expect("the execution point has sudo and nft");
    assert!(status.success(), "nft {arguments:?}: {status}");
}

/// A broker that does nothing while this lives.
#[derive(Debug)]
pub(crate) struct Suspended<'a>(&'a Broker);

impl<'a> Suspended<'a> {
    pub(crate) fn new(broker: &'a Broker) -> Self {
        broker.signal(Signal::SIGSTOP);
        Self(broker)
    }
}

impl Drop for Suspended<'_> {
    fn drop(&mut self) {
        self.0.signal(Signal::SIGCONT);
    }
}

/// A broker that has no memory left while this lives: it reads nothing from whoever publishes.
#[derive(Debug)]
pub(crate) struct OutOfMemory<'a>(&'a Broker);

impl<'a> OutOfMemory<'a> {
    pub(crate) fn new(broker: &'a Broker) -> Self {
        broker.control(&["set_vm_memory_high_watermark", "0.00001"]);
        Self(broker)
    }
}

impl Drop for OutOfMemory<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.0.control(&["set_vm_memory_high_watermark", "0.6"]);
        }
    }
}

/// Closes every connection, as an operator may.
pub(crate) fn close_all_connections(broker: &Broker) {
    broker.control(&["close_all_connections", "outage"]);
}

/// Events must be acknowledged within so many milliseconds, and may come any number of times.
pub(crate) fn limit_acknowledgements(broker: &Broker, queue: &str, milliseconds: u32) {
    let limit = format!("\"consumer-timeout\": {milliseconds}");
    set_policy(broker, queue, Some(&limit));
}

/// Events may be held for as long as by default, and may come any number of times.
pub(crate) fn lift_limits(broker: &Broker, queue: &str) {
    set_policy(broker, queue, None);
}

fn set_policy(broker: &Broker, queue: &str, limit: Option<&str>) {
    let fields: Vec<&str> = limit.into_iter().chain(no_delivery_limit()).collect();
    if fields.is_empty() {
        return;
    }
    let pattern = format!("^{queue}$");
    let value = format!("{{{}}}", fields.join(", "));
    broker.control(&[
        "set_policy",
        "outage",
        &pattern,
        &value,
        "--apply-to",
        "queues",
    ]);
}
