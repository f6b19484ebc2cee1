//! What a pilot stands on: directories, Apptainer, binds, the task's image; each laid and, unless the
//! user wants it otherwise, checked, before anything is taken from a queue. Decides the order of the
//! checks and with what a failed one ends the pilot.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{error, info};

use super::own_paths::own_paths;
use super::{PilotError, address};
use crate::blocking;
use crate::broker::{self, Direction, QueueLook};
use crate::config::variables::EXTERNAL_DIRECTORIES;
use crate::config::{Config, ContainerConfig, Preflight, QueueConfig};
use crate::container::{
    self, Access, Apptainer, ApptainerEnvironment, Bind, BindError, MountTable, ProcMount,
    Template, check_distinct,
};
use crate::fault::Cause;
use crate::preflight::{self, Check, CheckNote, CheckProblem, Findings};
use crate::process::{GuardianHandle, ShutdownSender};
use crate::task::disk::Budget;
use crate::task::inputs::gather;
use crate::task::own::{Identities, OwnPath, shown_by};
use crate::task::staging::{DataDirs, HUB_IN_CONTAINER, INPUTS_IN_CONTAINER, IO_IN_CONTAINER};
use crate::task::{
    ActiveContainers, ContainerSpec, ExternalDirs, ExternalError, MemoryKills, ResourceLimits,
    SharedLook, TaskContext, image,
};
use crate::telemetry::Progress;

/// All that tasks need on this machine.
#[derive(Debug)]
pub(super) struct PreparedHost {
    pub(super) context: TaskContext,
    pub(super) task: ContainerSpec,
}

/// The findings, and with what the first failure among them ends the pilot.
struct CheckLog<'a> {
    findings: &'a mut Findings,
    first: Option<PilotError>,
}

impl CheckLog<'_> {
    /// Notes how a check came out; gives what it made.
    fn keep<T>(&mut self, check: Check, result: Result<(T, CheckNote), PilotError>) -> Option<T> {
        match result {
            Ok((made, seen)) => {
                self.findings.seen(check, seen);
                Some(made)
            }
            Err(fatal) => {
                self.findings.failed(check, &fatal.message());
                self.first.get_or_insert(fatal);
                None
            }
        }
    }
}

/// Lays the ground. Checks that don't need each other are all made, whatever failed before.
///
/// # Errors
/// The first failure.
pub(super) async fn prepare_host(
    config: &Config,
    guard: GuardianHandle,
    progress: &Progress,
    findings: &mut Findings,
) -> Result<PreparedHost, PilotError> {
    let began = Instant::now();
    let mut check_log = CheckLog {
        findings,
        first: None,
    };
    let laid = Box::pin(made_and_checked(config, guard, progress, &mut check_log)).await;
    match (check_log.first, laid) {
        (None, Some(prepared_host)) => {
            let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            info!(elapsed_ms, "this execution point is ready");
            Ok(prepared_host)
        }
        (Some(fatal), _) => Err(fatal),
        (None, None) => Err(PilotError::ExecutionPoint(
            "nothing to run tasks with".to_owned(),
        )),
    }
}

async fn made_and_checked(
    config: &Config,
    guard: GuardianHandle,
    progress: &Progress,
    check_log: &mut CheckLog<'_>,
) -> Option<PreparedHost> {
    let dirs = match directories(config).await {
        Ok(dirs) => dirs,
        Err(fatal) => return check_log.keep(Check::Scratch, Err(fatal)),
    };
    // They wait for a disk, a network or a child rather than for a core, so all are begun at once. Without
    // a disk nothing else is worth telling.
    let looked = tokio::try_join!(scratch(config), async {
        Ok(look_around(config, guard, progress, dirs).await)
    });
    match looked {
        Ok((seen, view)) => {
            check_log.keep(Check::Scratch, Ok(((), seen)));
            view.told(check_log)
        }
        Err(fatal) => check_log.keep(Check::Scratch, Err(fatal)),
    }
}

