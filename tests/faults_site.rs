//! Execution points that are broken in one way each. They are made from the throw-away one in mounts or a
//! user namespace of their own, so that tests that run at the same time don't see the damage.

use crate::support::scene::Scene;
use crate::support::{images, pilot_binary};

/// What is wrong with a site.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Site<'a> {
    /// Nothing.
    Sound,
    /// Its configuration of Apptainer has this line instead of the one that begins as it does.
    Configured(&'a str),
    /// It has no user namespaces.
    NoNamespaces,
    /// It runs jobs in a container that masks parts of `/proc`.
    MaskedProc,
    /// Its users may have so many processes and threads, of which the pilot's are counted alone.
    FewProcesses(u32),
    /// Its users have no account.
    NoAccount,
    /// It runs pilots as root without `CAP_SYS_RESOURCE`, as in a container of Docker's.
    LesserRoot,
    /// It runs pilots as root, with these options of `setpriv`.
    Root(&'a str),
    /// Whatever these lines of shell do, as root, before the pilot runs.
    Prepared(&'a str),
    /// As before, and the pilot's file system is a memory of a few MiB.
    SmallDisk(&'a str),
}

/// The user whom the tests run as, for whom a pilot runs on every site.
const AS_USER: &str = "setpriv --reuid $SUDO_UID --regid $SUDO_GID --init-groups";

impl Site<'_> {
    /// A scene whose pilot runs there. Its directory is at the same path.
    pub(crate) fn of(self, scene: Scene) -> Scene {
        self.with_arguments(scene, "")
    }

    /// As [`Site::of`], the pilot having arguments.
    pub(crate) fn with_arguments(self, scene: Scene, arguments: &str) -> Scene {
        let pilot = format!("{} {arguments}", pilot_binary().display());
        let as_user = format!("exec {AS_USER} {pilot}");
        let directory = scene.dir().display().to_string();
        let (namespaces, script): (&[&str], String) = match self {
            Self::Sound => (&["--mount"], as_user),
            Self::Configured(line) => {
                let key = line.split('=').next().unwrap_or_default().trim();
                let script = format!(
                    "sed 's/^{key} *=.*/{line}/' /etc/apptainer/apptainer.conf > {directory}/.site.conf
                     grep -q '^{line}' {directory}/.site.conf
                     mount --bind {directory}/.site.conf /etc/apptainer/apptainer.conf
                     {as_user}"
                );
                (&["--mount"], script)
            }
            // The table of limits belongs to the user namespace: the machine's stays as it is.
            Self::NoNamespaces => (
                &["--user", "--map-users=0,0,65536", "--map-groups=0,0,65536"],
                format!("echo 0 > /proc/sys/user/max_user_namespaces\n{as_user}"),
            ),
            Self::FewProcesses(processes) => (
                &["--user", "--map-users=0,0,65536", "--map-groups=0,0,65536"],
                format!(
                    "exec setpriv --reuid $SUDO_UID --regid $SUDO_GID --init-groups prlimit --nproc={processes} {pilot}"
                ),
            ),
            Self::MaskedProc => (
                &["--mount"],
                format!("mount -t tmpfs masked /proc/sys/fs\n{as_user}"),
            ),
            Self::NoAccount => (
                &["--mount"],
                format!(
                    "chown -R 4242 {directory}\nexec setpriv --reuid 4242 --regid 4242 --clear-groups {pilot}"
                ),
            ),
            Self::LesserRoot => {
                let lesser = Site::Root("--bounding-set -sys_resource --inh-caps -sys_resource");
                return lesser.with_arguments(scene, arguments);
            }
            Self::Root(options) => (
                &["--mount"],
                format!(
                    "chown -R 0:0 {directory}; chmod 755 {directory}; code=0
                     setpriv {options} {pilot} || code=$?
                     chown -R $SUDO_UID:$SUDO_GID {directory}; exit $code"
                ),
            ),
            Self::Prepared(preparation) => (&["--mount"], format!("{preparation}\n{as_user}")),
            Self::SmallDisk(preparation) => (
                &["--mount"],
                format!(
                    "mount -t tmpfs -o size=8m,mode=777 small {directory}
                     cd {directory}
                     {preparation}
                     {as_user}"
                ),
            ),
        };
        let scene = scene.program("/usr/bin/sudo");
        let words = ["--preserve-env", "unshare"].into_iter();
        let words = words
            .chain(namespaces.iter().copied())
            .chain(["sh", "-euc"]);
        words.fold(scene, Scene::arg).arg(script)
    }
}

/// Shell that shows the busybox image's SIF as a directory at `mount`, through FUSE, as CVMFS is; the
/// daemon's pid is in `$fuse`. With some of the image's pages damaged, if that is wanted.
pub(crate) fn image_through_fuse(directory: &str, damage: Damage) -> String {
    let sif = images::busybox_sif();
    let damaged = match damage {
        Damage::None => "",
        Damage::Pages => {
            "dd if=/dev/urandom of=image.sif bs=1k seek=$((offset / 1024 + 200)) count=200 conv=notrunc 2>/dev/null"
        }
    };
    format!(
        "cd {directory}
         cp {} image.sif
         offset=$(apptainer sif list image.sif | grep -i squashfs | sed 's/.*|\\([0-9]*\\)-.*/\\1/')
         {damaged}
         mkdir image
         squashfuse_ll -f -o offset=$offset,allow_other image.sif image 2>/dev/null & fuse=$!
         # It dies with this namespace's last user, and that is the pilot.
         (exec 2>/dev/null; while kill -0 $$; do sleep 0.2; done; kill -CONT $fuse; kill -KILL $fuse) & 
         until mountpoint -q image; do sleep 0.05; done",
        sif.display()
    )
}

/// What of an image can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    None,
    Pages,
}
