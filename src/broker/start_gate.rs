//! The start signal: how far a pilot's start has come, and what brokers may be asked for at that stage.
//!
//! The pilot connects to the queues of events before it knows that results can be sent: connecting takes
//! time, and takes no event.

use tokio::sync::watch;

/// The stage of a pilot's start. Moves forward only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum StartStage {
    /// Brokers may be connected to already; a failure doesn't matter yet.
    Ahead,
    /// Only the brokers are missing: those that are away are waited for from now on.
    Ready,
    /// Events may be taken.
    Given,
}

/// The signal that allows the first event to be taken.
#[derive(Debug, Clone)]
pub struct StartSignal(watch::Receiver<StartStage>);

#[derive(Debug)]
pub struct StartSender(watch::Sender<StartStage>);

impl StartSender {
    #[must_use]
    pub fn new() -> (Self, StartSignal) {
        let (start_sender, start_signal) = watch::channel(StartStage::Ahead);
        (Self(start_sender), StartSignal(start_signal))
    }

    /// Everything but the brokers is ready: from now on, brokers that are away are waited for as long as an
    /// outage is tolerated.
    pub fn all_else_is_ready(&self) {
        self.advance(StartStage::Ready);
    }

    pub fn give(&self) {
        self.advance(StartStage::Given);
    }

    fn advance(&self, to: StartStage) {
        self.0.send_modify(|stage| *stage = (*stage).max(to));
    }
}

impl StartSignal {
    #[cfg(test)]
    pub(super) fn given() -> Self {
        Self(watch::channel(StartStage::Given).1)
    }

    /// Waits until events may be taken. Never resolves if the sender is gone before. Cancel-safe.
    pub(super) async fn wait(&mut self) {
        self.reached(StartStage::Given).await;
    }

    /// Whether everything but the brokers is ready.
    pub(super) fn all_else_is_ready(&self) -> bool {
        *self.0.borrow() >= StartStage::Ready
    }

    /// Waits until everything but the brokers is ready, as [`wait`](Self::wait) does.
    pub(super) async fn until_all_else_is_ready(&mut self) {
        self.reached(StartStage::Ready).await;
    }

    async fn reached(&mut self, stage: StartStage) {
        if self.0.wait_for(|now| *now >= stage).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn each_waits_for_its_own_stage() {
        let (start_sender, mut start_signal) = StartSender::new();
        assert_eq!(start_signal.until_all_else_is_ready().now_or_never(), None);
        start_sender.all_else_is_ready();
        assert_eq!(
            start_signal.until_all_else_is_ready().now_or_never(),
            Some(())
        );
        assert_eq!(start_signal.wait().now_or_never(), None);
        start_sender.give();
        assert_eq!(start_signal.wait().now_or_never(), Some(()));
        assert_eq!(StartSignal::given().wait().now_or_never(), Some(()));
        let (start_sender, mut start_signal) = StartSender::new();
        drop(start_sender);
        assert_eq!(start_signal.wait().now_or_never(), None);
    }
}