/// What was seen, to be told in the order of the checks.
struct CheckResults {
    namespaces: Result<CheckNote, CheckProblem>,
    external: Result<(Binds, CheckNote), PilotError>,
    /// Apptainer, and what was tried with it.
    runtime: Result<(CheckNote, Option<TaskTrial>), PilotError>,
}

/// The external directories, and the files that came with the job.
type Binds = (ExternalDirs, Option<Bind>);

/// What tasks are to run, and how a first container of it fared.
type TaskTrial = Result<
    (
        PreparedHost,
        CheckNote,
        Option<Result<CheckNote, CheckProblem>>,
    ),
    PilotError,
>;

async fn look_around(
    config: &Config,
    guard: GuardianHandle,
    progress: &Progress,
    dirs: DataDirs,
) -> CheckResults {
    let images: Vec<PathBuf> = std::iter::once(&config.task)
        .chain(&config.init)
        .map(|container| config.cwd.join(&container.image))
        .collect();
    let own = dirs.apptainer();
    // First what a container would hang on.
    let (external, images) = tokio::join!(
        reachable(config, &guard, &config.external_directories, &own),
        reachable(config, &guard, &images, &own)
    );
    let external = external
        .map_err(PilotError::from)
        .and_then(|seen| Ok((binds(config, &dirs)?, seen)));
    let external = match external {
        Ok((binds, seen)) => mounted_below(&binds.0, &guard, &own)
            .await
            .map(|()| (binds, seen)),
        Err(fatal) => Err(fatal),
    };
    let runtime = async {
        let apptainer = locate(config, &dirs).await?;
        let trying = async {
            let (binds, _) = external.clone().ok()?;
            let context = task_context(config, progress, &guard, &dirs, apptainer.clone(), binds);
            Some(tried(config, images, context).await)
        };
        // Of a version that won't do, the container's fate tells nothing.
        let (tried, seen) = tokio::try_join!(
            async { Ok(trying.await) },
            version(config, &guard, &apptainer, &own)
        )?;
        Ok((seen, tried))
    };
    // What takes longest is begun first.
    let (runtime, namespaces) = tokio::join!(runtime, namespaces(config, &guard, &own));
    CheckResults {
        namespaces,
        external,
        runtime,
    }
}

impl CheckResults {
    /// Notes all of it. What was not tried because of another failure is said to be so.
    fn told(self, check_log: &mut CheckLog<'_>) -> Option<PreparedHost> {
        let (version, tried) = match self.runtime {
            Ok((seen, tried)) => (Ok(((), seen)), tried),
            Err(fatal) => (Err(fatal), None),
        };
        check_log.keep(Check::Apptainer, version);
        let namespaces = self
            .namespaces
            .map(|seen| ((), seen))
            .map_err(PilotError::from);
        check_log.keep(Check::UserNamespaces, namespaces);
        check_log.keep(Check::ExternalDirectories, self.external);
        let Some(tried) = tried else {
            check_log.findings.skipped(Check::Image);
            check_log.findings.skipped(Check::Container);
            return None;
        };
        let image =
            tried.map(|(prepared_host, seen, container)| ((prepared_host, container), seen));
        let Some((prepared_host, container)) = check_log.keep(Check::Image, image) else {
            check_log.findings.skipped(Check::Container);
            return None;
        };
        if let Some(seen) = container {
            let needless = "not needed: images run as directories".to_owned();
            check_log
                .findings
                .seen(Check::Fuse, CheckNote::Fine(needless));
            let seen = seen.map(|seen| ((), seen)).map_err(PilotError::from);
            check_log.keep(Check::Container, seen)?;
        }
        Some(prepared_host)
    }
}

