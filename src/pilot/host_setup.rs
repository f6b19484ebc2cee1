//! Prepares the machine for tasks: directories, binds, Apptainer, the task's image, the init container's.
//!
//! [`Host::make_checks`] is the list of checks. Each runs once, unless the user wants none
//! (`EWMS_PILOT_PREFLIGHT`), and returns a note or the error that ends the pilot. `ewms-pilot check` runs the
//! same ones.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{Either, LocalBoxFuture, ready, select};
use tracing::{error, info};

use super::PilotError;
use super::host_binds::{BindSources, Binds};
use super::host_images::{arguments, container_spec, unusable_image, usable_image};
use super::own_paths::own_paths;
use super::task_set::TaskSet;
use crate::blocking;
use crate::config::{Config, ContainerConfig, CvmfsPolicy, Preflight, WarmStart, variables};
use crate::container::{
    Apptainer, ApptainerEnvironment, ApptainerPlaces, ProcMount, UserNamespace, surely_allows_binds,
};
use crate::fault::{Diagnosis, TaskError};
use crate::preflight::{self, ApptainerSearch, Check, CheckNote, CheckProblem, Findings};
use crate::process::{GuardianHandle, ShutdownSender};
use crate::task::cvmfs::{CVMFS, find_cvmfs};
use crate::task::disk_space::DiskBudget;
use crate::task::staging::DataDirs;
use crate::task::{
    ActiveContainers, ContainerSpec, Cvmfs, CvmfsBind, ExternalDirs, ExternalError, GpuPool,
    MemoryKills, ResourceLimits, SharedLook, SharedTaskContext, TaskContext, TaskStart,
};
use crate::telemetry::Progress;

/// Everything that tasks need on this machine.
#[derive(Debug)]
pub(super) struct PreparedHost {
    pub(super) context: TaskContext,
    pub(super) task: ContainerSpec,
    /// The tasks, the first of which has a container that waits or is being made.
    pub(super) tasks: Option<FirstTasks>,
}

/// Makes the tasks of a pilot whose host is prepared.
pub(super) type MakeTasks<'a> = &'a dyn Fn(SharedTaskContext, ContainerSpec) -> TaskSet;

/// Tasks, and whether the first container waits, once that is known.
pub(super) struct FirstTasks(pub(super) LocalBoxFuture<'static, (TaskSet, Result<(), TaskError>)>);

impl std::fmt::Debug for FirstTasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FirstTasks")
    }
}

/// The result and note of a check, or the error that ends the pilot.
type Checked<T = ()> = Result<(T, CheckNote), PilotError>;

/// The lines about Apptainers, and what was made with one of them; an error if there is none.
type ApptainerChecks = (Vec<CheckNote>, Result<Option<FirstContainer>, PilotError>);

/// The task's image, and the results of a first container of it and of one with GPUs, as far as they were
/// wanted and possible.
type FirstContainer = (Checked<PreparedHost>, (Option<Checked>, Option<Checked>));

/// An Apptainer that can't convert images says so at once. One that was at work for longer has another reason,
/// such as a registry that doesn't answer.
const FAILS_WITHIN: Duration = Duration::from_mins(1);

/// Runs all checks even if one fails; a check is skipped only if it needs the result of one that failed.
///
/// # Errors
/// Returns the first failure in the order of the checks.
pub(super) async fn prepare_host(
    config: &Config,
    guardian: GuardianHandle,
    progress: &Progress,
    findings: &mut Findings,
    make_tasks: Option<MakeTasks<'_>>,
) -> Result<PreparedHost, PilotError> {
    let began = Instant::now();
    let mut log = CheckLog {
        findings,
        first: None,
    };
    let prepared = match data_dirs(config).await {
        Err(error) => log.keep(Check::Scratch, Err(error)),
        Ok(dirs) => {
            let host = Host {
                config,
                guardian,
                progress,
                make_tasks,
                apptainer_scratch: dirs.apptainer(),
                dirs,
            };
            Box::pin(host.make_checks(&mut log)).await
        }
    };
    match (log.first, prepared) {
        (None, Some(prepared)) => {
            let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            info!(elapsed_ms, "this execution point is ready");
            Ok(prepared)
        }
        (Some(error), _) => Err(error),
        (None, None) => Err(PilotError::ExecutionPoint(Diagnosis::without_fix(
            "nothing to run tasks with",
        ))),
    }
}

/// The findings, and the first failure among them.
struct CheckLog<'a> {
    findings: &'a mut Findings,
    first: Option<PilotError>,
}

