//! Puts the four variables of a queue together: name, token, kind of broker, address. They are
//! checked against each other here, since each is fine alone.

use std::path::Path;

use super::problem::Problem;
use super::reader::Reader;
use super::variables::{self, Variable};
use super::{AmqpAddress, BrokerConfig, QueueConfig};

/// The variables of one queue.
pub(super) struct QueueVariables {
    name: &'static Variable,
    token: &'static Variable,
    kind: &'static Variable,
    address: &'static Variable,
}

/// Where events come from.
pub(super) const INCOMING: QueueVariables = QueueVariables {
    name: &variables::QUEUE_INCOMING,
    token: &variables::QUEUE_INCOMING_AUTH_TOKEN,
    kind: &variables::QUEUE_INCOMING_BROKER_TYPE,
    address: &variables::QUEUE_INCOMING_BROKER_ADDRESS,
};

/// Where results go.
pub(super) const OUTGOING: QueueVariables = QueueVariables {
    name: &variables::QUEUE_OUTGOING,
    token: &variables::QUEUE_OUTGOING_AUTH_TOKEN,
    kind: &variables::QUEUE_OUTGOING_BROKER_TYPE,
    address: &variables::QUEUE_OUTGOING_BROKER_ADDRESS,
};

/// The queue, or nothing when something is wrong with it, which the reader then knows.
pub(super) fn queue(
    reader: &mut Reader<'_>,
    from: &QueueVariables,
    cwd: &Path,
) -> Option<QueueConfig> {
    let name = reader.required(from.name).unwrap_or_default();
    let token = reader.text(from.token);
    let address = reader.text(from.address);
    let word = reader.required(from.kind).unwrap_or_default();
    if refuse_several(reader, from, [name, &token, word, &address]) {
        return None;
    }
    let [rabbitmq_word, spool_word] = variables::BROKER_TYPES;
    let broker = if word == rabbitmq_word {
        rabbitmq(reader, from, name, &token, &address)?
    } else if word == spool_word {
        spool(reader, from, name, &address, cwd)?
    } else {
        if !word.is_empty() {
            reader.refuse(
                from.kind,
                word,
                format!("expected {}", from.kind.kind.expected()),
            );
        }
        return None;
    };
    (!name.is_empty()).then(|| QueueConfig {
        name: name.to_owned(),
        broker,
    })
}

/// The queue for events that failed too often, on the broker that they came from. A spool has a place
/// of its own for them.
pub(super) fn dead_letter(
    reader: &mut Reader<'_>,
    incoming: Option<&QueueConfig>,
) -> Option<QueueConfig> {
    let variable = &variables::QUEUE_DEAD_LETTER;
    let name = reader.text(variable);
    if name.is_empty() {
        return None;
    }
    if reader.set(&variables::MAX_DELIVERIES).is_none() {
        reader.problems.push(Problem::Conflict(format!(
            "`{}` is `{name}` while `{}` is not set: no event would ever go there, set both",
            variable.name,
            variables::MAX_DELIVERIES.name
        )));
    }
    let incoming = incoming?;
    if matches!(incoming.broker, BrokerConfig::Spool(_)) {
        let advice = "expected none: a spool keeps what failed too often in its `failed/`";
        reader.refuse(variable, &name, advice);
        return None;
    }
    if name == incoming.name {
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

/// Several queues joined with `;` are refused, and said to be so: taken for one long name, they
/// would be declared on the broker. The texts are name, token, kind and address. True when one of
/// them is a list.
fn refuse_several(reader: &mut Reader<'_>, from: &QueueVariables, texts: [&str; 4]) -> bool {
    let [name, token, kind, address] = texts;
    let names = items(name).max(1);
    let others = if names > 1 {
        [
            (from.token, items(token)),
            (from.kind, items(kind)),
            (from.address, items(address)),
        ]
    } else {
        // A token or password may have a `;` in it; what is behind the password may not.
        let host = address.rsplit_once('@').map_or(address, |(_, host)| host);
        [
            (from.token, names),
            (from.kind, items(kind)),
            (from.address, items(host)),
        ]
    };
    for (variable, count) in others {
        if count != names && count > 0 {
            reader.problems.push(Problem::Conflict(format!(
                "`{}` and `{}` are lists of different lengths, {names} and {count}: give one of each \
                 for each queue, with `;` between them",
                from.name.name, variable.name
            )));
        }
    }
    if names > 1 {
        let advice = "several queues joined with `;` are not supported by this version: give one";
        reader.refuse(from.name, name, advice);
    }
    names > 1 || others.iter().any(|&(_, count)| count > 1)
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
    reader: &mut Reader<'_>,
    from: &QueueVariables,
    name: &str,
    token: &str,
    address: &str,
) -> Option<BrokerConfig> {
    // AMQP's short strings have one byte for their length.
    if name.len() > 255 {
        reader.refuse(from.name, name, "the name of a queue has at most 255 bytes");
        return None;
    }
    match AmqpAddress::parse(address, token) {
        Ok(address) => Some(BrokerConfig::RabbitMq(address)),
        Err(error) => {
            reader.refuse(from.address, address, error.to_string());
            None
        }
    }
}

fn spool(
    reader: &mut Reader<'_>,
    from: &QueueVariables,
    name: &str,
    address: &str,
    cwd: &Path,
) -> Option<BrokerConfig> {
    if address.is_empty() {
        reader.problems.push(Problem::missing(
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