fn task_context(
    config: &Config,
    progress: &Progress,
    guard: &GuardianHandle,
    dirs: &DataDirs,
    apptainer: Apptainer,
    (external, inputs): Binds,
) -> TaskContext {
    TaskContext {
        apptainer,
        guard: guard.clone(),
        inputs,
        dirs: dirs.clone(),
        external,
        grace: config.kill_grace,
        keep: config.keep_files,
        guards: ResourceLimits {
            memory: config.limits.task_memory,
            stall: config.limits.task_stall,
        },
        memory_kills: MemoryKills::watch(),
        output_limit: config.limits.task_output,
        kept: Arc::new(Budget::new(config.limits.kept_files)),
        dump: config.dump_output,
        verbosity: config.verbosity,
        proc: ProcMount::Own,
        log: progress.clone(),
        running: ActiveContainers::default(),
        look: SharedLook::default(),
    }
}

/// Makes the task's image usable, and tries it unless the user wants it otherwise.
async fn tried(
    config: &Config,
    seen: Result<CheckNote, CheckProblem>,
    mut context: TaskContext,
) -> TaskTrial {
    seen?;
    let task = plan(&context, config, &config.task).await?;
    let seen = CheckNote::Fine(format!("`{}` can be read", task.image.display()));
    let container = match config.preflight {
        Preflight::Check => Some(preflight::container(&mut context, &task).await),
        Preflight::Skip => None,
    };
    Ok((PreparedHost { context, task }, seen, container))
}

/// Looks at all queues; takes and declares nothing.
pub(super) async fn visit_brokers(config: &Config, findings: &mut Findings) -> Option<PilotError> {
    let mut check_log = CheckLog {
        findings,
        first: None,
    };
    let incoming = config
        .incoming
        .iter()
        .map(|queue| (Check::BrokerIncoming, Direction::Incoming, queue));
    let outgoing = config
        .outgoing
        .iter()
        .map(|queue| (Check::BrokerOutgoing, Direction::Outgoing, queue));
    for (check, direction, queue) in incoming.chain(outgoing) {
        let QueueConfig { name, broker } = queue;
        let looked = broker::look(direction, name, address(broker)).await;
        check_log.keep(
            check,
            looked
                .map(|look| ((), seen_of(name, look)))
                .map_err(|error| PilotError::Broker(error.to_string())),
        );
    }
    check_log.first
}

fn seen_of(queue: &str, look: QueueLook) -> CheckNote {
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

/// Says, where operators look for bad sites, which one this is.
pub(super) fn report_site(config: &Config, fatal: &PilotError) {
    let host = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_default();
    let site = config.condor.site.as_deref().unwrap_or("unknown");
    error!(
        GLIDEIN_Site = site,
        host,
        reason = %fatal.message(),
        "preflight failed: no event was taken"
    );
}

async fn directories(config: &Config) -> Result<DataDirs, PilotError> {
    let parent = config.data_parent.clone();
    file_work(move || {
        DataDirs::create(&parent).map_err(|error| {
            PilotError::ExecutionPoint(format!(
                "can't make the data directories in `{}`: {error}; look at its rights and free space, or set \
                 EWMS_PILOT_DATA_DIR_PARENT_PATH_ON_HOST",
                parent.display()
            ))
        })
    })
    .await
}

async fn scratch(config: &Config) -> Result<CheckNote, PilotError> {
    let parent = config.data_parent.clone();
    match config.preflight {
        Preflight::Check => file_work(move || Ok(preflight::scratch(&parent)?)).await,
        Preflight::Skip => Ok(CheckNote::Fine("made".to_owned())),
    }
}

async fn file_work<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PilotError> + Send + 'static,
) -> Result<T, PilotError> {
    blocking::start(work).await.unwrap_or_else(|error| {
        Err(PilotError::ExecutionPoint(format!(
            "file work stopped: {error}"
        )))
    })
}

/// A directory of `PATH` may be on a file system that hangs.
const LOCATE_WITHIN: Duration = Duration::from_secs(30);

