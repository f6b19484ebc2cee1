//! HTCondor's data on the job that runs the pilot: its environment variables, and the ads that it leaves
//! beside the job. Outside of HTCondor all of it is absent, and nothing depends on it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::AdGpus;
use super::apptainer_hints::{NamedApptainer, condor_root, named_apptainers};
use super::classad::{ClassAd, JOB_AD, MACHINE_AD};
use super::environment::{ENV_FILE_NAME, Environment, SCRATCH, named};
use super::machine_names::MachineNames;
use super::problem::one_line;

#[derive(Debug, Clone, Default)]
pub struct CondorJob {
    /// The file that says where the chirp server is; it need not exist.
    pub chirp_file: Option<PathBuf>,
    /// The names of the machine and its site.
    pub names: MachineNames,
    /// The Apptainers that the glidein or the site names.
    pub apptainers: Vec<NamedApptainer>,
    /// The directory that HTCondor is installed in, on the machine outside of any container.
    pub root: Option<PathBuf>,
    /// The directory that HTCondor made for the job.
    pub scratch: Option<PathBuf>,
    /// Files and directories that came with the job, except those with the names of the pilot's own.
    /// Absolute.
    pub input_files: Vec<PathBuf>,
    /// Paths of the job's credentials: a proxy, tokens. They need not exist.
    pub secrets: Vec<PathBuf>,
    /// Further files of HTCondor's beside the job. They need not exist.
    pub papers: Vec<PathBuf>,
    /// How long the job asked to run: its attribute `OriginalTime`, which `IceCube`'s pools go by.
    pub wall_time: Option<Duration>,
    /// How long HTCondor waits between SIGTERM and SIGKILL.
    pub vacate_time: Option<Duration>,
    /// Cores of the slot.
    pub cpus: Option<NonZeroU32>,
    /// Memory of the slot, in bytes.
    pub memory: Option<u64>,
    /// GPUs of the slot.
    pub gpus: AdGpus,
    /// `ClusterId.ProcId`
    pub job_id: Option<String>,
    /// `EWMSTaskforceUUID`: the service's name of the pilots that were submitted together.
    pub taskforce: Option<String>,
    /// Resources that the job asked for, or else those of its slot.
    pub request: JobRequest,
}

/// Resources that the job asked for; those of its slot where the job's ad has no number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobRequest {
    pub cpus: Option<u64>,
    /// Memory, in bytes.
    pub memory: Option<u64>,
    /// Disk, in bytes.
    pub disk: Option<u64>,
}