impl CheckLog<'_> {
    /// Notes the outcome of a check and returns its result, if it passed.
    fn keep<T>(&mut self, check: Check, result: Checked<T>) -> Option<T> {
        match result {
            Ok((made, note)) => {
                self.findings.seen(check, note);
                Some(made)
            }
            Err(error) => {
                self.findings.failed(check, &error.diagnosis());
                self.first.get_or_insert(error);
                None
            }
        }
    }
}

/// The machine while it is prepared.
struct Host<'a> {
    config: &'a Config,
    guardian: GuardianHandle,
    progress: &'a Progress,
    /// For a first container that is made beside the one that shows whether it can be.
    make_tasks: Option<MakeTasks<'a>>,
    dirs: DataDirs,
    /// Where Apptainer and the checks' children may write.
    apptainer_scratch: PathBuf,
}

impl Host<'_> {
    /// The list of checks. They wait for a disk, a network or a child rather than for a core, so independent
    /// ones run at the same time. They are reported in a fixed order.
    async fn make_checks(&self, log: &mut CheckLog<'_>) -> Option<PreparedHost> {
        let checks = tokio::try_join!(self.scratch(), async {
            let mut search = self.apptainer_search();
            // A container would hang on these.
            let (external, cvmfs, image, apptainer) = tokio::join!(
                self.external_directories(),
                self.cvmfs(),
                self.images_answer(),
                search.next()
            );
            let binds = external.as_ref().ok().map(|(binds, _)| binds.clone());
            let (container, namespaces) = tokio::join!(
                self.first_container(apptainer, search, (binds, cvmfs.0), image),
                self.user_namespaces()
            );
            Ok((external, cvmfs.1, container, namespaces))
        });
        let (external, cvmfs, (apptainers, container), namespaces) = match checks {
            Ok((scratch, rest)) => {
                log.keep(Check::Scratch, Ok(scratch));
                rest
            }
            // Without a disk nothing else is worth reporting.
            Err(error) => return log.keep(Check::Scratch, Err(error)),
        };
        for apptainer in apptainers {
            log.findings.seen(Check::Apptainer, apptainer);
        }
        let container = match container {
            Ok(container) => container,
            Err(error) => log.keep(Check::Apptainer, Err(error)),
        };
        log.keep(Check::UserNamespaces, namespaces);
        log.keep(Check::ExternalDirectories, external);
        log.findings.seen(Check::Cvmfs, cvmfs);
        let (image, container) = container.unzip();
        if image.is_none() {
            log.findings.skipped(Check::Image);
        }
        let prepared = image.and_then(|image| log.keep(Check::Image, image));
        let (container, gpus) = container.unwrap_or_default();
        match container {
            Some(container) => {
                let needless = "not needed: images run as directories".to_owned();
                log.findings.seen(Check::Fuse, CheckNote::Fine(needless));
                log.keep(Check::Container, container);
            }
            None if prepared.is_none() => log.findings.skipped(Check::Container),
            None => {}
        }
        match gpus {
            Some(gpus) => drop(log.keep(Check::Gpu, gpus)),
            None if self.wants_gpus() => log.findings.skipped(Check::Gpu),
            None => {}
        }
        prepared
    }

    /// The note of a check, or `otherwise` if the user wants no checks.
    async fn note<E: Into<PilotError>>(
        &self,
        check: impl Future<Output = Result<CheckNote, E>>,
        otherwise: impl Into<String>,
    ) -> Result<CheckNote, PilotError> {
        match if_wanted(self.config, check).await {
            Some(result) => result.map_err(Into::into),
            None => Ok(CheckNote::Fine(otherwise.into())),
        }
    }

    async fn scratch(&self) -> Checked {
        let parent = self.config.data_parent.clone();
        let written = file_work(move || Ok(preflight::scratch(&parent)?));
        Ok(((), self.note(written, "made").await?))
    }

    async fn external_directories(&self) -> Checked<Binds> {
        let note = self.answer(&self.config.external_directories).await?;
        let sources = BindSources::of(self.config, &self.dirs);
        let binds = file_work(move || sources.binds()).await?;
        self.mounts_below(&binds.0).await?;
        Ok((binds, note))
    }

    /// Looks for CVMFS even if the user wants no checks: a container would hang on one that hangs.
    async fn cvmfs(&self) -> (Cvmfs, CheckNote) {
        let config = self.config;
        if config.cvmfs == CvmfsPolicy::LeaveOut {
            let name = variables::CVMFS.name;
            return preflight::no_cvmfs(format!("left out, as `{name}` says"));
        }
        let mut external = config.external_directories.iter();
        if external.any(|directory| directory == Path::new(CVMFS)) {
            return preflight::no_cvmfs(format!("`{CVMFS}` is an external directory"));
        }
        let places = self.cvmfs_places();
        let shutdown = ShutdownSender::new().subscribe();
        let (guard, own) = (&self.guardian, own_paths(config));
        preflight::cvmfs(find_cvmfs(guard, &places, own, &self.apptainer_scratch, &shutdown).await)
    }

    async fn images_answer(&self) -> Result<CheckNote, PilotError> {
        let images = std::iter::once(&self.config.task).chain(&self.config.init);
        let images: Vec<PathBuf> = images
            .map(|container| self.config.cwd.join(&container.image))
            .collect();
        self.answer(&images).await
    }

    async fn user_namespaces(&self) -> Checked {
        let made = preflight::namespaces(&self.guardian, &self.apptainer_scratch);
        Ok(((), self.note(made, "not tried").await?))
    }

    /// Prepares the image and makes a first container of it, with the first Apptainer that can.
    async fn first_container(
        &self,
        apptainer: Result<Option<Apptainer>, CheckProblem>,
        mut search: ApptainerSearch<'_>,
        (binds, cvmfs): (Option<Binds>, Cvmfs),
        image: Result<CheckNote, PilotError>,
    ) -> ApptainerChecks {
        let apptainer = match apptainer {
            Ok(Some(apptainer)) => apptainer,
            Ok(None) => return (Vec::new(), Err(search.nothing_found().into())),
            Err(problem) => return (search.notes(None), Err(problem.into())),
        };
        let Some(binds) = binds else {
            return (search.notes(None), Ok(None));
        };
        let context = self.context(apptainer, binds, cvmfs);
        let mut image = self.image(context, image, &mut search).await;
        let container = match &mut image {
            Ok((prepared, _)) => self.container(prepared, &mut search).await,
            Err(_) => None,
        };
        let gpus = match (&mut image, &container) {
            (Ok((prepared, _)), Some(Ok(_))) => self.gpus(prepared).await,
            _ => None,
        };
        let used = match (&image, &container) {
            (Ok((prepared, _)), None | Some(Ok(_))) => Some(prepared.context.apptainer.program()),
            _ => None,
        };
        (search.notes(used), Ok(Some((image, (container, gpus)))))
    }

    /// Prepares the task's image, converting it first if necessary. `answers` is the check of its file
    /// system.
    async fn image(
        &self,
        mut context: TaskContext,
        answers: Result<CheckNote, PilotError>,
        search: &mut ApptainerSearch<'_>,
    ) -> Checked<PreparedHost> {
        answers?;
        let container = &self.config.task;
        let args = arguments(container)?;
        let image = self.task_image(&mut context, search).await?;
        let task = container_spec(&context, container, args, image)?;
        let note = format!("`{}` can be read", task.image.display());
        let prepared = PreparedHost {
            context,
            task,
            tasks: None,
        };
        Ok((prepared, CheckNote::Fine(note)))
    }

    /// The task's image, converted by the first Apptainer that can, if need be with `--userns`. If none can,
    /// the first one's error.
    async fn task_image(
        &self,
        context: &mut TaskContext,
        search: &mut ApptainerSearch<'_>,
    ) -> Result<PathBuf, PilotError> {
        let image = &self.config.task.image;
        let mut tried = Vec::new();
        let first = loop {
            let began = Instant::now();
            let error = match usable_image(context, self.config, image).await {
                Ok(image) => return Ok(image),
                Err(error) => error,
            };
            if !error.depends_on_apptainer()
                || began.elapsed() > FAILS_WITHIN
                || self.config.preflight == Preflight::Skip
            {
                return Err(unusable_image(&error));
            }
            search.converts_nothing(&context.apptainer, &error);
            let apptainer = context.apptainer.clone();
            tried.push((apptainer, unusable_image(&error)));
            match search.next().await? {
                Some(next) => context.apptainer = next,
                None => break tried[0].1.clone(),
            }
        };
        context.user_namespace = UserNamespace::Always;
        for (apptainer, _) in tried {
            context.apptainer = apptainer;
            if let Ok(image) = usable_image(context, self.config, image).await {
                return Ok(image);
            }
        }
        Err(first)
    }

    async fn container(
        &self,
        prepared: &mut PreparedHost,
        search: &mut ApptainerSearch<'_>,
    ) -> Option<Checked> {
        if self.config.preflight == Preflight::Skip {
            // Nothing has shown that a gate would hold.
            prepared.context.task_start = TaskStart::WithContainer;
            return None;
        }
        let first = self.first_tasks(prepared).await;
        let PreparedHost {
            context,
            task,
            tasks,
        } = prepared;
        let before = manner(context, task);
        let made = Box::pin(preflight::container(context, task, search));
        let made = match first {
            None => made.await,
            Some(FirstTasks(first)) => {
                let (made, first) = match select(made, first).await {
                    Either::Left((made, first)) => (made, first),
                    Either::Right((first, made)) => (made.await, ready(first).boxed_local()),
                };
                // One that was made in another way, or can't wait, is of no use.
                if made.is_ok() && before == manner(context, task) {
                    *tasks = Some(FirstTasks(first));
                }
                made
            }
        };
        Some(made.map(|note| ((), note)).map_err(PilotError::from))
    }

    /// Begins the first container of a task, if it surely waits at its gate: then it is made beside the one that
    /// shows whether containers can be made.
    async fn first_tasks(&self, prepared: &PreparedHost) -> Option<FirstTasks> {
        let PreparedHost { context, task, .. } = prepared;
        let make_tasks = self.make_tasks?;
        let program = context.apptainer.program().to_owned();
        let allows = blocking::start(move || surely_allows_binds(&program));
        if context.task_start == TaskStart::WithContainer
            || self.wants_gpus()
            // It would only wait for the init container.
            || self.config.init.is_some()
            || !allows.await.unwrap_or(false)
        {
            return None;
        }
        let mut tasks = make_tasks(Arc::new(context.clone()), task.clone());
        let first = async move {
            let waits = tasks.first_waits().await;
            (tasks, waits)
        };
        Some(FirstTasks(first.boxed_local()))
    }

    /// Whether the GPUs are to be checked.
    fn wants_gpus(&self) -> bool {
        self.config.preflight == Preflight::Check && self.config.gpus.each > 0
    }

    async fn gpus(&self, prepared: &mut PreparedHost) -> Option<Checked> {
        let PreparedHost { context, task, .. } = prepared;
        let seen = preflight::gpus(context, task).await?;
        Some(seen.map(|note| ((), note)).map_err(PilotError::from))
    }

    /// Checks that the file systems of these paths answer.
    async fn answer(&self, paths: &[PathBuf]) -> Result<CheckNote, PilotError> {
        let looked = preflight::reachable(&self.guardian, paths, &self.apptainer_scratch);
        self.note(looked, "not looked at").await
    }

    /// Probes the mounts below the external directories, which no container may write to.
    async fn mounts_below(&self, external: &ExternalDirs) -> Result<(), PilotError> {
        let shutdown = ShutdownSender::new().subscribe();
        let looked = external
            .binds(&self.guardian, &self.apptainer_scratch, &shutdown)
            .await;
        looked.map(drop).map_err(|error| {
            let diagnosis = Diagnosis::of_text(&error.to_string());
            match &error {
                ExternalError::Bind(_) | ExternalError::TooMany { .. } => {
                    PilotError::Bind(diagnosis)
                }
                _ => PilotError::of(error.cause().class(), diagnosis),
            }
        })
    }

    fn context(
        &self,
        apptainer: Apptainer,
        (external, inputs): Binds,
        cvmfs: Cvmfs,
    ) -> TaskContext {
        let config = self.config;
        TaskContext {
            apptainer,
            guard: self.guardian.clone(),
            inputs,
            dirs: self.dirs.clone(),
            external,
            cvmfs,
            grace: config.kill_grace,
            keep: config.keep_files,
            guards: ResourceLimits {
                memory: config.limits.task_memory,
                stall: config.limits.task_stall,
            },
            memory_kills: MemoryKills::watch(),
            output_limit: config.limits.task_output,
            kept: Arc::new(DiskBudget::new(config.limits.kept_files)),
            dump: config.dump_output,
            verbosity: config.verbosity,
            proc: ProcMount::Own,
            user_namespace: UserNamespace::AsInstalled,
            gpus: GpuPool::new(config.gpus.clone()),
            log: self.progress.clone(),
            running: ActiveContainers::default(),
            waiting: ActiveContainers::default(),
            task_start: match config.warm_start {
                WarmStart::Off => TaskStart::WithContainer,
                WarmStart::Auto | WarmStart::Containers(_) => TaskStart::AtGate,
            },
            look: SharedLook::default(),
        }
    }

    fn apptainer_search(&self) -> ApptainerSearch<'_> {
        let (host, condor) = (&self.config.host, &self.config.condor);
        let places = ApptainerPlaces {
            setting: host.apptainer.clone(),
            path: host.path.clone(),
            named: condor.apptainers.clone(),
            condor_root: condor.root.clone(),
            cvmfs: self.cvmfs_places(),
        };
        let environment = ApptainerEnvironment {
            path: host.path.clone(),
            home: host.home.clone(),
            lang: host.lang.clone(),
            scratch: self.apptainer_scratch.clone(),
            proxies: host.proxies.clone(),
        };
        ApptainerSearch::new(&self.guardian, &self.apptainer_scratch, environment, places)
    }

    /// Where CVMFS may be, in the order in which it is looked for.
    fn cvmfs_places(&self) -> Vec<PathBuf> {
        let said = self.config.host.cvmfs_mount_dir.iter();
        said.filter(|place| place.is_absolute())
            .cloned()
            .chain([CVMFS.into()])
            .collect()
    }
}

