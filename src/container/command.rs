//! Apptainer's command line and environment.
//!
//! Every flag of Apptainer has environment variables that take effect whatever the command line says, and
//! HTCondor sets some of them inside a container job. So the environment is built from a short list, and
//! nothing else of the pilot's own is passed on.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::Bind;
use crate::config::{GpuSet, GpuVendor, NVIDIA_DEVICES, Verbosity, is_name, is_settable};
use crate::fault::NO_COMMAND;

/// The most bytes that the kernel takes as one argument or variable, including its final NUL
/// (`MAX_ARG_STRLEN`).
const LONGEST: usize = 128 * 1024;
/// The most bytes of arguments and variables together, a little below the 1,048,448 at which Apptainer fails
/// with `engine configuration too big`: it adds some of its own.
const MOST: usize = 1_000_000;
/// Apptainer sets a variable with this prefix in the container, without the prefix.
const PREFIX: &str = "APPTAINERENV_";
/// HTCondor gives a job no `PATH`. OSG's Apptainer in CVMFS is a script that needs the system's programs.
const USUAL_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

/// The variables of the pilot's environment that Apptainer gets.
#[derive(Debug, Clone, Default)]
pub struct ApptainerEnvironment {
    /// `PATH`, in which Apptainer finds its helpers; if it is empty, the directories of a usual one.
    pub path: OsString,
    /// `HOME`, where Apptainer reads its registry logins.
    pub home: Option<OsString>,
    /// `LANG`.
    pub lang: Option<OsString>,
    /// An existing directory of the job for temporary files and caches.
    pub scratch: PathBuf,
    /// Proxy variables, for fetching images; a container never sees them.
    pub proxies: Vec<(OsString, OsString)>,
}

#[derive(Debug, Clone)]
pub struct Apptainer {
    program: PathBuf,
    env: Vec<(OsString, OsString)>,
    proxies: Vec<(OsString, OsString)>,
}

/// A complete command: program, arguments, and the whole environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// Absolute.
    pub program: PathBuf,
    /// Without the program's name.
    pub args: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
}

#[derive(Debug, Clone, Copy)]
pub struct RunSpec<'a> {
    /// A sandbox directory or image file. Absolute.
    pub image: &'a Path,
    pub args: &'a [String],
    /// The container's variables; of two with one name the later wins. Values arrive unchanged, except that
    /// Apptainer drops a carriage return before a line feed.
    pub env: &'a [(String, String)],
    /// The directories that it sees; see [`check_distinct`](super::check_distinct).
    pub binds: &'a [Bind],
    /// An existing directory on disk for `/tmp`, `/var/tmp` and home, which would otherwise share 64 MiB of
    /// memory. Remove it afterwards, after `chmod -R u+rwX`.
    pub workdir: &'a Path,
    pub verbosity: Verbosity,
    /// The GPUs that it sees, and no other; `None` if the job has none.
    pub gpus: Option<&'a GpuSet>,
    pub proc: ProcMount,
    pub user_namespace: UserNamespace,
}

/// The rule by which a container gets a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UserNamespace {
    /// Apptainer decides: an ordinary user's container gets one, unless Apptainer is installed setuid; root's
    /// gets none.
    #[default]
    AsInstalled,
    /// Always (`--userns`). A root that lacks a capability can't make containers without.
    Always,
}

impl UserNamespace {
    fn flag(self) -> Option<OsString> {
        match self {
            Self::AsInstalled => None,
            Self::Always => Some("--userns".into()),
        }
    }
}

/// Whether containers have a `/proc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProcMount {
    #[default]
    Own,
    /// None: inside another container the kernel may not let us mount one. The pid namespace stays.
    None,
}

/// The reason why a container can't be run with these arguments or variables.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Apptainer would lose this variable, and silently others with it.
    #[error(
        "`{name}` is no name of a variable; use letters, digits and `_`, not beginning with a digit"
    )]
    Name { name: String },
    /// No variable or argument can contain a NUL character.
    #[error("the value of `{what}` holds a NUL character; remove it, or give it as a file")]
    Nul {
        /// The variable's name, or the number of the argument.
        what: String,
    },
    #[error(
        "the value of `{what}` has {bytes} bytes, and the kernel takes {LONGEST}; give it as a file"
    )]
    TooLong {
        /// The variable's name, or the number of the argument.
        what: String,
        /// Its length, including the prefix, the name and the NUL.
        bytes: usize,
    },
    #[error(
        "arguments and variables have {bytes} bytes together, and Apptainer takes {MOST}; \
         give large ones as files"
    )]
    TooMuch { bytes: usize },
}

