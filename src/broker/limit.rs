//! How large a message may be. Talks to nobody. Apart, because a task's result is measured before it
//! comes near the broker, while the task's files are still there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The broker's `max_message_size`, in bytes, as far as it is known; shared by all who hold a clone.
#[derive(Debug, Clone)]
pub struct MessageLimit(Arc<AtomicUsize>);

impl MessageLimit {
    /// As configured.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// The most that a message's body may have.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// A broker has said that it takes no more than this.
    pub(super) fn lower(&self, bytes: usize) {
        if self.0.fetch_min(bytes, Ordering::Relaxed) > bytes {
            tracing::warn!(
                bytes,
                "the broker takes smaller messages than EWMS_PILOT_BROKER_MAX_MESSAGE_SIZE says; its limit counts"
            );
        }
    }
}

/// RabbitMQ 4.0's own default, 16 MiB.
impl Default for MessageLimit {
    fn default() -> Self {
        Self::new(16 * 1024 * 1024)
    }
}
