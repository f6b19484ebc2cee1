//! Puts the variables of the queues together: name, token or its file, kind of broker, address, CA
//! certificates. Variables that are fine alone may not fit together; that is checked here.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::address::{AmqpAddress, ClientSide};
use super::credentials::{CaCertificates, TokenFile, expiry};
use super::problem::ConfigProblem;
use super::python_values::{list_or, literal};
use super::reader::VariableReader;
use super::variables::{self, Variable};

/// A queue and the broker that holds it.
#[derive(Debug, Clone)]
pub struct QueueConfig {
    /// The queue's name.
    pub name: String,
    pub broker: BrokerConfig,
}

#[derive(Debug, Clone)]
pub enum BrokerConfig {
    RabbitMq(AmqpAddress),
    /// A directory; the queue is the subdirectory of its name.
    Spool(PathBuf),
}

impl BrokerConfig {
    /// A spool has no other side.
    pub(super) fn set_client(&mut self, client: &ClientSide) {
        if let Self::RabbitMq(address) = self {
            address.client = client.clone();
        }
    }
}

/// The variables of the queues of one direction.
struct QueueVariables {
    name: &'static Variable,
    token: &'static Variable,
    token_file: &'static Variable,
    kind: &'static Variable,
    address: &'static Variable,
}

const INCOMING: QueueVariables = QueueVariables {
    name: &variables::QUEUE_INCOMING,
    token: &variables::QUEUE_INCOMING_AUTH_TOKEN,
    token_file: &variables::QUEUE_INCOMING_AUTH_TOKEN_FILE,
    kind: &variables::QUEUE_INCOMING_BROKER_TYPE,
    address: &variables::QUEUE_INCOMING_BROKER_ADDRESS,
};

const OUTGOING: QueueVariables = QueueVariables {
    name: &variables::QUEUE_OUTGOING,
    token: &variables::QUEUE_OUTGOING_AUTH_TOKEN,
    token_file: &variables::QUEUE_OUTGOING_AUTH_TOKEN_FILE,
    kind: &variables::QUEUE_OUTGOING_BROKER_TYPE,
    address: &variables::QUEUE_OUTGOING_BROKER_ADDRESS,
};

/// The incoming and the outgoing queues. If a direction has a problem, the reader notes it and the queues of
/// that direction are left out.
pub(super) fn both_directions(
    reader: &mut VariableReader<'_>,
    cwd: &Path,
) -> (Vec<QueueConfig>, Vec<QueueConfig>) {
    let mut incoming = queues(reader, &INCOMING, cwd).unwrap_or_default();
    let mut outgoing = queues(reader, &OUTGOING, cwd).unwrap_or_default();
    let certificates = ca_certificates(reader, cwd);
    for queue in incoming.iter_mut().chain(&mut outgoing) {
        if let BrokerConfig::RabbitMq(address) = &mut queue.broker {
            address.authorities = certificates.clone();
        }
    }
    refuse_mixed_kinds(reader, &outgoing);
    (incoming, outgoing)
}

/// The queues of one direction, or `None` when something is wrong with one, which the reader then notes.
/// Several are given as lists of equal length, each with `;` between the items or as a list literal.
fn queues(
    reader: &mut VariableReader<'_>,
    from: &QueueVariables,
    cwd: &Path,
) -> Option<Vec<QueueConfig>> {
    let name = reader.required(from.name).unwrap_or_default();
    let token = reader.text(from.token);
    let file = reader.text(from.token_file);
    // After a problem the rest is checked, too, as far as it is clear which items belong together.
    let has_one_token = refuse_two_tokens(reader, from, &token, &file);
    let address = reader.text(from.address);
    let word = reader.required(from.kind).unwrap_or_default();
    refuse_unknown_kinds(reader, from, word);
    let names = names(reader, from, name)?;
    let lists = in_step(reader, from, &names, [&token, &file, word, &address])?;
    if names.len() > 1 && names.iter().any(String::is_empty) {
        let advice = "a name is missing between two `;`, at an end, or in the list";
        reader.refuse(from.name, name, advice);
        return None;
    }
    let mut queues = Vec::new();
    for (place, name) in names.iter().enumerate() {
        // A list that is empty is empty for all queues.
        let [token, file, word, address] = lists
            .each_ref()
            .map(|list| list.get(place).map_or("", String::as_str));
        // The user has to remove one of the two, so neither is read.
        let file = has_one_token.map_or("", |()| file);
        queues.push(queue(reader, from, cwd, [name, token, file, word, address]));
    }
    let queues: Vec<QueueConfig> = queues.into_iter().collect::<Option<_>>()?;
    refuse_repeated(reader, from, &queues);
    has_one_token.and(Some(queues))
}

/// Refuses each word that is no kind of broker, once.
fn refuse_unknown_kinds(reader: &mut VariableReader<'_>, from: &QueueVariables, words: &str) {
    // A value that is no list is reported when the lists are compared.
    let mut unknown = list_or(words, split).unwrap_or_default();
    unknown.retain(|word| !word.is_empty() && !variables::BROKER_TYPES.contains(&&**word));
    unknown.sort_unstable();
    unknown.dedup();
    for word in unknown {
        let advice = format!("expected {}", from.kind.kind.expected());
        reader.refuse(from.kind, &word, advice);
    }
}

