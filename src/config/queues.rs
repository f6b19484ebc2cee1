//! Puts the variables of a direction's queues together: name, token or its file, kind of broker, address.
//! They are checked against each other here, since each is fine alone.

use std::path::Path;

use super::problem::ConfigProblem;
use super::reader::VariableReader;
use super::variables::{self, Variable};
use super::{AmqpAddress, BrokerConfig, CaCertificates, QueueConfig, TokenFile};

pub(super) struct QueueVariables {
    name: &'static Variable,
    token: &'static Variable,
    token_file: &'static Variable,
    kind: &'static Variable,
    address: &'static Variable,
}

pub(super) const INCOMING: QueueVariables = QueueVariables {
    name: &variables::QUEUE_INCOMING,
    token: &variables::QUEUE_INCOMING_AUTH_TOKEN,
    token_file: &variables::QUEUE_INCOMING_AUTH_TOKEN_FILE,
    kind: &variables::QUEUE_INCOMING_BROKER_TYPE,
    address: &variables::QUEUE_INCOMING_BROKER_ADDRESS,
};

pub(super) const OUTGOING: QueueVariables = QueueVariables {
    name: &variables::QUEUE_OUTGOING,
    token: &variables::QUEUE_OUTGOING_AUTH_TOKEN,
    token_file: &variables::QUEUE_OUTGOING_AUTH_TOKEN_FILE,
    kind: &variables::QUEUE_OUTGOING_BROKER_TYPE,
    address: &variables::QUEUE_OUTGOING_BROKER_ADDRESS,
};

/// The queues, or nothing when something is wrong with one, which the reader then knows. Several are
/// given as lists with `;` between the items, in step.
pub(super) fn queues(
    reader: &mut VariableReader<'_>,
    from: &QueueVariables,
    cwd: &Path,
) -> Option<Vec<QueueConfig>> {
    let name = reader.required(from.name).unwrap_or_default();
    let token = reader.text(from.token);
    let file = reader.text(from.token_file);
    // Whatever is wrong already, the rest is looked at too, as far as it can be told what belongs together.
    let has_one_token = refuse_two_tokens(reader, from, &token, &file);
    let address = reader.text(from.address);
    let word = reader.required(from.kind).unwrap_or_default();
    refuse_unknown_kinds(reader, from, word);
    let names: Vec<&str> = name.split(';').collect();
    refuse_out_of_step(reader, from, names.len(), [&token, &file, word, &address])?;
    // Of two one has to go, so neither is looked into.
    let file = has_one_token.map_or_else(String::new, |()| file);
    if let [name] = names[..] {
        let queue = queue(reader, from, cwd, [name, &token, &file, word, &address]);
        return has_one_token.and(Some(vec![queue?]));
    }
    if names.contains(&"") {
        reader.refuse(
            from.name,
            name,
            "a name is missing between two `;`, or at an end",
        );
        return None;
    }
    let items = |text: &str| -> Vec<String> {
        if text.is_empty() {
            vec![String::new(); names.len()]
        } else {
            text.split(';').map(str::to_owned).collect()
        }
    };
    let (tokens, files) = (items(&token), items(&file));
    let (words, addresses) = (items(word), items(&address));
    let mut queues = Vec::new();
    for (place, name) in names.iter().enumerate() {
        let texts = [
            name,
            &*tokens[place],
            &*files[place],
            &*words[place],
            &*addresses[place],
        ];
        queues.push(queue(reader, from, cwd, texts));
    }
    let queues: Vec<QueueConfig> = queues.into_iter().collect::<Option<_>>()?;
    refuse_repeated(reader, from, &queues);
    has_one_token.and(Some(queues))
}

/// Each word that is no kind of broker, once.
fn refuse_unknown_kinds(reader: &mut VariableReader<'_>, from: &QueueVariables, words: &str) {
    let mut unknown: Vec<&str> = words.split(';').collect();
    unknown.retain(|word| !word.is_empty() && !variables::BROKER_TYPES.contains(word));
    unknown.sort_unstable();
    unknown.dedup();
    for word in unknown {
        let advice = format!("expected {}", from.kind.kind.expected());
        reader.refuse(from.kind, word, advice);
    }
}

/// A queue that is there twice would get each result twice, and its events would not be recognised after
/// an outage.
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

/// One queue of name, token, token file, kind and address.
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

/// The queue for events that failed too often, on the broker that they came from; of several, on the
/// first one's. A spool has a place of its own for them.
pub(super) fn dead_letter(
    reader: &mut VariableReader<'_>,
    incoming: Option<&[QueueConfig]>,
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
    let queues = incoming?;
    let incoming = queues.first()?;
    if matches!(incoming.broker, BrokerConfig::Spool(_)) {
        let advice = "expected none: a spool keeps what failed too often in its `failed/`";
        reader.refuse(variable, &name, advice);
        return None;
    }
    if queues.iter().any(|queue| queue.name == name) {
        reader.refuse(
            variable,
            &name,
            "expected another queue than the incoming one",
        );
    }
    Some(QueueConfig {
        name,
        broker: incoming.broker.clone(),
    })
}

/// Results are written in the way of the broker that gets them, once for all.
pub(super) fn refuse_mixed_kinds(
    reader: &mut VariableReader<'_>,
    from: &QueueVariables,
    queues: &[QueueConfig],
) {
    let spools = queues
        .iter()
        .filter(|queue| matches!(queue.broker, BrokerConfig::Spool(_)))
        .count();
    if spools > 0 && spools < queues.len() {
        let words = reader.text(from.kind);
        let advice = "results go to queues of one kind only: give the same for each queue";
        reader.refuse(from.kind, &words, advice);
    }
}

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

/// Lets the RabbitMQ servers among them be believed on these authorities' word as well.
pub(super) fn trust(queues: &mut [QueueConfig], authorities: &CaCertificates) {
    for queue in queues {
        if let BrokerConfig::RabbitMq(address) = &mut queue.broker {
            address.authorities = authorities.clone();
        }
    }
}

/// Lists of different lengths are refused. The texts are token, token file, kind and address; one that is empty
/// is so for all queues.
fn refuse_out_of_step(
    reader: &mut VariableReader<'_>,
    from: &QueueVariables,
    names: usize,
    [token, file, kind, address]: [&str; 4],
) -> Option<()> {
    let others = if names > 1 {
        [
            (from.token, items(token)),
            (from.token_file, items(file)),
            (from.kind, items(kind)),
            (from.address, items(address)),
        ]
    } else {
        // A token or password may have a `;` in it; what is behind the password may not.
        let host = address.rsplit_once('@').map_or(address, |(_, host)| host);
        [
            (from.token, names),
            (from.token_file, names),
            (from.kind, items(kind)),
            (from.address, items(host)),
        ]
    };
    let mut in_step = Some(());
    for (variable, count) in others {
        if count != names && count > 0 {
            in_step = None;
            reader.problems.push(ConfigProblem::Conflict(format!(
                "`{}` and `{}` are lists of different lengths, {names} and {count}: give one of each \
                 for each queue, with `;` between them",
                from.name.name, variable.name
            )));
        }
    }
    in_step
}

/// How many texts are joined with `;`. None is in nothing.
fn items(text: &str) -> usize {
    if text.is_empty() {
        0
    } else {
        text.split(';').count()
    }
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

/// AMQP's short strings have one byte for their length.
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
