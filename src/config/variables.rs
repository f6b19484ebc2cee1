//! Every variable of the pilot: name, kind, unit, default, meaning. The parser, `--help` and the table of
//! this folder's README are made from this list. To add a variable, add it to the list and read it in
//! `load.rs`.

#[derive(Debug)]
pub struct Variable {
    pub name: &'static str,
    pub kind: ValueKind,
    pub otherwise: DefaultValue,
    /// Its purpose, in a phrase.
    pub meaning: &'static str,
}

/// The kind of a variable's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// Yes or no, in one of Python's words.
    Bool,
    /// An integer of at least 1 that fits AMQP's 16 bits.
    Count,
    /// [`ValueKind::Count`], or `auto`.
    Cores,
    /// [`ValueKind::Count`], `auto` or `none`.
    Gpus,
    /// Whole seconds.
    Seconds {
        least: u32,
    },
    /// Seconds, fractions allowed.
    Duration,
    /// Bytes, with a binary unit if need be.
    Size,
    /// [`ValueKind::Count`], `auto`, or one of Python's words for no.
    WarmStart,
    /// [`ValueKind::Size`], but not zero.
    SizeAboveZero,
    /// [`ValueKind::Size`], or `auto`.
    Memory,
    List,
    /// A Python level name.
    Level,
    Choice(&'static [&'static str]),
    Text,
    /// Words, quoted as for a shell.
    Arguments,
    /// A file name's suffix.
    Suffix,
    /// A directory, taken from the working directory when relative.
    Directory,
    File,
    /// An absolute path.
    Program,
    /// Absolute directories between commas.
    Directories,
    /// A JSON object of variables for a container. Its values are never shown.
    EnvJson,
    /// The address of a broker. May hold a password.
    Address,
    Token,
}

/// The effect of a variable that isn't set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultValue {
    /// The pilot can't run.
    Required,
    /// This value, read like a set one.
    Default(&'static str),
    Phrase(&'static str),
}

/// The largest [`ValueKind::Count`]: AMQP counts prefetched messages in 16 bits.
pub const MOST: u16 = u16::MAX;

/// The most seconds that a variable may hold, 31,000 years: enough to mean "never", and far below the
/// overflow of a clock.
pub const MOST_SECONDS: u64 = 1_000_000_000_000;

impl ValueKind {
    /// The expected form of a value, for the end of an error's text and a column of the table.
    #[must_use]
    pub fn expected(self) -> String {
        match self {
            Self::Bool => "`y yes t true on 1` or `n no f false off 0`".to_owned(),
            Self::Count => format!("an integer from 1 to {MOST}"),
            Self::Cores => format!("an integer from 1 to {MOST}, or `auto`"),
            Self::Gpus => format!("an integer from 1 to {MOST}, `auto` or `none`"),
            Self::WarmStart => format!("an integer from 1 to {MOST}, `auto` or `False`"),
            Self::Seconds { least } => format!("whole seconds, {least} or more"),
            Self::Duration => "seconds, 0 or more, fractions allowed".to_owned(),
            Self::Size => {
                "bytes, or a number with `K`, `M`, `G` or `T` (powers of 1024)".to_owned()
            }
            Self::SizeAboveZero => "a size like `16M` (powers of 1024), not zero".to_owned(),
            Self::Memory => "a size like `4G` (powers of 1024), or `auto`".to_owned(),
            Self::List => "words between white space, or a list like `['A', 'B']`".to_owned(),
            Self::Level => "`DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`".to_owned(),
            Self::Choice(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
                words.join(" or ")
            }
            Self::Text => "text".to_owned(),
            Self::Arguments => "words, quoted as for a shell, every quote closed".to_owned(),
            Self::Suffix => "a suffix of at most 100 bytes without `/`, like `.json`".to_owned(),
            Self::Directory => "a directory".to_owned(),
            Self::File => "a file; empty: none".to_owned(),
            Self::Program => "an absolute path; empty: none".to_owned(),
            Self::Directories => {
                "absolute directories with commas between them, or a list like `['/a', '/b,c']`"
                    .to_owned()
            }
            Self::EnvJson => "a JSON object, values being strings, integers or booleans".to_owned(),
            Self::Address => {
                "`[SCHEME://][USER[:PASS]@]HOST[:PORT][/VHOST]`, or a directory".to_owned()
            }
            Self::Token => "a token or password".to_owned(),
        }
    }

    #[must_use]
    pub fn unit(self) -> Option<&'static str> {
        match self {
            Self::Seconds { .. } | Self::Duration => Some("s"),
            _ => None,
        }
    }
}

impl DefaultValue {
    /// The default as a person reads it.
    #[must_use]
    pub fn shown(self) -> String {
        match self {
            Self::Required => "required".to_owned(),
            Self::Default("") => "empty".to_owned(),
            Self::Default(text) => format!("`{text}`"),
            Self::Phrase(text) => text.to_owned(),
        }
    }
}

