//! How far the shutdown of children has gone, as a value that only moves forward: no caller can take back a
//! kill.

use tokio::sync::watch;

/// The request to a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShutdownPhase {
    /// Run to the end.
    Run,
    /// Forward this signal, and kill after the grace period.
    Terminate(i32),
    Kill,
}

impl ShutdownPhase {
    /// The order of the phases; all signals are equal.
    pub(super) fn stage(self) -> u8 {
        match self {
            Self::Run => 0,
            Self::Terminate(_) => 1,
            Self::Kill => 2,
        }
    }
}

/// The sender of the [`ShutdownPhase`] for any number of children.
#[derive(Debug)]
pub struct ShutdownSender(watch::Sender<ShutdownPhase>);

impl ShutdownSender {
    /// Starts with [`ShutdownPhase::Run`].
    #[must_use]
    pub fn new() -> Self {
        Self(watch::Sender::new(ShutdownPhase::Run))
    }

    /// A receiver for one child, to pass to [`supervise()`](super::supervise()).
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<ShutdownPhase> {
        self.0.subscribe()
    }

    #[must_use]
    pub fn current(&self) -> ShutdownPhase {
        *self.0.borrow()
    }

    /// Moves on to `next` if that is further, and returns the phase then. A step back, or a second signal,
    /// changes nothing.
    #[expect(clippy::must_use_candidate, reason = "most callers only want the step")]
    pub fn advance(&self, next: ShutdownPhase) -> ShutdownPhase {
        self.0.send_if_modified(|current| {
            let forward = next.stage() > current.stage();
            if forward {
                *current = next;
            }
            forward
        });
        self.current()
    }
}

impl Default for ShutdownSender {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_will_only_moves_forward() {
        let sender = ShutdownSender::new();
        assert_eq!(
            sender.advance(ShutdownPhase::Terminate(15)),
            ShutdownPhase::Terminate(15)
        );
        assert_eq!(
            sender.advance(ShutdownPhase::Terminate(20)),
            ShutdownPhase::Terminate(15)
        );
        assert_eq!(
            sender.advance(ShutdownPhase::Run),
            ShutdownPhase::Terminate(15)
        );
        assert_eq!(sender.advance(ShutdownPhase::Kill), ShutdownPhase::Kill);
        assert_eq!(
            sender.advance(ShutdownPhase::Terminate(15)),
            ShutdownPhase::Kill
        );
    }

    #[test]
    fn a_step_back_wakes_nobody() {
        let sender = ShutdownSender::new();
        sender.advance(ShutdownPhase::Kill);
        let mut view = sender.subscribe();
        view.mark_unchanged();
        sender.advance(ShutdownPhase::Terminate(1));
        assert!(!view.has_changed().expect("the sender lives"));
    }
}
