//! A pilot's life: image, init container, connection, event loop, the end. The only layer that
//! knows when an event is acknowledged.

use std::io;
use std::num::NonZeroU32;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::{Either, select};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

mod answers;
pub mod disk_floor;
pub mod driver;
pub mod events;
mod fatal;
mod ground;
mod ledger;
mod pace;
pub mod poison;
mod reports;
mod shown;
pub mod state;
mod summary;
pub mod wall_time;

pub use fatal::Fatal;
pub use reports::Reports;

use crate::broker::{self, BrokerError, LeaveGiver, MessageLimit, Resilience, Sink, Source};
use crate::config::{BrokerConfig, Config, QueueConfig};
use crate::exit::Exit;
use crate::preflight::Findings;
use crate::process::{Guard, Stops, Will, WillSender};
use crate::report;
use crate::signals::Signals;
use crate::stats::Tally;
use crate::task::{ContainerPlan, Initialized, Runner, Workbench, run_init};
use crate::telemetry::Progress;
use disk_floor::DiskFloor;
use driver::Extras;
use events::Status;
use ground::Ground;
use ledger::Ledger;
use poison::Poison;
use state::Rules;
use wall_time::WallTime;

/// Where events come from and results go, and how their outages are borne.
#[derive(Debug)]
pub struct Queues {
    /// Events.
    pub source: Source,
    /// Results.
    pub sink: Sink,
    /// What both share.
    pub resilience: Resilience,
}

/// How a pilot ended: its exit code, and the last line that people and services read, if it failed.
#[derive(Debug)]
pub struct Ended {
    /// For HTCondor.
    pub exit: Exit,
    /// `RuntimeError: …` and its like.
    pub last_line: Option<String>,
    /// More about it than a line holds, for whoever looks into it.
    pub details: Option<String>,
}

impl From<Fatal> for Ended {
    fn from(fatal: Fatal) -> Self {
        Self {
            exit: fatal.exit(),
            last_line: Some(fatal.to_string()),
            details: None,
        }
    }
}

/// Runs a pilot to its end.
pub async fn run(config: Config, mut signals: Signals, progress: Progress) -> Ended {
    let mut ledger = Ledger::open(&config);
    let keeper = ledger.keeper().clone();
    let reports = Reports::start(&config, progress.clone(), keeper.clone());
    reports.status(Status::Started);
    let mut tally = Tally::default();
    let ended = live(
        &config,
        &mut signals,
        &progress,
        &reports,
        &mut ledger,
        &mut tally,
    )
    .await
    .unwrap_or_else(Ended::from);
    ledger.close(tally, &ended);
    reports.ended(&ended).await;
    if let Some(line) = &ended.last_line
        && !config.quarantine.is_zero()
        && !matches!(ended.exit, Exit::Signal(_))
    {
        error!(error = %line, "fatal error");
        quarantine(&config, &mut signals).await;
        reports.flush().await;
    }
    keeper.close().await;
    log_records(&config, &ledger);
    ended
}

/// The end of the log: what the pilot's records add up to, as `ewms-pilot report` has it.
fn log_records(config: &Config, ledger: &Ledger) {
    let Some(file) = &config.task_log else { return };
    // A device or a pipe takes records, but gives none back, or no end of something else.
    if !file.is_file() {
        return;
    }
    match report::of_pilot(file, &ledger.source().pilot_id) {
        Ok(lines) => {
            for line in lines {
                info!("{line}");
            }
        }
        Err(error) => warn!(%error, "the pilot's records can't be reported"),
    }
}

/// Keeps the slot, so that a broken EP eats no more pilots. A signal ends it.
async fn quarantine(config: &Config, signals: &mut Signals) {
    warn!(
        seconds = config.quarantine.as_secs(),
        "quarantining this EP"
    );
    tokio::select! {
        () = tokio::time::sleep(config.quarantine) => {}
        signal = signals.recv() => warn!(signal = signal.name(), "signal received: quarantine over"),
    }
}

