//! Apptainer: how it is called, what may be bound into a container, how an image becomes a directory,
//! and what its stderr means. Starts no process itself: it gives an [`Invocation`], and who has it
//! runs it. Apart, so that everything learned about Apptainer stands in one place and is tested
//! without it.

mod bind;
mod blame;
mod command;
mod diagnose;
mod image;
mod image_format;
mod image_layout;
mod mounts;
mod probe_script;
mod reference;
mod rootfs;
mod runscript;
mod template;
mod tree;

pub use bind::{Access, Bind, BindError, check_distinct};
pub use blame::{Answer, NO_COMMAND, Suspicion, answer, find_cause, suspect};
pub use command::{
    Apptainer, CommandError, Invocation, LocateError, ProcMount, RunSpec, Surroundings,
    check_variable, exec, is_settable, run,
};
pub use diagnose::{READ, apptainer_error, failure_text, reason, scrub, timeout_reason};
pub use image::{Conversion, ImageError, Locked, Plan, Turn};
pub use image_layout::{ImageShape, base_script, base_script_is_missing};
pub use mounts::{MountPoint, MountTable};
pub use probe_script::{
    ENV_DIR, Found, InImage, LAST, MARK, Trials, found, mark, not_past, script,
};
pub use runscript::{Needs, RunscriptError};
pub use template::{Places, Template, TemplateError, names_outfile};
pub use tree::{remove_tree, tree_bytes};
