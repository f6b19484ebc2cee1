//! Apptainer: its command line, binds and images. Starts no process but returns an [`Invocation`] for the
//! caller to run, so that everything can be tested without Apptainer.

mod apptainer_places;
mod bind;
mod command;
mod fs_util;
mod gate_script;
mod image_conversion;
mod image_format;
mod image_layout;
mod mounts;
mod probe_script;
mod reference;
mod rootfs;
mod runscript;
mod site_settings;
mod template;

pub use apptainer_places::{ApptainerCandidate, ApptainerPlace, ApptainerPlaces};
pub use bind::{Access, Bind, BindError, check_distinct};
pub use command::{
    Apptainer, ApptainerEnvironment, CommandError, Invocation, ProcMount, RunSpec, UserNamespace,
    exec, run,
};
pub use fs_util::{remove_tree, tree_bytes};
pub use gate_script::{BEGINS, GATE, GatePaths, WAITS, gate_bind, gate_script};
pub use image_conversion::{Conversion, ConversionLock, ImageError, LockOutcome, Resolution};
pub use image_layout::{
    BASE_SCRIPT_TEXT, BaseScript, ImageShape, LIBRARY_SCRIPT, base_script, base_script_of,
};
pub use mounts::{MountChanges, MountPoint, MountTable};
pub use probe_script::{
    ENV_DIR, InImage, LAST, MARK, ProbeFinding, Trials, found, mark, not_past, script,
};
pub use runscript::{RunscriptError, RunscriptNeeds};
pub use site_settings::surely_allows_binds;
pub use template::{
    ContainerPaths, OddPlaceholder, Template, TemplateError, names_outfile, odd_placeholders,
};