async fn live(
    config: &Config,
    signals: &mut Signals,
    progress: &Progress,
    reports: &Reports,
    ledger: &mut Ledger,
    tally: &mut Tally,
) -> Result<Ended, Fatal> {
    let guard = guard(signals)?;
    let mut findings = Findings::default();
    let resilience = Resilience::new(config.reconnect_timeout, config.data_parent.join("unsent"))
        .with_message_limit(MessageLimit::new(config.limits.message));
    shown::follow_queues(ledger.keeper(), &resilience);
    // Boxed: they are large, and over before the long part of a pilot's life.
    let laying = Box::pin(async {
        let laid = ground::lay(config, guard, progress, &mut findings).await;
        laid.inspect_err(|fatal| ground::report_site(config, fatal))
    });
    // Both take their time, and neither needs the other; but an init container runs before any broker
    // is contacted.
    let (Ground { bench, task }, connected) = if config.init.is_none() {
        let both = Box::pin(lay_and_connect(laying, config, &resilience));
        let (ground, queues) = unless_signalled(signals, both).await?;
        (ground, Some(queues))
    } else {
        (unless_signalled(signals, laying).await?, None)
    };
    let bench = Arc::new(bench);
    shown::follow_containers(ledger.keeper(), &bench.running);

    if let Some(init) = &config.init {
        let plan = unless_signalled(signals, ground::plan(&bench, config, init)).await?;
        reports.status(Status::RunningInitCommand);
        let began = Instant::now();
        let initialized = initialize(&bench, &plan, signals).await;
        ledger.initialized(began.elapsed());
        initialized?;
    }

    let (source, sink) = match connected {
        Some(queues) => queues,
        None => unless_signalled(signals, connect(config, &resilience, async {})).await?,
    };

    let runner = Rc::new(Runner {
        bench,
        plan: task,
        infile_ext: config.infile_ext.clone(),
        outfile_ext: config.outfile_ext.clone(),
        encoding: sink.encoding(),
        limit: resilience.message_limit().clone(),
    });
    let rules = Rules {
        slots: size(config.slots),
        window: size(config.window()),
        on_task_error: config.on_task_error.clone(),
        max_deliveries: config.limits.max_deliveries,
        first_event_timeout: config.first_event_timeout,
        idle_timeout: config.idle_timeout,
    };
    info!(
        slots = config.slots,
        window = config.window(),
        "taking events"
    );
    answers::advise_on_long_tasks(config);
    ledger.connected();
    let extras = Extras {
        poison: Poison::new(config, ledger.source()),
        wall_time: wall_time(config, ledger),
        disk_floor: config.limits.min_free_disk.map(|bytes| DiskFloor {
            directory: config.data_parent.clone(),
            bytes,
        }),
    };
    let queues = Queues {
        source,
        sink,
        resilience: resilience.clone(),
    };
    let finished = driver::run(rules, queues, runner, signals, reports, ledger, extras).await;
    *tally = finished.conclusion.tally;
    ledger.outages(resilience.outages(), resilience.stats());
    summary::log(&finished, ledger);
    summary::log_outages(resilience.stats());
    summary::ended(&finished.conclusion)
}

fn wall_time(config: &Config, ledger: &Ledger) -> Option<WallTime> {
    let began = ledger.began();
    let (limit, cause) = wall_time::earlier(began, config.limits.max_runtime, config.token_end)?;
    info!(
        seconds = limit.as_secs(),
        ?cause,
        "the time of this pilot is limited"
    );
    shown::ends(ledger.keeper(), began, limit);
    WallTime::new(began, limit, config.kill_grace)
}

/// From here on no container outlives the pilot.
fn guard(signals: &Signals) -> Result<Guard, Fatal> {
    let refused = |error| unguarded(&error);
    let guard = Guard::start().map_err(refused)?;
    let stops = if signals.ignores_stop() {
        Stops::Ignored
    } else {
        Stops::Handled
    };
    // Until the runtime ends.
    tokio::spawn(guard.tend(stops).map_err(refused)?);
    Ok(guard)
}

fn unguarded(error: &io::Error) -> Fatal {
    Fatal::ExecutionPoint(format!(
        "can't guard the containers: {error}; the machine or its limits are used up"
    ))
}

