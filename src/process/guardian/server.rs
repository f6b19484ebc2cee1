//! The guardian's own end: a process of the same binary that outlives the pilot by the time it takes to
//! kill the pilot's containers. The end of its pipe is the end of the pilot, however that died.
//!
//! A child of the pilot holds the pipe as well until it has announced itself on it. So no end of the pipe
//! comes before the message of every child, and none is held up by a child whose exec hangs.

use std::io::Read;

use super::protocol::{ChildId, GuardianMessage, SIZE};
use crate::process::hard_kill::{KillTarget, kill_all};

/// Reads messages until the pilot is gone, then kills the children that it left. Sleeps in between.
pub fn guard_until_end(mut pipe: impl Read) {
    let mut children: Vec<ChildId> = Vec::new();
    let mut bytes = [0; SIZE];
    // A read that fails is as good as an end: nothing more will be heard from the pilot.
    while pipe.read_exact(&mut bytes).is_ok() {
        match GuardianMessage::from_bytes(bytes) {
            Some(GuardianMessage::Born(child)) if !children.contains(&child) => {
                children.push(child);
            }
            Some(GuardianMessage::Gone(child)) => children.retain(|other| *other != child),
            Some(GuardianMessage::Born(_)) | None => {}
        }
    }
    kill_all(children.into_iter().map(KillTarget::begin).collect());
}
