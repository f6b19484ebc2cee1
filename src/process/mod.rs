//! One supervised child: its own session, its limits, the order of its signals and kill, and the proof that
//! none of its processes is left, even if the pilot is killed: [`GuardianHandle`].
//!
//! The only knowledge of containers here is how their processes are related, because that decides the order
//! of the kill. All `unsafe` code of the pilot is in this module.

mod capture;
mod child;
mod guardian;
mod hard_kill;
mod maintenance;
pub mod output;
mod own_process;
pub mod procfs;
mod shutdown;
mod signal;
mod spawn;
mod supervise;
mod suspend_aware_timer;

pub use capture::{CaptureError, CaptureQuery, Captured, capture};
pub use child::{
    ChildExit, ChildLimits, ChildPreparation, ChildSpec, HardKill, Leftovers, SpawnError,
    StartFailure, StopCause,
};
pub use guardian::client::GuardianHandle;
pub use guardian::protocol::GUARDIAN;
pub use guardian::server::guard_until_end;
pub use maintenance::StopSignals;
pub use own_process::{
    give_idle_memory_back, keep_memory_private, spare_memory, survive_file_size_limit,
};
pub use procfs::start_ticks;
pub use shutdown::{ShutdownPhase, ShutdownSender};
pub use signal::{ExitStatus, Usage};
pub use supervise::{prepare_and_supervise, supervise};
pub use suspend_aware_timer::SuspendAwareTimer;
