//! Reads a RabbitMQ address exactly as `oms-mqclient` does, so that an address that works for the
//! producers and consumers of a workflow works here: nothing is percent-decoded, the host is
//! lower-cased, leading slashes of the virtual host don't count. A URL library would decode.

use std::net::Ipv6Addr;

use super::credentials::{CaCertificates, Secret, TokenFile};
use super::python_values::{self, is_space};

/// A RabbitMQ server, and the pilot's user there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmqpAddress {
    pub transport: Transport,
    /// Host name or address, lower-case, an IPv6 literal without brackets.
    pub host: String,
    pub port: u16,
    pub vhost: String,
    /// User name; empty when only a token is given.
    pub user: String,
    /// Password or token; with a `token_file`, the token that it held at the start.
    pub password: Secret,
    /// A file with the current token, kept up to date by another program.
    pub token_file: Option<TokenFile>,
    /// Trusted certificates for the server, besides those of the machine.
    pub authorities: CaCertificates,
    pub client: ClientSide,
}

/// This side of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientSide {
    /// The machine's name, which the broker's operators see.
    pub machine: String,
    /// The variable that names the machine's proxy. AMQP can't go through one, so errors name it.
    pub proxy: Option<String>,
}

/// How bytes travel to RabbitMQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// `amqp://`
    Tcp,
    /// `amqps://`
    Tls,
}

/// The reason why an address can't be used. No text holds a part of the address, because any part may be a
/// piece of a password that has a `/`, `@` or `:` in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither `amqp` nor `amqps`.
    #[error("the scheme must be `amqp`, `amqps` or left out")]
    Scheme,
    #[error("a host is missing, expected `[SCHEME://][USER[:PASS]@]HOST[:PORT][/VHOST]`")]
    NoHost,
    /// The host can't be one.
    #[error("the host must be a name, an IPv4 address or an IPv6 address in brackets")]
    Host,
    #[error("the port must be a number from 1 to 65535")]
    Port,
    /// A user, but neither password nor token.
    #[error("a user is given without a password or token: give both or neither")]
    NoPassword,
    /// `?…` or `#…`, which the producers' library ignores.
    #[error(
        "`?` and `#` have no meaning in an address, and can't be in its password: leave them out"
    )]
    Query,
    /// AMQP's limit.
    #[error("the virtual host is longer than 255 bytes")]
    LongVhost,
}

impl AmqpAddress {
    /// Reads `[SCHEME://][USER[:PASS]@]HOST[:PORT][/VHOST]`. Empty text is `localhost`, an absent or
    /// empty virtual host `/`. A token, unless empty, replaces the password.
    ///
    /// # Errors
    /// Fails if the address has another form, or a user but no password.
    pub fn parse(text: &str, token: &str) -> Result<Self, AddressError> {
        let text = text.trim_matches(is_space);
        let (transport, rest) = match text.split_once("://") {
            None => (Transport::Tcp, text),
            Some((scheme, rest)) => (transport(scheme)?, rest),
        };
        // Like Python's urlsplit: the first of these ends the part that may hold a user, even inside what
        // was meant as a password.
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if path.contains(['?', '#']) {
            return Err(AddressError::Query);
        }
        let (user_info, host_info) = match authority.rsplit_once('@') {
            Some((user_info, host_info)) => (user_info, host_info),
            None => ("", authority),
        };
        let (host, port) = match host_info {
            "" if text.is_empty() => ("localhost".to_owned(), None),
            _ => host_and_port(host_info)?,
        };
        let (user, password) = credentials(user_info, token)?;
        let vhost = match path.trim_start_matches('/') {
            "" => "/",
            vhost => vhost,
        };
        if vhost.len() > 255 {
            return Err(AddressError::LongVhost);
        }
        Ok(Self {
            transport,
            host,
            port: port.unwrap_or(match transport {
                Transport::Tcp => 5672,
                Transport::Tls => 5671,
            }),
            vhost: vhost.to_owned(),
            user,
            password,
            token_file: None,
            authorities: CaCertificates::default(),
            client: ClientSide::default(),
        })
    }
}