impl JobRequest {
    fn find(job: &ClassAd, machine: &ClassAd) -> Self {
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

/// Files of the job that are the pilot's own, and hidden from tasks: its binary, its wrapper, and above
/// all the env file with the tokens.
const OWN_FILES: [&str; 4] = [
    "ewms-pilot",
    "ewms-pilot-wrapper",
    ENV_FILE_NAME,
    "condor_exec.exe",
];

impl CondorJob {
    /// Reads the variables and ads that HTCondor gives a job.
    pub(super) fn find(environment: &Environment, warnings: &mut Vec<String>) -> Self {
        let path = |name: &str| environment.get(OsStr::new(name)).map(PathBuf::from);
        let scratch = path(SCRATCH);
        let job = ClassAd::of_job(environment, warnings);
        let machine = ClassAd::of_machine(environment, warnings);
        let seconds = |seconds: i64| u64::try_from(seconds).ok().map(Duration::from_secs);
        Self {
            job_id: job
                .integer("ClusterId")
                .zip(job.integer("ProcId"))
                .map(|(cluster, process)| format!("{cluster}.{process}")),
            taskforce: (job.string("EWMSTaskforceUUID")).filter(|name| !name.is_empty()),
            request: JobRequest::find(&job, &machine),
            chirp_file: path("_CONDOR_CHIRP_CONFIG").or_else(|| {
                scratch
                    .as_ref()
                    .map(|scratch| scratch.join(".chirp.config"))
            }),
            names: MachineNames::find(environment, &job, &machine),
            apptainers: named_apptainers(environment, |name| machine.string(name)),
            root: condor_root(environment),
            input_files: scratch
                .as_deref()
                .map(|scratch| input_files(&job, scratch, named(environment), warnings))
                .unwrap_or_default(),
            secrets: secrets(environment, &job, scratch.as_deref()),
            papers: papers(environment, &job, scratch.as_deref()),
            scratch,
            wall_time: job.integer("OriginalTime").and_then(seconds),
            vacate_time: machine
                .integer("MachineMaxVacateTime")
                .into_iter()
                .chain(job.integer("JobMaxVacateTime"))
                .min()
                .and_then(seconds),
            cpus: machine
                .integer("Cpus")
                .and_then(|cpus| u32::try_from(cpus).ok())
                .and_then(NonZeroU32::new),
            gpus: AdGpus {
                assigned: machine.string("AssignedGPUs"),
                model: machine.string("GPUs_DeviceName"),
            },
            memory: machine
                .integer("Memory")
                .and_then(|mebibytes| u64::try_from(mebibytes).ok())
                .map(|mebibytes| mebibytes << 20),
        }
    }
}

/// Credentials: the paths that the usual variables name, and those where HTCondor puts a proxy or tokens.
fn secrets(environment: &Environment, job: &ClassAd, scratch: Option<&Path>) -> Vec<PathBuf> {
    let named = [
        "X509_USER_PROXY",
        "BEARER_TOKEN_FILE",
        "KRB5CCNAME",
        "_CONDOR_CREDS",
    ];
    let named = named.iter().filter_map(|name| {
        let path = environment.get(OsStr::new(name))?;
        // Kerberos puts the kind of cache in front.
        let path = path
            .to_str()
            .and_then(|path| path.strip_prefix("FILE:"))
            .map_or_else(|| PathBuf::from(path), PathBuf::from);
        path.is_absolute().then_some(path)
    });
    let mut secrets: Vec<PathBuf> = named.collect();
    let Some(scratch) = scratch else {
        return secrets;
    };
    secrets.push(scratch.join(".condor_creds"));
    let proxy = job.string("x509userproxy");
    secrets.extend(
        proxy
            .as_deref()
            .and_then(|proxy| Some(scratch.join(Path::new(proxy).file_name()?))),
    );
    secrets
}

/// HTCondor's own files: the ads, the job's executable, its two outputs.
fn papers(environment: &Environment, job: &ClassAd, scratch: Option<&Path>) -> Vec<PathBuf> {
    let by_variable = [JOB_AD, MACHINE_AD];
    let by_variable = by_variable
        .iter()
        .filter_map(|name| environment.get(OsStr::new(name)));
    let mut papers: Vec<PathBuf> = by_variable
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .collect();
    let Some(scratch) = scratch else {
        return papers;
    };
    let in_scratch = [
        ".job.ad",
        ".machine.ad",
        ".update.ad",
        "_condor_stdout",
        "_condor_stderr",
    ];
    papers.extend(
        in_scratch
            .iter()
            .chain(&OWN_FILES)
            .map(|name| scratch.join(name)),
    );
    let program = job.string("Cmd");
    papers.extend(
        program
            .as_deref()
            .and_then(|program| Some(scratch.join(Path::new(program).file_name()?))),
    );
    papers
}

/// The files that `TransferInput` lists, by the names under which HTCondor put them into the scratch
/// directory. Of a directory with a slash at its end HTCondor transfers the content, whose names are not
/// listed anywhere: then everything counts that is neither the pilot's nor HTCondor's own. Files that are
/// the pilot's by another name are left out when they are gathered.
fn input_files(
    job: &ClassAd,
    scratch: &Path,
    env_file: Option<&Path>,
    warnings: &mut Vec<String>,
) -> Vec<PathBuf> {
    let Some(list) = job.string("TransferInput") else {
        return Vec::new();
    };
    let entries = list.split(',').map(str::trim);
    let (contents, single): (Vec<&str>, Vec<&str>) = entries
        .filter(|entry| !entry.is_empty())
        .partition(|entry| entry.ends_with('/') && !is_url(entry));
    let mut names: BTreeSet<OsString> = BTreeSet::new();
    for entry in single {
        let candidates = names_of(entry);
        match candidates.iter().find(|name| is_there(&scratch.join(name))) {
            Some(name) => {
                names.insert(name.into());
            }
            None => warnings.push(format!(
                "no input file `{}` is in the job's scratch directory, though the job ad lists it: tasks \
                 won't see it",
                one_line(candidates.first().map_or("", String::as_str))
            )),
        }
    }
    if !contents.is_empty() {
        names.extend(names_in(scratch));
    }
    let env_file = env_file.and_then(Path::file_name);
    names
        .iter()
        .filter(|name| !OWN_FILES.iter().any(|own| name.as_os_str() == *own))
        .filter(|name| Some(name.as_os_str()) != env_file)
        .map(|name| scratch.join(name))
        .collect()
}

/// The names that the file of a listed entry may have, the likeliest first. HTCondor (23.9, seen) cuts a URL
/// at its query before it takes the last part of its path, and decodes nothing. A query may hold a
/// signature: only the first of the names may be logged.
fn names_of(entry: &str) -> Vec<String> {
    let last_part = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let mut names = if is_url(entry) {
        let path = entry.split(['?', '#']).next().unwrap_or_default();
        vec![last_part(path), last_part(entry)]
    } else {
        vec![last_part(entry)]
    };
    names.retain(|name| !name.is_empty());
    names.dedup();
    names
}

/// `scheme://…`
fn is_url(entry: &str) -> bool {
    let Some((scheme, _)) = entry.split_once("://") else {
        return false;
    };
    let is_of_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    !scheme.is_empty() && scheme.bytes().all(is_of_scheme)
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
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

/// The cores of the slot: those of the machine ad (`Cpus = 4`), else HTCondor's setting for `OpenMP`, else
/// those that the system lets this process use, which may be more than the slot has.
pub(super) fn allotted_cores(condor: &CondorJob, environment: &Environment) -> NonZeroU32 {
    let openmp = environment
        .get(OsStr::new("OMP_NUM_THREADS"))
        .and_then(|value| value.to_str());
    condor
        .cpus
        .or_else(|| openmp.and_then(|value| value.split(',').next()?.trim().parse().ok()))
        .or_else(|| {
            u32::try_from(std::thread::available_parallelism().ok()?.get())
                .ok()?
                .try_into()
                .ok()
        })
        .unwrap_or(NonZeroU32::MIN)
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
        let mut warnings = Vec::new();
        let job = CondorJob::find(&environment(scratch.path(), ad), &mut warnings);
        assert_eq!(
            job.input_files,
            [
                scratch.path().join("gcd.i3"),
                scratch.path().join("table.fits")
            ]
        );
        assert_eq!(job.chirp_file, Some(scratch.path().join(".chirp.config")));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].starts_with("no input file `lost` "));
    }

