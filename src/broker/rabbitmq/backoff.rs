//! When a broker that can't be reached is tried again. Talks to nobody. Apart, because the first
//! connection and all later ones differ in patience only.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::broker::{BrokerError, OutagePolicy, StartSignal};
use crate::ids::Generation;

/// How long a broker is tried at the start that was never reached: nothing is held yet, and a wrong
/// address is to be told soon.
const TRY_WITHIN: Duration = Duration::from_secs(20);
/// How often one that is only looked at, or needed for a moment.
const TRIES: u32 = 3;

/// Between two tries in the midst of life, before a part of it is taken off at random.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// Whether a broker let us in once: its address and our credentials are right then.
#[derive(Debug, Clone, Default)]
pub(super) struct HasConnected(Arc<AtomicBool>);

impl HasConnected {
    pub(super) fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn was(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The first connection of a pilot. Each try is a session of its own. What fails before all else is ready
/// doesn't count: an init container may take hours, in which brokers are restarted. From then on one that
/// let us in before is waited for as after any loss.
pub(super) async fn at_start<T>(
    start_signal: &StartSignal,
    outage_policy: &OutagePolicy,
    mut open: impl AsyncFnMut(Generation, &HasConnected) -> Result<T, BrokerError>,
) -> Result<T, BrokerError> {
    let mut start_signal = start_signal.clone();
    let reached = HasConnected::default();
    let (mut generation, mut tried, mut since) = (0, 0, None);
    loop {
        generation += 1;
        let error = match open(Generation(generation), &reached).await {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        if !start_signal.all_else_is_ready() {
            tracing::warn!(%error, "no connection yet: will try again when all else is ready");
            start_signal.until_all_else_is_ready().await;
            continue;
        }
        // Waiting begins with the first failure that counts.
        let since = *since.get_or_insert_with(Instant::now);
        tried += 1;
        let within = if reached.was() || error.knows_us() {
            outage_policy.reconnect_within().max(TRY_WITHIN)
        } else {
            TRY_WITHIN
        };
        let pause = pause_after(tried);
        if !error.is_transient() || since.elapsed() + pause >= within {
            return Err(error);
        }
        tracing::warn!(%error, tried, pause_ms = pause.as_millis(), "will try again");
        sleep(pause).await;
    }
}

pub(super) async fn briefly<T>(
    mut open: impl AsyncFnMut(Generation) -> Result<T, BrokerError>,
) -> Result<T, BrokerError> {
    let since = Instant::now();
    let mut tried = 1;
    loop {
        let error = match open(Generation(u64::from(tried))).await {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        let pause = pause_after(tried);
        if !error.is_transient() || tried >= TRIES || since.elapsed() + pause >= TRY_WITHIN {
            return Err(error);
        }
        tracing::warn!(%error, tried, pause_ms = pause.as_millis(), "will try again");
        sleep(pause).await;
        tried += 1;
    }
}

/// How long to wait after so many vain tries, or, after none, after a loss.
pub(in crate::broker) fn pause_after(tried: u32) -> Duration {
    spread(tried, Uuid::new_v4().as_u128())
}

/// 1 s, 2 s … 30 s, each shortened by up to nine tenths: a thousand pilots that lost a broker at the same
/// moment come to it one by one. Shortened by up to a half, nearly half of them came within one second
/// (`scripts/bench --only h`).
fn spread(tried: u32, random: u128) -> Duration {
    let longest = (SHORTEST * (1 << tried.saturating_sub(1).min(5))).min(LONGEST);
    let thousandths = 100 + u32::try_from(random % 901).unwrap_or(0);
    longest * thousandths / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