/// Connects while the ground is laid. A broken machine is told before a broken broker, and takes no event.
async fn lay_and_connect(
    laying: impl Future<Output = Result<Ground, Fatal>> + Unpin,
    config: &Config,
    resilience: &Resilience,
) -> Result<(Ground, (Source, Sink)), Fatal> {
    let (laid, is_laid) = oneshot::channel();
    let ready = async {
        if is_laid.await.is_err() {
            // It never will be.
            std::future::pending::<()>().await;
        }
    };
    let connecting = pin!(connect(config, resilience, ready));
    match select(laying, connecting).await {
        Either::Left((ground, connecting)) => {
            let ground = ground?;
            // It waits for this, unless it failed.
            let _failed = laid.send(());
            Ok((ground, connecting.await?))
        }
        Either::Right((queues, laying)) => {
            let ground = laying.await?;
            Ok((ground, queues?))
        }
    }
}

/// Connects to the queues, to all at once. No event is taken before it is known that results can be sent
/// and all else is `ready`.
async fn connect(
    config: &Config,
    resilience: &Resilience,
    ready: impl Future<Output = ()>,
) -> Result<(Source, Sink), Fatal> {
    let lost = |error: BrokerError| Fatal::Broker(error.to_string());
    let (incoming, outgoing) = (places(&config.incoming), places(&config.outgoing));
    let (giver, leave) = LeaveGiver::new();
    let sinks = pin!(async {
        let sink = broker::open_sinks(&outgoing, resilience).await?;
        ready.await;
        giver.give();
        Ok(sink)
    });
    let sources = pin!(broker::open_sources(
        &incoming,
        config.window(),
        resilience,
        &leave
    ));
    let (sink, source) = match select(sinks, sources).await {
        Either::Left((sink, sources)) => (sink.map_err(lost)?, sources.await),
        // It failed, or is a spool: whatever is wrong with the other one is told first.
        Either::Right((source, sinks)) => (sinks.await.map_err(lost)?, source),
    };
    Ok((source.map_err(lost)?, sink))
}

/// Makes the checks that precede a pilot's life, and the brokers' too; how it would end there.
pub async fn check(config: &Config, progress: &Progress, findings: &mut Findings) -> Exit {
    let laid = match Guard::start() {
        Ok(guard) => ground::lay(config, guard, progress, findings).await.err(),
        Err(error) => Some(unguarded(&error)),
    };
    let lost = ground::visit_brokers(config, findings).await;
    laid.or(lost).map_or(Exit::Success, |fatal| fatal.exit())
}

/// Runs the init container; a signal is forwarded to it, a second one kills it.
async fn initialize(
    bench: &Workbench,
    plan: &ContainerPlan,
    signals: &mut Signals,
) -> Result<(), Fatal> {
    let will = WillSender::new();
    let mut first_signal = None;
    let mut init = std::pin::pin!(run_init(bench, plan, will.subscribe()));
    let result = loop {
        tokio::select! {
            biased;
            result = &mut init => break result,
            signal = signals.recv() => {
                warn!(signal = signal.name(), "signal received");
                will.advance(match first_signal {
                    None => Will::Terminate(signal.number()),
                    Some(_) => Will::Kill,
                });
                first_signal.get_or_insert(signal);
            }
        }
    };
    match (result, first_signal) {
        (_, Some(signal)) => Err(Fatal::Signal(signal.number())),
        (Ok(Initialized::Ready | Initialized::Interrupted), None) => Ok(()),
        (Err(error), None) => Err(Fatal::Init(error)),
    }
}

/// Gives up on `work` when a signal comes; nothing is held yet that would have to be given back.
async fn unless_signalled<T>(
    signals: &mut Signals,
    work: impl Future<Output = Result<T, Fatal>>,
) -> Result<T, Fatal> {
    tokio::select! {
        biased;
        signal = signals.recv() => {
            warn!(signal = signal.name(), "signal received");
            Err(Fatal::Signal(signal.number()))
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

fn address(broker: &BrokerConfig) -> broker::Address<'_> {
    match broker {
        BrokerConfig::RabbitMq(address) => broker::Address::RabbitMq(address),
        BrokerConfig::Spool(directory) => broker::Address::Spool(directory),
    }
}

fn size(count: NonZeroU32) -> usize {
    usize::try_from(count.get()).unwrap_or(usize::MAX)
}
