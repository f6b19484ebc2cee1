//! What HTCondor says of the job that the pilot is: found, not configured. Outside of HTCondor all of
//! it is absent, and nothing depends on it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ad::Ad;
use super::load::Environment;

/// The job and its slot.
#[derive(Debug, Clone, Default)]
pub struct CondorJob {
    /// The file that says where the chirp server is; it need not exist.
    pub chirp_file: Option<PathBuf>,
    /// The site, as glideins name it.
    pub site: Option<String>,
    /// Files and directories that came with the job, the pilot's own aside. Absolute.
    pub input_files: Vec<PathBuf>,
    /// How long the job asked to run: its attribute `OriginalTime`, which `IceCube`'s pools go by.
    pub wall_time: Option<Duration>,
    /// How long HTCondor waits between SIGTERM and SIGKILL.
    pub vacate_time: Option<Duration>,
    /// Memory of the slot, in bytes.
    pub memory: Option<u64>,
    /// `ClusterId.ProcId`
    pub job_id: Option<String>,
    /// What the job asked for, or else got.
    pub request: Request,
}

/// What the job asked for; where its ad has no number, what its slot has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Request {
    /// Cores.
    pub cpus: Option<u64>,
    /// Memory, in bytes.
    pub memory: Option<u64>,
    /// Disk, in bytes.
    pub disk: Option<u64>,
}

impl Request {
    fn find(job: &Ad, machine: &Ad) -> Self {
        let number = |of_job: &str, of_machine: &str, shift: u32| {
            let found = job
                .integer(of_job)
                .or_else(|| machine.integer(of_machine))?;
            u64::try_from(found).ok()?.checked_mul(1 << shift)
        };
        Self {
            cpus: number("RequestCpus", "Cpus", 0),
            memory: number("RequestMemory", "Memory", 20),
            disk: number("RequestDisk", "Disk", 10),
        }
    }
}

/// Files of the job that are the pilot's and no task's business: its binary, its wrapper, and above
/// all the env file with the tokens.
const OWN_FILES: [&str; 4] = [
    "ewms-pilot",
    "ewms-pilot-wrapper",
    super::ENV_FILE_NAME,
    "condor_exec.exe",
];

impl CondorJob {
    /// Reads the variables and ads that HTCondor gives a job.
    pub(super) fn find(environment: &Environment) -> Self {
        let path = |name: &str| environment.get(OsStr::new(name)).map(PathBuf::from);
        let scratch = path("_CONDOR_SCRATCH_DIR");
        let (job, machine) = (Ad::of_job(environment), Ad::of_machine(environment));
        let text = |name: &str| {
            environment
                .get(OsStr::new(name))
                .and_then(|value| value.to_str())
                .filter(|value| !value.is_empty())
                .map(str::to_owned)
        };
        let seconds = |seconds: i64| u64::try_from(seconds).ok().map(Duration::from_secs);
        Self {
            job_id: job
                .integer("ClusterId")
                .zip(job.integer("ProcId"))
                .map(|(cluster, process)| format!("{cluster}.{process}")),
            request: Request::find(&job, &machine),
            chirp_file: path("_CONDOR_CHIRP_CONFIG").or_else(|| {
                scratch
                    .as_ref()
                    .map(|scratch| scratch.join(".chirp.config"))
            }),
            site: text("GLIDEIN_Site")
                .or_else(|| text("OSG_SITE_NAME"))
                .or_else(|| machine.string("GLIDEIN_Site")),
            input_files: scratch
                .map(|scratch| input_files(&job, &scratch))
                .unwrap_or_default(),
            wall_time: job.integer("OriginalTime").and_then(seconds),
            vacate_time: machine
                .integer("MachineMaxVacateTime")
                .into_iter()
                .chain(job.integer("JobMaxVacateTime"))
                .min()
                .and_then(seconds),
            memory: machine
                .integer("Memory")
                .and_then(|mebibytes| u64::try_from(mebibytes).ok())
                .map(|mebibytes| mebibytes << 20),
        }
    }
}

