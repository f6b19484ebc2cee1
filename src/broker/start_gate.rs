//! The start signal: how far a pilot's start has come, and what brokers may do by then.
//!
//! A queue that events come from is connected to before it is known that results can be sent: it takes time, and nothing
//! is taken by it.

use tokio::sync::watch;

/// How far a pilot's start has come. Moves forward only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum StartStage {
    /// Brokers may be connected to already, and it doesn't matter if they can't.
    Ahead,
    /// All else is ready: brokers that are away are waited for from now on.
    Ready,
    /// Events may be taken.
    Given,
}

/// What is waited for before the first event is asked for.
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

    /// All but the brokers is ready: those that are away are waited for, as long as is borne, from now on.
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

    /// Waits until events may be taken; without end when the sender is gone. Cancel-safe.
    pub(super) async fn wait(&mut self) {
        self.reached(StartStage::Given).await;
    }

    /// Whether all but the brokers is ready.
    pub(super) fn all_else_is_ready(&self) -> bool {
        *self.0.borrow() >= StartStage::Ready
    }

    /// Waits until all but the brokers is ready, as [`wait`](Self::wait) does.
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
