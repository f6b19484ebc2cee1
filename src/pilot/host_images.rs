//! The images of the tasks and of the init container, made ready for their containers.

use std::path::{Path, PathBuf};

use tracing::info;

use super::PilotError;
use super::host_binds::DATA_DIR_FIX;
use crate::config::{Config, ContainerConfig};
use crate::container::{self, BaseScript, Bind, Template};
use crate::fault::Diagnosis;
use crate::process::ShutdownSender;
use crate::task::image_setup::{self, PrepareError};
use crate::task::{ContainerSpec, CvmfsBind, TaskContext};

pub(super) fn arguments(container: &ContainerConfig) -> Result<Template, PilotError> {
    Template::parse(&container.args)
        .map_err(|error| PilotError::Configuration(Diagnosis::of_text(&error.to_string())))
}

/// The directory of an image, converted first if necessary.
pub(super) async fn usable_image(
    context: &TaskContext,
    config: &Config,
    image: &str,
) -> Result<PathBuf, PrepareError> {
    // Giving up drops the future, and with it a running conversion.
    let shutdown = ShutdownSender::new();
    let (cwd, images) = (&config.cwd, &config.images);
    image_setup::prepare(context, image, cwd, images, shutdown.subscribe()).await
}

pub(super) fn unusable_image(error: &PrepareError) -> PilotError {
    PilotError::of(error.class(), error.diagnosis())
}

pub(super) fn container_spec(
    context: &TaskContext,
    container: &ContainerConfig,
    args: Template,
    image: PathBuf,
) -> Result<ContainerSpec, PilotError> {
    Ok(ContainerSpec {
        repair: repair(context, &image)?,
        cvmfs: CvmfsBind::Wanted,
        image,
        args,
        env: container.env.clone(),
        timeout: container.timeout,
    })
}

/// The bind that an image needs so that its containers get their variables, and find the GPUs' libraries.
fn repair(context: &TaskContext, image: &Path) -> Result<Option<Bind>, PilotError> {
    let has_gpus = context.gpus.all().is_some_and(|all| !all.gpus.is_empty());
    let (name, text) = match container::base_script_of(image) {
        BaseScript::Missing | BaseScript::NoScripts if has_gpus => {
            ("gpu-libraries.sh", container::LIBRARY_SCRIPT)
        }
        BaseScript::Missing | BaseScript::NoScripts => ("base.sh", container::BASE_SCRIPT_TEXT),
        BaseScript::Own => return Ok(None),
    };
    let script = context.dirs.script(name, text).map_err(|error| {
        PilotError::ExecutionPoint(Diagnosis::new(
            format!("can't make a script for the image: {error}"),
            DATA_DIR_FIX,
        ))
    })?;
    info!(
        image = %image.display(),
        script = container::base_script(),
        "a script of ours stands in for one that the image lacks, so that its containers get their variables"
    );
    Ok(Some(Bind::script(script, container::base_script())))
}
