//! One supervised child: its own session, its limits, the order in which it is told and killed, and
//! the proof that nothing of it is left, even when the pilot is killed: a guardian process sees to
//! that. Knows nothing of tasks, brokers or Apptainer's flags; what it knows of containers is only
//! how their processes hang together, because that decides the order of the kill. Apart, because
//! this is the code that must be right when all else is wrong.

mod capture;
mod countdown;
mod group;
mod guard;
mod guardian;
mod job;
mod kill;
mod notice;
pub mod output;
mod proc;
mod supervise;
mod tend;
mod will;

pub use capture::{CaptureError, Captured, Query, capture};
pub use countdown::Countdown;
pub use group::{Usage, keep_memory_private, spare_memory, survive_file_size_limit};
pub use guard::Guard;
pub use guardian::{GUARDIAN, guard_until_end};
pub use job::{Ended, EndedBy, ExitStatus, HardKill, Job, Leftovers, Limits, SpawnError};
pub use proc::start_ticks;
pub use supervise::supervise;
pub use tend::Stops;
pub use will::{Will, WillSender};