    #[test]
    fn an_env_file_of_another_name_is_no_input_file() {
        let scratch = tempfile::tempdir().expect("a directory");
        for name in ["my.env", "table.fits"] {
            std::fs::write(scratch.path().join(name), "").expect("written");
        }
        let ad = "TransferInput = \"conf/my.env,table.fits\"\n";
        let mut environment = environment(scratch.path(), ad);
        environment.insert("EWMS_PILOT_ENV_FILE".into(), "my.env".into());
        let mut warnings = Vec::new();
        let job = CondorJob::find(&environment, &mut warnings);
        assert_eq!(job.input_files, [scratch.path().join("table.fits")]);
        assert_eq!(warnings, [""; 0]);
    }

    #[test]
    fn urls_and_odd_names_are_found_under_the_names_that_htcondor_gives_them() {
        let scratch = tempfile::tempdir().expect("a directory");
        let names = [
            r"a\b.txt",
            "data.txt",
            "k;z.txt",
            "p%2Fq.txt",
            "plain.txt",
            "what?",
            r"x\y.txt",
        ];
        for name in names {
            std::fs::write(scratch.path().join(name), "").expect("written");
        }
        let ad = r#"TransferInput = "http://h:1/data.txt?sig=a%2Fb,osdf:///x/plain.txt?sig=x/y#z,a\b.txt,data/x\y.txt,p%2Fq.txt,k;z.txt,what?""#;
        let mut warnings = Vec::new();
        let job = CondorJob::find(&environment(scratch.path(), ad), &mut warnings);
        let expected = names.map(|name| scratch.path().join(name));
        assert_eq!(job.input_files, expected);
        assert_eq!(warnings, [""; 0]);
        let ad = r#"TransferInput = "https://h/gone.txt?sig=s3cret""#;
        let job = CondorJob::find(&environment(scratch.path(), ad), &mut warnings);
        assert!(job.input_files.is_empty());
        assert!(
            warnings[0].starts_with("no input file `gone.txt` "),
            "{warnings:?}"
        );
        assert!(!warnings[0].contains("s3cret"));
    }

