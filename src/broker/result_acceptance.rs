//! Whether results are taken, as far as the pilot knows: its loop takes no event while one was refused and waits.

use tokio::sync::watch;

/// Whether results go out, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultAcceptance {
    /// No result was refused, or all those were taken since.
    Takes,
    /// At least one result waits, having been refused.
    Refuses,
}

/// How many results wait that were refused; all queues of a pilot together.
#[derive(Debug, Clone)]
pub(super) struct RefusedCount(watch::Sender<usize>);

impl RefusedCount {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    pub(super) fn add(&self) {
        self.0.send_modify(|count| *count += 1);
    }

    pub(super) fn remove(&self) {
        self.0.send_modify(|count| *count -= 1);
    }

    pub(super) fn watch(&self) -> ResultAcceptanceWatch {
        ResultAcceptanceWatch(self.0.subscribe())
    }
}

/// Tells when results are refused and when they are taken again.
#[derive(Debug)]
pub struct ResultAcceptanceWatch(watch::Receiver<usize>);

impl ResultAcceptanceWatch {
    /// Resolves when it is otherwise than `known`. Cancel-safe.
    pub async fn differs_from(&mut self, known: ResultAcceptance) -> ResultAcceptance {
        let changed = self.0.wait_for(|count| of(*count) != known).await;
        match changed.map(|count| of(*count)) {
            Ok(acceptance) => acceptance,
            // All queues are closed.
            Err(_closed) => std::future::pending().await,
        }
    }
}

fn of(refused: usize) -> ResultAcceptance {
    match refused {
        0 => ResultAcceptance::Takes,
        _ => ResultAcceptance::Refuses,
    }
}