/// The address with `***` where a password is, or might be if the address is broken.
pub(super) fn masked(text: &str) -> String {
    if let Some(addresses) = python_values::literal(text) {
        let shown: Vec<String> = addresses.iter().map(|address| masked(address)).collect();
        return format!("{shown:?}");
    }
    if python_values::starts_like_literal(text) && text.contains(['\'', '"']) {
        // A malformed list of addresses may hold a password anywhere.
        return "***".to_owned();
    }
    if text.contains(';') {
        // Several addresses, or one whose password has a `;`: in both cases everything before the last
        // `@` may be a password.
        return match text.rsplit_once('@') {
            Some((_, host)) => format!("***@{host}"),
            None => text.split(';').map(masked).collect::<Vec<_>>().join(";"),
        };
    }
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), text),
    };
    if let Some((user_info, host)) = rest.rsplit_once('@') {
        return match user_info.split_once(':') {
            Some((user, _)) => format!("{scheme}{user}:***@{host}"),
            None => format!("{scheme}{user_info}@{host}"),
        };
    }
    // `user:password` without a host looks like a host with a strange port.
    match rest.split_once(':') {
        Some((host, after)) if !rest.starts_with('[') && !is_ipv6(rest) => {
            let port = after.split('/').next().unwrap_or_default();
            if port.bytes().all(|byte| byte.is_ascii_digit()) {
                text.to_owned()
            } else {
                format!("{scheme}{host}:***")
            }
        }
        _ => text.to_owned(),
    }
}

fn transport(scheme: &str) -> Result<Transport, AddressError> {
    match scheme.to_ascii_lowercase().as_str() {
        "amqp" => Ok(Transport::Tcp),
        "amqps" => Ok(Transport::Tls),
        _ => Err(AddressError::Scheme),
    }
}

fn host_and_port(text: &str) -> Result<(String, Option<u16>), AddressError> {
    let (host, port) = if let Some(bracketed) = text.strip_prefix('[') {
        let (host, after) = bracketed.split_once(']').ok_or(AddressError::Host)?;
        if !is_ipv6(host) {
            return Err(AddressError::Host);
        }
        let port = match after {
            "" => "",
            _ => after.strip_prefix(':').ok_or(AddressError::Port)?,
        };
        (host, port)
    } else {
        // Without brackets, its last part may or may not be a port.
        if is_ipv6(text) {
            return Err(AddressError::Host);
        }
        text.split_once(':').unwrap_or((text, ""))
    };
    if host.is_empty() {
        return Err(AddressError::NoHost);
    }
    if host.contains(|c: char| is_space(c) || c.is_control() || "[];,".contains(c)) {
        return Err(AddressError::Host);
    }
    Ok((lower_case(host), port_number(port)?))
}

/// With or without a zone.
fn is_ipv6(host: &str) -> bool {
    let address = host.split('%').next().unwrap_or_default();
    address.parse::<Ipv6Addr>().is_ok()
}

/// Lower case up to an IPv6 zone, whose name is a network interface's.
fn lower_case(host: &str) -> String {
    match host.split_once('%') {
        Some((address, zone)) => format!("{}%{zone}", address.to_lowercase()),
        None => host.to_lowercase(),
    }
}

fn port_number(text: &str) -> Result<Option<u16>, AddressError> {
    if text.is_empty() {
        return Ok(None);
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(AddressError::Port);
    }
    match text.parse() {
        Ok(0) | Err(_) => Err(AddressError::Port),
        Ok(port) => Ok(Some(port)),
    }
}

