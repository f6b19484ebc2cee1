//! Brokers at IPv6 addresses, at names with several addresses, and at addresses that can't be reached.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::time::Duration;

use crate::support::broker::{Broker, free_ports};
use crate::support::certificates::Certificates;
use crate::support::rabbitmq::{Queue, finish};
use crate::support::scene::Scene;
use crate::support::{SOON, images};

const EVENT: &str = r#""pixel""#;
const VARIABLES: [&str; 2] = [
    "EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS",
    "EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS",
];

/// A name that nobody else has, with these addresses in this order.
#[track_caller]
fn name_of(label: &str, addresses: &[&str]) -> String {
    let name = format!("{label}-{}.test", uuid::Uuid::new_v4().simple());
    let lines: Vec<String> = addresses
        .iter()
        .map(|address| format!("{address} {name}\n"))
        .collect();
    let mut hosts = Command::new("sudo");
    hosts.args(["tee", "--append", "/etc/hosts"]);
    finish(hosts, &lines.concat());
    name
}

fn scene(incoming: &Queue, outgoing: &Queue, addresses: [&str; 2]) -> Scene {
    let scene = Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}");
    let scene = scene.rabbitmq(incoming, outgoing);
    let both = VARIABLES.iter().zip(addresses);
    both.fold(scene, |scene, (variable, address)| {
        scene.set(variable, address)
    })
}

/// Takes an event from one address and sends its result to another, both of the same broker.
#[track_caller]
fn assert_reached(broker: &Broker, addresses: [&str; 2], prepare: impl FnOnce(Scene) -> Scene) {
    let queues = ["in", "out"].map(|label| Queue::unique_at(label, &broker.address()));
    let [incoming, outgoing] = &queues;
    incoming.produce([EVENT]);
    let outcome = prepare(scene(incoming, outgoing, addresses)).run(SOON);
    outcome.assert_code(0);
    let results = outgoing.consume(1, Duration::from_secs(5));
    assert_eq!(results, [EVENT], "{addresses:?}: {}", outcome.stderr);
}

#[test]
fn a_broker_is_reached_at_an_ipv6_address_and_by_a_name_that_has_no_other() {
    let name = name_of("six", &["::1"]);
    let certificates = Certificates::of(&format!("DNS:{name}"));
    let [six, all, tls] = free_ports();
    // An address of one interface alone, which is of use only with the name of that.
    let mut ip = Command::new("sudo");
    ip.args("ip address replace fe80::7:1/64 dev lo nodad".split(' '));
    finish(ip, "");
    let broker = Broker::start_with(&format!(
        "listeners.tcp.six = ::1:{six}\nlisteners.tcp.all = {all}\nloopback_users = none\n{}",
        certificates.settings(tls)
    ));
    let by_name = format!("{name}:{six}");
    assert_reached(&broker, [&format!("[::1]:{six}"), &by_name], |scene| scene);
    let link_local = format!("[fe80::7:1%lo]:{all}");
    let by_name = format!("amqps://{name}:{tls}");
    assert_reached(&broker, [&link_local, &by_name], |scene| {
        scene.set("EWMS_PILOT_BROKER_CA_FILE", certificates.authority())
    });
}

#[test]
fn an_address_where_nobody_answers_costs_seconds_and_the_next_one_is_taken() {
    // The kernel takes connections for a server that never says a word.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports");
    let port = silent.local_addr().expect("it is bound").port();
    let broker = Broker::start_with(&format!("listeners.tcp.next = 127.0.0.9:{port}\n"));
    let name = name_of("next", &["127.0.0.1", "127.0.0.9"]);
    let address = format!("{name}:{port}");
    assert_reached(&broker, [&address, &address], |scene| {
        scene.set("EWMS_PILOT_BROKER_RECONNECT_TIMEOUT", "9")
    });
}

#[test]
fn no_route_names_every_address_that_was_tried_and_a_proxy_that_is_of_no_use() {
    // Here is no network but loopback.
    let name = name_of("away", &["2001:db8::7", "192.0.2.7"]);
    let queues = ["in", "out"].map(Queue::unique);
    let [incoming, outgoing] = &queues;
    for (address, proxy, tried) in [
        (
            format!("{name}:5672"),
            None,
            "can't be reached: Network is unreachable (os error 101) at `192.0.2.7:5672`, \
             Network is unreachable (os error 101) at `[2001:db8::7]:5672`; check ",
        ),
        (
            "amqps://[2001:db8::7]".to_owned(),
            Some("http://squid.example:3128"),
            "can't be reached: Network is unreachable (os error 101) at `[2001:db8::7]:5671`; AMQP needs a direct \
             route, the proxy that `https_proxy` names can't carry it; check ",
        ),
    ] {
        let mut scene = scene(incoming, outgoing, [incoming.address(), &address])
            .set("EWMS_PILOT_BROKER_RECONNECT_TIMEOUT", "1");
        if let Some(proxy) = proxy {
            scene = scene.set("https_proxy", proxy);
        }
        let outcome = scene.run(SOON * 2);
        outcome.assert_code(4);
        let last = outcome.last_line();
        assert!(last.contains(tried), "{last}");
        assert!(last.contains(VARIABLES[1]), "{last}");
    }
}

#[test]
fn an_ipv6_address_without_brackets_is_a_wrong_setting() {
    let (scene, _, _) = Scene::task(images::busybox(), "true").spool();
    let scene = scene
        .set("EWMS_PILOT_QUEUE_INCOMING_BROKER_TYPE", "rabbitmq")
        .set(VARIABLES[0], "2001:db8::7");
    let outcome = scene.run(SOON);
    outcome.assert_code(2);
    let expected = format!(
        "`{}` is `2001:db8::7`: the host must be a name, an IPv4 address or an IPv6 address in brackets",
        VARIABLES[0]
    );
    assert!(outcome.stderr.contains(&expected), "{}", outcome.stderr);
    assert!(!fs::exists(scene.dir().join("ewms-pilot-data")).unwrap_or(true));
}