/// The ways of making containers that the ladder may change.
fn manner(
    context: &TaskContext,
    task: &ContainerSpec,
) -> (PathBuf, UserNamespace, ProcMount, CvmfsBind, TaskStart) {
    (
        context.apptainer.program().to_owned(),
        context.user_namespace,
        context.proc,
        task.cvmfs,
        context.task_start,
    )
}

/// Runs a check, unless the user wants none.
async fn if_wanted<T>(config: &Config, check: impl Future<Output = T>) -> Option<T> {
    match config.preflight {
        Preflight::Check => Some(check.await),
        Preflight::Skip => None,
    }
}

async fn data_dirs(config: &Config) -> Result<DataDirs, PilotError> {
    let parent = config.data_parent.clone();
    file_work(move || {
        DataDirs::create(&parent).map_err(|error| {
            PilotError::ExecutionPoint(Diagnosis::new(
                format!(
                    "can't make the data directories in `{}`: {error}",
                    parent.display()
                ),
                "look at its rights and free space, or set EWMS_PILOT_DATA_DIR_PARENT_PATH_ON_HOST",
            ))
        })
    })
    .await
}

async fn file_work<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PilotError> + Send + 'static,
) -> Result<T, PilotError> {
    blocking::start(work).await.unwrap_or_else(|error| {
        let seen = format!("file work stopped: {error}");
        Err(PilotError::ExecutionPoint(Diagnosis::without_fix(seen)))
    })
}

