//! A RabbitMQ cluster of three nodes on one machine: each listens on a loopback address of its own, all on
//! one port, so that one name with three addresses stands for the cluster, as in production.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::broker::{Broker, free_ports, node_name};
use super::eventually;
use super::rabbitmq::Queue;

/// Three servers on two cores, each waiting for the others.
const FORMS_WITHIN: Duration = Duration::from_mins(3);

/// The nodes, by index from 0 to 2.
#[derive(Debug)]
pub(crate) struct Cluster {
    nodes: Vec<Broker>,
    name: String,
}

impl Cluster {
    /// Starts one with nothing in it.
    #[track_caller]
    pub(crate) fn start() -> Self {
        let [port, distribution_ports @ ..]: [u16; 4] = free_ports();
        let mut settings = "cluster_formation.peer_discovery_backend = classic_config\n".to_owned();
        for (number, distribution_port) in (1..).zip(distribution_ports) {
            let node = node_name(distribution_port);
            writeln!(
                settings,
                "cluster_formation.classic_config.nodes.{number} = {node}"
            )
            .expect("a string takes it");
        }
        let hosts = [2, 3, 4].map(|last| Ipv4Addr::new(127, 0, 0, last));
        let name = format!("cluster-{port}");
        give_addresses(&name, &hosts);
        let nodes = hosts
            .into_iter()
            .zip(distribution_ports)
            .map(|(host, distribution_port)| {
                Broker::spawn_at(host, port, distribution_port, &settings, &[])
            })
            .collect();
        let mut cluster = Self { nodes, name };
        cluster.await_startup(&[0, 1, 2]);
        let formed = eventually(FORMS_WITHIN, || cluster.running_nodes() == 3);
        assert!(formed, "{} nodes run", cluster.running_nodes());
        cluster
    }

    /// As mqclient and the pilot take it: whichever node answers first.
    pub(crate) fn address(&self) -> String {
        format!("{}:{}", self.name, self.nodes[0].port())
    }

    /// Lets a queue's events come any number of times.
    #[track_caller]
    pub(crate) fn lift_limits(&self, queue: &Queue) {
        super::faults::lift_limits(&self.nodes[0], queue.name());
    }

    /// See [`Broker::await_durable`]: on every node.
    #[track_caller]
    pub(crate) fn await_durable(&self, queue: &Queue) {
        for node in &self.nodes {
            node.await_durable(queue);
        }
    }

    /// The node that leads a quorum queue.
    #[track_caller]
    pub(crate) fn leader_of(&self, queue: &Queue) -> usize {
        let mut leader = None;
        let found = eventually(FORMS_WITHIN, || {
            let listed = self.nodes[0].control(&["list_queues", "name", "leader"]);
            let name = listed
                .lines()
                .filter_map(|line| line.split_once('\t'))
                .find_map(|(name, leader)| (name == queue.name()).then_some(leader));
            leader = self
                .nodes
                .iter()
                .position(|node| Some(node.node().as_str()) == name);
            leader.is_some()
        });
        assert!(found, "{} has no leader", queue.name());
        leader.expect("it was found")
    }

    /// Ends nodes as a power failure does.
    pub(crate) fn kill(&mut self, nodes: &[usize]) {
        for node in nodes {
            self.nodes[*node].kill();
        }
    }

    /// Ends nodes as an operator does.
    #[track_caller]
    pub(crate) fn stop(&mut self, nodes: &[usize]) {
        for node in nodes {
            self.nodes[*node].stop();
        }
    }

    /// Starts nodes with the data that they had, all at once.
    #[track_caller]
    pub(crate) fn start_again(&mut self, nodes: &[usize]) {
        for node in nodes {
            self.nodes[*node].spawn_again();
        }
        self.await_startup(nodes);
        let formed = eventually(FORMS_WITHIN, || self.running_nodes() == 3);
        assert!(formed, "{} nodes run", self.running_nodes());
    }

    #[track_caller]
    fn await_startup(&mut self, nodes: &[usize]) {
        for node in nodes {
            self.nodes[*node].await_startup();
        }
    }

    /// How many nodes the first one counts as running.
    #[track_caller]
    fn running_nodes(&self) -> usize {
        let status = self.nodes[0].control(&["cluster_status", "--formatter", "json"]);
        let status: serde_json::Value = serde_json::from_str(&status).expect("it is JSON");
        status["running_nodes"].as_array().map_or(0, Vec::len)
    }
}

/// One name for several addresses, in this throw-away execution point alone.
fn give_addresses(name: &str, hosts: &[Ipv4Addr]) {
    let mut tee = Command::new("sudo")
        .args(["tee", "-a", "/etc/hosts"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the execution point has sudo");
    let mut lines = tee.stdin.take().expect("stdin is a pipe");
    for host in hosts {
        writeln!(lines, "{host} {name}").expect("tee reads");
    }
    drop(lines);
    let status = tee.wait().expect("a child can be waited for");
    assert!(status.success(), "tee: {status}");
}