fn split(text: &str) -> Vec<String> {
    text.split(';').map(str::to_owned).collect()
}

/// The queues' names; at least one.
fn names(
    reader: &mut VariableReader<'_>,
    from: &QueueVariables,
    text: &str,
) -> Option<Vec<String>> {
    let names = list_or(text, split).filter(|names| !names.is_empty());
    if names.is_none() {
        refuse_literal(reader, from.name, text);
    }
    names
}

fn refuse_literal(reader: &mut VariableReader<'_>, variable: &Variable, text: &str) {
    let advice = "expected one, several with `;` between them, or a list like `['A', 'B']`";
    reader.refuse(variable, text, advice);
}

/// Refuses a queue that is named twice: it would get each result twice, and its events would not be
/// recognised after an outage.
fn refuse_repeated(reader: &mut VariableReader<'_>, from: &QueueVariables, queues: &[QueueConfig]) {
    let mut rest = queues;
    while let [queue, later @ ..] = rest {
        if later.iter().any(|other| is_same(queue, other)) {
            let advice = "it is there twice: name each queue of a broker once";
            reader.refuse(from.name, &queue.name, advice);
        }
        rest = later;
    }
}

/// Whether both are the same queue of the same broker, even with other users and tokens.
fn is_same(one: &QueueConfig, other: &QueueConfig) -> bool {
    let is_same_broker = match (&one.broker, &other.broker) {
        (BrokerConfig::RabbitMq(one), BrokerConfig::RabbitMq(other)) => {
            (&one.host, one.port, &one.vhost) == (&other.host, other.port, &other.vhost)
        }
        (BrokerConfig::Spool(one), BrokerConfig::Spool(other)) => one == other,
        (BrokerConfig::RabbitMq(_), BrokerConfig::Spool(_))
        | (BrokerConfig::Spool(_), BrokerConfig::RabbitMq(_)) => false,
    };
    is_same_broker && one.name == other.name
}

/// Makes one queue of its name, token, token file, kind and address.
fn queue(
    reader: &mut VariableReader<'_>,
    from: &QueueVariables,
    cwd: &Path,
    [name, token, file, word, address]: [&str; 5],
) -> Option<QueueConfig> {
    let [rabbitmq_word, spool_word] = variables::BROKER_TYPES;
    let file = (!file.is_empty()).then(|| token_file(reader, from, &cwd.join(file)));
    let is_readable = !matches!(file, Some(None));
    let broker = if word == rabbitmq_word {
        rabbitmq(reader, from, name, token, file.flatten(), address)?
    } else if word == spool_word {
        spool(reader, from, name, address, cwd)?
    } else {
        return None;
    };
    (is_readable && !name.is_empty()).then(|| QueueConfig {
        name: name.to_owned(),
        broker,
    })
}

/// The queue for events that failed too often, on the broker of the first incoming queue. A spool has its
/// own place for them.
pub(super) fn dead_letter(
    reader: &mut VariableReader<'_>,
    incoming: &[QueueConfig],
) -> Option<QueueConfig> {
    let variable = &variables::QUEUE_DEAD_LETTER;
    let name = reader.text(variable);
    if name.is_empty() {
        return None;
    }
    if reader.set(&variables::MAX_DELIVERIES).is_none() {
        reader.problems.push(ConfigProblem::Conflict(format!(
            "`{}` is `{name}` while `{}` is not set: no event would ever go there, set both",
            variable.name,
            variables::MAX_DELIVERIES.name
        )));
    }
    refuse_long_name(reader, variable, &name)?;
    let first = incoming.first()?;
    if matches!(first.broker, BrokerConfig::Spool(_)) {
        let advice = "expected none: a spool keeps what failed too often in its `failed/`";
        reader.refuse(variable, &name, advice);
        return None;
    }
    if incoming.iter().any(|queue| queue.name == name) {
        reader.refuse(
            variable,
            &name,
            "expected another queue than the incoming one",
        );
    }
    Some(QueueConfig {
        name,
        broker: first.broker.clone(),
    })
}

/// Refuses outgoing queues of several kinds: a result is packed once, in the format of the kind of broker.
fn refuse_mixed_kinds(reader: &mut VariableReader<'_>, outgoing: &[QueueConfig]) {
    let spools = outgoing
        .iter()
        .filter(|queue| matches!(queue.broker, BrokerConfig::Spool(_)))
        .count();
    if spools > 0 && spools < outgoing.len() {
        let words = reader.text(OUTGOING.kind);
        let advice = "results go to queues of one kind only: give the same for each queue";
        reader.refuse(OUTGOING.kind, &words, advice);
    }
}

/// The certificates of `EWMS_PILOT_BROKER_CA_FILE`, if it is set.
fn ca_certificates(reader: &mut VariableReader<'_>, cwd: &Path) -> CaCertificates {
    let variable = &variables::BROKER_CA_FILE;
    let Some(path) = reader.file(variable, cwd) else {
        return CaCertificates::default();
    };
    CaCertificates::read(&path).unwrap_or_else(|advice| {
        let path = path.display().to_string();
        let problem = ConfigProblem::value(variable.name, &path, advice);
        reader.problems.push(problem);
        CaCertificates::default()
    })
}

