//! The guardian process: the same binary, which outlives the pilot until it has killed the pilot's
//! containers. The end of its pipe means the end of the pilot, however that died.
//!
//! A child also holds the pipe open until it has announced itself. So the pipe can't end before every child's
//! message is in it, and a child whose exec hangs doesn't hold it open.

use std::io::Read;

use super::protocol::{ChildId, GuardianMessage, SIZE};
use crate::process::hard_kill::{KillTarget, kill_all};

/// Reads messages until the pilot is gone, then kills the remaining children.
pub fn guard_until_end(mut pipe: impl Read) {
    let mut children: Vec<ChildId> = Vec::new();
    let mut bytes = [0; SIZE];
    // A failing read counts as the end: no more messages will come.
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
