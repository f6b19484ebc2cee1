//! The directories of the pilot and of each container on the EP: made before a container starts,
//! removed or kept after it.
//!
//! ```text
//! <parent>/ewms-pilot-data/data-hub/                     shared by all tasks, never removed
//!                         /<task id>/outputs/            stdoutfile, stderrfile
//!                         /<task id>/task-io/            infile-<task id>.EXT, outfile-<task id>.EXT
//!                         /<task id>/.gate/              two FIFOs, once the container waits
//!                         /init-<id>/outputs/
//! <parent>/ewms-pilot-scratch/<name>/                    the container's /tmp, /var/tmp and $HOME
//!                            /apptainer/                 Apptainer's own
//!                            /input-files/               the job's input files, for all containers
//! ```

use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::warn;

use super::dir_pool::{DirPool, UsedDirs};
use super::disk_space::{BudgetAnswer, DiskBudget};
use crate::container::{remove_tree, tree_bytes};
use crate::fault;
use crate::ids::TaskId;

/// The directory on the EP for all files of tasks; also its name in the container.
pub const DATA_DIR: &str = "ewms-pilot-data";
/// The directory that all tasks of a pilot share.
pub const HUB_DIR: &str = "data-hub";
/// The data hub's path in every container.
pub const HUB_IN_CONTAINER: &str = "/ewms-pilot-data/data-hub";
/// The path in every container of the files that came with the job.
pub const INPUTS_IN_CONTAINER: &str = "/ewms-pilot-data/input-files";
/// The path of a task's own directory in its container.
pub const IO_IN_CONTAINER: &str = "/ewms-pilot-data/task-io";
/// The directory of the FIFOs of a container's gate.
pub(super) const GATE_DIR: &str = ".gate";
/// The FIFO that opens it, and the one for reports.
pub(super) const GATE_FILES: [&str; 2] = ["opens", "reports"];
const IO_DIR: &str = "task-io";
const OUTPUTS_DIR: &str = "outputs";
const OUTPUT_FILES: [&str; 2] = ["stdoutfile", "stderrfile"];
/// The directory beside [`DATA_DIR`] for files that only running containers need.
pub const SCRATCH_DIR: &str = "ewms-pilot-scratch";
/// The subdirectories that Apptainer expects in its `--workdir`.
const SCRATCH_PARTS: [&str; 3] = ["tmp", "var_tmp", "home"];
const SCRATCH_MODE: u32 = 0o700;

/// The stdout and stderr files of the container `name` of a pilot with its data in `parent`.
#[must_use]
pub fn outputs_of(parent: &Path, name: &str) -> [PathBuf; 2] {
    let outputs = parent.join(DATA_DIR).join(name).join(OUTPUTS_DIR);
    OUTPUT_FILES.map(|file| outputs.join(file))
}

/// The scratch directory of a pilot with its data in `parent`.
#[must_use]
pub fn scratch_of(parent: &Path) -> PathBuf {
    parent.join(SCRATCH_DIR)
}

/// The directories that outlive a task.
#[derive(Debug, Clone)]
pub struct DataDirs {
    data: PathBuf,
    scratch: PathBuf,
    dir_pool: Arc<DirPool>,
}

impl DataDirs {
    /// Creates the directories below `parent`.
    ///
    /// # Errors
    /// When a directory can't be made.
    pub fn create(parent: &Path) -> io::Result<Self> {
        let dirs = Self {
            data: parent.join(DATA_DIR),
            scratch: scratch_of(parent),
            dir_pool: Arc::default(),
        };
        fs::create_dir_all(dirs.hub())?;
        fs::create_dir_all(dirs.apptainer())?;
        Ok(dirs)
    }

    #[must_use]
    pub fn hub(&self) -> PathBuf {
        self.data.join(HUB_DIR)
    }

    /// The directory for Apptainer's caches and temporary files.
    #[must_use]
    pub fn apptainer(&self) -> PathBuf {
        self.scratch.join("apptainer")
    }

