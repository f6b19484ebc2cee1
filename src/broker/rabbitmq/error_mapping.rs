//! Maps the texts of amqprs and the server to errors. amqprs turns every I/O error into text, so only the
//! text can be judged. All of that is in this module, and was checked against RabbitMQ 4.0 and amqprs 2.1.5.

use std::time::{Duration, SystemTime};

use amqprs::error::Error;
use nix::errno::Errno;

use super::callbacks::ChannelEvent;
use crate::broker::{BrokerError, Endpoint};
use crate::config::{AmqpAddress, Secret, Transport, expiry};

/// A connection that is dropped after this time was refused for its credentials: RabbitMQ waits 3.0 s before
/// that, to slow down guessing.
const REFUSES_CREDENTIALS_AFTER: Duration = Duration::from_millis(2_500);

/// The handshake's frame holds 4,096 bytes, of which other fields take about 200.
const CREDENTIALS_MAX: usize = 3_900;

/// How a connection was opened.
pub(super) struct OpenAttempt<'a> {
    pub(super) address: &'a AmqpAddress,
    /// The secret that the server was shown; may be newer than the one in the address.
    pub(super) secret: &'a Secret,
    pub(super) took: Duration,
    pub(super) ended: SystemTime,
}

pub(super) fn of_open(error: &Error, attempt: &OpenAttempt<'_>, at: &Endpoint) -> BrokerError {
    let at = at.clone();
    let detail = plain(&error.to_string());
    match error {
        Error::ConnectionOpenError(text) if text.contains("530") && is_for_now(&detail) => {
            BrokerError::Full { at, detail }
        }
        Error::ConnectionOpenError(text) if text.contains("530") => BrokerError::Vhost {
            at,
            vhost: attempt.address.vhost.clone(),
            detail,
        },
        Error::ConnectionOpenError(text) if text.contains("403") || text.contains("authentic") => {
            BrokerError::Authentication { at, detail }
        }
        Error::ConnectionOpenError(_) => BrokerError::Rejected { at, detail },
        _ => of_network(detail, attempt, at),
    }
}

/// Whether the refusal is temporary: a limit on the connections or channels of a virtual host, a user or a
/// node, or a virtual host that is starting: `… connection limit (1) is reached`, `… maximum allowed limit of
/// (1)`, `vhost 'x' is down`.
fn is_for_now(detail: &str) -> bool {
    detail.contains("limit") || detail.ends_with("is down")
}

fn of_network(detail: String, attempt: &OpenAttempt<'_>, at: Endpoint) -> BrokerError {
    if detail.contains("failed to lookup address") {
        return BrokerError::UnknownHost { at, detail };
    }
    // The handshake was cut off. After a pause, that is how RabbitMQ refuses credentials.
    if attempt.took >= REFUSES_CREDENTIALS_AFTER {
        let detail = dropped(attempt);
        return BrokerError::Authentication { at, detail };
    }
    match attempt.address.transport {
        Transport::Tls if os_error(&detail).is_none() => BrokerError::Tls { at, detail },
        Transport::Tls | Transport::Tcp => BrokerError::CutOff { at, detail },
    }
}

/// The text for credentials that the server refused without a reason.
fn dropped(attempt: &OpenAttempt<'_>) -> String {
    let secret = attempt.secret.reveal();
    let size = attempt.address.user.len() + secret.len();
    if size > CREDENTIALS_MAX {
        return format!(
            "it dropped the connection; user and token have `{size}` bytes, about `{CREDENTIALS_MAX}` fit into the handshake"
        );
    }
    let took = attempt.took.as_secs_f32();
    if let Some(ago) = expiry(secret).and_then(|end| attempt.ended.duration_since(end).ok()) {
        let ago = ago.as_secs();
        return format!(
            "it dropped the connection after {took:.1} s; this token ended `{ago}` s ago and must be renewed"
        );
    }
    format!(
        "it dropped the connection after {took:.1} s, as RabbitMQ does with a wrong user, password or token"
    )
}

