//! When a connection is tried again and when the broker is given up: one policy for the first connection, for
//! events and for results.
//!
//! A broker that accepts connections and soon loses each one is of no more use than a broker that is away. So
//! an outage does not end with the next connection but with the next healthy one: one that did real work (the
//! broker has read an acknowledgement, or confirmed a result), or that lived for [`HEALTHY_AFTER`]. Until
//! then the pauses grow, and the time limit of the outage runs on.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

use crate::backoff;
use crate::broker::{BrokerError, StartSignal};

/// A connection that lived so long is healthy, even if there was nothing to do.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);
/// How long a broker that was never reached is tried at the start: nothing is held yet, and a wrong address
/// should be reported soon.
const FIRST_WITHIN: Duration = Duration::from_secs(20);
/// The number of tries for a connection that is needed for a moment only.
const TRIES: u32 = 3;

/// The pause between two tries, before it is shortened at random.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What a lost connection had achieved.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionLife {
    pub(super) lasted: Duration,
    /// The number of acknowledgements that the broker has read, or results that it confirmed.
    pub(super) work: u64,
}

/// The present outage of one direction, if there is one.
#[derive(Debug, Clone)]
pub(super) struct Reconnect {
    limit: Duration,
    attempts: u32,
    unhealthy_since: Option<Instant>,
}

impl Reconnect {
    /// Gives up after `limit` without a healthy connection.
    pub(super) fn within(limit: Duration) -> Self {
        Self {
            limit,
            attempts: 0,
            unhealthy_since: None,
        }
    }

    /// Counts a lost connection. Returns the pause before the next try.
    pub(super) fn lost(&mut self, life: ConnectionLife) -> Duration {
        if life.work > 0 || life.lasted >= HEALTHY_AFTER {
            *self = Self::within(self.limit);
        }
        self.failed()
    }

    /// Counts a failed try. Returns the pause before the next one.
    pub(super) fn failed(&mut self) -> Duration {
        self.unhealthy_since.get_or_insert_with(Instant::now);
        let pause = pause_after(self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        pause
    }

    /// The number of losses and failed tries since the last healthy connection.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The time without a healthy connection.
    pub(super) fn unhealthy_for(&self) -> Duration {
        self.unhealthy_since
            .map(|since| since.elapsed())
            .unwrap_or_default()
    }

    /// When the broker is given up, unless a connection turns out healthy before.
    pub(super) fn give_up_at(&self) -> Option<Instant> {
        self.unhealthy_since?.checked_add(self.limit)
    }
}

/// What to wait for before a try.
#[derive(Debug, Clone)]
pub(super) enum BeforeTry {
    Pause(Duration),
    AllElseIsReady(StartSignal),
}

/// How patiently a first connection is made.
#[derive(Debug)]
pub(super) struct FirstConnection {
    start: Option<StartSignal>,
    reconnect: Reconnect,
    reconnect_within: Duration,
}

impl FirstConnection {
    /// For a pilot. A failure before everything else is ready doesn't count: an init container may take
    /// hours, in which brokers are restarted. After that, a broker that once let us in is waited for as after
    /// any loss.
    pub(super) fn of_pilot(start: &StartSignal, reconnect_within: Duration) -> Self {
        Self {
            start: Some(start.clone()),
            reconnect: Reconnect::within(FIRST_WITHIN),
            reconnect_within,
        }
    }

    /// For a connection that is closed again soon.
    pub(super) fn for_a_moment() -> Self {
        Self {
            start: None,
            reconnect: Reconnect::within(FIRST_WITHIN),
            reconnect_within: FIRST_WITHIN,
        }
    }

    /// The broker let us in: its address and the credentials are right.
    pub(super) fn reached(&mut self) {
        let limit = self.reconnect.limit.max(self.reconnect_within);
        self.reconnect.limit = limit;
    }

    /// Resolves when everything but the brokers is ready.
    pub(super) async fn all_else_is_ready(&mut self) {
        if let Some(start) = &mut self.start {
            start.until_all_else_is_ready().await;
        }
    }

    /// Counts a failed try. Returns what to wait for before the next one; `None` if there is none.
    pub(super) fn failed(&mut self, error: &BrokerError) -> Option<BeforeTry> {
        if let Some(start) = &self.start
            && !start.all_else_is_ready()
        {
            tracing::warn!(%error, "no connection yet: will try again when all else is ready");
            return Some(BeforeTry::AllElseIsReady(start.clone()));
        }
        if error.knows_us() && self.start.is_some() {
            self.reached();
        }
        let pause = self.reconnect.failed();
        let tried = self.reconnect.attempts();
        let too_late = self
            .reconnect
            .give_up_at()
            .is_some_and(|end| Instant::now() + pause >= end);
        let was_last = self.start.is_none() && tried >= TRIES;
        if !error.is_transient() || too_late || was_last {
            return None;
        }
        tracing::warn!(%error, tried, pause_ms = pause.as_millis(), "will try again");
        Some(BeforeTry::Pause(pause))
    }
}

/// An actor's first connection, until the handle is told its outcome.
pub(super) struct Starting {
    first: FirstConnection,
    before: Option<BeforeTry>,
    ready: oneshot::Sender<Result<(), BrokerError>>,
}

impl Starting {
    pub(super) fn new(
        first: FirstConnection,
        ready: oneshot::Sender<Result<(), BrokerError>>,
    ) -> Self {
        Self {
            first,
            before: None,
            ready,
        }
    }

