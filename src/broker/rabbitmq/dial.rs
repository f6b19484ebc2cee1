//! Reaches a broker by its host's name: looks up the addresses, and tries them in turn. Knows nothing of
//! what is said on the connection. amqprs would look the name up itself, on a thread that its event loop
//! makes for it, and panic when the system has none.

use amqprs::connection::{Connection, OpenConnectionArguments};
use amqprs::error::Error;
use nix::errno::Errno;

use super::address::dial_host;
use super::error_mapping::os_error;
use crate::blocking;
use crate::config::AmqpAddress;

/// Opens a connection to the first address that can be reached.
///
/// # Errors
/// The resolver's, or that of the last address that was tried.
pub(super) async fn dial(
    mut arguments: OpenConnectionArguments,
    address: &AmqpAddress,
) -> Result<Connection, Error> {
    let found = blocking::resolve(&address.host, address.port).await;
    let addresses = found.map_err(|error| Error::NetworkError(error.to_string()))?;
    let mut outcome = Err(Error::NetworkError("the host has no address".to_owned()));
    for found in addresses {
        arguments.host(&dial_host(&found.ip().to_string()));
        outcome = Connection::open(&arguments).await;
        match &outcome {
            Err(Error::NetworkError(detail)) if is_out_of_reach(detail) => {}
            _ => break,
        }
    }
    outcome
}

/// Whether nobody was met at that address; another one may be better.
fn is_out_of_reach(detail: &str) -> bool {
    matches!(
        os_error(detail),
        Some(
            Errno::ECONNREFUSED
                | Errno::EHOSTUNREACH
                | Errno::ENETUNREACH
                | Errno::ENETDOWN
                | Errno::EADDRNOTAVAIL
                | Errno::EAFNOSUPPORT
                | Errno::ETIMEDOUT
        )
    )
}
