//! RabbitMQ through amqprs, which works well until something fails: then it may hang, panic, or
//! look alive while it isn't. Everything here is arranged so that it can be thrown away at that
//! moment.
//!
//! | file | what it is |
//! | --- | --- |
//! | `address` | the address as amqprs' arguments, TLS |
//! | `dial` | from a host's name to a connection |
//! | `session` | a connection's life on its own thread and runtime; ended as a whole |
//! | `link` | one connection with one channel, a deadline on every step |
//! | `token` | the newest token, for new connections and live ones |
//! | `watch` | amqprs' callbacks, turned into signals |
//! | `arrival` | an event as the server sent it |
//! | `intake` | one queue's consumer in a session |
//! | `consume`, `publish` | what runs in the two kinds of session, on their threads |
//! | `source`, `sink` | the pilot's ends, through all sessions |
//! | `supervise`, `keep` | replace a lost session by the next: of a source, of a sink |
//! | `retry` | when the next try is due |
//! | `ready` | events that wait to be handed out, the queues in turn |
//! | `inflight` | the events in hand, and how they are recognised when they come again |
//! | `unsent` | results on disk that could not be sent |
//! | `confirms` | publishes that wait for their confirm |
//! | `refusal` | from text and codes to errors with names |
//!
//! A [`Source`] and a [`Sink`] each hold one session at a time. Any fault ends it as a whole; the
//! next one, of the next [`Generation`](crate::ids::Generation), takes over. A delivery's tag is valid in its own session
//! only and is never sent through another, where it would acknowledge somebody else's event.
//!
//! Queues of one direction that are on the same broker, with the same credentials, share a session: one
//! connection, one thread and one proof of life for all, as thousands of pilots have them. Each keeps its
//! own window, turn, adoptions, acknowledgements and confirms. What they share is the fault: when one is
//! deleted, or an acknowledgement for it is late, the session of all is replaced; their tasks run on and
//! their events are adopted. (RabbitMQ 4.0 looks at the oldest delivery on a channel only, and applies the
//! `consumer-timeout` of its queue.)
//!
//! # What an outage can do
//! No event is lost: each is acknowledged only in the session that delivered it, after its result was
//! confirmed, and one whose acknowledgement is in doubt is never taken for another with an equal body. A task
//! is run twice when its event, taken back by the broker, went to another pilot, or was in doubt. An
//! output is there twice when its confirm was lost with a session, or the acknowledgement of its
//! event never arrived. A result that can't be sent at all is kept on disk, but its event isn't
//! acknowledged for that, as this disk may be gone with the job: it will be run again, and if the kept
//! one is sent too, its output is there twice. All of this is counted in
//! [`BrokerStats`](super::BrokerStats).

use std::num::NonZeroU32;

mod address;
mod backoff;
mod callbacks;
mod confirms;
mod connection;
mod consumer;
mod delivery;
mod dial;
mod error_mapping;
mod intake;
mod prefetch;
mod publisher;
mod session_thread;
mod sink;
mod sink_actor;
mod source;
mod source_actor;
mod token;
mod unacked;

use tokio::sync::oneshot;

pub(super) use self::backoff::pause_after;
pub use self::sink::RabbitMqSink;
pub(super) use self::source::RabbitMqReceipt;
pub use self::source::RabbitMqSource;
use super::outbox::{self, UnsentResult, WhenUndeliverable};
use super::{BrokerError, Direction, OutagePolicy, QueueLook, StartSignal};
use crate::config::AmqpAddress;

pub(super) async fn open_source(
    queues: &[&str],
    address: &AmqpAddress,
    window: NonZeroU32,
    outage_policy: &OutagePolicy,
    start_signal: &StartSignal,
) -> Result<RabbitMqSource, BrokerError> {
    let at = address::place(Direction::Incoming, queues, address);
    // AMQP's prefetch count has 16 bits.
    let window = u16::try_from(window.get()).unwrap_or(u16::MAX);
    let first = backoff::at_start(start_signal, outage_policy, async |generation, reached| {
        let windows = vec![window; queues.len()];
        let (start_signal, reached) = (start_signal.clone(), reached.clone());
        let (at, address) = (at.clone(), address.clone());
        let bodies = outage_policy.bodies().clone();
        consumer::ConsumerHandle::open(
            at,
            address,
            windows,
            generation,
            start_signal,
            reached,
            bodies,
        )
        .await
    });
    Ok(RabbitMqSource::start(
        &at,
        address,
        window,
        first.await?,
        outage_policy,
    ))
}

pub(super) async fn open_sink(
    queues: &[&str],
    address: &AmqpAddress,
    outage_policy: &OutagePolicy,
    start_signal: &StartSignal,
) -> Result<RabbitMqSink, BrokerError> {
    let at = address::place(Direction::Outgoing, queues, address);
    let first = backoff::at_start(start_signal, outage_policy, async |generation, reached| {
        let mut session =
            publisher::PublisherHandle::open(at.clone(), address.clone(), generation).await?;
        reached.note();
        let mut start_signal = start_signal.clone();
        tokio::select! {
            biased;
            error = session.hold.lost() => Err(error),
            () = start_signal.until_all_else_is_ready() => Ok(session),
        }
    });
    let sink = RabbitMqSink::start(&at, address, first.await?, outage_policy);
    outbox::send_all(
        &sink.at,
        outage_policy,
        async |queue, result: UnsentResult| {
            let headers = Vec::new();
            sink.publish_to(queue, result.body, headers, WhenUndeliverable::Forget)
                .await
        },
    )
    .await;
    Ok(sink)
}

pub(super) async fn look(
    direction: Direction,
    queue: &str,
    address: &AmqpAddress,
) -> Result<QueueLook, BrokerError> {
    let at = address::place(direction, &[queue], address);
    let look = backoff::briefly(async |generation| {
        let (seen, is_seen) = oneshot::channel();
        let (place, address) = (at.clone(), address.clone());
        let hold = session_thread::start(generation, &at, move |ready, _owner| async move {
            let looked = connection::look(&address, &place).await;
            let seen = looked.map(|look| {
                let _gone = seen.send(look);
            });
            let _gone = ready.send(seen);
            session_thread::SessionEnd::Closed
        });
        let _ended = hold.await?;
        is_seen.await.map_err(|_died| BrokerError::ConnectionLost {
            at: at.clone(),
            detail: "the session ended before it saw the queue".into(),
        })
    })
    .await?;
    if let (QueueLook::There { .. }, Direction::Outgoing | Direction::DeadLetters) =
        (look, direction)
    {
        // Whether results would be taken.
        open_for_a_moment(direction, queue, address, &OutagePolicy::none())
            .await?
            .close()
            .await;
    }
    Ok(look)
}

/// A sink of one queue, which sends nothing of earlier pilots.
pub(super) async fn open_for_a_moment(
    direction: Direction,
    queue: &str,
    address: &AmqpAddress,
    outage_policy: &OutagePolicy,
) -> Result<RabbitMqSink, BrokerError> {
    let at = address::place(direction, &[queue], address);
    let first = backoff::briefly(async |generation| {
        publisher::PublisherHandle::open(at.clone(), address.clone(), generation).await
    });
    Ok(RabbitMqSink::start(
        &at,
        address,
        first.await?,
        outage_policy,
    ))
}