impl Apptainer {
    /// The Apptainer whose program is `program`, an absolute path. That it is one is not checked.
    #[must_use]
    pub fn new(program: PathBuf, environment: ApptainerEnvironment) -> Self {
        let ApptainerEnvironment {
            path,
            home,
            lang,
            scratch,
            proxies,
        } = environment;
        let path = if path.is_empty() {
            USUAL_PATH.into()
        } else {
            path
        };
        let mut env = vec![("PATH".into(), path)];
        env.extend(home.map(|home| ("HOME".into(), home)));
        env.extend(lang.map(|lang| ("LANG".into(), lang)));
        env.extend([
            ("TMPDIR".into(), scratch.clone().into()),
            ("APPTAINER_TMPDIR".into(), scratch.clone().into()),
            (
                "APPTAINER_CACHEDIR".into(),
                scratch.join("apptainer-cache").into(),
            ),
        ]);
        Self {
            program,
            env,
            proxies,
        }
    }

    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// `apptainer --version`.
    #[must_use]
    pub fn version(&self) -> Invocation {
        Invocation {
            program: self.program.clone(),
            args: vec!["--version".into()],
            env: self.env.clone(),
        }
    }

    /// `apptainer build` of a sandbox directory. `target` must not exist: Apptainer would remove it.
    /// Temporary files stay in `scratch`, which should be on the same file system. `--fix-perms` makes the
    /// result deletable. `--section none` prevents the scripts of a definition from running here, outside of
    /// any container, in case `source` has become one since the check.
    #[must_use]
    pub fn build(
        &self,
        source: &OsStr,
        target: &Path,
        scratch: &Path,
        verbosity: Verbosity,
        user_namespace: UserNamespace,
    ) -> Invocation {
        let mut args = debug(verbosity);
        args.extend(["build", "--fix-perms", "--section", "none"].map(Into::into));
        args.extend(user_namespace.flag());
        args.extend(["--sandbox".into(), target.into(), source.into()]);
        self.in_scratch(args, scratch)
    }

    /// A container of an image that is not converted yet. None of its programs runs in it; only `script` is
    /// sourced with its environment. It is unpacked into `scratch`, because FUSE may be missing.
    #[must_use]
    pub(super) fn unpacked(
        &self,
        source: &OsStr,
        script: &Bind,
        scratch: &Path,
        user_namespace: UserNamespace,
    ) -> Invocation {
        let mut args: Vec<OsString> = ["exec", "--containall", "--no-eval", "--unsquash"]
            .map(Into::into)
            .into();
        args.extend(user_namespace.flag());
        args.extend(["--bind".into(), bind_argument(script)]);
        args.extend([source.into(), NO_COMMAND.into()]);
        self.in_scratch(args, scratch)
    }

    /// A command that may fetch images and keeps all temporary files in `scratch`.
    fn in_scratch(&self, args: Vec<OsString>, scratch: &Path) -> Invocation {
        let mut env: Vec<_> = self
            .env
            .iter()
            .filter(|(name, _)| name == "PATH" || name == "HOME" || name == "LANG")
            .cloned()
            .collect();
        env.extend(self.proxies.iter().cloned());
        for name in ["TMPDIR", "APPTAINER_TMPDIR", "APPTAINER_CACHEDIR"] {
            env.push((name.into(), scratch.into()));
        }
        Invocation {
            program: self.program.clone(),
            args,
            env,
        }
    }
}

fn debug(verbosity: Verbosity) -> Vec<OsString> {
    match verbosity {
        Verbosity::Normal => Vec::new(),
        Verbosity::Debug => vec!["--debug".into()],
    }
}

/// Refuses a variable that Apptainer or the kernel would not pass on.
fn check_variable(name: &str, value: &str) -> Result<(), CommandError> {
    if !is_name(name) {
        return Err(CommandError::Name {
            name: name.to_owned(),
        });
    }
    check_string(name, value, PREFIX.len() + name.len() + "=".len())
}

fn check_string(what: &str, value: &str, around: usize) -> Result<(), CommandError> {
    if value.contains('\0') {
        return Err(CommandError::Nul {
            what: what.to_owned(),
        });
    }
    let bytes = around + value.len() + 1;
    if bytes > LONGEST {
        return Err(CommandError::TooLong {
            what: what.to_owned(),
            bytes,
        });
    }
    Ok(())
}

/// The command that runs a container. It sees nothing of the machine but the binds, and has its own pid
/// namespace, which makes sure that all of its processes die with it.
///
/// Variables are passed as `APPTAINERENV_NAME`, because `--env` splits values at commas and shows them in
/// `ps`.
///
/// # Errors
/// When an argument or a variable can't be passed on unchanged.
pub fn run(apptainer: &Apptainer, spec: &RunSpec<'_>) -> Result<Invocation, CommandError> {
    command("run", apptainer, spec)
}

/// As [`run`], but the arguments are the command, and the image's runscript is not used.
///
/// # Errors
/// Returns the errors of [`run`].
pub fn exec(apptainer: &Apptainer, spec: &RunSpec<'_>) -> Result<Invocation, CommandError> {
    command("exec", apptainer, spec)
}

