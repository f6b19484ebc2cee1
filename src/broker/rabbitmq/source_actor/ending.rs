//! How a supervisor stops and ends. Apart from its other half, because here the order of steps decides
//! whether an acknowledgement is lost.

use std::time::Duration;

use tokio::time::Instant;

use super::{ConnectState, IntakePhase, SourceActor};
use crate::broker::BrokerError;

pub(super) const CLOSE_SESSION_WITHIN: Duration = Duration::from_secs(25);

impl SourceActor {
    /// Stops the session's consumer, unless it may still bring events that are in hand.
    pub(super) fn stop_intake(&mut self) {
        match (&self.link, self.intake) {
            (ConnectState::Up(session), IntakePhase::Open | IntakePhase::Recovering) => {
                if self.recover_until.is_some() {
                    self.intake = IntakePhase::Recovering;
                } else {
                    session.stop();
                    self.intake = IntakePhase::Stopping;
                }
            }
            (ConnectState::Up(_), IntakePhase::Stopping | IntakePhase::Stopped)
            | (_, IntakePhase::Recovering) => {}
            (_, _) => self.intake = IntakePhase::Recovering,
        }
    }

    /// Whether nothing more can be gained by waiting.
    pub(super) fn is_ready_to_close(&self) -> bool {
        let Some((_, until)) = &self.closing else {
            return false;
        };
        let is_late = *until <= Instant::now();
        let owed = self.desk.with(|state| state.in_flight.owed());
        match &self.link {
            ConnectState::Up(_) => is_late || self.intake == IntakePhase::Stopped || owed == 0,
            ConnectState::Opening(_) | ConnectState::Pausing(_) => is_late || owed == 0,
            ConnectState::Idle => true,
        }
    }

    pub(super) async fn close(&mut self) -> Result<(), BrokerError> {
        if let ConnectState::Up(_) = &self.link {
            self.release_ready();
        }
        let is_late = self
            .closing
            .as_ref()
            .is_none_or(|(_, until)| *until <= Instant::now());
        if let ConnectState::Up(session) = std::mem::replace(&mut self.link, ConnectState::Idle)
            && let Err(error) = session.close(CLOSE_SESSION_WITHIN).await
        {
            if !is_late {
                return Err(error);
            }
            tracing::warn!(%error, "the incoming queue was not closed in order");
            self.doubt(self.desk.with(|state| state.in_flight.session_lost()));
        }
        let owed = self.desk.with(|state| state.in_flight.owed());
        if owed > 0 {
            tracing::warn!(
                at = %self.at, events = owed,
                "events are done but could not be acknowledged: they will be delivered again, and \
                 their outputs may be there twice"
            );
            let owed = u64::try_from(owed).unwrap_or(u64::MAX);
            self.outage_policy
                .count(|stats| stats.unacknowledged += owed);
        }
        if let Some((done, _)) = self.closing.take() {
            let _gone = done.send(());
        }
        Ok(())
    }
}