/// A token without a user gets an empty user, as Keycloak wants. Without both it is RabbitMQ's default user.
fn credentials(user_info: &str, token: &str) -> Result<(String, Secret), AddressError> {
    let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
    let password = if token.is_empty() { password } else { token };
    match (user, password) {
        ("", "") => Ok(("guest".to_owned(), Secret::new("guest".to_owned()))),
        (_, "") => Err(AddressError::NoPassword),
        (user, password) => Ok((user.to_owned(), Secret::new(password.to_owned()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str, token: &str) -> AmqpAddress {
        AmqpAddress::parse(text, token).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn parts(text: &str, token: &str) -> (String, u16, String, String, String) {
        let AmqpAddress {
            host,
            port,
            vhost,
            user,
            password,
            ..
        } = address(text, token);
        (host, port, vhost, user, password.reveal().to_owned())
    }

    fn expect(text: &str, token: &str, expected: (&str, u16, &str, &str, &str)) {
        let (host, port, vhost, user, password) = parts(text, token);
        assert_eq!(
            (&*host, port, &*vhost, &*user, &*password),
            expected,
            "{text}"
        );
    }

    #[test]
    fn nothing_means_the_guest_on_localhost() {
        expect("", "", ("localhost", 5672, "/", "guest", "guest"));
        expect("localhost", "", ("localhost", 5672, "/", "guest", "guest"));
    }

    #[test]
    fn every_part_is_read() {
        expect(
            "amqp://me:pw@Host.Example:1234/v",
            "",
            ("host.example", 1234, "v", "me", "pw"),
        );
        expect("me:pw@host/v", "", ("host", 5672, "v", "me", "pw"));
        expect("host:", "", ("host", 5672, "/", "guest", "guest"));
        expect(" host ", "", ("host", 5672, "/", "guest", "guest"));
    }

    #[test]
    fn the_scheme_decides_transport_and_port() {
        assert_eq!(address("AMQPS://host", "").transport, Transport::Tls);
        assert_eq!(address("amqps://host", "").port, 5671);
        assert_eq!(address("amqps://host:5672", "").port, 5672);
        assert_eq!(address("host", "").transport, Transport::Tcp);
        assert_eq!(
            AmqpAddress::parse("http://host", ""),
            Err(AddressError::Scheme)
        );
        assert_eq!(AmqpAddress::parse("://host", ""), Err(AddressError::Scheme));
    }

    #[test]
    fn nothing_is_percent_decoded() {
        expect(
            "us%40er:p%2Fw@host/%2f",
            "",
            ("host", 5672, "%2f", "us%40er", "p%2Fw"),
        );
    }

    #[test]
    fn leading_slashes_of_the_virtual_host_do_not_count() {
        expect("host/", "", ("host", 5672, "/", "guest", "guest"));
        expect("host//a/b", "", ("host", 5672, "a/b", "guest", "guest"));
    }

    #[test]
    fn a_password_may_hold_colons_and_at_signs() {
        expect("me:a:b@c@host", "", ("host", 5672, "/", "me", "a:b@c"));
    }

    #[test]
    fn a_token_replaces_the_password() {
        expect("me:pw@host", "t", ("host", 5672, "/", "me", "t"));
        expect("me@host", "t", ("host", 5672, "/", "me", "t"));
        expect("host", "t", ("host", 5672, "/", "", "t"));
        expect(":pw@host", "", ("host", 5672, "/", "", "pw"));
        assert_eq!(
            AmqpAddress::parse("me@host", ""),
            Err(AddressError::NoPassword)
        );
        assert_eq!(
            AmqpAddress::parse("me:@host", ""),
            Err(AddressError::NoPassword)
        );
    }

    #[test]
    fn an_ipv6_host_stands_in_brackets() {
        expect("[::1]:5672/x", "", ("::1", 5672, "x", "guest", "guest"));
        expect(
            "me:pw@[FE80::A%Eth0]",
            "",
            ("fe80::a%Eth0", 5672, "/", "me", "pw"),
        );
        for text in ["[::1", "[host]", "[::1]x", "[127.0.0.1]", "x[::1]"] {
            assert!(AmqpAddress::parse(text, "").is_err(), "{text}");
        }
        for text in ["::1", "2001:db8::1:5672", "amqps://fe80::1%eth0/v"] {
            assert_eq!(
                AmqpAddress::parse(text, ""),
                Err(AddressError::Host),
                "{text}"
            );
        }
        assert_eq!(masked("::1"), "::1");
    }

    #[test]
    fn broken_addresses_are_errors() {
        for (text, error) in [
            ("amqp://", AddressError::NoHost),
            (":5672", AddressError::NoHost),
            ("me:pw@", AddressError::NoHost),
            ("/vhost", AddressError::NoHost),
            ("host:x", AddressError::Port),
            ("host:0", AddressError::Port),
            ("host:65536", AddressError::Port),
            ("host:+1", AddressError::Port),
            ("ho st", AddressError::Host),
            ("a,b", AddressError::Host),
            ("host/v?heartbeat=3", AddressError::Query),
            ("me:p#w@host", AddressError::Query),
        ] {
            assert_eq!(AmqpAddress::parse(text, ""), Err(error), "{text}");
        }
    }

    #[test]
    fn no_form_of_an_address_shows_the_password() {
        for (text, shown) in [
            ("amqps://me:pw@host:1/v", "amqps://me:***@host:1/v"),
            ("me:a@b/c@host", "me:***@host"),
            ("me:p/w?x@host", "me:***@host"),
            ("me:secret", "me:***"),
            ("amqp://me:1secret/x", "amqp://me:***"),
            ("me@host", "me@host"),
            ("host:5672/v", "host:5672/v"),
            ("[::1]:5672/x", "[::1]:5672/x"),
            ("", ""),
            ("a:1;me:pw", "a:1;me:***"),
            ("me:pw@a;me:p@w;x@b/v", "***@b/v"),
        ] {
            assert_eq!(masked(text), shown);
        }
        assert!(!format!("{:?}", address("me:secret@host", "")).contains("secret"));
    }
}