    /// A script for an image that lacks one. All pilots in this place share it.
    ///
    /// # Errors
    /// When the script can't be written.
    pub fn script(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let script = self.apptainer().join(name);
        if fs::read(&script).is_ok_and(|known| known == text.as_bytes()) {
            return Ok(script);
        }
        // Another pilot may read it at this moment, so it appears as a whole.
        let mut file = tempfile::NamedTempFile::new_in(self.apptainer())?;
        file.write_all(text.as_bytes())?;
        file.persist(&script)?;
        Ok(script)
    }

    /// The script of a gate. Those for other binds have other names.
    ///
    /// # Errors
    /// When the script can't be written.
    pub fn gate_script(&self, text: &str) -> io::Result<PathBuf> {
        let mut hasher = DefaultHasher::new();
        hasher.write(text.as_bytes());
        self.script(&format!("gate-{:016x}.sh", hasher.finish()), text)
    }

    /// The directory that containers see as the job's input files.
    #[must_use]
    pub fn inputs(&self) -> PathBuf {
        self.scratch.join("input-files")
    }

    /// Creates a container's directories under a new name.
    ///
    /// # Errors
    /// When a directory can't be made or exists already.
    pub fn stage(&self, name: &str) -> io::Result<TaskDirs> {
        let stage = self.unmade(name);
        stage.make()?;
        Ok(stage)
    }

    /// Creates a task's directories, or reuses those that an earlier task left unchanged.
    ///
    /// # Errors
    /// Returns the errors of [`DataDirs::stage`].
    pub fn stage_task(
        &self,
        id: TaskId,
        infile_ext: &str,
        outfile_ext: &str,
    ) -> io::Result<(TaskDirs, TaskIo)> {
        let mut stage = self.unmade(&id.to_string());
        let io = stage.io(id, infile_ext, outfile_ext);
        stage.infile = Some(io.infile());
        if !self.dir_pool.take(&stage.dir, &stage.scratch) {
            stage.make()?;
            fs::create_dir(&io.dir)?;
        }
        Ok((stage, io))
    }

    fn unmade(&self, name: &str) -> TaskDirs {
        TaskDirs {
            dir: self.data.join(name),
            scratch: self.scratch.join(name),
            infile: None,
            freed: AtomicU64::new(0),
            dir_pool: Arc::clone(&self.dir_pool),
        }
    }
}

#[derive(Debug)]
pub struct TaskDirs {
    dir: PathBuf,
    scratch: PathBuf,
    /// The infile, if this is a task's.
    infile: Option<PathBuf>,
    /// The bytes that were removed before the container's end.
    freed: AtomicU64,
    dir_pool: Arc<DirPool>,
}

/// What happens to a container's files after its end. Its scratch is always removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirDisposal {
    /// They stay for an analysis of the failure.
    Keep,
    /// All of them stay, or the outputs, or nothing, as the budget for kept files allows.
    KeepWithinBudget,
    Remove,
}

impl TaskDirs {
    fn make(&self) -> io::Result<()> {
        fs::create_dir(&self.dir)?;
        fs::create_dir(self.outputs())?;
        // Apptainer requires all three to exist in its `--workdir`.
        for part in SCRATCH_PARTS {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(SCRATCH_MODE)
                .create(self.scratch.join(part))?;
        }
        Ok(())
    }

    /// Replaces the container's name and the directories above it, which differ between containers, pilots
    /// and jobs, by fixed words.
    #[must_use]
    pub fn scrub(&self, text: &str) -> String {
        let path = |path: Option<&Path>| path.map(|path| path.to_string_lossy().into_owned());
        let name = self.dir.file_name().map(|name| name.to_string_lossy());
        let replacements = [
            (path(self.dir.parent()), DATA_DIR),
            (path(self.scratch.parent()), SCRATCH_DIR),
            (name.map(Into::into), "<id>"),
        ];
        let replacements: Vec<_> = replacements
            .iter()
            .filter_map(|(from, to)| Some((from.as_deref()?, *to)))
            .collect();
        fault::scrub(text, &replacements)
    }

