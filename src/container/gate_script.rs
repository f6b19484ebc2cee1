//! The gate of a container that waits for its event: a script that Apptainer's built-in shell sources before
//! those of the image, when all namespaces, mounts and processes are made and nothing of the image has run. It
//! waits for a line from a FIFO, so the task starts as soon as the pilot writes one.
//!
//! It uses only built-in commands of that shell and leaves no trace in the task's environment: Apptainer tells a
//! container its binds in two variables, and the script sets them to what they would be without the gate.
//! Without its FIFOs, which the pilot takes away once the container waits, it lets everything pass. So a container
//! that the task starts itself is not held.

use std::path::Path;

use super::command::needs_mount_flag;
use super::{Bind, ENV_DIR};

/// The script's name in [`ENV_DIR`], which sorts before all others.
pub const GATE: &str = "!ewms-pilot-gate.sh";
/// The script reports with this byte that the container waits.
pub const WAITS: u8 = b'w';
/// And with this one that it was let go: the image's own code begins.
pub const BEGINS: u8 = b'b';

/// The FIFOs, as the container sees them.
#[derive(Debug, Clone, Copy)]
pub struct GatePaths<'a> {
    /// Opened with a line from the pilot.
    pub opens: &'a str,
    /// For [`WAITS`] and [`BEGINS`].
    pub reports: &'a str,
}

/// The gate's script, for a container with these binds besides the gate's own.
#[must_use]
pub fn gate_script(paths: GatePaths<'_>, binds: &[Bind]) -> String {
    let [opens, reports] = [paths.opens, paths.reports].map(|path| shell_words::quote(path));
    let (last, first): (Vec<_>, Vec<_>) = binds.iter().partition(|bind| needs_mount_flag(bind));
    let targets = first.into_iter().chain(last);
    let targets: Vec<_> = targets
        .map(|bind| bind.target().to_string_lossy())
        .collect();
    let targets = targets.join(",");
    let targets = shell_words::quote(&targets);
    let (waits, begins) = (char::from(WAITS), char::from(BEGINS));
    format!(
        "if test -p {opens} && test -p {reports}; then\n\
         {{ echo {waits}; read -r ewms_pilot_gate || exit 1; echo {begins}; }} <{opens} >{reports}\n\
         unset ewms_pilot_gate\n\
         export APPTAINER_BIND={targets} SINGULARITY_BIND={targets}\n\
         fi\n"
    )
}

/// Binds the script at `path` as the gate.
#[must_use]
pub fn gate_bind(path: &Path) -> Bind {
    Bind::script(path.to_owned(), format!("{ENV_DIR}/{GATE}"))
}
