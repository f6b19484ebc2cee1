//! Turns a validated address into the arguments of amqprs: names, credentials, TLS.
//!
//! amqprs' own parsing of addresses differs from what users of the pilot rely on, so none of it is used.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use amqprs::connection::OpenConnectionArguments;
use amqprs::tls::TlsAdaptor;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::blocking;
use crate::broker::{BrokerError, Direction, Endpoint};
use crate::config::{AmqpAddress, CaCertificates, Secret, Transport};

/// In seconds. Two missed heartbeats end a connection. Below 2, amqprs floods the broker; its default of 60
/// would hide a dead connection for two minutes.
const HEARTBEAT_SECS: u16 = 15;

/// The deadline for reading certificates.
const READ_WITHIN: Duration = Duration::from_secs(5);
/// The longest short string of AMQP. amqprs panics on longer ones.
const SHORT_STRING_MAX: usize = 255;

/// The endpoint by which errors, and the files of unsent results, name the queues. It includes the virtual
/// host, since two virtual hosts of a broker may have queues of one name.
pub(super) fn place(direction: Direction, queues: &[&str], address: &AmqpAddress) -> Endpoint {
    let vhost = match address.vhost.as_str() {
        "/" => String::new(),
        other => format!("/{other}"),
    };
    Endpoint {
        direction,
        address: format!("{}:{}{vhost}", dial_host(&address.host), address.port),
        queues: queues.iter().map(|&name| name.to_owned()).collect(),
    }
}

/// The arguments with which amqprs opens a connection.
pub(super) fn arguments(
    address: &AmqpAddress,
    secret: &Secret,
    at: &Endpoint,
    tls: Option<TlsConnector>,
) -> Result<OpenConnectionArguments, BrokerError> {
    let vhost = ("a virtual host", &address.vhost, at.clone());
    let names = at
        .indices()
        .zip(&at.queues)
        .map(|(queue, name)| ("a queue name", name, at.only(queue)));
    for (what, name, at) in names.chain([vhost]) {
        let bytes = name.len();
        if bytes > SHORT_STRING_MAX {
            return Err(BrokerError::NameTooLong { at, what, bytes });
        }
    }
    let mut arguments = OpenConnectionArguments::new(
        &dial_host(&address.host),
        address.port,
        &address.user,
        secret.reveal(),
    );
    arguments
        .virtual_host(&address.vhost)
        .heartbeat(HEARTBEAT_SECS)
        .connection_name(&connection_name(&address.client.machine));
    if let Some(connector) = tls {
        // A certificate knows nothing of this machine's interfaces.
        let name = address.host.split('%').next().unwrap_or_default();
        arguments.tls_adaptor(TlsAdaptor::new(connector, name.to_owned()));
    }
    Ok(arguments)
}

/// The connector for an address with TLS. The system's certificates are read for each connection, from a disk
/// that may hang.
pub(super) async fn tls_connector(
    address: &AmqpAddress,
    at: &Endpoint,
) -> Result<Option<TlsConnector>, BrokerError> {
    if address.transport != Transport::Tls {
        return Ok(None);
    }
    let given = address.authorities.clone();
    let reading = timeout(
        READ_WITHIN,
        blocking::start(move || connector_trusting(&given)),
    );
    let read = match reading.await {
        Ok(Ok(connector)) => connector,
        Ok(Err(died)) => Err(died.to_string()),
        Err(_elapsed) => {
            let waited = READ_WITHIN.as_secs();
            Err(format!(
                "this machine's CA certificates could not be read within `{waited}` s"
            ))
        }
    };
    read.map(Some).map_err(|detail| BrokerError::Tls {
        at: at.clone(),
        detail,
    })
}

/// The host, to be followed by a colon and a port: an IPv6 literal needs brackets for that.
fn dial_host(host: &str) -> String {
    let address = host.split('%').next().unwrap_or_default();
    if address.parse::<Ipv6Addr>().is_ok() {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

/// The name of the connection, which operators see in RabbitMQ's list of connections.
fn connection_name(machine: &str) -> String {
    format!("ewms-pilot {machine} {}", std::process::id())
}

/// Trusts the system's roots and the given ones. The crypto provider is named because rustls panics if it has
/// to guess.
fn connector_trusting(given: &CaCertificates) -> Result<TlsConnector, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let given = given.certificates().iter().cloned();
    let (usable, _unusable) = roots.add_parsable_certificates(found.certs.into_iter().chain(given));
    if usable == 0 {
        let why = found
            .errors
            .first()
            .map_or_else(String::new, |error| format!(" ({error})"));
        return Err(format!(
            "this machine has no CA certificates{why}, and EWMS_PILOT_BROKER_CA_FILE names none"
        ));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClientSide;

    fn address(host: &str, vhost: &str) -> AmqpAddress {
        AmqpAddress {
            transport: Transport::Tcp,
            host: host.into(),
            port: 5672,
            vhost: vhost.into(),
            user: String::new(),
            password: Secret::new("hush".into()),
            token_file: None,
            authorities: CaCertificates::default(),
            client: ClientSide::default(),
        }
    }

    #[test]
    fn vhost_and_host_reach_amqprs_as_they_were_written() {
        let mut address = address("mq.example", "a%2fb/c");
        address.client.machine = "wn7.example.org".to_owned();
        let at = place(Direction::Incoming, &["q"], &address);
        let arguments = arguments(&address, &address.password, &at, None).unwrap();
        assert_eq!(arguments.get_virtual_host(), "a%2fb/c");
        assert_eq!(arguments.get_host(), "mq.example");
        assert_eq!(arguments.get_heartbeat(), HEARTBEAT_SECS);
        let name = arguments.get_connection_name().expect("it has one");
        assert!(name.starts_with("ewms-pilot wn7.example.org "), "{name}");
    }

    #[test]
    fn queues_of_one_name_in_two_virtual_hosts_are_told_apart() {
        let at = |vhost| place(Direction::Outgoing, &["q"], &address("mq", vhost)).address;
        assert_eq!([at("/"), at("a")], ["mq:5672", "mq:5672/a"]);
    }

    #[test]
    fn an_ipv6_literal_is_dialled_in_brackets() {
        let address = address("::1", "/");
        let at = place(Direction::Incoming, &["q"], &address);
        assert_eq!(
            arguments(&address, &address.password, &at, None)
                .unwrap()
                .get_host(),
            "[::1]"
        );
        assert_eq!(at.address, "[::1]:5672");
        let zoned = place(
            Direction::Incoming,
            &["q"],
            &self::address("fe80::1%eth0", "/"),
        );
        assert_eq!(zoned.address, "[fe80::1%eth0]:5672");
    }

    #[test]
    fn names_that_amqp_cannot_carry_are_refused_before_amqprs_panics() {
        let address = address("mq.example", "/");
        let at = place(Direction::Outgoing, &["q", &"q".repeat(256)], &address);
        let Err(error) = arguments(&address, &address.password, &at, None) else {
            panic!("accepted")
        };
        assert!(
            matches!(error, BrokerError::NameTooLong { bytes: 256, .. }),
            "{error}"
        );
    }

    #[test]
    fn no_text_or_debug_form_of_an_error_holds_the_password() {
        let address = address(&"h".repeat(10), &"v".repeat(300));
        let at = place(Direction::Incoming, &["q"], &address);
        let Err(error) = arguments(&address, &address.password, &at, None) else {
            panic!("accepted")
        };
        assert!(!format!("{error} {error:?}").contains("hush"));
    }
}
