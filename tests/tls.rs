//! Brokers behind TLS: accepted only if a trusted authority certifies their name.

use std::time::Duration;

use crate::support::broker::{Broker, free_ports};
use crate::support::certificates::Certificates;
use crate::support::rabbitmq::Queue;
use crate::support::scene::Scene;
use crate::support::{SOON, images};

const EVENT: &str = r#""pixel""#;
const CA_FILE: &str = "EWMS_PILOT_BROKER_CA_FILE";

fn pilot(incoming: &Queue, outgoing: &Queue, addresses: [&str; 2]) -> Scene {
    Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}")
        .rabbitmq(incoming, outgoing)
        .set("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", addresses[0])
        .set("EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS", addresses[1])
        .set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "20")
}

#[test]
fn a_broker_is_believed_only_when_a_trusted_authority_vouches_for_its_name() {
    let certificates = Certificates::of("DNS:localhost,IP:::1");
    let [port] = free_ports();
    let broker = Broker::start_with(&certificates.settings(port));
    let plain = broker.address();
    let (incoming, outgoing) = (
        Queue::unique_at("tls-in", &plain),
        Queue::unique_at("tls-out", &plain),
    );
    incoming.produce([EVENT]);
    let by_name = format!("amqps://localhost:{port}");
    let by_ipv6 = format!("amqps://[::1]:{port}");
    let by_ipv4 = format!("amqps://127.0.0.1:{port}");

    let stranger = Certificates::of("DNS:localhost");
    for (authority, address, told) in [
        (stranger.authority(), &by_name, "UnknownIssuer"),
        (certificates.authority(), &by_ipv4, "not valid for name"),
    ] {
        let scene = pilot(&incoming, &outgoing, [address, address]).set(CA_FILE, authority);
        let outcome = scene.run(SOON);
        outcome.assert_code(4);
        let last = outcome.last_line();
        assert!(last.contains("TLS") && last.contains(told), "{last}");
        assert!(last.contains(CA_FILE), "{last}");
    }

    let scene = pilot(&incoming, &outgoing, [&by_name, &by_ipv6]);
    let scene = scene.set(CA_FILE, certificates.authority());
    scene.run(SOON).assert_code(0);
    assert_eq!(outgoing.consume(1, Duration::from_secs(5)), [EVENT]);
}

#[test]
fn a_file_of_authorities_without_a_certificate_is_a_wrong_setting() {
    let certificates = Certificates::of("DNS:localhost");
    let key = certificates.key();
    let (scene, _, _) = Scene::task(images::busybox(), "true").spool();
    let outcome = scene.set(CA_FILE, &key).run(SOON);
    outcome.assert_code(2);
    let named = format!("`{CA_FILE}` is `{}`: holds no certificate", key.display());
    assert!(outcome.stderr.contains(&named), "{}", outcome.stderr);
}
