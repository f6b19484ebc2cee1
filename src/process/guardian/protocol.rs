//! The messages to the guardian: a child announces itself between clone and exec, and the pilot reports when
//! none of its processes is left. All have the same size, small enough that the kernel never splits or
//! interleaves two of them in a pipe.

use nix::unistd::Pid;

use crate::ids::ProcessGroup;
use crate::process::procfs::StartTime;

/// The argument that makes the binary a guardian.
pub const GUARDIAN: &str = "guardian";

/// A child that must not outlive the pilot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::process) struct ChildId {
    pub(in crate::process) leader: ProcessGroup,
    /// Distinguishes it from a later process with the same pid.
    pub(in crate::process) start: StartTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::process) enum GuardianMessage {
    /// Kill this child when the pilot is gone.
    Born(ChildId),
    /// No process of it is left; the pid may be reused.
    Gone(ChildId),
}

/// The size of every message. `PIPE_BUF`, up to which a write is atomic, is at least 512 bytes.
pub(in crate::process) const SIZE: usize = 16;

const BORN: u32 = 1;
const GONE: u32 = 2;

impl GuardianMessage {
    /// Must not allocate: it is called between clone and exec.
    pub(in crate::process) fn to_bytes(self) -> [u8; SIZE] {
        let (kind, child_id) = match self {
            Self::Born(child_id) => (BORN, child_id),
            Self::Gone(child_id) => (GONE, child_id),
        };
        let mut bytes = [0; SIZE];
        bytes[..4].copy_from_slice(&kind.to_ne_bytes());
        bytes[4..8].copy_from_slice(&child_id.leader.0.as_raw().to_ne_bytes());
        bytes[8..].copy_from_slice(&child_id.start.0.to_ne_bytes());
        bytes
    }

    /// `None` for bytes that no pilot writes.
    pub(in crate::process) fn from_bytes(bytes: [u8; SIZE]) -> Option<Self> {
        let [k0, k1, k2, k3, p0, p1, p2, p3, start @ ..] = bytes;
        let pid = i32::from_ne_bytes([p0, p1, p2, p3]);
        let child_id = ChildId {
            leader: ProcessGroup(Pid::from_raw(pid)),
            start: StartTime(u64::from_ne_bytes(start)),
        };
        // kill(2) takes 0, 1 and negative numbers for many processes.
        match u32::from_ne_bytes([k0, k1, k2, k3]) {
            BORN if pid > 1 => Some(Self::Born(child_id)),
            GONE if pid > 1 => Some(Self::Gone(child_id)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child_id(pid: i32) -> ChildId {
        ChildId {
            leader: ProcessGroup(Pid::from_raw(pid)),
            start: StartTime(u64::MAX - 1),
        }
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        for message in [
            GuardianMessage::Born(child_id(4711)),
            GuardianMessage::Gone(child_id(i32::MAX)),
        ] {
            assert_eq!(
                GuardianMessage::from_bytes(message.to_bytes()),
                Some(message)
            );
        }
    }

    #[test]
    fn a_pid_that_would_kill_many_is_no_notice() {
        for pid in [1, 0, -1, -4711] {
            assert_eq!(
                GuardianMessage::from_bytes(GuardianMessage::Born(child_id(pid)).to_bytes()),
                None
            );
        }
        assert_eq!(GuardianMessage::from_bytes([0xff; SIZE]), None);
    }
}
