//! RabbitMQ through amqprs, which works well until something fails: then it may hang, panic, or
//! look alive while it isn't. Everything here is arranged so that it can be thrown away at that
//! moment.
//!
//! | file | what it is |
//! | --- | --- |
//! | `address` | the address as amqprs' arguments, TLS |
//! | `session` | a connection's life on its own thread and runtime; ended as a whole |
//! | `link` | one connection with one channel, a deadline on every step |
//! | `watch` | amqprs' callbacks, turned into signals |
//! | `consume`, `publish` | what runs in the two kinds of session, on their threads |
//! | `source`, `sink` | their other ends, on the pilot's event loop |
//! | `confirms` | publishes that wait for their confirm |
//! | `refusal` | from text and codes to errors with names |
//!
//! A [`Source`] and a [`Sink`] each hold one session, over bounded channels. Any fault ends it,
//! and is then what every call returns. A session has a [`Generation`]; a delivery's tag is kept
//! with the channel into its own session and can't be sent through another, where it would
//! acknowledge somebody else's event.

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use uuid::Uuid;

mod address;
mod confirms;
mod consume;
mod link;
mod publish;
mod refusal;
mod session;
mod sink;
mod source;
mod watch;

pub use self::sink::{MESSAGE_BYTES_MAX, Sink};
pub(super) use self::source::Receipt;
pub use self::source::Source;
use super::{BrokerError, Direction};
use crate::config::AmqpAddress;
use crate::ids::Generation;

/// How often a broker that can't be reached is tried at the start, and until when.
const TRIES: u32 = 3;
const TRY_WITHIN: Duration = Duration::from_secs(20);

pub(super) async fn open_source(
    queue: &str,
    address: &AmqpAddress,
    window: NonZeroU32,
) -> Result<Source, BrokerError> {
    let at = address::place(Direction::Incoming, queue, address);
    // AMQP's prefetch count has 16 bits.
    let window = u16::try_from(window.get()).unwrap_or(u16::MAX);
    with_retries(async |generation| Source::open(&at, address, window, generation).await).await
}

pub(super) async fn open_sink(
    queue: &str,
    address: &AmqpAddress,
    direction: Direction,
) -> Result<Sink, BrokerError> {
    let at = address::place(direction, queue, address);
    with_retries(async |generation| Sink::open(&at, address, generation).await).await
}

/// A session that publishes takes no event, whichever queue it is.
pub(super) async fn visit(
    direction: Direction,
    queue: &str,
    address: &AmqpAddress,
) -> Result<(), BrokerError> {
    let at = address::place(direction, queue, address);
    let sink = with_retries(async |generation| Sink::open(&at, address, generation).await).await?;
    sink.close().await;
    Ok(())
}

/// Each try is a session of its own.
async fn with_retries<T>(
    mut open: impl AsyncFnMut(Generation) -> Result<T, BrokerError>,
) -> Result<T, BrokerError> {
    let started = Instant::now();
    let mut generation = Generation(1);
    loop {
        let error = match open(generation).await {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        let pause = pause_after(generation, Uuid::new_v4().as_u128());
        let tried = generation.0;
        if !error.is_transient()
            || tried >= u64::from(TRIES)
            || started.elapsed() + pause >= TRY_WITHIN
        {
            return Err(error);
        }
        tracing::warn!(%error, tried, pause_ms = pause.as_millis(), "will try again");
        sleep(pause).await;
        generation = Generation(tried + 1);
    }
}

/// 1 s, 2 s …, each shortened by up to a half, so that a thousand pilots don't come at once.
fn pause_after(generation: Generation, random: u128) -> Duration {
    let tried = u32::try_from(generation.0.min(5)).unwrap_or(5);
    let longest = Duration::from_secs(1 << (tried - 1));
    let thousandths = 500 + u32::try_from(random % 501).unwrap_or(0);
    longest * thousandths / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_spread() {
        for (tried, least, most) in [(1, 500, 1_000), (2, 1_000, 2_000), (5, 8_000, 16_000)] {
            for random in [0, 1, 250, 499, u128::MAX] {
                let pause = pause_after(Generation(tried), random).as_millis();
                assert!((least..=most).contains(&pause), "{pause} after {tried}");
            }
        }
    }
}
