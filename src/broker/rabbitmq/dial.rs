//! Opens a connection to the first address of the broker's host where a server answers. A host may have several
//! addresses, of which some are out of reach from here: IPv6 ones where a site has none, nodes that are down.

use std::net::SocketAddr;
use std::time::Duration;

use amqprs::connection::{Connection, OpenConnectionArguments};
use amqprs::error::Error;
use tokio::time::{Instant, timeout};

use super::error_mapping::plain;
use super::unreached::{UnreachedAddress, UnreachedReason};
use crate::blocking;
use crate::config::AmqpAddress;

/// The deadline for resolving, and for connecting, TLS and the handshake at the last address. amqprs itself
/// would wait for minutes.
pub(super) const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// How long to wait at an address while there are others. Longer than the 3.0 s after which RabbitMQ drops a
/// client with wrong credentials, which would look like silence otherwise.
const NEXT_AFTER: Duration = Duration::from_secs(4);
/// The deadline for all addresses together.
const ALL_WITHIN: Duration = Duration::from_secs(20);

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum DialError {
    /// The name has no address, or a server was reached. That try took so long.
    Failed { error: Error, took: Duration },
    /// No server answered. Without an address here, the resolver didn't.
    Unreached(Vec<UnreachedAddress>),
}

/// The name is resolved here because amqprs would do it on a thread of its event loop, and panic when the system
/// has none.
pub(super) async fn dial(
    arguments: &mut OpenConnectionArguments,
    address: &AmqpAddress,
) -> Result<Connection, DialError> {
    let began = Instant::now();
    let resolving = blocking::resolve(&address.host, address.port);
    let Ok(found) = timeout(OPEN_WITHIN, resolving).await else {
        return Err(DialError::Unreached(Vec::new()));
    };
    let unknown = |text: String| DialError::Failed {
        error: Error::NetworkError(text),
        took: Duration::ZERO,
    };
    let found = found.map_err(|error| unknown(error.to_string()))?;
    if found.is_empty() {
        return Err(unknown("the host has no address".to_owned()));
    }
    let mut unreached = Vec::new();
    let last = found.len() - 1;
    for (number, address) in found.into_iter().enumerate() {
        let patience = if number == last {
            OPEN_WITHIN
        } else {
            NEXT_AFTER
        };
        let patience = patience.min(ALL_WITHIN.saturating_sub(began.elapsed()));
        match open(arguments, address, patience).await? {
            Ok(connection) => return Ok(connection),
            Err(why) => unreached.push(UnreachedAddress { address, why }),
        }
    }
    Err(DialError::Unreached(unreached))
}

/// One try: a connection, or the reason why another address may be better.
async fn open(
    arguments: &mut OpenConnectionArguments,
    address: SocketAddr,
    patience: Duration,
) -> Result<Result<Connection, UnreachedReason>, DialError> {
    if patience.is_zero() {
        return Ok(Err(UnreachedReason::NotTried));
    }
    let began = Instant::now();
    arguments.host(&host_of(address));
    match timeout(patience, Connection::open(arguments)).await {
        Ok(Ok(connection)) => Ok(Ok(connection)),
        Err(_elapsed) => Ok(Err(UnreachedReason::Silent(patience))),
        Ok(Err(error)) => match UnreachedReason::of(&plain(&error.to_string())) {
            Some(why) => Ok(Err(why)),
            None => Err(DialError::Failed {
                error,
                took: began.elapsed(),
            }),
        },
    }
}

/// The host for amqprs, which joins host and port by a colon. A link-local address is of use only with the number
/// of its interface.
fn host_of(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(address) => address.ip().to_string(),
        SocketAddr::V6(address) if address.scope_id() != 0 => {
            format!("[{}%{}]", address.ip(), address.scope_id())
        }
        SocketAddr::V6(address) => format!("[{}]", address.ip()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_dialled_with_its_brackets_and_its_interface() {
        for (address, host) in [
            ("192.0.2.7:1", "192.0.2.7"),
            ("[::1]:1", "[::1]"),
            ("[fe80::1%3]:1", "[fe80::1%3]"),
        ] {
            assert_eq!(host_of(address.parse().expect(address)), host);
        }
    }
}