/// Refuses a token that is given both as it is and in a file.
fn refuse_two_tokens(
    reader: &mut VariableReader<'_>,
    from: &QueueVariables,
    token: &str,
    file: &str,
) -> Option<()> {
    if token.is_empty() || file.is_empty() {
        return Some(());
    }
    reader.problems.push(ConfigProblem::Conflict(format!(
        "`{}` and `{}` are both set: set one of them only",
        from.token.name, from.token_file.name
    )));
    None
}

fn token_file(
    reader: &mut VariableReader<'_>,
    from: &QueueVariables,
    path: &Path,
) -> Option<TokenFile> {
    TokenFile::open(path.to_owned())
        .map_err(|advice| {
            let path = path.display().to_string();
            reader.refuse(from.token_file, &path, advice);
        })
        .ok()
}

/// The lists of tokens, token files, kinds and addresses that belong to `names`: of the same length, or
/// empty. `None` when one has another length or is no list, which the reader then notes.
fn in_step(
    reader: &mut VariableReader<'_>,
    from: &QueueVariables,
    names: &[String],
    [token, file, kind, address]: [&str; 4],
) -> Option<[Vec<String>; 4]> {
    let whole = |text: &str| vec![text.to_owned()];
    let is_single = names.len() == 1;
    let opaque = if is_single { whole } else { split };
    // A password may have a `;` in it; the part behind the password may not.
    let host = address.rsplit_once('@').map_or(address, |(_, host)| host);
    let addresses = if is_single && host.contains(';') {
        text_items(host, split)
    } else {
        text_items(address, opaque)
    };
    let lists = [
        (from.token, text_items(token, opaque)),
        (from.token_file, text_items(file, opaque)),
        (from.kind, list_items(reader, from.kind, kind)),
        (from.address, addresses),
    ];
    let mut are_in_step = true;
    for (variable, list) in &lists {
        let count = list.len();
        if count != names.len() && count > 0 {
            are_in_step = false;
            reader.problems.push(ConfigProblem::Conflict(format!(
                "`{}` and `{}` are lists of different lengths, {} and {count}: give one of each for each \
                 queue, with `;` between them or as lists like `['A', 'B']`",
                from.name.name,
                variable.name,
                names.len()
            )));
        }
    }
    are_in_step.then(|| lists.map(|(_, list)| list))
}

/// The items of a text that may begin like a list without being one, as a password or `[::1]` does.
fn text_items(text: &str, split: fn(&str) -> Vec<String>) -> Vec<String> {
    if text.is_empty() {
        return Vec::new();
    }
    literal(text).unwrap_or_else(|| split(text))
}

fn list_items(reader: &mut VariableReader<'_>, variable: &Variable, text: &str) -> Vec<String> {
    if text.is_empty() {
        return Vec::new();
    }
    list_or(text, split).unwrap_or_else(|| {
        refuse_literal(reader, variable, text);
        Vec::new()
    })
}

fn rabbitmq(
    reader: &mut VariableReader<'_>,
    from: &QueueVariables,
    name: &str,
    token: &str,
    file: Option<TokenFile>,
    address: &str,
) -> Option<BrokerConfig> {
    refuse_long_name(reader, from.name, name)?;
    let read = file.as_ref().map(TokenFile::last);
    let token = read.as_ref().map_or(token, |token| token.reveal());
    match AmqpAddress::parse(address, token) {
        Ok(address) => Some(BrokerConfig::RabbitMq(AmqpAddress {
            token_file: file,
            ..address
        })),
        Err(error) => {
            reader.refuse(from.address, address, error.to_string());
            None
        }
    }
}

/// Refuses a name of more than 255 bytes: AMQP's short strings have one byte for their length.
fn refuse_long_name(
    reader: &mut VariableReader<'_>,
    variable: &Variable,
    name: &str,
) -> Option<()> {
    if name.len() > 255 {
        reader.refuse(variable, name, "the name of a queue has at most 255 bytes");
        return None;
    }
    Some(())
}

fn spool(
    reader: &mut VariableReader<'_>,
    from: &QueueVariables,
    name: &str,
    address: &str,
    cwd: &Path,
) -> Option<BrokerConfig> {
    if address.is_empty() {
        reader.problems.push(ConfigProblem::missing(
            from.address.name,
            "name the spool's directory",
        ));
        return None;
    }
    if name.starts_with('.') || name.contains('/') || name.len() > 255 {
        reader.refuse(
            from.name,
            name,
            "a spool's queue is a directory in it: expected a file name without `/` that doesn't \
             start with a dot",
        );
        return None;
    }
    Some(BrokerConfig::Spool(cwd.join(address)))
}

/// The first expiry of the tokens that are not renewed from a file and have not expired yet. Warns of each
/// token that has expired, or will while the first event may still be waited for.
pub(super) fn token_end(
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
        let end = token_end(&[&[queue]], Duration::from_mins(1), now, &mut warnings);
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