/// The error for an event on the channel or connection.
pub(super) fn of_signal(signal: &ChannelEvent, at: &Endpoint) -> BrokerError {
    let at = at.clone();
    match signal {
        ChannelEvent::Closed { code, text } => {
            let detail = format!("{code} {text}");
            match code {
                // The text of the OAuth2 plugin. A queue's name may contain `token`, too.
                403 if text.contains("token has expired") => {
                    BrokerError::Authentication { at, detail }
                }
                403 => BrokerError::Permission { at, detail },
                404 if text.contains("no queue") => BrokerError::NoQueue { at },
                406 if text.contains("current is 'stream'") => BrokerError::Unusable {
                    at,
                    why: "it is a stream, out of which no event is ever taken".into(),
                },
                405 => BrokerError::Unusable {
                    at,
                    why: format!("it is another connection's alone (`{detail}`)"),
                },
                530 if is_for_now(text) => BrokerError::Full { at, detail },
                // An operator closed it, or the server is stopping; a channel timed out; another client
                // declared the queue differently at the same moment; the queue's node is down.
                320 | 404 | 406 | 541 => BrokerError::ConnectionLost { at, detail },
                _ => BrokerError::Rejected { at, detail },
            }
        }
        ChannelEvent::ConsumerCancelled(_) => BrokerError::ConnectionLost {
            at,
            detail: "the server cancelled the consumer: the queue was deleted or lost its leader"
                .into(),
        },
        ChannelEvent::Returned => BrokerError::ConnectionLost {
            at,
            detail: "a result came back: its queue was deleted, and will be declared again".into(),
        },
        ChannelEvent::Dropped => BrokerError::ConnectionLost {
            at,
            detail: "it ended without a word".into(),
        },
    }
}

/// Maps errors of an established connection to its loss: the address is right, as the server has answered
/// before.
pub(super) fn in_mid_life(error: BrokerError) -> BrokerError {
    match error {
        BrokerError::TimedOut { at, step, after } => {
            let detail = format!("no answer within `{}` s ({step})", after.as_secs());
            BrokerError::ConnectionLost { at, detail }
        }
        error => error,
    }
}

/// Unwraps the text: amqprs prefixes the kernel's and prints the server's as a data structure.
pub(super) fn plain(text: &str) -> String {
    if let Some((_, rest)) = text.split_once("reply_text: ShortStr(")
        && let Some((_, rest)) = rest.split_once('"')
        && let Some((words, _)) = rest.split_once("\")")
    {
        return words.to_owned();
    }
    let text = text.strip_prefix("AMQP network error: ").unwrap_or(text);
    text.strip_prefix("network io error: ")
        .unwrap_or(text)
        .to_owned()
}