    /// What to wait for before the next try; `None` before the first one.
    pub(super) fn before_try(&mut self) -> Option<BeforeTry> {
        self.before.take()
    }

    /// As [`FirstConnection::reached`].
    pub(super) fn reached(&mut self) {
        self.first.reached();
    }

    /// As [`FirstConnection::all_else_is_ready`].
    pub(super) async fn all_else_is_ready(&mut self) {
        self.first.all_else_is_ready().await;
    }

    pub(super) fn succeeded(self) {
        // The pilot may have stopped waiting: then the handle is dropped.
        let _gone = self.ready.send(Ok(()));
    }

    /// Counts a failed try. `None` if it was the last, which the handle is told.
    pub(super) fn failed(mut self, error: BrokerError) -> Option<Self> {
        let Some(before) = self.first.failed(&error) else {
            // The pilot may have stopped waiting.
            let _gone = self.ready.send(Err(error));
            return None;
        };
        self.before = Some(before);
        Some(self)
    }
}

impl BeforeTry {
    pub(super) async fn over(self) {
        match self {
            Self::Pause(pause) => tokio::time::sleep(pause).await,
            Self::AllElseIsReady(mut start) => start.until_all_else_is_ready().await,
        }
    }
}

/// The pause after `tried` failed tries. Zero stands for the pause after a loss.
pub(in crate::broker) fn pause_after(tried: u32) -> Duration {
    spread(tried, Uuid::new_v4().as_u128())
}

/// 1 s, 2 s … 30 s, each shortened at random by up to nine tenths, so that a thousand pilots that lost a
/// broker at the same moment come back one by one. Shortened by only up to a half, nearly half of them came
/// within one second (`scripts/bench --only h`).
fn spread(tried: u32, random: u128) -> Duration {
    let longest = backoff::exponential(SHORTEST_PAUSE, LONGEST_PAUSE, tried.into());
    let thousandths = 100 + u32::try_from(random % 901).unwrap_or(0);
    longest * thousandths / 1000
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::broker::{Direction, Endpoint};

    const LIMIT: Duration = Duration::from_mins(15);

    fn at() -> Endpoint {
        Endpoint {
            direction: Direction::Incoming,
            address: "mq:5672".into(),
            queues: vec!["q".into()],
        }
    }

    fn refused() -> BrokerError {
        BrokerError::Refused {
            at: at(),
            detail: String::new(),
        }
    }

    fn lasted(seconds: u64, work: u64) -> ConnectionLife {
        ConnectionLife {
            lasted: Duration::from_secs(seconds),
            work,
        }
    }

    #[test]
    fn pauses_grow_and_are_spread() {
        let cases = [
            (0, 100, 1_000),
            (1, 100, 1_000),
            (2, 200, 2_000),
            (5, 1_600, 16_000),
            (6, 3_000, 30_000),
            (1_000, 3_000, 30_000),
        ];
        for (tried, least, most) in cases {
            for random in [0, 1, 450, 900, u128::MAX] {
                let pause = spread(tried, random).as_millis();
                assert!((least..=most).contains(&pause), "{pause} after {tried}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_die_young_and_idle_are_one_outage_that_ends() {
        let mut reconnect = Reconnect::within(LIMIT);
        let began = Instant::now();
        let mut connections = 0_u32;
        loop {
            let pause = reconnect.lost(lasted(2, 0));
            connections += 1;
            if reconnect
                .give_up_at()
                .is_some_and(|end| Instant::now() >= end)
            {
                break;
            }
            advance(pause + Duration::from_secs(2)).await;
        }
        assert!(began.elapsed() < LIMIT + LONGEST_PAUSE + Duration::from_secs(2));
        assert_eq!(reconnect.attempts(), connections, "pauses grew");
    }

    #[tokio::test(start_paused = true)]
    async fn work_or_a_long_life_ends_an_outage() {
        for healthy in [lasted(2, 1), lasted(30, 0)] {
            let mut reconnect = Reconnect::within(LIMIT);
            reconnect.lost(lasted(2, 0));
            advance(LIMIT).await;
            reconnect.lost(healthy);
            assert_eq!(reconnect.attempts(), 1);
            assert_eq!(reconnect.give_up_at(), Some(Instant::now() + LIMIT));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_was_never_reached_is_told_of_soon_and_one_that_was_is_waited_for() {
        for (reaches, waited) in [(false, FIRST_WITHIN), (true, LIMIT)] {
            let (sender, start) = crate::broker::StartSender::new();
            let mut first = FirstConnection::of_pilot(&start, LIMIT);
            let before = first.failed(&refused());
            assert!(matches!(before, Some(BeforeTry::AllElseIsReady(_))));
            sender.all_else_is_ready();
            if reaches {
                first.reached();
            }
            let began = Instant::now();
            while let Some(before) = first.failed(&refused()) {
                before.over().await;
            }
            assert!(began.elapsed() <= waited, "{:?}", began.elapsed());
            let least = waited.saturating_sub(LONGEST_PAUSE);
            assert!(began.elapsed() >= least, "{:?}", began.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_for_a_moment_is_tried_three_times() {
        let mut first = FirstConnection::for_a_moment();
        let mut tries = 1;
        while let Some(before) = first.failed(&refused()) {
            before.over().await;
            tries += 1;
        }
        assert_eq!(tries, 3);
    }
}
