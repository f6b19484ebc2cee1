//! A pilot's life: image, init container, connection, event loop, the end. The only layer that
//! knows when an event is acknowledged.

use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tracing::{error, info, warn};

mod answers;
pub mod disk_floor;
pub mod driver;
pub mod events;
mod fatal;
mod ledger;
pub mod poison;
mod reports;
pub mod state;
mod summary;
pub mod wall_time;

pub use fatal::Fatal;
pub use reports::Reports;

use crate::broker;
use crate::config::{BrokerConfig, Config, ContainerConfig};
use crate::container::{Access, Apptainer, Bind, ProcMount, Surroundings, Template, check_distinct};
use crate::exit::Exit;
use crate::process::{Guard, Stops, Will, WillSender};
use crate::signals::Signals;
use crate::stats::Tally;
use crate::task::disk::Budget;
use crate::task::staging::{DataDirs, HUB_IN_CONTAINER, INPUTS_IN_CONTAINER, IO_IN_CONTAINER};
use crate::task::{ContainerPlan, Guards, Initialized, Runner, Workbench, image, run_init};
use crate::telemetry::Progress;
use disk_floor::DiskFloor;
use driver::Extras;
use events::Status;
use ledger::Ledger;
use poison::Poison;
use state::Rules;
use wall_time::WallTime;

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
    let reports = Reports::start(&config, progress.clone());
    reports.status(Status::Started);
    let mut ledger = Ledger::open(&config);
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
    ended
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
    let bench = Arc::new(workbench(config, guard, progress)?);

    if let Some(init) = &config.init {
        reports.status(Status::RunningInitCommand);
        let plan = plan(&bench, config, init, signals).await?;
        let began = Instant::now();
        let initialized = initialize(&bench, &plan, signals).await;
        ledger.initialized(began.elapsed());
        initialized?;
    }
    let task = plan(&bench, config, &config.task, signals).await?;

    let (source, sink) = unless_signalled(signals, async {
        tokio::try_join!(
            broker::open_source(
                &config.incoming.name,
                address(&config.incoming.broker),
                config.window()
            ),
            broker::open_sink(&config.outgoing.name, address(&config.outgoing.broker)),
        )
        .map_err(|error| Fatal::Broker(error.to_string()))
    })
    .await?;

    let runner = Rc::new(Runner {
        bench,
        plan: task,
        infile_ext: config.infile_ext.clone(),
        outfile_ext: config.outfile_ext.clone(),
        encoding: sink.encoding(),
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
    ledger.connected();
    let extras = Extras {
        poison: Poison::new(config, ledger.source()),
        wall_time: config
            .limits
            .max_runtime
            .and_then(|limit| WallTime::new(ledger.began(), limit, config.kill_grace)),
        disk_floor: config.limits.min_free_disk.map(|bytes| DiskFloor {
            directory: config.data_parent.clone(),
            bytes,
        }),
    };
    let finished = driver::run(
        rules, source, sink, runner, signals, reports, ledger, extras,
    )
    .await;
    *tally = finished.conclusion.tally;
    summary::log(&finished, ledger);
    summary::ended(&finished.conclusion)
}

/// From here on no container outlives the pilot.
fn guard(signals: &Signals) -> Result<Guard, Fatal> {
    let refused = |error| {
        Fatal::ExecutionPoint(format!(
            "can't guard the containers: {error}; the machine or its limits are used up"
        ))
    };
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

fn workbench(config: &Config, guard: Guard, progress: &Progress) -> Result<Workbench, Fatal> {
    let dirs = DataDirs::create(&config.data_parent).map_err(|error| {
        Fatal::ExecutionPoint(format!(
            "can't make the data directories in `{}`: {error}; look at its rights and free space, or set \
             EWMS_PILOT_DATA_DIR_PARENT_PATH_ON_HOST",
            config.data_parent.display()
        ))
    })?;
    let external = config
        .external_directories
        .iter()
        .map(|dir| Bind::new(dir, dir, Access::ReadOnly))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Fatal::Bind(error.to_string()))?;
    let mut targets = external.clone();
    for target in [HUB_IN_CONTAINER, INPUTS_IN_CONTAINER, IO_IN_CONTAINER] {
        targets.push(
            Bind::new(dirs.hub(), target, Access::ReadWrite)
                .map_err(|error| Fatal::Bind(error.to_string()))?,
        );
    }
    check_distinct(&targets).map_err(|error| Fatal::Bind(error.to_string()))?;
    let apptainer = Apptainer::locate(Surroundings {
        path: config.host.path.clone(),
        home: config.host.home.clone(),
        lang: config.host.lang.clone(),
        scratch: dirs.apptainer(),
        proxies: config.host.proxies.clone(),
    })
    .map_err(|error| Fatal::ExecutionPoint(error.to_string()))?;
    info!(program = %apptainer.program().display(), "apptainer found");
    let inputs = inputs(config, &dirs)?;
    Ok(Workbench {
        apptainer,
        guard,
        inputs,
        dirs,
        external,
        grace: config.kill_grace,
        keep: config.keep_files,
        guards: Guards {
            memory: config.limits.task_memory,
            stall: config.limits.task_stall,
        },
        output_limit: config.limits.task_output,
        kept: Budget::new(config.limits.kept_files),
        dump: config.dump_output,
        verbosity: config.verbosity,
        proc: ProcMount::Own,
        log: progress.clone(),
    })
}

/// The files that HTCondor transferred with the job, as one bind.
fn inputs(config: &Config, dirs: &DataDirs) -> Result<Option<Bind>, Fatal> {
    let files = &config.condor.input_files;
    if files.is_empty() {
        return Ok(None);
    }
    info!(
        count = files.len(),
        "the job's input files are in every container"
    );
    let directory = dirs.gather_inputs(files).map_err(|error| {
        Fatal::ExecutionPoint(format!(
            "can't gather the job's input files: {error}; look at the rights and free space of the data directory"
        ))
    })?;
    Bind::new(directory, INPUTS_IN_CONTAINER, Access::ReadOnly)
        .map(Some)
        .map_err(|error| Fatal::Bind(error.to_string()))
}

async fn plan(
    bench: &Workbench,
    config: &Config,
    container: &ContainerConfig,
    signals: &mut Signals,
) -> Result<ContainerPlan, Fatal> {
    let will = WillSender::new();
    let image = unless_signalled(signals, async {
        image::prepare(
            bench,
            &container.image,
            &config.cwd,
            &config.images,
            will.subscribe(),
        )
        .await
        .map_err(|error| Fatal::Image(error.to_string()))
    })
    .await?;
    Ok(ContainerPlan {
        image,
        args: Template::parse(&container.args)
            .map_err(|error| Fatal::Configuration(error.to_string()))?,
        env: container.env.clone(),
        timeout: container.timeout,
    })
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

fn address(broker: &BrokerConfig) -> broker::Address<'_> {
    match broker {
        BrokerConfig::RabbitMq(address) => broker::Address::RabbitMq(address),
        BrokerConfig::Spool(directory) => broker::Address::Spool(directory),
    }
}

fn size(count: NonZeroU32) -> usize {
    usize::try_from(count.get()).unwrap_or(usize::MAX)
}
