//! The largest message that a broker takes. A task's result is measured before it is sent, while the task's
//! files are still there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The largest message body, in bytes, as far as it is known; clones share it. There is no built-in limit:
/// brokers differ, and operators set it.
#[derive(Debug, Clone)]
pub struct MessageLimit(Arc<AtomicUsize>);

impl MessageLimit {
    /// The configured limit, if there is one.
    #[must_use]
    pub fn of(bytes: Option<usize>) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes.unwrap_or(usize::MAX))))
    }

    /// The limit in bytes; `usize::MAX` while none is known.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Lowers the limit to what a broker has reported.
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
