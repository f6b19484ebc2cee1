//! How large a message may be. A task's result is measured before it comes near the broker, while the task's files are
//! still there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a message may have at most, in bytes, as far as it is known; shared by all who hold a clone. None
/// is guessed: brokers differ, and operators set it.
#[derive(Debug, Clone)]
pub struct MessageLimit(Arc<AtomicUsize>);

impl MessageLimit {
    /// As configured, if it was.
    #[must_use]
    pub fn of(bytes: Option<usize>) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes.unwrap_or(usize::MAX))))
    }

    /// The most that a message's body may have; `usize::MAX` while no limit is known.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// A broker has said that it takes no more than this.
    pub(super) fn lower(&self, bytes: usize) {
        if self.0.fetch_min(bytes, Ordering::Relaxed) > bytes {
            tracing::warn!(
                bytes,
                "the broker takes no larger messages than this: results are measured by it from now on"
            );
        }
    }
}

impl Default for MessageLimit {
    fn default() -> Self {
        Self::of(None)
    }
}
