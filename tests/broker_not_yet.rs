//! Brokers that become usable only after a pilot has started: it waits for them and names the obstacle.

use std::process::Command;

use crate::support::broker::Broker;
use crate::support::rabbitmq::{Queue, finish};
use crate::support::scene::Scene;
use crate::support::{SOON, images};

fn queues(address: &str) -> (Queue, Queue) {
    let (incoming, outgoing) = (
        Queue::unique_at("notyet-in", address),
        Queue::unique_at("notyet-out", address),
    );
    incoming.produce([r#""pixel""#]);
    assert_eq!(outgoing.depth(), 0);
    (incoming, outgoing)
}

fn scene(incoming: &Queue, outgoing: &Queue) -> Scene {
    Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}").rabbitmq(incoming, outgoing)
}

#[test]
fn a_limit_on_connections_is_waited_for_and_named() {
    let broker = Broker::start();
    let none = r#"{"max-connections": 0}"#;
    for (set, clear, limit) in [
        (
            &["set_vhost_limits", "-p", "/", none][..],
            &["clear_vhost_limits", "-p", "/"][..],
            "connection limit (0) is reached",
        ),
        (
            &["set_user_limits", "guest", none],
            &["clear_user_limits", "guest", "max-connections"],
            "user connection limit (0) is reached",
        ),
    ] {
        let (incoming, outgoing) = queues(&broker.address());
        broker.control(set);
        let scene = scene(&incoming, &outgoing);
        let mut pilot = scene.start();
        let line = pilot.wait_for_line("will try again", SOON);
        assert!(line.contains(limit), "{line}");
        broker.control(clear);
        pilot.wait(SOON * 2).assert_code(0);
        assert_eq!(outgoing.consume(1, SOON), [r#""pixel""#]);
    }
}

#[test]
fn a_name_server_that_fails_for_a_moment_is_borne() {
    let name = format!("mq-{}.test", uuid::Uuid::new_v4().simple());
    let (incoming, outgoing) = queues(crate::support::rabbitmq::ADDRESS);
    let address = format!("{name}:5672");
    let scene = scene(&incoming, &outgoing)
        .set("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", &address)
        .set("EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS", &address);
    let mut pilot = scene.start();
    pilot.wait_for_line("unknown host", SOON);
    // Guest may come in from loopback only.
    let mut hosts = Command::new("sudo");
    hosts.args(["tee", "--append", "/etc/hosts"]);
    finish(hosts, &format!("127.0.0.1 {name}\n"));
    pilot.wait(SOON * 2).assert_code(0);
    assert_eq!(outgoing.consume(1, SOON), [r#""pixel""#]);
}
