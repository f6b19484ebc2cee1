//! The addresses of a broker's host where no server was reached, and the error for them all.

use std::net::SocketAddr;
use std::time::Duration;

use nix::errno::Errno;

use super::error_mapping::os_error;
use crate::broker::{BrokerError, Endpoint};

/// An address where no server was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnreachedAddress {
    pub(super) address: SocketAddr,
    pub(super) why: UnreachedReason,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum UnreachedReason {
    /// The machine there has no server on that port. The text is the kernel's.
    Refused(String),
    /// The kernel knows no way, or forbids it.
    NoRoute(String),
    Silent(Duration),
    /// The time was used up at other addresses.
    NotTried,
}

impl UnreachedReason {
    /// `None` for an error of a connection that was made.
    pub(super) fn of(kernels_text: &str) -> Option<Self> {
        let text = kernels_text.to_owned();
        match os_error(kernels_text)? {
            Errno::ECONNREFUSED => Some(Self::Refused(text)),
            Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::ENETDOWN
            | Errno::EADDRNOTAVAIL
            | Errno::EAFNOSUPPORT
            | Errno::ETIMEDOUT
            | Errno::EACCES
            | Errno::EPERM => Some(Self::NoRoute(text)),
            _ => None,
        }
    }
}

/// The error for addresses of which none has a server that can be reached, within `time` for the last one.
/// `proxy` is the variable that names this machine's proxy.
pub(super) fn error(
    mut unreached: Vec<UnreachedAddress>,
    proxy: Option<&str>,
    time: Duration,
    at: Endpoint,
) -> BrokerError {
    // Name servers rotate addresses, and equal failures are to have equal texts.
    unreached.sort_by_key(|one| one.address);
    let all = |wanted: fn(&UnreachedReason) -> bool| unreached.iter().all(|one| wanted(&one.why));
    let silent = all(|why| matches!(why, UnreachedReason::Silent(_) | UnreachedReason::NotTried));
    match (silent, proxy) {
        (true, None) => {
            let step = "connecting";
            return BrokerError::TimedOut {
                at,
                step,
                after: time,
            };
        }
        (true, Some(proxy)) => {
            let waited = time.as_secs();
            let detail = with_proxy(&format!("no answer within `{waited}` s"), proxy);
            return BrokerError::Unreachable { at, detail };
        }
        (false, _) => {}
    }
    if all(|why| matches!(why, UnreachedReason::Refused(_)))
        && let Some(UnreachedReason::Refused(detail)) = unreached.pop().map(|one| one.why)
    {
        return BrokerError::Refused { at, detail };
    }
    let each: Vec<String> = unreached.iter().map(shown).collect();
    let detail = each.join(", ");
    let is_refused = |one: &UnreachedAddress| matches!(one.why, UnreachedReason::Refused(_));
    if unreached.iter().any(is_refused) {
        return BrokerError::Refused { at, detail };
    }
    let detail = match proxy {
        Some(proxy) => with_proxy(&detail, proxy),
        None => detail,
    };
    BrokerError::Unreachable { at, detail }
}

fn with_proxy(detail: &str, proxy: &str) -> String {
    format!("{detail}; AMQP needs a direct route, the proxy that `{proxy}` names can't carry it")
}

fn shown(one: &UnreachedAddress) -> String {
    let address = one.address;
    match &one.why {
        UnreachedReason::Refused(text) | UnreachedReason::NoRoute(text) => {
            format!("{text} at `{address}`")
        }
        UnreachedReason::Silent(after) => {
            format!("no answer within `{}` s at `{address}`", after.as_secs())
        }
        UnreachedReason::NotTried => format!("no time left for `{address}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Direction;

    const REFUSED: &str = "Connection refused (os error 111)";
    const NO_NETWORK: &str = "Network is unreachable (os error 101)";
    const TIME: Duration = Duration::from_secs(10);

    fn at() -> Endpoint {
        Endpoint {
            direction: Direction::Incoming,
            address: "mq:5672".into(),
            queues: vec!["q".into()],
        }
    }

    fn unreached(address: &str, why: UnreachedReason) -> UnreachedAddress {
        let address = address.parse().expect("an address");
        UnreachedAddress { address, why }
    }

    fn kernels(address: &str, text: &str) -> UnreachedAddress {
        unreached(address, UnreachedReason::of(text).expect("out of reach"))
    }

    #[test]
    fn no_route_names_every_address_with_its_error_in_the_same_order_always() {
        let four = kernels("192.0.2.7:5672", "No route to host (os error 113)");
        let six = kernels("[2001:db8::7]:5672", NO_NETWORK);
        let silent = unreached("192.0.2.8:5672", UnreachedReason::Silent(TIME));
        let error_of = |list: Vec<_>| error(list, None, TIME, at());
        let found = error_of(vec![six.clone(), silent.clone(), four.clone()]);
        let BrokerError::Unreachable { detail, .. } = &found else {
            panic!("{found}")
        };
        assert_eq!(
            detail,
            "No route to host (os error 113) at `192.0.2.7:5672`, no answer within `10` s at `192.0.2.8:5672`, \
             Network is unreachable (os error 101) at `[2001:db8::7]:5672`"
        );
        assert_eq!(found, error_of(vec![silent, four, six]));
    }

    #[test]
    fn what_was_refused_everywhere_has_the_text_that_services_know() {
        let list = vec![
            kernels("[::1]:5672", REFUSED),
            kernels("127.0.0.1:5672", REFUSED),
        ];
        let detail = REFUSED.to_owned();
        assert_eq!(
            error(list, Some("https_proxy"), TIME, at()),
            BrokerError::Refused { at: at(), detail }
        );
        let mixed = vec![
            kernels("[::1]:5672", NO_NETWORK),
            kernels("127.0.0.1:5672", REFUSED),
        ];
        let mixed = error(mixed, None, TIME, at());
        assert!(matches!(mixed, BrokerError::Refused { .. }), "{mixed}");
        assert!(mixed.to_string().contains("`[::1]:5672`"), "{mixed}");
    }

    #[test]
    fn silence_is_a_time_out_and_behind_a_proxy_the_proxy_is_named() {
        let silent = || vec![unreached("192.0.2.8:5672", UnreachedReason::Silent(TIME))];
        let found = error(silent(), None, TIME, at());
        assert!(matches!(found, BrokerError::TimedOut { .. }), "{found}");
        for list in [silent(), vec![kernels("192.0.2.7:5672", NO_NETWORK)]] {
            let found = error(list, Some("https_proxy"), TIME, at());
            assert!(
                found
                    .to_string()
                    .contains("the proxy that `https_proxy` names")
            );
            assert!(found.is_transient());
        }
    }

    #[test]
    fn errors_of_a_server_that_was_reached_are_others() {
        assert_eq!(
            UnreachedReason::of("Connection reset by peer (os error 104)"),
            None
        );
        assert_eq!(
            UnreachedReason::of("failed to lookup address information"),
            None
        );
    }
}
