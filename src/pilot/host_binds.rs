//! The binds that all containers share: the external directories, and the files that came with the job.

use std::path::PathBuf;

use super::PilotError;
use super::own_paths::own_paths;
use crate::config::Config;
use crate::config::variables::EXTERNAL_DIRECTORIES;
use crate::container::{Access, Bind, BindError, MountTable, check_distinct};
use crate::fault::Diagnosis;
use crate::status;
use crate::task::ExternalDirs;
use crate::task::input_files::gather;
use crate::task::own_files::{HiddenFiles, OwnPath, shown_by};
use crate::task::staging::{DataDirs, HUB_IN_CONTAINER, INPUTS_IN_CONTAINER, IO_IN_CONTAINER};

/// The remedy if the data directory can't be written.
pub(super) const DATA_DIR_FIX: &str = "look at the rights and free space of the data directory";

/// The external directories, and the files that came with the job.
pub(super) type Binds = (ExternalDirs, Option<Bind>);

/// The sources of the binds of all containers. Making the binds resolves paths, and links or copies files.
pub(super) struct BindSources {
    external: Vec<PathBuf>,
    own: Vec<OwnPath>,
    input_files: Vec<PathBuf>,
    scratch: Option<PathBuf>,
    dirs: DataDirs,
}

impl BindSources {
    pub(super) fn of(config: &Config, dirs: &DataDirs) -> Self {
        Self {
            external: config.external_directories.clone(),
            own: own_paths(config),
            input_files: config.condor.input_files.clone(),
            scratch: config.condor.scratch.clone(),
            dirs: dirs.clone(),
        }
    }

    pub(super) fn binds(&self) -> Result<Binds, PilotError> {
        let external = self
            .external
            .iter()
            .map(|dir| Bind::new(dir, dir, Access::ReadOnly))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| bind_error(&error))?;
        refuse_own(&external, &self.own)?;
        let mut targets = external.clone();
        for target in [HUB_IN_CONTAINER, INPUTS_IN_CONTAINER, IO_IN_CONTAINER] {
            let own = Bind::new(self.dirs.hub(), target, Access::ReadWrite);
            targets.push(own.map_err(|error| bind_error(&error))?);
        }
        check_distinct(&targets).map_err(|error| bind_error(&error))?;
        let inputs = self.inputs()?;
        Ok((ExternalDirs::new(external), inputs))
    }

    /// The files that HTCondor transferred with the job, as one bind.
    fn inputs(&self) -> Result<Option<Bind>, PilotError> {
        let files = &self.input_files;
        let Some(scratch) = self.scratch.as_ref().filter(|_| !files.is_empty()) else {
            return Ok(None);
        };
        let directory = self.dirs.inputs();
        let own = HiddenFiles::of(&self.own, status::is_file_name);
        let gathered = gather(files, scratch, &directory, &own).map_err(|error| {
            PilotError::ExecutionPoint(Diagnosis::new(
                format!("can't gather the job's input files: {error}"),
                DATA_DIR_FIX,
            ))
        })?;
        gathered.report();
        if gathered.files == 0 {
            return Ok(None);
        }
        Bind::new(directory, INPUTS_IN_CONTAINER, Access::ReadOnly)
            .map(Some)
            .map_err(|error| bind_error(&error))
    }
}

fn bind_error(error: &BindError) -> PilotError {
    PilotError::Bind(Diagnosis::of_text(&error.to_string()))
}

/// Refuses an external directory that would show the pilot's own files to tasks.
fn refuse_own(external: &[Bind], own: &[OwnPath]) -> Result<(), PilotError> {
    if external.is_empty() {
        return Ok(());
    }
    let mounts = MountTable::read().map_err(|error| {
        PilotError::ExecutionPoint(Diagnosis::new(
            format!("the mount table can't be read: {error}"),
            "external directories need /proc",
        ))
    })?;
    for bind in external {
        if let Some(own) = shown_by(bind.real(), own, &mounts) {
            return Err(PilotError::Configuration(Diagnosis::new(
                format!(
                    "`{}` is `{}`: tasks would see {} there, `{}`",
                    EXTERNAL_DIRECTORIES.name,
                    bind.source().display(),
                    own.what,
                    own.path.display()
                ),
                "name directories that don't hold it and are not in it, or keep it elsewhere",
            )));
        }
    }
    Ok(())
}
