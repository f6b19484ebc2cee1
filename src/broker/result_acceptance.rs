//! Whether results are accepted, as far as the pilot knows: its loop takes no event while a refused result
//! waits.

use tokio::sync::watch;

/// Whether queues accept results, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultAcceptance {
    /// No result was refused, or all refused ones were accepted since.
    Takes,
    /// At least one refused result waits or was given up.
    Refuses,
}

/// The number of refused results that wait or were given up, over all queues of a pilot.
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

/// Reports when results are refused and when they are accepted again.
#[derive(Debug)]
pub struct ResultAcceptanceWatch(watch::Receiver<usize>);

impl ResultAcceptanceWatch {
    /// Resolves when the state differs from `known`. Cancel-safe.
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
