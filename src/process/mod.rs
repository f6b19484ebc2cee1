//! One supervised child: its own session, its limits, the order in which it is told and killed, and
//! the proof that nothing of it is left. Knows nothing of tasks, brokers or Apptainer's flags; what
//! it knows of containers is only how their processes hang together, because that decides the
//! order of the kill. Apart, because this is the code that must be right when all else is wrong.

mod capture;
mod group;
mod job;
pub mod output;
mod supervise;
mod will;

pub use capture::{CaptureError, Captured, Query, capture};
pub use group::Usage;
pub use job::{Ended, EndedBy, ExitStatus, HardKill, Job, Leftovers, Limits, SpawnError};
pub use supervise::supervise;
pub use will::{Will, WillSender};
