//! One supervised child: its own session, its limits, the order in which it is told and killed, and
//! the proof that nothing of it is left, even when the pilot is killed: a guardian process sees to
//! that. Knows nothing of tasks, brokers or Apptainer's flags; what it knows of containers is only
//! how their processes hang together, because that decides the order of the kill. Apart, because
//! this is the code that must be right when all else is wrong.

mod capture;
mod child;
mod guard;
mod guardian;
mod guardian_message;
mod hard_kill;
mod maintenance;
pub mod output;
mod procfs;
mod shutdown;
mod spawn;
mod supervise;
mod suspend_aware_timer;

pub use capture::{CaptureError, Captured, Query, capture};
pub use child::{
    ChildExit, ChildLimits, ChildSpec, ExitStatus, HardKill, Leftovers, SpawnError, StopCause,
};
pub use guard::GuardianHandle;
pub use guardian::{GUARDIAN, guard_until_end};
pub use maintenance::StopSignals;
pub use procfs::start_ticks;
pub use shutdown::{ShutdownPhase, ShutdownSender};
pub use spawn::{Usage, keep_memory_private, spare_memory, survive_file_size_limit};
pub use supervise::supervise;
pub use suspend_aware_timer::SuspendAwareTimer;
