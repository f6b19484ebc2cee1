//! Entry point: hooks, arguments, run, exit code.

use std::process::ExitCode;

use color_eyre::eyre::Result;

fn main() -> Result<ExitCode> {
    color_eyre::install()?;
    ewms_pilot::run(ewms_pilot::cli::parse())
}
