//! Results that their queue refuses for now: when each is sent again, and for how long. The pilot's loop is
//! told, and takes no events meanwhile.
//!
//! A full queue, a deleted queue or a full disk is the fault of neither the result nor its event. So such a
//! refusal is tolerated like a broker that is away.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::{Instant, sleep};

use super::rabbitmq::pause_after;
use super::result_acceptance::RefusedCount;
use super::{Endpoint, OutagePolicy, PublishError};

/// The time since which one queue has refused everything; shared by all results for it.
#[derive(Debug, Clone, Default)]
pub(super) struct RefusesSince(Arc<Mutex<Option<Instant>>>);

impl RefusesSince {
    pub(super) fn takes(&self) {
        *self.lock() = None;
    }

    /// Whether the queue refused the last result.
    pub(super) fn refuses(&self) -> bool {
        self.lock().is_some()
    }

    fn begin(&self) -> Instant {
        *self.lock().get_or_insert_with(Instant::now)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next step for a result that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextTry {
    /// Send it again now.
    Now,
    /// Give it up: it was refused for as long as an outage is tolerated.
    None,
}

/// One result that was refused. No event is taken while this exists. If the result is given up, none is taken
/// any more, for that ends the pilot.
#[derive(Debug)]
pub(super) struct RefusedResult {
    count: RefusedCount,
    outage_policy: OutagePolicy,
    times: u32,
    next: NextTry,
    began: Instant,
}

impl RefusedResult {
    pub(super) fn new(outage_policy: &OutagePolicy) -> Self {
        let count = outage_policy.refused_count().clone();
        count.add();
        Self {
            count,
            outage_policy: outage_policy.clone(),
            times: 0,
            next: NextTry::Now,
            began: Instant::now(),
        }
    }

    /// Waits until the result is due again. The waits grow, and the last try is at the very end.
    pub(super) async fn next_try(
        &mut self,
        at: &Endpoint,
        since: &RefusesSince,
        error: &PublishError,
    ) -> NextTry {
        self.next = self.wait(at, since, error).await;
        self.next
    }

    async fn wait(&mut self, at: &Endpoint, since: &RefusesSince, error: &PublishError) -> NextTry {
        let refused_for = since.begin().elapsed();
        let left = self
            .outage_policy
            .reconnect_within()
            .saturating_sub(refused_for);
        let refused_secs = refused_for.as_secs();
        if left.is_zero() {
            tracing::error!(%at, %error, refused_secs, "a result is refused still: it is not sent again");
            return NextTry::None;
        }
        self.times += 1;
        let pause = pause_after(self.times).min(left);
        tracing::warn!(
            %at, %error, refused_secs, pause_ms = pause.as_millis(),
            "the broker refused a result: it will be sent again, and no event is taken meanwhile"
        );
        tokio::select! {
            biased;
            () = self.outage_policy.short_wait_over_since(self.began) => {
                tracing::error!(%at, %error, refused_secs, "a result is refused still, and the pilot must end");
                NextTry::None
            }
            () = sleep(pause) => NextTry::Now,
        }
    }
}

impl Drop for RefusedResult {
    fn drop(&mut self) {
        match self.next {
            NextTry::Now => self.count.remove(),
            NextTry::None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::broker::outage_policy::SHORT_WAIT;
    use crate::broker::{Direction, ResultAcceptance};

    fn at() -> Endpoint {
        Endpoint {
            direction: Direction::Outgoing,
            address: "mq:5672".into(),
            queues: vec!["results".into()],
        }
    }

    fn nacked() -> PublishError {
        PublishError::Nacked {
            queue: "results".into(),
        }
    }

    fn outage_policy(within: u64) -> OutagePolicy {
        OutagePolicy::new(Duration::from_secs(within), "unsent".into())
    }

    async fn result_acceptance(
        outage_policy: &OutagePolicy,
        known: ResultAcceptance,
    ) -> Option<ResultAcceptance> {
        let mut watch = outage_policy.result_acceptance();
        tokio::time::timeout(Duration::ZERO, watch.differs_from(known))
            .await
            .ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_result_is_tried_for_as_long_as_an_outage_is_borne_and_at_its_end() {
        let (outage_policy, since) = (outage_policy(600), RefusesSince::default());
        let began = Instant::now();
        let mut refused = RefusedResult::new(&outage_policy);
        let mut tries = 0;
        while refused.next_try(&at(), &since, &nacked()).await == NextTry::Now {
            tries += 1;
            assert_eq!(
                result_acceptance(&outage_policy, ResultAcceptance::Takes).await,
                Some(ResultAcceptance::Refuses)
            );
        }
        assert_eq!(began.elapsed().as_secs(), 600);
        // At least one each half minute; the first ones come sooner.
        assert!((20..1_000).contains(&tries), "{tries}");
        // The next result's outage is the same one.
        let mut next = RefusedResult::new(&outage_policy);
        assert_eq!(next.next_try(&at(), &since, &nacked()).await, NextTry::None);
        drop((refused, next));
        assert_eq!(
            result_acceptance(&outage_policy, ResultAcceptance::Refuses).await,
            None,
            "the pilot ends"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_took_a_result_meanwhile_has_all_the_time_again() {
        let (outage_policy, since) = (outage_policy(30), RefusesSince::default());
        let mut refused = RefusedResult::new(&outage_policy);
        for _ in 0..100 {
            assert_eq!(
                refused.next_try(&at(), &since, &nacked()).await,
                NextTry::Now
            );
            since.takes();
        }
        drop(refused);
        let now = result_acceptance(&outage_policy, ResultAcceptance::Refuses).await;
        assert_eq!(now, Some(ResultAcceptance::Takes));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pilot_that_must_end_waits_no_longer() {
        let (outage_policy, since) = (outage_policy(600), RefusesSince::default());
        let mut refused = RefusedResult::new(&outage_policy);
        outage_policy.shorten_waits();
        let began = Instant::now();
        while refused.next_try(&at(), &since, &nacked()).await == NextTry::Now {
            assert!(began.elapsed() <= 2 * SHORT_WAIT, "it waits on");
        }
    }
}
