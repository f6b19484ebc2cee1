//! `ewms-pilot check`: the checks that precede a pilot's first event, then a look at the brokers' queues,
//! which takes no event and declares nothing.

use std::path::PathBuf;

use super::host_setup::{prepare_host, prepare_init};
use super::{PilotError, address, start_threads, unguarded};
use crate::broker::{self, Direction, QueueLook};
use crate::config::{Config, QueueConfig};
use crate::exit::Exit;
use crate::fault::Diagnosis;
use crate::human::OutputFormat;
use crate::preflight::{Check, CheckNote, Findings, QueueDepth};
use crate::process::GuardianHandle;
use crate::telemetry::Progress;

/// What `ewms-pilot check` is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckRequest {
    pub place: CheckPlace,
    /// The env file; `None` stands for the one that a pilot reads.
    pub env_file: Option<PathBuf>,
    pub output: OutputFormat,
}

/// Where the check is made, and so what can be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckPlace {
    ExecutionPoint,
    SubmitNode,
}

/// Makes all checks and returns how a pilot would end here.
pub async fn check(config: &Config, progress: &Progress, findings: &mut Findings) -> Exit {
    if let Err(error) = start_threads() {
        findings.failed(Check::Scratch, &error.diagnosis());
        return error.exit();
    }
    let host = match GuardianHandle::start().await {
        Ok(guardian) => check_host(config, guardian, progress, findings).await,
        Err(error) => Err(unguarded(&error)),
    };
    let brokers = check_brokers(config, findings).await;
    host.and(brokers)
        .map_or_else(|error| error.exit(), |()| Exit::Success)
}

async fn check_host(
    config: &Config,
    guardian: GuardianHandle,
    progress: &Progress,
    findings: &mut Findings,
) -> Result<(), PilotError> {
    let host = prepare_host(config, guardian, progress, findings, None).await?;
    if let Some(init) = &config.init {
        prepare_init(config, (&host.context, &host.task), init, findings).await?;
    }
    Ok(())
}

/// Looks at all queues even if one fails, and returns the first error.
pub(super) async fn check_brokers(
    config: &Config,
    findings: &mut Findings,
) -> Result<(), PilotError> {
    let incoming = config
        .incoming
        .iter()
        .map(|queue| (Check::BrokerIncoming, Direction::Incoming, queue));
    let outgoing = config
        .outgoing
        .iter()
        .map(|queue| (Check::BrokerOutgoing, Direction::Outgoing, queue));
    let mut first = Ok(());
    for (check, direction, queue) in incoming.chain(outgoing) {
        let QueueConfig { name, broker } = queue;
        match broker::look(direction, name, address(broker)).await {
            Ok(look) => {
                findings.seen(check, note(name, &look));
                if let QueueLook::There { waiting, consumers } = look {
                    findings.counted(QueueDepth {
                        queue: name.clone(),
                        waiting_events: waiting,
                        consumers,
                    });
                }
            }
            Err(error) => {
                let error = PilotError::Broker(Diagnosis::of_text(&error.to_string()));
                findings.failed(check, &error.diagnosis());
                first = first.and(Err(error));
            }
        }
    }
    first
}

fn note(queue: &str, look: &QueueLook) -> CheckNote {
    match look {
        QueueLook::There { waiting, consumers } => CheckNote::Fine(format!(
            "queue `{queue}` exists: {waiting} events wait, {consumers} consumers"
        )),
        QueueLook::Missing => CheckNote::WorkedAround(
            format!("queue `{queue}` is missing"),
            "a pilot will make it, if it may; is its name right?".to_owned(),
        ),
    }
}