fn command(
    verb: &str,
    apptainer: &Apptainer,
    spec: &RunSpec<'_>,
) -> Result<Invocation, CommandError> {
    let mut args = debug(spec.verbosity);
    // Without `--no-privs` root's tasks have all capabilities and can make read-only binds writable.
    args.extend([verb, "--containall", "--no-eval", "--no-privs"].map(Into::into));
    args.extend(gpu_flags(spec.gpus).map(Into::into));
    args.extend(spec.user_namespace.flag());
    if spec.proc == ProcMount::None {
        args.extend(["--no-mount", "proc"].map(Into::into));
    }
    args.push("--workdir".into());
    args.push(spec.workdir.into());
    for bind in spec.binds {
        args.extend(bind_arguments(bind));
    }
    // A leading dash would make the path a flag. Options end at the image, so arguments may begin with one.
    args.push(match spec.image.as_os_str().as_bytes().first() {
        Some(b'-') => Path::new(".").join(spec.image).into(),
        _ => spec.image.into(),
    });
    for (index, arg) in spec.args.iter().enumerate() {
        check_string(&format!("argument {}", index + 1), arg, 0)?;
        args.push(arg.into());
    }

    let mut env = apptainer.env.clone();
    env.extend(spec.gpus.and_then(own_gpu_variable));
    // Of two variables of one name the later wins: no container sees GPUs of others because its user says so.
    let of_gpus = spec.gpus.map(GpuSet::variables).unwrap_or_default();
    let variables: Vec<_> = spec.env.iter().chain(&of_gpus).collect();
    for (index, (name, value)) in variables.iter().enumerate() {
        check_variable(name, value)?;
        let is_last = variables[index + 1..]
            .iter()
            .all(|(later, _)| later != name);
        if is_last && is_settable(name) {
            env.push((format!("{PREFIX}{name}").into(), value.into()));
        }
    }
    let variables = env.iter().map(|(name, value)| name.len() + value.len());
    let bytes = variables.chain(args.iter().map(|arg| arg.len())).sum();
    if bytes > MOST {
        return Err(CommandError::TooMuch { bytes });
    }
    Ok(Invocation {
        program: apptainer.program.clone(),
        args,
        env,
    })
}

/// The flags that let GPUs in, or keep them out at a site whose Apptainer lets them in by itself
/// (`always use nv`).
fn gpu_flags(gpus: Option<&GpuSet>) -> [&'static str; 2] {
    let vendor = gpus
        .filter(|set| !set.gpus.is_empty())
        .map(|set| set.vendor);
    match vendor {
        None => ["--no-nv", "--no-rocm"],
        Some(GpuVendor::Nvidia) => ["--nv", "--no-rocm"],
        Some(GpuVendor::Amd) => ["--no-nv", "--rocm"],
    }
}

/// The variable by which Apptainer itself learns of GPUs where the site lets NVIDIA's own program make a
/// container's devices (`use nvidia-container-cli`).
fn own_gpu_variable(gpus: &GpuSet) -> Option<(OsString, OsString)> {
    let is_nvidia = gpus.vendor == GpuVendor::Nvidia;
    is_nvidia.then(|| (NVIDIA_DEVICES.into(), gpus.nvidia_devices().into()))
}

/// `--bind` with a [`bind_argument`], or `--mount` if the paths contain characters that it can't express: a
/// line of CSV takes any path without a carriage return.
fn bind_arguments(bind: &Bind) -> [OsString; 2] {
    let target = bind.target().as_os_str().as_bytes();
    let source = bind.source().as_os_str().as_bytes();
    if !needs_mount_flag(bind) {
        return ["--bind".into(), bind_argument(bind)];
    }
    let quoted = |key: &str, path: &[u8]| {
        let path = path.iter().flat_map(|byte| match byte {
            b'"' => vec![b'"', b'"'],
            other => vec![*other],
        });
        let mut field = format!("\"{key}=").into_bytes();
        field.extend(path);
        field.push(b'"');
        field
    };
    let mut fields = vec![
        b"type=bind".to_vec(),
        quoted("source", source),
        quoted("destination", target),
    ];
    if bind.access() == super::Access::ReadOnly {
        fields.push(b"ro".to_vec());
    }
    ["--mount".into(), OsString::from_vec(fields.join(&b','))]
}

/// Whether a bind is given with `--mount`. Apptainer counts these after all that are given with `--bind`.
pub(super) fn needs_mount_flag(bind: &Bind) -> bool {
    let special = |byte: &u8| matches!(byte, b':' | b',' | b'\\' | b'\n');
    bind.target().as_os_str().as_bytes().iter().any(special)
        || bind.source().as_os_str().as_bytes().contains(&b'\n')
}

/// `SOURCE:TARGET[:ro]`, with `:` and `,` of the source escaped. A backslash is special only before these.
/// There it can't be escaped, and needn't be, because only the last one counts.
fn bind_argument(bind: &Bind) -> OsString {
    let mut argument = Vec::new();
    for byte in bind.source().as_os_str().as_bytes() {
        if matches!(byte, b':' | b',') {
            argument.push(b'\\');
        }
        argument.push(*byte);
    }
    if argument.ends_with(b"\\") {
        // A final backslash would escape the colon that follows.
        argument.push(b'/');
    }
    argument.push(b':');
    argument.extend_from_slice(bind.target().as_os_str().as_bytes());
    if bind.access() == super::Access::ReadOnly {
        argument.extend_from_slice(b":ro");
    }
    OsString::from_vec(argument)
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
