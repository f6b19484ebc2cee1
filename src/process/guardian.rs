//! The guardian: a process of the same binary that outlives the pilot by the time it takes to kill
//! the pilot's containers. Knows only its pipe, whose other end nobody but the pilot holds: the end of
//! the file is the end of the pilot, however it died. Apart, because no code of the pilot runs then.
//!
//! A child holds the pipe as well until its exec, and says before that it is there. So no end of the
//! file comes before the notice of every child.

use std::io::Read;

use super::guardian_message::{ChildId, GuardianMessage, SIZE};
use super::hard_kill::{KillTarget, kill_all};

/// The word by which the binary is told to be a guardian.
pub const GUARDIAN: &str = "guardian";

/// Reads notices until the pilot is gone, then kills what it left. Sleeps in between.
pub fn guard_until_end(mut pipe: impl Read) {
    let mut child_ids: Vec<ChildId> = Vec::new();
    let mut bytes = [0; SIZE];
    // A read that fails is as good as an end: nothing more will be heard from the pilot.
    while pipe.read_exact(&mut bytes).is_ok() {
        match GuardianMessage::from_bytes(bytes) {
            Some(GuardianMessage::Born(child_id)) if !child_ids.contains(&child_id) => {
                child_ids.push(child_id);
            }
            Some(GuardianMessage::Gone(child_id)) => child_ids.retain(|other| *other != child_id),
            Some(GuardianMessage::Born(_)) | None => {}
        }
    }
    kill_all(child_ids.into_iter().map(KillTarget::begin).collect());
}
