//! The steps before a pilot's first event: the host is prepared, the init container runs, the brokers are
//! connected to. Decides which steps run at the same time, and which error counts when several fail.
//!
//! Connections are made while the other steps go on, because they take time; no event is taken before all
//! steps are done. A broker that fails or is lost meanwhile does not end a long init container: the pilot
//! reconnects once the container has ended, and the outage counts from then on.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::{Either, ready, select};
use tracing::warn;

use super::events::Status;
use super::host_setup::{self, FirstTasks, PreparedHost};
use super::recorder::Recorder;
use super::task_set::TaskSet;
use super::warm_start::WarmRules;
use super::{PilotError, ProgressReporter, address, size, status_feed};
use crate::broker::{
    self, BrokerError, Encoding, OutagePolicy, Sink, Source, StartSender, StartSignal,
};
use crate::config::{Config, QueueConfig};
use crate::fault::{Diagnosis, TaskError};
use crate::preflight::Findings;
use crate::process::{GuardianHandle, ShutdownPhase, ShutdownSender};
use crate::signals::Signals;
use crate::task::{
    ContainerSpec, MemoryBudget, SharedTaskContext, TaskRunner, TaskStart, run_init,
};
use crate::telemetry::Progress;

pub(super) struct Started {
    /// The first of them waits for its event, where that can be.
    pub(super) tasks: TaskSet,
    pub(super) source: Source,
    pub(super) sink: Sink,
}

/// The recipients of a pilot's progress, and the source of its signals.
pub(super) struct Observers<'a> {
    pub(super) signals: &'a mut Signals,
    pub(super) progress: &'a Progress,
    pub(super) progress_reporter: &'a ProgressReporter,
    pub(super) recorder: &'a mut Recorder,
}

/// Makes a pilot ready for its first event.
///
/// # Errors
/// Returns the first failure; one of the machine or the init container counts before one of a broker.
pub(super) async fn start(
    config: &Config,
    guard: GuardianHandle,
    outage_policy: &OutagePolicy,
    observers: &mut Observers<'_>,
) -> Result<Started, PilotError> {
    let (start_sender, start_signal) = StartSender::new();
    // Boxed: the futures are large, and done before the long part of a pilot's life.
    let connecting = Box::pin(connect(config, outage_policy, &start_sender, &start_signal));
    let preparing = Box::pin(async {
        let prepared = Box::pin(prepare(config, guard, outage_policy, observers)).await?;
        start_sender.all_else_is_ready();
        Ok::<_, PilotError>(prepared)
    });
    let (tasks, connecting) = match select(preparing, connecting).await {
        Either::Left((prepared, connecting)) => (prepared?, Either::Left(connecting)),
        // A connection that fails waits for the start signal, too, so an early end has another cause. An
        // error of the host counts first.
        Either::Right((connected, preparing)) => {
            let prepared = preparing.await?;
            (prepared, Either::Right(ready(connected)))
        }
    };
    let (source, sink) = unless_signalled(observers.signals, connecting).await?;
    Ok(Started {
        tasks,
        source,
        sink,
    })
}

/// Prepares the host, runs the init container, and makes the first container that waits for an event.
async fn prepare(
    config: &Config,
    guard: GuardianHandle,
    outage_policy: &OutagePolicy,
    observers: &mut Observers<'_>,
) -> Result<TaskSet, PilotError> {
    let mut findings = Findings::default();
    let make_tasks = |context, task| {
        TaskSet::new(
            runner(config, outage_policy, context, task),
            warm_rules(config),
        )
    };
    let laying = async {
        let laid = host_setup::prepare_host(
            config,
            guard,
            observers.progress,
            &mut findings,
            Some(&make_tasks),
        );
        let laid = laid.await;
        laid.inspect_err(|fatal| host_setup::report_site(config, fatal))
    };
    let PreparedHost {
        context,
        task,
        tasks,
    } = unless_signalled(observers.signals, laying).await?;
    let context = Arc::new(context);
    status_feed::show_gpus(observers.recorder.keeper(), &context.gpus);
    status_feed::follow_containers(observers.recorder.keeper(), &context);
    if let Some(init) = &config.init {
        let planning = async {
            let laid =
                host_setup::prepare_init(config, (&context, &task), init, &mut findings).await;
            laid.inspect_err(|fatal| host_setup::report_site(config, fatal))
        };
        let plan = Box::pin(unless_signalled(observers.signals, planning)).await?;
        observers
            .progress_reporter
            .status(Status::RunningInitCommand);
        let began = Instant::now();
        let initialized = initialize(&context, &Arc::new(plan), observers.signals).await;
        observers.recorder.initialized(began.elapsed());
        initialized?;
    }
    let first = if let Some(FirstTasks(first)) = tasks {
        first
    } else {
        let mut tasks = make_tasks(context, task);
        let first = async move {
            let waits = match tasks.runner().context.task_start {
                TaskStart::AtGate | TaskStart::AtOpenGate => tasks.first_waits().await,
                TaskStart::WithContainer => Ok(()),
            };
            (tasks, waits)
        };
        first.boxed_local()
    };
    let first = async {
        let (tasks, waits) = first.await;
        let unmade = |error: &TaskError| {
            let said = Diagnosis::of_text(&error.message());
            PilotError::of(error.class(), said)
        };
        waits.map(|()| tasks).map_err(|error| unmade(&error))
    };
    Box::pin(unless_signalled(observers.signals, first)).await
}