/// Prepares the init container, on a machine that can make the tasks' containers.
///
/// # Errors
/// Fails if its image can't be used.
pub(super) async fn prepare_init(
    config: &Config,
    host: (&TaskContext, &ContainerSpec),
    init: &ContainerConfig,
    findings: &mut Findings,
) -> Result<ContainerSpec, PilotError> {
    let checked = check_init(config, host, init).await;
    match &checked {
        Ok((_, Some(note))) => findings.seen(Check::InitContainer, note.clone()),
        Ok((_, None)) => {}
        Err(error) => findings.failed(Check::InitContainer, &error.diagnosis()),
    }
    checked.map(|(spec, _)| spec)
}

async fn check_init(
    config: &Config,
    (context, task): (&TaskContext, &ContainerSpec),
    init: &ContainerConfig,
) -> Result<(ContainerSpec, Option<CheckNote>), PilotError> {
    let args = arguments(init)?;
    let image = usable_image(context, config, &init.image).await;
    let image = image.map_err(|error| unusable_image(&error))?;
    let mut spec = container_spec(context, init, args, image)?;
    let note = if_wanted(config, async {
        if spec.image == task.image && spec.env == task.env {
            spec.cvmfs = task.cvmfs;
            Ok(CheckNote::Fine("its image is that of the tasks".to_owned()))
        } else {
            preflight::init_container(context, &mut spec).await
        }
    })
    .await
    .transpose()?;
    Ok((spec, note))
}

/// Logs the site and the name of a machine that failed, for operators who look for bad sites.
pub(super) fn report_site(config: &Config, error: &PilotError) {
    let names = &config.condor.names;
    error!(
        GLIDEIN_Site = names.site.as_deref().unwrap_or("unknown"),
        GLIDEIN_ResourceName = names.resource,
        host = names.machine,
        reason = %error.diagnosis(),
        "preflight failed: no event was taken"
    );
}