    /// The name of its directories: a task's id, or `init-` and an id.
    #[must_use]
    pub fn name(&self) -> String {
        let name = self.dir.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The directory of all files of its container but the scratch. The container doesn't see it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of `stdoutfile` and `stderrfile`.
    #[must_use]
    pub fn outputs(&self) -> PathBuf {
        self.dir.join(OUTPUTS_DIR)
    }

    #[must_use]
    pub fn stdout(&self) -> PathBuf {
        self.outputs().join(OUTPUT_FILES[0])
    }

    #[must_use]
    pub fn stderr(&self) -> PathBuf {
        self.outputs().join(OUTPUT_FILES[1])
    }

    /// The directory for `apptainer --workdir`.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The directory through which a task gets its infile and returns its outfile.
    #[must_use]
    pub fn io_dir(&self) -> PathBuf {
        self.dir.join(IO_DIR)
    }

    fn io(&self, id: TaskId, infile_ext: &str, outfile_ext: &str) -> TaskIo {
        TaskIo {
            dir: self.io_dir(),
            infile: format!("infile-{id}.{infile_ext}"),
            outfile: format!("outfile-{id}.{outfile_ext}"),
        }
    }

    /// The bytes that all of it took on disk, including those freed already.
    #[must_use]
    pub fn taken(&self) -> u64 {
        tree_bytes(&self.dir) + tree_bytes(&self.scratch) + self.freed.load(Ordering::Relaxed)
    }

    /// The files that the container may have written into its own directories: first its scratch, which is
    /// always removed, then the files beside its infile.
    #[must_use]
    pub(super) fn own(&self) -> Vec<PathBuf> {
        let beside = fs::read_dir(self.io_dir()).into_iter().flatten().flatten();
        let beside = beside
            .map(|entry| entry.path())
            .filter(|path| Some(path) != self.infile.as_ref());
        std::iter::once(self.scratch.clone())
            .chain(beside)
            .collect()
    }

    /// Records that so many bytes of [`TaskDirs::own`] were removed.
    pub(super) fn freed(&self, bytes: u64) {
        self.freed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Removes a successful task's directories, or keeps them for further tasks. The task's own directory may
    /// hold these `files`.
    ///
    /// # Errors
    /// When something can't be removed.
    pub fn clear(self, files: &[PathBuf]) -> io::Result<()> {
        let kept = self.dir_pool.offer(&UsedDirs {
            dir: &self.dir,
            outputs: &self.outputs(),
            io: &self.io_dir(),
            files,
            scratch: &self.scratch,
            scratch_parts: (&SCRATCH_PARTS, SCRATCH_MODE),
        });
        if kept {
            return Ok(());
        }
        self.dispose(DirDisposal::Remove, &DiskBudget::new(0))
    }

    /// Removes the scratch, and the other files as `disposal` says.
    ///
    /// # Errors
    /// When something can't be removed.
    pub fn dispose(self, disposal: DirDisposal, budget: &DiskBudget) -> io::Result<()> {
        let scratch = remove_tree(&self.scratch);
        if disposal != DirDisposal::Remove {
            // Whoever reads the kept files would wait at a FIFO.
            remove_gate(&self.dir);
            remove_gate(&self.io_dir());
        }
        let removed = match disposal {
            DirDisposal::Keep => Ok(()),
            DirDisposal::KeepWithinBudget => self.keep_within(budget),
            DirDisposal::Remove => remove_tree(&self.dir),
        };
        removed.and(scratch)
    }

    /// The outputs go last: they say most about a failure, and their size is limited.
    fn keep_within(&self, budget: &DiskBudget) -> io::Result<()> {
        if budget.afford(tree_bytes(&self.dir)) == BudgetAnswer::Yes {
            return Ok(());
        }
        let io = self.io_dir();
        let outputs = tree_bytes(&self.dir).saturating_sub(tree_bytes(&io));
        if budget.afford(outputs) == BudgetAnswer::Yes {
            warn!(
                "only the outputs of a failed task are kept: EWMS_PILOT_KEPT_FILES_MAX is reached"
            );
            return remove_tree(&io);
        }
        warn!("no file of a failed task is kept: EWMS_PILOT_KEPT_FILES_MAX is reached");
        remove_tree(&self.dir)
    }
}

/// Removes the FIFOs of a container's gate from `dir`, if they are there, and nothing that a task made.
fn remove_gate(dir: &Path) {
    let gate = dir.join(GATE_DIR);
    for name in GATE_FILES {
        let _not_there = fs::remove_file(gate.join(name));
    }
    let _not_empty = fs::remove_dir(gate);
}

/// The directory of a task's infile and outfile.
#[derive(Debug)]
pub struct TaskIo {
    pub dir: PathBuf,
    infile: String,
    outfile: String,
}

impl TaskIo {
    #[must_use]
    pub fn infile(&self) -> PathBuf {
        self.dir.join(&self.infile)
    }

    /// The outfile on the EP.
    #[must_use]
    pub fn outfile(&self) -> PathBuf {
        self.dir.join(&self.outfile)
    }

    /// All files of ours in it.
    #[must_use]
    pub fn files(&self) -> [PathBuf; 2] {
        [self.infile(), self.outfile()]
    }

    /// The infile as the task sees it.
    #[must_use]
    pub fn infile_in_container(&self) -> String {
        format!("{IO_IN_CONTAINER}/{}", self.infile)
    }

    /// The outfile as the task sees it.
    #[must_use]
    pub fn outfile_in_container(&self) -> String {
        format!("{IO_IN_CONTAINER}/{}", self.outfile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_stage_loses_only_its_scratch_and_the_fifos() {
        let top = tempfile::tempdir().unwrap();
        let stage = DataDirs::create(top.path()).unwrap().stage("one").unwrap();
        let (outputs, scratch) = (stage.outputs(), stage.scratch().to_path_buf());
        // Of a container that waited, and of one that died before.
        let gates = [stage.dir(), &stage.io_dir()].map(|dir| dir.join(GATE_DIR));
        for gate in &gates {
            fs::create_dir_all(gate).unwrap();
            for name in GATE_FILES {
                fs::write(gate.join(name), "").unwrap();
            }
        }
        stage
            .dispose(DirDisposal::Keep, &DiskBudget::new(0))
            .unwrap();
        assert!(outputs.is_dir());
        assert!(!scratch.exists() && !gates.iter().any(|gate| gate.exists()));
    }

    /// The files that stay of a failed task with a large outfile.
    fn kept_of_a_failure(budget: &DiskBudget) -> (bool, bool) {
        let top = tempfile::tempdir().unwrap();
        let dirs = DataDirs::create(top.path()).unwrap();
        let (stage, io) = dirs.stage_task(TaskId::random(), "in", "out").unwrap();
        fs::write(io.outfile(), vec![7; 1 << 20]).unwrap();
        fs::write(stage.stderr(), "why it failed").unwrap();
        let stderr = stage.stderr();
        stage
            .dispose(DirDisposal::KeepWithinBudget, budget)
            .unwrap();
        (io.outfile().exists(), stderr.exists())
    }

    #[test]
    fn beyond_the_budget_outputs_are_kept_and_then_nothing() {
        assert_eq!(kept_of_a_failure(&DiskBudget::new(10 << 20)), (true, true));
        assert_eq!(
            kept_of_a_failure(&DiskBudget::new(512 << 10)),
            (false, true)
        );
        assert_eq!(kept_of_a_failure(&DiskBudget::new(100)), (false, false));
        let for_one = DiskBudget::new((1 << 20) + (64 << 10));
        assert_eq!(kept_of_a_failure(&for_one), (true, true));
        assert!(!kept_of_a_failure(&for_one).0);
    }

    #[test]
    fn nothing_but_the_hub_and_the_stages_stands_in_the_data_directory() {
        let top = tempfile::tempdir().unwrap();
        let dirs = DataDirs::create(top.path()).unwrap();
        let stage = dirs.stage("one").unwrap();
        let (again, id) = (TaskId::random(), TaskId::random());
        let (task, io) = dirs.stage_task(again, "in", "out").unwrap();
        task.clear(&io.files()).unwrap();
        dirs.stage_task(id, "in", "out").unwrap();
        let mut names: Vec<_> = fs::read_dir(top.path().join(DATA_DIR))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let mut expected = [HUB_DIR.to_owned(), "one".to_owned(), id.to_string()];
        expected.sort();
        assert_eq!(names, expected);
        stage
            .dispose(DirDisposal::Remove, &DiskBudget::new(0))
            .unwrap();
    }
}