/// Connects to all queues at once. No event is taken before results can be sent and all other steps are done.
async fn connect(
    config: &Config,
    outage_policy: &OutagePolicy,
    start_sender: &StartSender,
    start_signal: &StartSignal,
) -> Result<(Source, Sink), PilotError> {
    let lost = |error: BrokerError| match error {
        // The machine has no thread left, which is not the broker's fault.
        BrokerError::Thread { .. } => {
            PilotError::ExecutionPoint(Diagnosis::of_text(&error.to_string()))
        }
        error => PilotError::Broker(Diagnosis::of_text(&error.to_string())),
    };
    let (incoming, outgoing) = (places(&config.incoming), places(&config.outgoing));
    let sinks = pin!(async {
        let sink = broker::open_sinks(&outgoing, outage_policy, start_signal).await?;
        start_sender.give();
        Ok(sink)
    });
    let sources = pin!(broker::open_sources(
        &incoming,
        config.window(),
        outage_policy,
        start_signal
    ));
    let (sink, source) = match select(sinks, sources).await {
        Either::Left((sink, sources)) => (sink.map_err(lost)?, sources.await),
        // The source failed, or is a spool: an error of the sink counts first.
        Either::Right((source, sinks)) => (sinks.await.map_err(lost)?, source),
    };
    Ok((source.map_err(lost)?, sink))
}

fn runner(
    config: &Config,
    outage_policy: &OutagePolicy,
    context: SharedTaskContext,
    task: ContainerSpec,
) -> TaskRunner {
    let outgoing = config.outgoing.first().map(|queue| address(&queue.broker));
    TaskRunner {
        context,
        plan: Arc::new(task),
        infile_ext: config.infile_ext.clone(),
        outfile_ext: config.outfile_ext.clone(),
        encoding: outgoing.map_or(Encoding::Frame, broker::Address::encoding),
        limit: outage_policy.message_limit().clone(),
        bodies: outage_policy.bodies().clone(),
        room: MemoryBudget::new(),
    }
}

fn warm_rules(config: &Config) -> WarmRules {
    WarmRules {
        setting: config.warm_start,
        slots: size(config.slots),
        cores: size(config.cores),
        memory: config.condor.memory,
        has_gpus: config.gpus.each > 0,
    }
}

/// Runs the init container. The first signal is forwarded to it, a second one kills it.
pub(super) async fn initialize(
    context: &SharedTaskContext,
    plan: &Arc<ContainerSpec>,
    signals: &mut Signals,
) -> Result<(), PilotError> {
    let shutdown = ShutdownSender::new();
    let mut first_signal = None;
    let mut init = std::pin::pin!(run_init(context, plan, shutdown.subscribe()));
    let result = loop {
        tokio::select! {
            biased;
            result = &mut init => break result,
            signal = signals.recv() => {
                warn!(signal = signal.name(), "signal received");
                shutdown.advance(match first_signal {
                    None => ShutdownPhase::Terminate(signal.number()),
                    Some(_) => ShutdownPhase::Kill,
                });
                first_signal.get_or_insert(signal);
            }
        }
    };
    match (result, first_signal) {
        (_, Some(signal)) => Err(PilotError::Signal(signal.number())),
        (Ok(()), None) => Ok(()),
        (Err(error), None) => Err(PilotError::Init(error)),
    }
}

/// Gives up `work` when a signal comes; no event is held yet that would have to be given back.
pub(super) async fn unless_signalled<T>(
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
