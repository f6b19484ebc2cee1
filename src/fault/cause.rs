//! The known causes of failures outside of a task, each with a stable name, a class and a remedy. The
//! preflight finds the same causes before there is any task.
//!
//! To add a cause, add a variant here; the compiler then asks for its name, its class and its remedy.
//! Apptainer's messages for it are in `apptainer_faults.rs`.

use std::fmt;
use std::io;

use nix::errno::Errno;

use super::FaultClass;

/// The reason why a container can't be made, or lacks something that it needs. Displays as its
/// [name](Self::name).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The image doesn't exist or may not be read.
    ImageMissing,
    /// The file or directory is no image.
    ImageFormat,
    /// The image can't be mounted or read to its end.
    ImageDamaged,
    /// The image lacks something that every container needs: `/dev`, a runscript or a shell.
    ImageIncomplete,
    /// The image's runscript can't start, or does nothing.
    ImageRunscript,
    /// The image's environment ends or breaks every start.
    ImageEnvironment,
    /// A directory to bind is gone.
    BindSource,
    /// The site doesn't allow users to bind directories.
    BindsForbidden,
    /// A directory was bound, but files written there don't arrive.
    BindsUseless,
    /// The site's Apptainer gives containers no writable `/tmp` or home, no `/dev` or no `/proc`.
    MountsOff,
    /// The kernel or the site allows the pilot no user namespace, or not the other namespaces with it.
    Namespaces,
    /// The pilot's root lacks a capability, and Apptainer requests all.
    Capabilities,
    /// The site gives containers no pid namespace, without which their processes may outlive them.
    PidNamespace,
    /// `/dev/fuse` is needed but can't be used.
    Fuse,
    /// Parts of `/proc` are masked, so the kernel doesn't let containers mount their own.
    MaskedProc,
    /// The pilot's user id has no account.
    Account,
    /// Resource flags without systemd.
    Cgroups,
    /// A container doesn't see the GPUs that the job was given, or their driver fails.
    Gpu,
    /// Apptainer can't look up the libraries of the GPUs' driver where the pilot runs.
    GpuLibraries,
    /// The disk is full, or a quota used up.
    DiskFull,
    /// A file system fails: its server is gone, its daemon died, or its disk is broken.
    Storage,
    /// The limits on address space, memory, processes or file size are too low.
    Limits,
    /// Something killed containers before their task began.
    Killed,
    /// Apptainer doesn't know a flag that the pilot uses.
    ApptainerTooOld,
    /// Apptainer doesn't answer.
    Hanging,
    /// Apptainer can't mount something, for none of the reasons above.
    Mount,
    /// Apptainer can't make the container, for none of the reasons above.
    Unknown,
}

impl Cause {
    #[cfg(test)]
    pub(super) const ALL: [Self; 27] = [
        Self::ImageMissing,
        Self::ImageFormat,
        Self::ImageDamaged,
        Self::ImageIncomplete,
        Self::ImageRunscript,
        Self::ImageEnvironment,
        Self::BindSource,
        Self::BindsForbidden,
        Self::BindsUseless,
        Self::MountsOff,
        Self::Namespaces,
        Self::Capabilities,
        Self::PidNamespace,
        Self::Fuse,
        Self::MaskedProc,
        Self::Account,
        Self::Cgroups,
        Self::Gpu,
        Self::GpuLibraries,
        Self::DiskFull,
        Self::Storage,
        Self::Limits,
        Self::Killed,
        Self::ApptainerTooOld,
        Self::Hanging,
        Self::Mount,
        Self::Unknown,
    ];

