//! What precedes a pilot's first event: the ground, the init container, the connections. Decides what
//! goes on at the same time, and what is told first when several of them fail.
//!
//! Connections are made beside all the rest: they take their time, and nothing is taken through them
//! before the rest is done. So a broker that fails meanwhile, or is lost again, is no reason to give up a
//! long init container: it is connected to again once that has ended, and waited for from then on only.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::{Either, ready, select};
use tracing::warn;

use super::events::Status;
use super::host_setup::{self, PreparedHost};
use super::recorder::Recorder;
use super::{PilotError, ProgressReporter, address, status_feed};
use crate::broker::{self, BrokerError, OutagePolicy, Sink, Source, StartSender, StartSignal};
use crate::config::{Config, QueueConfig};
use crate::preflight::Findings;
use crate::process::{GuardianHandle, ShutdownPhase, ShutdownSender};
use crate::signals::Signals;
use crate::task::{ContainerSpec, Initialized, SharedTaskContext, TaskContext, run_init};
use crate::telemetry::Progress;

/// What the event loop needs.
pub(super) struct Started {
    /// What all tasks have in common.
    pub(super) bench: SharedTaskContext,
    /// What they run.
    pub(super) task: ContainerSpec,
    /// Events.
    pub(super) source: Source,
    /// Results.
    pub(super) sink: Sink,
}

/// Those whom a pilot's life is shown and told to.
pub(super) struct Observers<'a> {
    pub(super) signals: &'a mut Signals,
    pub(super) progress: &'a Progress,
    pub(super) reports: &'a ProgressReporter,
    pub(super) ledger: &'a mut Recorder,
}

/// Makes a pilot ready for its first event.
///
/// # Errors
/// The first failure. A broken machine or init container is told before a broken broker.
pub(super) async fn start(
    config: &Config,
    guard: GuardianHandle,
    resilience: &OutagePolicy,
    company: &mut Observers<'_>,
) -> Result<Started, PilotError> {
    let (giver, leave) = StartSender::new();
    // Boxed: they are large, and over before the long part of a pilot's life.
    let connecting = Box::pin(connect(config, resilience, &giver, &leave));
    let preparing = Box::pin(async {
        let prepared = prepare(config, guard, company).await?;
        giver.all_else_is_ready();
        Ok::<_, PilotError>(prepared)
    });
    let ((bench, task), connecting) = match select(preparing, connecting).await {
        Either::Left((prepared, connecting)) => (prepared?, Either::Left(connecting)),
        // Brokers wait for the rest, whatever they met: what failed is not one of them.
        Either::Right((connected, preparing)) => {
            let prepared = preparing.await?;
            (prepared, Either::Right(ready(connected)))
        }
    };
    let (source, sink) = unless_signalled(company.signals, connecting).await?;
    Ok(Started {
        bench,
        task,
        source,
        sink,
    })
}

/// The ground, and what the init container makes of it.
async fn prepare(
    config: &Config,
    guard: GuardianHandle,
    company: &mut Observers<'_>,
) -> Result<(SharedTaskContext, ContainerSpec), PilotError> {
    let mut findings = Findings::default();
    let laying = async {
        let laid = host_setup::prepare_host(config, guard, company.progress, &mut findings).await;
        laid.inspect_err(|fatal| host_setup::report_site(config, fatal))
    };
    let PreparedHost { bench, task } = unless_signalled(company.signals, laying).await?;
    let bench = Arc::new(bench);
    status_feed::follow_containers(company.ledger.keeper(), &bench.running);
    if let Some(init) = &config.init {
        let planning = async {
            let laid = host_setup::lay_init(config, (&bench, &task), init, &mut findings).await;
            laid.inspect_err(|fatal| host_setup::report_site(config, fatal))
        };
        let plan = unless_signalled(company.signals, planning).await?;
        company.reports.status(Status::RunningInitCommand);
        let began = Instant::now();
        let initialized = initialize(&bench, &plan, company.signals).await;
        company.ledger.initialized(began.elapsed());
        initialized?;
    }
    Ok((bench, task))
}

/// Connects to the queues, to all at once. No event is taken before it is known that results can be sent
/// and all else is ready.
async fn connect(
    config: &Config,
    resilience: &OutagePolicy,
    giver: &StartSender,
    leave: &StartSignal,
) -> Result<(Source, Sink), PilotError> {
    let lost = |error: BrokerError| match error {
        // No broker has a part in it.
        BrokerError::Thread { .. } => PilotError::ExecutionPoint(error.to_string()),
        error => PilotError::Broker(error.to_string()),
    };
    let (incoming, outgoing) = (places(&config.incoming), places(&config.outgoing));
    let sinks = pin!(async {
        let sink = broker::open_sinks(&outgoing, resilience, leave).await?;
        giver.give();
        Ok(sink)
    });
    let sources = pin!(broker::open_sources(
        &incoming,
        config.window(),
        resilience,
        leave
    ));
    let (sink, source) = match select(sinks, sources).await {
        Either::Left((sink, sources)) => (sink.map_err(lost)?, sources.await),
        // It failed, or is a spool: whatever is wrong with the other one is told first.
        Either::Right((source, sinks)) => (sinks.await.map_err(lost)?, source),
    };
    Ok((source.map_err(lost)?, sink))
}

/// Runs the init container; a signal is forwarded to it, a second one kills it.
async fn initialize(
    bench: &TaskContext,
    plan: &ContainerSpec,
    signals: &mut Signals,
) -> Result<(), PilotError> {
    let will = ShutdownSender::new();
    let mut first_signal = None;
    let mut init = std::pin::pin!(run_init(bench, plan, will.subscribe()));
    let result = loop {
        tokio::select! {
            biased;
            result = &mut init => break result,
            signal = signals.recv() => {
                warn!(signal = signal.name(), "signal received");
                will.advance(match first_signal {
                    None => ShutdownPhase::Terminate(signal.number()),
                    Some(_) => ShutdownPhase::Kill,
                });
                first_signal.get_or_insert(signal);
            }
        }
    };
    match (result, first_signal) {
        (_, Some(signal)) => Err(PilotError::Signal(signal.number())),
        (Ok(Initialized::Ready | Initialized::Interrupted), None) => Ok(()),
        (Err(error), None) => Err(PilotError::Init(error)),
    }
}

/// Gives up on `work` when a signal comes; nothing is held yet that would have to be given back.
async fn unless_signalled<T>(
    signals: &mut Signals,
    work: impl Future<Output = Result<T, PilotError>>,
) -> Result<T, PilotError> {
    tokio::select! {
        biased;
        signal = signals.recv() => {
            warn!(signal = signal.name(), "signal received");
            Err(PilotError::Signal(signal.number()))
        }
        result = work => result,
    }
}

fn places(queues: &[QueueConfig]) -> Vec<(&str, broker::Address<'_>)> {
    queues
        .iter()
        .map(|queue| (queue.name.as_str(), address(&queue.broker)))
        .collect()
}
