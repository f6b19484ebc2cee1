//! The task images that the execution point brings along. All are read-only, and run their arguments
//! as a command. An image that has to be written is a copy, made by the test that needs it.

use std::path::{Path, PathBuf};

/// A sandbox directory, built by Apptainer, with nothing but busybox: `sh`, `cat`, `env`, `setsid`.
pub(crate) fn busybox() -> PathBuf {
    present("/images/busybox")
}

/// The same as a SIF file.
pub(crate) fn busybox_sif() -> PathBuf {
    present("/images/busybox.sif")
}

/// A sandbox directory with Python 3, a real bash and coreutils.
pub(crate) fn python() -> PathBuf {
    present("/images/python")
}

fn present(path: &str) -> PathBuf {
    assert!(
        Path::new(path).exists(),
        "there is no {path}: run the tests with scripts/test, in the execution point"
    );
    path.into()
}
