//! Leave to take events, or to touch the directory that they are in. Talks to nobody. Apart, because a queue that events come from is connected to
//! before it is known that results can be sent: it takes time, and nothing is taken by it.

use tokio::sync::watch;

/// What is waited for before the first event is asked for.
#[derive(Debug, Clone)]
pub struct Leave(watch::Receiver<bool>);

/// Who gives it.
#[derive(Debug)]
pub struct LeaveGiver(watch::Sender<bool>);

impl LeaveGiver {
    /// Nobody has leave yet.
    #[must_use]
    pub fn new() -> (Self, Leave) {
        let (giver, leave) = watch::channel(false);
        (Self(giver), Leave(leave))
    }

    /// From now on everybody has.
    pub fn give(&self) {
        self.0.send_replace(true);
    }
}

impl Leave {
    /// For whoever has it already.
    pub(super) fn given() -> Self {
        Self(watch::channel(true).1)
    }

    /// Waits for it; for ever when nobody can give it any more. Cancel-safe.
    pub(super) async fn wait(&mut self) {
        if self.0.wait_for(|given| *given).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn nobody_goes_on_without_leave() {
        let (giver, mut leave) = LeaveGiver::new();
        assert_eq!(leave.wait().now_or_never(), None);
        giver.give();
        assert_eq!(leave.wait().now_or_never(), Some(()));
        assert_eq!(Leave::given().wait().now_or_never(), Some(()));
        let (giver, mut leave) = LeaveGiver::new();
        drop(giver);
        assert_eq!(leave.wait().now_or_never(), None);
    }
}