    /// The name in texts and records. Its meaning never changes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ImageMissing => "image-missing",
            Self::ImageFormat => "image-format",
            Self::ImageDamaged => "image-damaged",
            Self::ImageIncomplete => "image-incomplete",
            Self::ImageRunscript => "image-runscript",
            Self::ImageEnvironment => "image-environment",
            Self::BindSource => "bind-source",
            Self::BindsForbidden => "binds-forbidden",
            Self::BindsUseless => "binds-useless",
            Self::MountsOff => "mounts-off",
            Self::Namespaces => "namespaces",
            Self::Capabilities => "capabilities",
            Self::PidNamespace => "pid-namespace",
            Self::Fuse => "fuse",
            Self::MaskedProc => "masked-proc",
            Self::Account => "account",
            Self::Cgroups => "cgroups",
            Self::Gpu => "gpu",
            Self::GpuLibraries => "gpu-libraries",
            Self::DiskFull => "disk-full",
            Self::Storage => "storage",
            Self::Limits => "limits",
            Self::Killed => "killed",
            Self::ApptainerTooOld => "apptainer-too-old",
            Self::Hanging => "hanging",
            Self::Mount => "mount",
            Self::Unknown => "unknown",
        }
    }

    #[must_use]
    pub fn class(self) -> FaultClass {
        match self {
            Self::ImageMissing
            | Self::ImageFormat
            | Self::ImageDamaged
            | Self::ImageIncomplete
            | Self::ImageRunscript
            | Self::ImageEnvironment => FaultClass::Image,
            Self::BindSource
            | Self::BindsForbidden
            | Self::BindsUseless
            | Self::MountsOff
            | Self::Namespaces
            | Self::Capabilities
            | Self::PidNamespace
            | Self::Fuse
            | Self::MaskedProc
            | Self::Account
            | Self::Cgroups
            | Self::Gpu
            | Self::GpuLibraries
            | Self::DiskFull
            | Self::Storage
            | Self::Limits
            | Self::Killed
            | Self::ApptainerTooOld
            | Self::Hanging
            | Self::Mount
            | Self::Unknown => FaultClass::Ep,
        }
    }

    /// Whether another Apptainer on the same machine might make containers in spite of it: one that is
    /// installed or configured in another way. Not so if the image or the machine itself is the reason.
    #[must_use]
    pub fn depends_on_apptainer(self) -> bool {
        match self {
            // Without `enable overlay` and `enable underlay` an image lacks what others add to it.
            Self::ImageIncomplete
            | Self::BindsForbidden
            | Self::BindsUseless
            | Self::MountsOff
            | Self::Namespaces
            | Self::Capabilities
            | Self::PidNamespace
            | Self::Fuse
            | Self::MaskedProc
            | Self::Account
            | Self::Cgroups
            | Self::ApptainerTooOld
            | Self::Hanging
            | Self::Mount
            | Self::Unknown => true,
            Self::ImageMissing
            | Self::ImageFormat
            | Self::ImageDamaged
            | Self::ImageRunscript
            | Self::ImageEnvironment
            | Self::BindSource
            | Self::Gpu
            | Self::GpuLibraries
            | Self::DiskFull
            | Self::Storage
            | Self::Limits
            | Self::Killed => false,
        }
    }

    /// The advice against it, as the end of an error's text.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::ImageMissing => {
                "check the image's path and rights, and that its file system is mounted"
            }
            Self::ImageFormat => "check that the image is one, and that its file system is mounted",
            Self::ImageDamaged => "make the image anew, or look at the disk that it is on",
            Self::ImageIncomplete => {
                "build the image with Apptainer, and with a runscript or a shell in it"
            }
            Self::ImageRunscript => {
                "give the image a runscript that starts its program: executable, with LF line ends, and with \
                 an interpreter that is in the image (Apptainer 1.3.4 and 1.3.5 lose it when they convert)"
            }
            Self::ImageEnvironment => {
                "mend the image's %environment: it must not exit, nor use an unset variable under `set -u`"
            }
            Self::BindSource => "check that the directory is there, and its file system mounted",
            Self::BindsForbidden => "ask the site for `user bind control = yes` in apptainer.conf",
            Self::BindsUseless => "look at the rights and mount options of the data directory",
            Self::MountsOff => {
                "ask the site for `mount tmp`, `mount home`, `mount dev` and `mount proc` = yes in apptainer.conf"
            }
            Self::Namespaces => {
                "ask the site for unprivileged user namespaces (`user.max_user_namespaces`)"
            }
            Self::Capabilities => {
                "leave EWMS_PILOT_PREFLIGHT on, so that `--userns` is tried, or give the pilot's container \
                 CAP_SYS_RESOURCE"
            }
            Self::PidNamespace => "ask the site for `allow pid ns = yes` in apptainer.conf",
            Self::Fuse => "ask the site for a /dev/fuse that users can open",
            Self::MaskedProc => "run the job where /proc is not masked",
            Self::Account => "ask the site for an account (a passwd entry) for this user id",
            Self::Cgroups => "ask the site for a systemd of the user's own",
            Self::Gpu => "exclude this machine until its GPUs and their driver are repaired",
            Self::GpuLibraries => {
                "run `ldconfig` when the pilot's own image is built, so that it has an /etc/ld.so.cache; or exclude this machine"
            }
            Self::DiskFull => {
                "request more disk, or exclude this machine until its disk is emptied"
            }
            Self::Storage => "exclude this machine until its file systems are repaired",
            Self::Limits => {
                "raise the limits on address space, memory, processes and file size of this job"
            }
            Self::Killed => {
                "find out what kills containers here: the machine's memory, the site's limits or an operator; or exclude \
                 this machine"
            }
            Self::ApptainerTooOld => "ask the site for Apptainer 1.1 or later",
            Self::Hanging => "exclude this machine, and look for a file system that hangs",
            Self::Mount | Self::Unknown => {
                "exclude this machine, and show its operators this message"
            }
        }
    }
}

impl Cause {
    /// The cause of a failed write.
    #[must_use]
    pub fn of_io(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => Self::DiskFull,
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EAGAIN | Errno::EFBIG) => {
                Self::Limits
            }
            _ => Self::Storage,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
