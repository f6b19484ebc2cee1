//! Starts a container with the job's GPUs, as tasks get them, and runs the driver's own program in it, which
//! lists the GPUs that it finds. Says what was found; whether that is enough is the caller's to judge.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::probe_container::{cause_of_spawn, shells_code};
use super::{ContainerSpec, TaskContext};
use crate::blocking;
use crate::config::{GpuSet, GpuVendor, Verbosity};
use crate::container::{self, RunSpec};
use crate::fault::{self, Cause};
use crate::process::{
    CaptureError, CaptureQuery, Captured, ChildLimits, ShutdownSender, StopCause, capture,
};

/// A driver that isn't loaded yet takes some seconds for each GPU.
const DEADLINE: Duration = Duration::from_mins(1);

/// Part of Apptainer's warning when `ldconfig -p` fails where it runs; seen with 1.4.5 in a container whose image
/// had `ldconfig` but no `/etc/ld.so.cache`. It then goes on without the driver.
const NO_LIBRARY_CACHE: &str = "could not retrieve ld cache";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GpuProbe {
    /// The program listed these.
    Listed(Vec<ListedGpu>),
    /// The program can't be run in this image, for this reason. The machine has the driver's device.
    NotTried(String),
    Broken {
        cause: Cause,
        said: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedGpu {
    /// The number by which the job may know it; a part of a GPU (MIG) has none.
    pub number: Option<usize>,
    pub uuid: String,
    pub model: String,
}

/// The program of a vendor's driver that lists GPUs.
#[derive(Debug, Clone, Copy)]
struct ListProgram {
    name: &'static str,
    arguments: &'static [&'static str],
    /// The device without which the driver is not there.
    device: &'static str,
    parse: fn(&str) -> Vec<ListedGpu>,
}

impl ListProgram {
    fn of(vendor: GpuVendor) -> Self {
        match vendor {
            GpuVendor::Nvidia => Self {
                name: "nvidia-smi",
                arguments: &["-L"],
                device: "/dev/nvidiactl",
                parse: nvidias_list,
            },
            GpuVendor::Amd => Self {
                name: "rocminfo",
                arguments: &[],
                device: "/dev/kfd",
                parse: amds_list,
            },
        }
    }

    /// Whether the container could not run the program at all: the image lacks a loader or a library, or the
    /// machine has no such program for Apptainer to show there. Of `rocminfo` Apptainer shows no library.
    fn is_not_run(self, code: i32, stderr: &str) -> bool {
        code == 126
            || code == 127
            || stderr.lines().any(|line| {
                line.contains("FATAL")
                    && (line.contains("executable file not found") || line.contains(" failed: "))
                    && line.contains(self.name)
            })
    }
}

/// Lists the GPUs that a container sees; `None` if tasks get none.
pub async fn gpu_probe(context: &TaskContext, plan: &ContainerSpec) -> Option<GpuProbe> {
    let gpus = context.gpus.all().filter(|all| !all.gpus.is_empty())?;
    let program = ListProgram::of(gpus.vendor);
    let (workdir, query) = match query(context, plan, program).await {
        Ok(query) => query,
        Err(broken) => return Some(broken),
    };
    let limits = ChildLimits {
        timeout: Some(DEADLINE),
        grace: Duration::from_secs(1),
    };
    let shutdown = ShutdownSender::new().subscribe();
    let captured = capture(&context.guard, query, limits, shutdown).await;
    drop(blocking::start(move || drop(workdir)));
    Some(match captured {
        Ok(captured) => {
            let probed = judge(program, &captured, &|device| Path::new(device).exists());
            numbered(probed, &gpus)
        }
        Err(error) => GpuProbe::Broken {
            cause: match &error {
                CaptureError::Spawn(error) => cause_of_spawn(error),
                CaptureError::Output { source, .. } => Cause::of_io(source),
            },
            said: error.to_string(),
        },
    })
}

/// Gives AMD's GPUs the job's numbers: `rocminfo` lists only the job's, in its order, and numbers none.
fn numbered(probed: GpuProbe, gpus: &GpuSet) -> GpuProbe {
    match (probed, gpus.vendor) {
        (GpuProbe::Listed(mut listed), GpuVendor::Amd) => {
            for (listed, gpu) in listed.iter_mut().zip(&gpus.gpus) {
                listed.number = gpu.id.parse().ok();
            }
            GpuProbe::Listed(listed)
        }
        (probed, _) => probed,
    }
}

/// The container's command, with a directory that must be kept while it runs.
async fn query(
    context: &TaskContext,
    plan: &ContainerSpec,
    program: ListProgram,
) -> Result<(tempfile::TempDir, CaptureQuery), GpuProbe> {
    let scratch = context.dirs.apptainer();
    let making = move || -> io::Result<_> {
        let workdir = tempfile::tempdir_in(scratch)?;
        for part in ["tmp", "var_tmp", "home"] {
            fs::create_dir(workdir.path().join(part))?;
        }
        Ok(workdir)
    };
    let workdir = blocking::small_files(making)
        .await
        .map_err(|error| GpuProbe::Broken {
            cause: Cause::of_io(&error),
            said: format!("can't make a probe's files: {error}"),
        })?;
    let words = std::iter::once(&program.name).chain(program.arguments);
    let args: Vec<String> = words.map(|word| (*word).to_owned()).collect();
    let invocation = container::exec(
        &context.apptainer,
        &RunSpec {
            image: &plan.image,
            args: &args,
            env: &[],
            binds: plan.repair.as_slice(),
            workdir: workdir.path(),
            verbosity: Verbosity::Normal,
            gpus: context.gpus.all().as_ref(),
            proc: context.proc,
            user_namespace: context.user_namespace,
        },
    );
    let invocation = invocation.map_err(|error| GpuProbe::Broken {
        cause: Cause::Unknown,
        said: error.to_string(),
    })?;
    let query = CaptureQuery {
        program: invocation.program,
        args: invocation.args,
        env: invocation.env,
        cwd: Some(workdir.path().to_owned()),
        scratch: context.dirs.apptainer(),
    };
    Ok((workdir, query))
}

fn judge(program: ListProgram, captured: &Captured, has_device: &dyn Fn(&str) -> bool) -> GpuProbe {
    let ListProgram { name, device, .. } = program;
    if captured.ended_by == StopCause::Timeout {
        return GpuProbe::Broken {
            cause: Cause::Hanging,
            said: format!(
                "`{name}` in a container gave no answer within {} s",
                DEADLINE.as_secs()
            ),
        };
    }
    if captured.succeeded() {
        return GpuProbe::Listed((program.parse)(&String::from_utf8_lossy(&captured.stdout)));
    }
    let code = shells_code(captured.exit);
    let said = last_words(captured);
    let readable = fault::readable(&captured.stderr);
    if !program.is_not_run(code, &readable) {
        let known = fault::find_cause(&captured.stderr);
        return GpuProbe::Broken {
            cause: known.map_or(Cause::Gpu, |(cause, _)| cause),
            said: format!("`{name}` fails in a container (exit code {code}): {said}"),
        };
    }
    if has_device(device) && readable.contains(NO_LIBRARY_CACHE) {
        return GpuProbe::Broken {
            cause: Cause::GpuLibraries,
            said: format!("Apptainer can't look up the libraries of the GPUs' driver: {said}"),
        };
    }
    if has_device(device) {
        return GpuProbe::NotTried(format!("`{name}` can't be run in this image: {said}"));
    }
    GpuProbe::Broken {
        cause: Cause::Gpu,
        said: format!(
            "the machine has no `{device}`, and `{name}` can't be run in a container: {said}"
        ),
    }
}

/// `nvidia-smi` writes its errors to stdout.
fn last_words(captured: &Captured) -> String {
    let stdout = String::from_utf8_lossy(&captured.stdout);
    let last = stdout.lines().map(str::trim).rfind(|line| !line.is_empty());
    match last {
        Some(line) => line.to_owned(),
        None => fault::reason(&captured.stderr),
    }
}

/// The list of `nvidia-smi -L`: a line for each GPU, then one for each of its parts (MIG).
fn nvidias_list(text: &str) -> Vec<ListedGpu> {
    let mut listed = Vec::new();
    let mut whole = String::new();
    for line in text.lines() {
        let Some((before, uuid)) = line.rsplit_once("(UUID: ") else {
            continue;
        };
        let uuid = uuid.trim_end().trim_end_matches(')').to_owned();
        let before = before.trim();
        if let Some((number, model)) = before
            .strip_prefix("GPU ")
            .and_then(|rest| rest.split_once(": "))
        {
            model.clone_into(&mut whole);
            listed.push(ListedGpu {
                number: number.trim().parse().ok(),
                uuid,
                model: whole.clone(),
            });
        } else if let Some(rest) = before.strip_prefix("MIG ") {
            let profile = rest.split_whitespace().next().unwrap_or_default();
            listed.push(ListedGpu {
                number: None,
                uuid,
                model: format!("{whole} MIG {profile}"),
            });
        }
    }
    listed
}

/// The GPUs among the agents of `rocminfo`, which lists only those that `ROCR_VISIBLE_DEVICES` names.
fn amds_list(text: &str) -> Vec<ListedGpu> {
    let mut listed: Vec<ListedGpu> = Vec::new();
    let mut uuid = None;
    for line in text.lines() {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        match (name.trim(), value.trim()) {
            ("Uuid", value) => uuid = value.starts_with("GPU-").then(|| value.to_owned()),
            ("Marketing Name", model) => {
                if let Some(uuid) = uuid.take() {
                    listed.push(ListedGpu {
                        number: None,
                        uuid,
                        model: model.to_owned(),
                    });
                }
            }
            _ => {}
        }
    }
    listed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{ExitStatus, Leftovers};

    fn captured(code: i32, stdout: &str, stderr: &str) -> Captured {
        Captured {
            exit: ExitStatus::Code(code),
            ended_by: StopCause::Itself,
            leftovers: Leftovers::None,
            stdout: stdout.into(),
            stderr: stderr.into(),
        }
    }

    /// What the programs print: one line of `nvidia-smi` as on an H100, the rest from their documentation.
    #[test]
    fn the_drivers_lists_are_understood() {
        let text =
            "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-c84ca33f-4907-0217-67f5-4814e11110a2)\n";
        let listed = nvidias_list(text);
        assert_eq!(listed[0].model, "NVIDIA H100 80GB HBM3");
        let text = "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)\n  \
             MIG 1g.5gb      Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)\n\
             GPU 1: Tesla V100 (UUID: GPU-b1)\n";
        let listed: Vec<_> = nvidias_list(text)
            .into_iter()
            .map(|gpu| (gpu.number, gpu.uuid, gpu.model))
            .collect();
        let row = |number, uuid: &str, model: &str| (number, uuid.to_owned(), model.to_owned());
        assert_eq!(
            listed,
            [
                row(
                    Some(0),
                    "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77",
                    "NVIDIA A100-SXM4-40GB"
                ),
                row(
                    None,
                    "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f",
                    "NVIDIA A100-SXM4-40GB MIG 1g.5gb"
                ),
                row(Some(1), "GPU-b1", "Tesla V100"),
            ]
        );
        let text = "ROCk module is loaded\n*******\nAgent 1\n  Name:   AMD EPYC\n  Uuid:   CPU-XX\n  \
             Marketing Name:   AMD EPYC\nAgent 2\n  Name:   gfx90a\n  Uuid:   GPU-f0\n  \
             Marketing Name:          AMD Instinct MI210\n";
        let listed = amds_list(text);
        assert_eq!(listed.len(), 1);
        assert_eq!(
            (listed[0].number, &*listed[0].uuid, &*listed[0].model),
            (None, "GPU-f0", "AMD Instinct MI210")
        );
    }

    #[test]
    fn a_program_that_fails_is_the_machines_and_one_that_the_image_can_not_run_is_not() {
        let (nvidia, amd) = (GpuVendor::Nvidia, GpuVendor::Amd);
        let no_program = "\u{1b}[31mFATAL:   \"nvidia-smi\": executable file not found in $PATH\n";
        let no_cache = "WARNING: While finding nv bind points: could not retrieve ld cache: could not execute ldconfig: exit status 1\n\
             FATAL:   \"nvidia-smi\": executable file not found in $PATH\n";
        let no_loader = "FATAL:   exec /usr/bin/nvidia-smi failed: no such file or directory\n";
        let no_library = "rocminfo: error while loading shared libraries: libhsa-runtime64.so.1\n";
        let broken =
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n";
        for (vendor, code, stdout, stderr, device, cause) in [
            (nvidia, 9, broken, "", "/dev/nvidiactl", Some(Cause::Gpu)),
            (nvidia, 255, "", no_program, "/dev/nvidiactl", None),
            (nvidia, 255, "", no_loader, "/dev/nvidiactl", None),
            (
                nvidia,
                255,
                "",
                no_cache,
                "/dev/nvidiactl",
                Some(Cause::GpuLibraries),
            ),
            (nvidia, 255, "", no_program, "/dev/kfd", Some(Cause::Gpu)),
            (amd, 127, "", no_library, "/dev/kfd", None),
            (
                amd,
                1,
                "ROCk module is NOT loaded\n",
                "",
                "/dev/kfd",
                Some(Cause::Gpu),
            ),
            (
                nvidia,
                255,
                "",
                "FATAL:   container creation failed: mount hook function failure: mount x\n",
                "/dev/nvidiactl",
                Some(Cause::Mount),
            ),
        ] {
            let probed = judge(
                ListProgram::of(vendor),
                &captured(code, stdout, stderr),
                &|path| path == device,
            );
            match (&probed, cause) {
                (GpuProbe::Broken { cause, said }, Some(expected)) => {
                    assert_eq!(*cause, expected, "{said}");
                }
                (GpuProbe::NotTried(_), None) => {}
                _ => panic!("{probed:?} for {stdout}{stderr}"),
            }
        }
    }
}