/// The error number of an I/O error, which Rust prints as `text (os error N)`.
pub(super) fn os_error(text: &str) -> Option<Errno> {
    let (_, rest) = text.rsplit_once("(os error ")?;
    rest.split_once(')')?.0.parse().ok().map(Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;

    use super::*;
    use crate::broker::Direction;
    use crate::config::{CaCertificates, ClientSide, Secret};

    fn address(transport: Transport) -> AmqpAddress {
        AmqpAddress {
            transport,
            host: "mq".into(),
            port: 5672,
            vhost: "physics".into(),
            user: "me".into(),
            password: Secret::new("hush".into()),
            token_file: None,
            authorities: CaCertificates::default(),
            client: ClientSide::default(),
        }
    }

    fn at() -> Endpoint {
        Endpoint {
            direction: Direction::Incoming,
            address: "mq:5672".into(),
            queues: vec!["q".into()],
        }
    }

    fn open(error: &Error, elapsed: u64) -> BrokerError {
        open_by(Transport::Tcp, error, elapsed)
    }

    fn open_by(transport: Transport, error: &Error, elapsed: u64) -> BrokerError {
        let address = address(transport);
        let attempt = OpenAttempt {
            address: &address,
            secret: &address.password,
            took: Duration::from_secs(elapsed),
            ended: SystemTime::UNIX_EPOCH,
        };
        of_open(error, &attempt, &at())
    }

    /// The error when the server drops a connection that was shown `secret`, an hour after 1970.
    fn refused_with(secret: String) -> String {
        let address = address(Transport::Tcp);
        let attempt = OpenAttempt {
            address: &address,
            secret: &Secret::new(secret),
            took: Duration::from_secs(3),
            ended: SystemTime::UNIX_EPOCH + Duration::from_hours(1),
        };
        of_open(&network("Connection reset by peer"), &attempt, &at()).to_string()
    }

    fn network(text: &str) -> Error {
        Error::NetworkError(format!("network io error: {text}"))
    }

    fn closed(code: u16, text: &str) -> BrokerError {
        of_signal(
            &ChannelEvent::Closed {
                code,
                text: text.into(),
            },
            &at(),
        )
    }

    #[test]
    fn a_name_that_the_resolver_does_not_know_is_told_apart() {
        let unknown = "failed to lookup address information: Name or service not known";
        let unknown = open(&network(unknown), 0);
        assert!(
            matches!(unknown, BrokerError::UnknownHost { .. }),
            "{unknown}"
        );
    }

    #[test]
    fn a_handshake_cut_off_late_is_a_refusal_of_credentials_and_early_it_is_not() {
        let reset = || network("Connection reset by peer (os error 104)");
        let late = open(&reset(), 3);
        assert!(matches!(late, BrokerError::Authentication { .. }), "{late}");
        let early = open(&reset(), 0);
        assert!(matches!(early, BrokerError::CutOff { .. }), "{early}");
    }

    #[test]
    fn what_is_wrong_with_the_token_that_was_shown_is_named_and_the_token_is_not() {
        let ending_at = |end: u64| {
            let claims = BASE64_URL_SAFE_NO_PAD.encode(format!("{{\"exp\":{end}}}"));
            format!("e30.{claims}.signature")
        };
        let hour = 3_600;
        for (secret, said) in [
            (ending_at(hour - 60), "this token ended `60` s ago"),
            (ending_at(hour + 60), "a wrong user, password or token"),
            ("hush".to_owned(), "a wrong user, password or token"),
            ("x".repeat(5_000), "user and token have `5002` bytes"),
        ] {
            let text = refused_with(secret.clone());
            assert!(text.contains(said), "{text}");
            assert!(!text.contains(&secret), "{text}");
        }
    }

    #[test]
    fn a_tls_failure_is_one_only_when_tls_was_asked_for() {
        let broken = || network("invalid peer certificate: UnknownIssuer");
        let tls = open_by(Transport::Tls, &broken(), 0);
        assert!(matches!(tls, BrokerError::Tls { .. }), "{tls}");
    }

    #[test]
    fn a_virtual_host_that_is_not_there_is_named() {
        // As printed by amqprs 2.1.5.
        let text = "failed to open connection, reason: Close(MethodHeader { class_id: 10, \
                    method_id: 50 }, Close { reply_code: 530, reply_text: ShortStr(39, \
                    \"NOT_ALLOWED - vhost physics not found\"), class_id: 10, method_id: 40 })";
        let error = open(&Error::ConnectionOpenError(text.into()), 0);
        let BrokerError::Vhost { vhost, detail, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(
            (&**vhost, &**detail),
            ("physics", "NOT_ALLOWED - vhost physics not found")
        );
    }

    #[test]
    fn a_limit_on_connections_is_named_and_no_fault_of_the_virtual_host() {
        for words in [
            "access to vhost 'physics' refused for user 'me': connection limit (1) is reached",
            "connection refused for user 'me': user connection limit (1) is reached",
            "access to vhost 'physics' refused for user 'me': vhost 'physics' is down",
        ] {
            let text = format!(
                "failed to open connection, reason: Close(MethodHeader {{ class_id: 10, method_id: 50 }}, \
                 Close {{ reply_code: 530, reply_text: ShortStr(99, \"NOT_ALLOWED - {words}\"), class_id: 10, \
                 method_id: 40 }})"
            );
            let error = open(&Error::ConnectionOpenError(text), 0);
            assert!(matches!(error, BrokerError::Full { .. }), "{error}");
            assert!(error.is_transient(), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn the_servers_reasons_are_told_apart() {
        let permission = closed(403, "ACCESS_REFUSED - access to queue 'q' refused");
        assert!(
            matches!(permission, BrokerError::Permission { .. }),
            "{permission}"
        );
        let named = "ACCESS_REFUSED - configure access to queue 'token' in vhost '/' refused";
        let named = closed(403, named);
        assert!(matches!(named, BrokerError::Permission { .. }), "{named}");
        // RabbitMQ 4.0.5's text to a publisher.
        let expired = closed(
            403,
            "ACCESS_REFUSED - write access to exchange 'amq.default' in vhost '/' refused for user \
             'physicist', backend rabbit_auth_backend_oauth2 returned an error: \"Provided JWT token \
             has expired at timestamp 1795663103 (validated at 1795663104)\"",
        );
        assert!(
            matches!(expired, BrokerError::Authentication { .. }),
            "{expired}"
        );
        let missing = closed(404, "NOT_FOUND - no queue 'q' in vhost '/'");
        assert!(matches!(missing, BrokerError::NoQueue { .. }), "{missing}");
        let down = closed(
            404,
            "NOT_FOUND - home node 'rabbit@a' of durable queue 'q' in vhost '/' is down or inaccessible",
        );
        assert!(matches!(down, BrokerError::ConnectionLost { .. }), "{down}");
        let locked = closed(
            405,
            "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q' in vhost '/'",
        );
        assert!(matches!(locked, BrokerError::Unusable { .. }), "{locked}");
        let channels = closed(
            530,
            "NOT_ALLOWED - number of channels opened for user 'me' has reached the maximum allowed limit of (1)",
        );
        assert!(matches!(channels, BrokerError::Full { .. }), "{channels}");
        let late_ack = closed(
            406,
            "PRECONDITION_FAILED - delivery acknowledgement timed out",
        );
        assert!(
            matches!(late_ack, BrokerError::ConnectionLost { .. }),
            "{late_ack}"
        );
    }
}