/// What `TransferInput` lists, by the names under which HTCondor put it into the scratch directory. A
/// directory given with a slash at its end came as its content, whose names nobody tells us: then
/// whatever is there and is neither the pilot's nor HTCondor's own.
fn input_files(job: &Ad, scratch: &Path) -> Vec<PathBuf> {
    let Some(list) = job.string("TransferInput") else {
        return Vec::new();
    };
    let entries: Vec<&str> = list.split(',').map(str::trim).collect();
    let names: Vec<OsString> = if entries.iter().any(|entry| entry.ends_with('/')) {
        names_in(scratch)
    } else {
        entries
            .iter()
            .filter_map(|entry| Path::new(entry).file_name())
            .map(OsStr::to_owned)
            .collect()
    };
    let mut files: Vec<PathBuf> = names
        .iter()
        .filter(|name| !OWN_FILES.iter().any(|own| name.as_os_str() == *own))
        .map(|name| scratch.join(name))
        .filter(|path| path.exists())
        .collect();
    files.sort();
    files.dedup();
    files
}

fn names_in(scratch: &Path) -> Vec<OsString> {
    let is_condors = |name: &OsString| {
        let name = name.to_string_lossy();
        name.starts_with('.') || name.starts_with("_condor_") || name.starts_with("ewms-pilot-")
    };
    std::fs::read_dir(scratch)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .filter(|name| !is_condors(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(scratch: &Path, job_ad: &str) -> Environment {
        std::fs::write(scratch.join(".job.ad"), job_ad).expect("written");
        let mut environment = Environment::new();
        environment.insert("_CONDOR_SCRATCH_DIR".into(), scratch.into());
        environment.insert("_CONDOR_JOB_AD".into(), scratch.join(".job.ad").into());
        environment
    }

    #[test]
    fn input_files_are_those_of_the_job_without_the_pilots_own() {
        let scratch = tempfile::tempdir().expect("a directory");
        for name in [
            "ewms-pilot",
            "ewms_htcondor_envfile.sh",
            "table.fits",
            "gcd.i3",
        ] {
            std::fs::write(scratch.path().join(name), "").expect("written");
        }
        let ad = "TransferInput = \"/home/u/ewms-pilot,ewms_htcondor_envfile.sh, data/table.fits,gcd.i3,lost\"\n";
        let job = CondorJob::find(&environment(scratch.path(), ad));
        assert_eq!(
            job.input_files,
            [
                scratch.path().join("gcd.i3"),
                scratch.path().join("table.fits")
            ]
        );
        assert_eq!(job.chirp_file, Some(scratch.path().join(".chirp.config")));
    }

    #[test]
    fn the_content_of_a_transferred_directory_counts_as_input_files() {
        let scratch = tempfile::tempdir().expect("a directory");
        for name in [
            "_condor_stdout",
            ".machine.ad",
            "ewms_htcondor_envfile.sh",
            "inside.txt",
        ] {
            std::fs::write(scratch.path().join(name), "").expect("written");
        }
        let job = CondorJob::find(&environment(scratch.path(), "TransferInput = \"data/\"\n"));
        assert_eq!(job.input_files, [scratch.path().join("inside.txt")]);
    }

    #[test]
    fn outside_of_htcondor_nothing_is_found() {
        let job = CondorJob::find(&Environment::new());
        assert_eq!(job.chirp_file, None);
        assert_eq!(job.wall_time, None);
        assert!(job.input_files.is_empty());
    }

    #[test]
    fn what_was_requested_is_in_bytes() {
        let scratch = tempfile::tempdir().expect("a directory");
        let job = CondorJob::find(&environment(
            scratch.path(),
            "ClusterId = 12\nProcId = 3\nRequestCpus = 4\nRequestMemory = 2\nRequestDisk = DiskUsage\n",
        ));
        assert_eq!(job.job_id.as_deref(), Some("12.3"));
        let expected = Request {
            cpus: Some(4),
            memory: Some(2 << 20),
            disk: None,
        };
        assert_eq!(job.request, expected);
    }

    #[test]
    fn the_original_time_is_read_from_the_job_ad() {
        let scratch = tempfile::tempdir().expect("a directory");
        let job = CondorJob::find(&environment(
            scratch.path(),
            "OriginalTime = 3600\nJobMaxVacateTime = 20\n",
        ));
        assert_eq!(job.wall_time, Some(Duration::from_hours(1)));
        assert_eq!(job.vacate_time, Some(Duration::from_secs(20)));
    }
}