async fn locate(config: &Config, dirs: &DataDirs) -> Result<Apptainer, PilotError> {
    let environment = ApptainerEnvironment {
        path: config.host.path.clone(),
        home: config.host.home.clone(),
        lang: config.host.lang.clone(),
        scratch: dirs.apptainer(),
        proxies: config.host.proxies.clone(),
    };
    match blocking::within(LOCATE_WITHIN, || Apptainer::locate(environment)).await {
        Ok(located) => located.map_err(|error| PilotError::ExecutionPoint(error.to_string())),
        Err(error) => {
            let path = config.host.path.display();
            let seen = format!("`apptainer` is looked for in PATH `{path}`: {error}");
            Err(CheckProblem::of(Cause::Hanging, seen).into())
        }
    }
}

async fn version(
    config: &Config,
    guard: &GuardianHandle,
    apptainer: &Apptainer,
    scratch: &Path,
) -> Result<CheckNote, PilotError> {
    match config.preflight {
        Preflight::Check => Ok(preflight::version(guard, apptainer, scratch).await?),
        Preflight::Skip => Ok(CheckNote::Fine(format!(
            "`{}`",
            apptainer.program().display()
        ))),
    }
}

async fn namespaces(
    config: &Config,
    guard: &GuardianHandle,
    scratch: &Path,
) -> Result<CheckNote, CheckProblem> {
    match config.preflight {
        Preflight::Check => preflight::namespaces(guard, scratch).await,
        Preflight::Skip => Ok(CheckNote::Fine("not tried".to_owned())),
    }
}

async fn reachable(
    config: &Config,
    guard: &GuardianHandle,
    paths: &[PathBuf],
    scratch: &Path,
) -> Result<CheckNote, CheckProblem> {
    match config.preflight {
        Preflight::Check => preflight::reachable(guard, paths, scratch).await,
        Preflight::Skip => Ok(CheckNote::Fine("not looked at".to_owned())),
    }
}

/// Looks at what is mounted below the external directories, which every container will be kept from
/// writing.
async fn mounted_below(
    external: &ExternalDirs,
    guard: &GuardianHandle,
    scratch: &Path,
) -> Result<(), PilotError> {
    let shutdown = ShutdownSender::new().subscribe();
    let looked = external.binds(guard, scratch, &shutdown).await;
    looked.map(drop).map_err(|error| match &error {
        ExternalError::Bind(_) | ExternalError::TooMany { .. } => {
            PilotError::Bind(error.to_string())
        }
        _ => PilotError::of(error.cause().class(), error.to_string()),
    })
}

fn binds(config: &Config, dirs: &DataDirs) -> Result<Binds, PilotError> {
    let refused = |error: BindError| PilotError::Bind(error.to_string());
    let external = config
        .external_directories
        .iter()
        .map(|dir| Bind::new(dir, dir, Access::ReadOnly))
        .collect::<Result<Vec<_>, _>>()
        .map_err(refused)?;
    let own = own_paths(config);
    refuse_own(&external, &own)?;
    let mut targets = external.clone();
    for target in [HUB_IN_CONTAINER, INPUTS_IN_CONTAINER, IO_IN_CONTAINER] {
        targets.push(Bind::new(dirs.hub(), target, Access::ReadWrite).map_err(refused)?);
    }
    check_distinct(&targets).map_err(refused)?;
    let inputs = inputs(config, dirs, &own)?;
    Ok((ExternalDirs::new(external), inputs))
}

/// No external directory shows tasks what is the pilot's own.
fn refuse_own(external: &[Bind], own: &[OwnPath]) -> Result<(), PilotError> {
    if external.is_empty() {
        return Ok(());
    }
    let mounts = MountTable::read().map_err(|error| {
        PilotError::ExecutionPoint(format!(
            "the mount table can't be read: {error}; external directories need /proc"
        ))
    })?;
    for bind in external {
        if let Some(own) = shown_by(bind.real(), own, &mounts) {
            return Err(PilotError::Configuration(format!(
                "`{}` is `{}`: tasks would see {} there, `{}`; name directories that don't hold it and are not \
                 in it, or keep it elsewhere",
                EXTERNAL_DIRECTORIES.name,
                bind.source().display(),
                own.what,
                own.path.display()
            )));
        }
    }
    Ok(())
}

