//! The EWMS pilot: takes events from a queue, runs a container image once for each, publishes what
//! it wrote, and only then acknowledges the event.
//!
//! # Layout
//!
//! | module | what it is |
//! | --- | --- |
//! | [`cli`] | arguments and `--help`; clap stops here |
//! | [`config`] | environment and env file, parsed once into a [`config::Config`] |
//! | [`pilot`] | the event loop: the only place that knows acks |
//! | [`task`] | one event in, one report out |
//! | [`broker`] | where events come from and results go: RabbitMQ or a spool directory |
//! | [`codec`] | message body ⇄ payload ⇄ infile and outfile |
//! | [`container`] | Apptainer's command line, images, and what its stderr means |
//! | [`process`] | one supervised child: session, signals, grace, kill, reap |
//! | [`stats`] | tallies, run-time statistics and their histogram |
//! | [`telemetry`] | logging and the progress line |
//! | [`fault`], [`exit`], [`ids`], [`signals`] | error names, exit codes, identities, signals of the pilot |
//!
//! A module uses only those below it: `cli` → `pilot` → `task` → `broker`, `container`, `process`,
//! `codec` (which never import each other) → `ids`, `fault`, `exit`. A test holds them to it.

pub mod broker;
pub mod cli;
pub mod codec;
pub mod config;
pub mod container;
pub mod exit;
pub mod fault;
pub mod ids;
pub mod pilot;
pub mod process;
pub mod signals;
pub mod stats;
pub mod task;
pub mod telemetry;