/// Declares the variables and, in the same order, [`ALL`].
macro_rules! variables {
    ($($constant:ident = $name:literal, $kind:expr, $otherwise:expr, $meaning:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "`: ", $meaning)]
            pub static $constant: Variable =
                Variable { name: $name, kind: $kind, otherwise: $otherwise, meaning: $meaning };
        )*

        /// Every variable, in the order in which people see them.
        pub static ALL: &[&Variable] = &[$(&$constant),*];
    };
}

use DefaultValue::{Default, Phrase, Required};

variables! {
    TASK_IMAGE = "EWMS_PILOT_TASK_IMAGE", ValueKind::Text, Required,
        "image that every event is run with";
    TASK_ARGS = "EWMS_PILOT_TASK_ARGS", ValueKind::Arguments, Default(""),
        "its arguments, quoted as for a shell; {{INFILE}}, {{OUTFILE}} and {{DATA_HUB}} stand for paths";
    TASK_ENV_JSON = "EWMS_PILOT_TASK_ENV_JSON", ValueKind::EnvJson, Default("{}"),
        "variables for the task";
    TASK_TIMEOUT = "EWMS_PILOT_TASK_TIMEOUT", ValueKind::Seconds { least: 1 }, Phrase("none"),
        "wall time after which a task is ended";
    TASK_STALL = "EWMS_PILOT_TASK_STALL", ValueKind::Seconds { least: 1 }, Phrase("none"),
        "time without CPU use or output after which a task is ended";
    TASK_MEMORY = "EWMS_PILOT_TASK_MEMORY", ValueKind::Memory, Phrase("none"),
        "resident memory of a task's container above which it is killed; `auto`: its share of the slot's memory";
    TASK_GPUS = "EWMS_PILOT_TASK_GPUS", ValueKind::Gpus, Default("auto"),
        "GPUs of each task; `auto`: those that the job was given, divided evenly among the tasks that may run at once";
    TASK_OUTPUT_MAX = "EWMS_PILOT_TASK_OUTPUT_MAX", ValueKind::Size, Default("100M"),
        "what is kept of a container's stdout, and of its stderr; the middle of a longer one is left out";
    SUBPROC_TIMEOUT = "EWMS_PILOT_SUBPROC_TIMEOUT", ValueKind::Seconds { least: 1 }, Phrase("none"),
        "old name of EWMS_PILOT_TASK_TIMEOUT, used when that isn't set";
    INIT_IMAGE = "EWMS_PILOT_INIT_IMAGE", ValueKind::Text, Default(""),
        "image that is run once, before any event is taken";
    INIT_ARGS = "EWMS_PILOT_INIT_ARGS", ValueKind::Arguments, Default(""),
        "its arguments; {{DATA_HUB}} stands for a path";
    INIT_ENV_JSON = "EWMS_PILOT_INIT_ENV_JSON", ValueKind::EnvJson, Default("{}"),
        "variables for the init container";
    INIT_TIMEOUT = "EWMS_PILOT_INIT_TIMEOUT", ValueKind::Seconds { least: 1 }, Phrase("none"),
        "wall time after which the init container is ended";
    QUEUE_INCOMING = "EWMS_PILOT_QUEUE_INCOMING", ValueKind::Text, Required,
        "queue that events are taken from";
    QUEUE_INCOMING_AUTH_TOKEN = "EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN", ValueKind::Token, Default(""),
        "replaces the password of the address";
    QUEUE_INCOMING_AUTH_TOKEN_FILE = "EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN_FILE",
        ValueKind::File, Default(""),
        "file that holds that token instead; read again at each connection, and before the token ends";
    QUEUE_INCOMING_BROKER_TYPE = "EWMS_PILOT_QUEUE_INCOMING_BROKER_TYPE",
        ValueKind::Choice(&BROKER_TYPES), Required,
        "kind of broker: a RabbitMQ server, or a spool directory";
    QUEUE_INCOMING_BROKER_ADDRESS = "EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS",
        ValueKind::Address, Phrase("`localhost`; required for a spool"),
        "where that is; the scheme is amqp (TCP, port 5672) or amqps (TLS, port 5671)";
    QUEUE_OUTGOING = "EWMS_PILOT_QUEUE_OUTGOING", ValueKind::Text, Required,
        "queue that results go to";
    QUEUE_OUTGOING_AUTH_TOKEN = "EWMS_PILOT_QUEUE_OUTGOING_AUTH_TOKEN", ValueKind::Token, Default(""),
        "like that of the incoming queue";
    QUEUE_OUTGOING_AUTH_TOKEN_FILE = "EWMS_PILOT_QUEUE_OUTGOING_AUTH_TOKEN_FILE",
        ValueKind::File, Default(""),
        "like that of the incoming queue";
    QUEUE_OUTGOING_BROKER_TYPE = "EWMS_PILOT_QUEUE_OUTGOING_BROKER_TYPE",
        ValueKind::Choice(&BROKER_TYPES), Required,
        "like that of the incoming queue";
    QUEUE_OUTGOING_BROKER_ADDRESS = "EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS",
        ValueKind::Address, Phrase("`localhost`; required for a spool"),
        "like that of the incoming queue";
    BROKER_CA_FILE = "EWMS_PILOT_BROKER_CA_FILE", ValueKind::File, Default(""),
        "CA certificates (PEM) that brokers are trusted by, besides those of the machine";
    BROKER_MAX_MESSAGE_SIZE = "EWMS_PILOT_BROKER_MAX_MESSAGE_SIZE", ValueKind::SizeAboveZero, Phrase("the outgoing broker's own limit"),
        "a task whose result is larger after compression fails; unset, the broker's refusal tells its limit";
    ENV_FILE = "EWMS_PILOT_ENV_FILE", ValueKind::File, Default("ewms_htcondor_envfile.sh"),
        "file of further settings, in the working directory or the job's scratch directory; a variable that is set wins over it";
    DATA_DIR_PARENT = "EWMS_PILOT_DATA_DIR_PARENT_PATH_ON_HOST",
        ValueKind::Directory, Phrase("working directory"),
        "where `ewms-pilot-data/` is made";
    INFILE_EXT = "EWMS_PILOT_INFILE_EXT", ValueKind::Suffix, Default(".in"),
        "suffix of a task's infile; leading dots and upper case don't matter";
    OUTFILE_EXT = "EWMS_PILOT_OUTFILE_EXT", ValueKind::Suffix, Default(".out"),
        "suffix of a task's outfile";
    PREFETCH = "EWMS_PILOT_PREFETCH", ValueKind::Count, Default("1"),
        "events to take ahead; at least one for each task that may run is taken, at most two; the second is made ready while the first runs, which is worth it for short tasks. From a broker that is 5 ms away or more the pilot takes as many more by itself as keep its slots busy, while none of them waits for more than two seconds";
    TIMEOUT_FIRST = "EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE",
        ValueKind::Seconds { least: 1 }, Phrase("the next one's value"),
        "how long to wait for the first event";
    TIMEOUT_INCOMING = "EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", ValueKind::Seconds { least: 1 }, Default("1"),
        "how long to wait for a further event while there is room for one; then running tasks are waited for and the pilot ends";
    RECONNECT_TIMEOUT = "EWMS_PILOT_BROKER_RECONNECT_TIMEOUT", ValueKind::Duration, Default("900"),
        "how long to bear a broker that is lost and can't be reached, or one that refuses results; tasks run on meanwhile";
    EXTERNAL_DIRECTORIES = "EWMS_PILOT_EXTERNAL_DIRECTORIES", ValueKind::Directories, Default(""),
        "directories that every container sees, read-only, at the same path";
    CVMFS = "EWMS_PILOT_CVMFS", ValueKind::Bool, Default("True"),
        "let every container see /cvmfs, read-only, where the machine has it";
    MAX_CONCURRENT_TASKS = "EWMS_PILOT_MAX_CONCURRENT_TASKS", ValueKind::Cores, Default("1"),
        "tasks that may run at once; `auto`: as many as HTCondor allotted cores, and as the GPUs allow";
    WARM_START = "EWMS_PILOT_WARM_START", ValueKind::WarmStart, Default("auto"),
        "containers that are started before their event is known and wait for it; `auto`: one for each free slot, and as many ahead of the running tasks as short tasks need; `False`: none";
    STOP_LISTENING = "EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", ValueKind::Bool, Default("True"),
        "take no more events once a task has failed; running ones end";
    OKAY_ERRORS = "EWMS_PILOT_OKAY_ERRORS", ValueKind::List, Default(""),
        "names of errors that don't count for that, like TimeoutError";
    KEEP_ALL_TASK_FILES = "EWMS_PILOT_KEEP_ALL_TASK_FILES", ValueKind::Bool, Default("False"),
        "keep the directories of all tasks, not only of failed ones";
    KEPT_FILES_MAX = "EWMS_PILOT_KEPT_FILES_MAX", ValueKind::Size, Default("1G"),
        "what the kept directories of failed tasks may take together; beyond it only outputs stay, then nothing";
    MIN_FREE_DISK = "EWMS_PILOT_MIN_FREE_DISK", ValueKind::Size, Default("0"),
        "free space on the pilot data's disk below which no event is taken and running tasks are ended";
    MAX_RUNTIME = "EWMS_PILOT_MAX_RUNTIME", ValueKind::Seconds { least: 1 },
        Phrase("`OriginalTime` of the job ad, else none"),
        "wall time of the pilot; no task is started that would not end in it, and the pilot ends by itself";
    MAX_DELIVERIES = "EWMS_PILOT_MAX_DELIVERIES", ValueKind::Count, Phrase("none: no event leaves its queue"),
        "how often an event that fails by its own or its task's fault is delivered before it is taken out of its queue, at once if its result is too large to be sent; the broker counts: RabbitMQ before 4.3 every return to a quorum queue, give-backs and lost connections included, from 4.3 on failures only, a classic queue nothing; a spool failures only";
    QUEUE_DEAD_LETTER = "EWMS_PILOT_QUEUE_DEAD_LETTER", ValueKind::Text, Default(""),
        "queue, on the incoming broker, that such an event goes to; without one it is rejected and kept in `rejected/`";
    TASK_LOG = "EWMS_PILOT_TASK_LOG", ValueKind::File, Default("ewms-pilot-tasks.jsonl"),
        "record of every task, a JSON line each; relative to where `ewms-pilot-data/` is";
    DUMP_TASK_OUTPUT = "EWMS_PILOT_DUMP_TASK_OUTPUT", ValueKind::Bool, Default("False"),
        "copy what all containers write to stdout to the pilot's stdout, and the same for stderr, not only the first and last 32 KiB of failed ones'";
    KILL_GRACE = "EWMS_PILOT_KILL_GRACE", ValueKind::Duration, Default("10"),
        "time between telling a container to end and killing it; unless set, less where HTCondor gives an evicted job less than that and 5 s more";
    QUARANTINE_TIME = "EWMS_PILOT_QUARANTINE_TIME", ValueKind::Seconds { least: 0 }, Default("0"),
        "how long to sleep after a fatal error, so that a bad machine gets no next pilot at once";
    PREFLIGHT = "EWMS_PILOT_PREFLIGHT", ValueKind::Bool, Default("True"),
        "check the machine before the first event, which costs one container start; a broken one then takes no event";
    APPTAINER = "EWMS_PILOT_APPTAINER", ValueKind::Program,
        Phrase("the first that makes containers"),
        "Apptainer's program, and no other; unset, those of PATH, of the site, of HTCondor and of CVMFS are tried";
    CL_LOG = "EWMS_PILOT_CL_LOG", ValueKind::Level, Default("INFO"),
        "level of the pilot's own log lines";
    CL_LOG_THIRD_PARTY = "EWMS_PILOT_CL_LOG_THIRD_PARTY", ValueKind::Level, Default("WARNING"),
        "level of the log lines of its libraries";
    LOG_FORMAT = "EWMS_PILOT_LOG_FORMAT", ValueKind::Choice(&["text", "json"]), Default("text"),
        "form of stderr; `json`: one object a line, for collectors";
    CONTAINER_DEBUG = "EWMS_PILOT_CONTAINER_DEBUG", ValueKind::Bool, Default("False"),
        "run `apptainer --debug`";
    HTCHIRP = "EWMS_PILOT_HTCHIRP", ValueKind::Bool, Default("False"),
        "report to HTCondor what the pilot does";
    HTCHIRP_DEST = "EWMS_PILOT_HTCHIRP_DEST",
        ValueKind::Choice(&["JOB_ATTR", "JOB_EVENT_LOG"]), Default("JOB_ATTR"),
        "where HTCondor puts it";
    HTCHIRP_INTERVAL = "EWMS_PILOT_HTCHIRP_RATELIMIT_INTERVAL", ValueKind::Duration, Default("60.0"),
        "least time between two reports of the counters";
    CONTAINER_PLATFORM = "_EWMS_PILOT_CONTAINER_PLATFORM",
        ValueKind::Choice(&["apptainer"]), Default("apptainer"),
        "what runs containers; this pilot is Apptainer-native";
    BUILD_WORKDIR = "_EWMS_PILOT_APPTAINER_BUILD_WORKDIR", ValueKind::Directory, Default("/var/tmp"),
        "where an image is converted to a sandbox directory";
    DIRECTORY_MUST_BE_PRESENT = "_EWMS_PILOT_APPTAINER_IMAGE_DIRECTORY_MUST_BE_PRESENT",
        ValueKind::Bool, Default("True"),
        "True: an image must be a sandbox directory; False: others are converted to one";
}

/// Variables of the Python pilot without a meaning here, where Docker isn't used.
pub(super) static OF_PYTHON_ALONE: &[&str] = &["_EWMS_PILOT_DOCKER_SHM_SIZE"];

/// The values of `…_BROKER_TYPE`.
pub(super) const BROKER_TYPES: [&str; 2] = ["rabbitmq", "spool"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_there_twice() {
        let mut names: Vec<&str> = ALL.iter().map(|variable| variable.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