/// The files that HTCondor transferred with the job, as one bind.
fn inputs(config: &Config, dirs: &DataDirs, own: &[OwnPath]) -> Result<Option<Bind>, PilotError> {
    let files = &config.condor.input_files;
    let Some(scratch) = config.condor.scratch.as_ref().filter(|_| !files.is_empty()) else {
        return Ok(None);
    };
    let directory = dirs.inputs();
    let gathered = gather(files, scratch, &directory, &Identities::of(own)).map_err(|error| {
        PilotError::ExecutionPoint(format!(
            "can't gather the job's input files: {error}; look at the rights and free space of the data directory"
        ))
    })?;
    gathered.report();
    if gathered.files == 0 {
        return Ok(None);
    }
    Bind::new(directory, INPUTS_IN_CONTAINER, Access::ReadOnly)
        .map(Some)
        .map_err(|error| PilotError::Bind(error.to_string()))
}

/// A container's image made usable, and its arguments checked.
async fn plan(
    context: &TaskContext,
    config: &Config,
    container: &ContainerConfig,
) -> Result<ContainerSpec, PilotError> {
    let args = Template::parse(&container.args)
        .map_err(|error| PilotError::Configuration(error.to_string()))?;
    // Whoever gives up drops the future, and with it whatever converts.
    let shutdown = ShutdownSender::new();
    let image = image::prepare(
        context,
        &container.image,
        &config.cwd,
        &config.images,
        shutdown.subscribe(),
    )
    .await
    .map_err(|error| PilotError::of(error.class(), error.to_string()))?;
    Ok(ContainerSpec {
        repair: repair(context, &image)?,
        image,
        args,
        env: container.env.clone(),
        timeout: container.timeout,
    })
}

/// Makes the init container's image usable, and tries it as the tasks' unless the user wants it otherwise. On
/// this machine the tasks' containers can be made already.
///
/// # Errors
/// When it can't be used.
pub(super) async fn prepare_init(
    config: &Config,
    prepared_host: (&TaskContext, &ContainerSpec),
    init: &ContainerConfig,
    findings: &mut Findings,
) -> Result<ContainerSpec, PilotError> {
    let mut check_log = CheckLog {
        findings,
        first: None,
    };
    let tried = tried_init(config, prepared_host, init).await;
    let plan = match tried {
        Ok((plan, Some(seen))) => check_log.keep(Check::InitContainer, Ok((plan, seen))),
        Ok((plan, None)) => Some(plan),
        Err(fatal) => check_log.keep(Check::InitContainer, Err(fatal)),
    };
    match (plan, check_log.first) {
        (Some(plan), _) => Ok(plan),
        (None, Some(fatal)) => Err(fatal),
        (None, None) => Err(PilotError::ExecutionPoint(
            "nothing to run the init container with".to_owned(),
        )),
    }
}

async fn tried_init(
    config: &Config,
    (context, task): (&TaskContext, &ContainerSpec),
    init: &ContainerConfig,
) -> Result<(ContainerSpec, Option<CheckNote>), PilotError> {
    let plan = plan(context, config, init).await?;
    let seen = match config.preflight {
        Preflight::Skip => None,
        Preflight::Check if plan.image == task.image && plan.env == task.env => {
            Some(CheckNote::Fine("its image is that of the tasks".to_owned()))
        }
        Preflight::Check => Some(preflight::init_container(context, &plan).await?),
    };
    Ok((plan, seen))
}

/// What an image needs bound into it so that its containers get their variables.
fn repair(context: &TaskContext, image: &Path) -> Result<Option<Bind>, PilotError> {
    if !container::base_script_is_missing(image) {
        return Ok(None);
    }
    let script = context.dirs.empty_script().map_err(|error| {
        PilotError::ExecutionPoint(format!(
            "can't make a script for the image: {error}; look at the rights and free space of the data directory"
        ))
    })?;
    info!(
        image = %image.display(),
        script = container::base_script(),
        "an empty script stands in for one that the image lacks, so that its containers get their variables"
    );
    Ok(Some(Bind::script(script, container::base_script())))
}
