//! When the tokens of the queues end, and what is to be said of that at the start. Pure: it is told the
//! time.

use std::time::{Duration, SystemTime};

use super::jwt::expiry;
use super::{AmqpAddress, BrokerConfig, QueueConfig};

/// The first end of the tokens that can't be renewed and have not ended yet. A warning is made for
/// each that is past its end, or ends while the first event may still be waited for.
pub(super) fn end(
    queues: &[&[QueueConfig]],
    first_event_timeout: Duration,
    now: SystemTime,
    warnings: &mut Vec<String>,
) -> Option<SystemTime> {
    let mut first = None;
    for queue in queues.iter().copied().flatten() {
        let BrokerConfig::RabbitMq(AmqpAddress {
            password,
            token_file,
            ..
        }) = &queue.broker
        else {
            continue;
        };
        let Some(end) = expiry(password.reveal()) else {
            continue;
        };
        let name = &queue.name;
        let Ok(left) = end.duration_since(now) else {
            warnings.push(format!(
                "the token for queue `{name}` is past its end: the broker will refuse it, give a new one"
            ));
            continue;
        };
        if token_file.is_some() {
            continue;
        }
        if left < first_event_timeout {
            warnings.push(format!(
                "the token for queue `{name}` ends in `{}` s, before the first event has been waited \
                 for: give one that lives longer, or a file that is kept up to date",
                left.as_secs()
            ));
        }
        first = Some(first.map_or(end, |first: SystemTime| first.min(end)));
    }
    first
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;

    use super::*;
    use crate::config::TokenFile;

    const NOW: Duration = Duration::from_hours(500_000);

    fn queue(end: u64) -> QueueConfig {
        let claims = BASE64_URL_SAFE_NO_PAD.encode(format!("{{\"exp\":{end}}}"));
        let address = AmqpAddress::parse("mq", &format!("e30.{claims}.x")).unwrap();
        QueueConfig {
            name: "q".into(),
            broker: BrokerConfig::RabbitMq(address),
        }
    }

    fn check(queue: QueueConfig) -> (Option<u64>, Vec<String>) {
        let now = SystemTime::UNIX_EPOCH + NOW;
        let mut warnings = Vec::new();
        let end = end(&[&[queue]], Duration::from_mins(1), now, &mut warnings);
        let left = end.map(|end| end.duration_since(now).unwrap().as_secs());
        (left, warnings)
    }

    #[test]
    fn a_token_that_is_past_its_end_or_ends_too_soon_is_warned_of() {
        let (left, warnings) = check(queue(NOW.as_secs() - 1));
        assert_eq!((left, warnings.len()), (None, 1));
        assert!(warnings[0].contains("is past its end"), "{warnings:?}");
        let (left, warnings) = check(queue(NOW.as_secs() + 59));
        assert_eq!((left, warnings.len()), (Some(59), 1));
        assert!(warnings[0].contains("ends in `59` s"), "{warnings:?}");
        assert_eq!(check(queue(NOW.as_secs() + 61)), (Some(61), Vec::new()));
    }

    #[test]
    fn a_token_that_can_be_renewed_limits_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "x").unwrap();
        let mut queue = queue(NOW.as_secs() + 5);
        if let BrokerConfig::RabbitMq(address) = &mut queue.broker {
            address.token_file = Some(TokenFile::open(file.path().to_owned()).unwrap());
        }
        assert_eq!(check(queue), (None, Vec::new()));
    }
}