    #[test]
    fn an_ad_that_is_no_file_is_warned_of() {
        let scratch = tempfile::tempdir().expect("a directory");
        let mut environment = Environment::new();
        let fifo = scratch.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("made");
        environment.insert(JOB_AD.into(), fifo.into());
        environment.insert(MACHINE_AD.into(), scratch.path().into());
        let mut warnings = Vec::new();
        CondorJob::find(&environment, &mut warnings);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("it is a FIFO"), "{warnings:?}");
        assert!(warnings[1].contains("it is a directory"), "{warnings:?}");
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
        let job = CondorJob::find(
            &environment(scratch.path(), "TransferInput = \"data/\"\n"),
            &mut Vec::new(),
        );
        assert_eq!(job.input_files, [scratch.path().join("inside.txt")]);
    }

    #[test]
    fn outside_of_htcondor_nothing_is_found() {
        let job = CondorJob::find(&Environment::new(), &mut Vec::new());
        assert_eq!(job.chirp_file, None);
        assert_eq!(job.wall_time, None);
        assert!(job.input_files.is_empty());
    }

    #[test]
    fn what_was_requested_is_in_bytes() {
        let scratch = tempfile::tempdir().expect("a directory");
        let job = CondorJob::find(
            &environment(
                scratch.path(),
                "ClusterId = 12\nProcId = 3\nEWMSTaskforceUUID = \"tf-1\"\nRequestCpus = 4\nRequestMemory = 2\nRequestDisk = DiskUsage\n",
            ),
            &mut Vec::new(),
        );
        assert_eq!(job.job_id.as_deref(), Some("12.3"));
        assert_eq!(job.taskforce.as_deref(), Some("tf-1"));
        let expected = JobRequest {
            cpus: Some(4),
            memory: Some(2 << 20),
            disk: None,
        };
        assert_eq!(job.request, expected);
    }

    #[test]
    fn the_original_time_is_read_from_the_job_ad() {
        let scratch = tempfile::tempdir().expect("a directory");
        let job = CondorJob::find(
            &environment(
                scratch.path(),
                "OriginalTime = 3600.0\nJobMaxVacateTime = 2E1\n",
            ),
            &mut Vec::new(),
        );
        assert_eq!(job.wall_time, Some(Duration::from_hours(1)));
        assert_eq!(job.vacate_time, Some(Duration::from_secs(20)));
    }

    fn allotted(environment: &Environment) -> NonZeroU32 {
        allotted_cores(&CondorJob::find(environment, &mut Vec::new()), environment)
    }

    #[test]
    fn the_machine_ad_counts_before_openmp() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(
            file.path(),
            "TotalCpus = 64\nDetectedCpus = 64\ncpus = 4\nName = \"slot1\"\n",
        )
        .expect("written");
        let mut environment = Environment::new();
        environment.insert("OMP_NUM_THREADS".into(), "3,2".into());
        assert_eq!(allotted(&environment).get(), 3);
        environment.insert("_CONDOR_MACHINE_AD".into(), file.path().into());
        assert_eq!(allotted(&environment).get(), 4);
    }

    #[test]
    fn gpus_are_those_of_the_machine_ad() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(".machine.ad");
        let ad = "AssignedGPUs = \"GPU-a0223334\"\nGPUs = 1\nGPUs_DeviceName = \"NVIDIA A100\"\n";
        std::fs::write(&path, ad).expect("written");
        let mut environment = Environment::new();
        environment.insert(MACHINE_AD.into(), path.into());
        let gpus = CondorJob::find(&environment, &mut Vec::new()).gpus;
        assert_eq!(gpus.assigned.as_deref(), Some("GPU-a0223334"));
        assert_eq!(gpus.model.as_deref(), Some("NVIDIA A100"));
    }

    #[test]
    fn nonsense_is_passed_over() {
        let mut environment = Environment::new();
        let alone = allotted(&environment);
        environment.insert("OMP_NUM_THREADS".into(), "0".into());
        environment.insert("_CONDOR_MACHINE_AD".into(), "/nowhere/at/all".into());
        assert_eq!(allotted(&environment), alone);
    }
}
