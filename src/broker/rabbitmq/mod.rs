//! RabbitMQ through amqprs, which works well until something fails: then it may hang, panic, or look alive
//! while it isn't. So nothing is repaired in place: a connection that failed is thrown away as a whole, with
//! its runtime.
//!
//! One actor serves each direction, on a thread of its own, through all connections of its life:
//!
//! ```text
//!            SourceOrder          acks                     acks, qos
//!   pilot ---------------> source actor ---> Consumer ---> Connection ---> server
//!         <--------------- (unacked table)   <-----------  (fresh runtime)
//!         SharedState: prefetch buffer         events
//!
//!            Message                         publishes
//!   pilot ---------------> sink actor -----> Publisher --> Connection ---> server
//!         <------------------------------------ Confirms (callbacks)
//!            outcome
//! ```
//!
//! | file | what it is |
//! | --- | --- |
//! | `source`, `sink` | the pilot's handles, and the path of one event or result |
//! | `source_actor`, `sink_actor` | connect, serve, connect again |
//! | `source_state` | what a source and its actor share |
//! | `actor_thread` | an actor's thread, and a fresh runtime for each connection |
//! | `reconnect` | when the next try is due, and when the broker is given up |
//! | `consumer`, `publisher` | what one connection does in each direction |
//! | `connection` | one connection with one channel, a deadline on every step |
//! | `callbacks` | amqprs' callbacks, turned into events |
//! | `prefetch` | events that were not handed out yet, the queues in turn |
//! | `unacked` | the events in hand, and how they are recognised when they come again |
//! | `confirms` | publishes that wait for their confirm |
//! | `address`, `token` | amqprs' arguments, TLS; the newest token, for new connections and live ones |
//! | `dial`, `unreached` | the addresses of a host, one after the other, and the error if no server is at any |
//! | `error_mapping` | from text and codes to errors with names |
//!
//! Any fault ends a connection; the next one has the next [`Generation`](crate::ids::Generation). A
//! delivery's tag is valid on its own connection only. It is never sent through another, where it would
//! acknowledge another event.
//!
//! Queues of one direction on the same broker with the same credentials share a connection, a thread and a
//! proof of life, as there may be thousands of pilots. Each queue keeps its own window, turn, adoptions,
//! acknowledgements and confirms. They also share faults: when one queue is deleted, or an acknowledgement
//! for it is late, the connection of all is replaced; their tasks run on and their events are adopted.
//! (RabbitMQ 4.0 looks only at the oldest delivery on a channel, and applies the `consumer-timeout` of its
//! queue.)
//!
//! # Effects of an outage
//! No event is lost: each is acknowledged only on the connection that delivered it, after its result was
//! confirmed, and one whose acknowledgement is in doubt is never taken for another with an equal body. A task
//! is run twice when its event, taken back by the broker, went to another pilot or was in doubt. An output is
//! in the queue twice when its confirm was lost with a connection, or the acknowledgement of its event never
//! arrived. A result that can't be sent at all is kept on disk. Its event isn't acknowledged, as this disk
//! may be gone with the job, so it will be run again; if the kept result is sent too, the output is in the
//! queue twice. [`BrokerStats`](super::BrokerStats) counts all of this.

use std::num::NonZeroU32;

mod actor_thread;
mod address;
mod callbacks;
mod confirms;
mod connection;
mod consumer;
mod dial;
mod error_mapping;
mod prefetch;
mod publisher;
mod reconnect;
mod sink;
mod sink_actor;
mod source;
mod source_actor;
mod source_state;
mod token;
mod unacked;
mod unreached;

use self::reconnect::FirstConnection;
pub(super) use self::reconnect::pause_after;
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
    RabbitMqSource::open(at, address, window, outage_policy, start_signal).await
}

pub(super) async fn open_sink(
    queues: &[&str],
    address: &AmqpAddress,
    outage_policy: &OutagePolicy,
    start_signal: &StartSignal,
) -> Result<RabbitMqSink, BrokerError> {
    let at = address::place(Direction::Outgoing, queues, address);
    let first = FirstConnection::of_pilot(start_signal, outage_policy.reconnect_within());
    let sink = RabbitMqSink::open(at, address, outage_policy, first).await?;
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
    let mut first = FirstConnection::for_a_moment();
    let look = loop {
        let (place, address) = (at.clone(), address.clone());
        let looking = async move || connection::look(&address, &place).await;
        let error = match actor_thread::once(&at, looking).await {
            Ok(look) => break look,
            Err(error) => error,
        };
        match first.failed(&error) {
            Some(before) => before.over().await,
            None => return Err(error),
        }
    };
    if let (QueueLook::There { .. }, Direction::Outgoing | Direction::DeadLetters) =
        (look, direction)
    {
        // The sink checks whether results would be accepted.
        open_for_a_moment(direction, queue, address, &OutagePolicy::none())
            .await?
            .close()
            .await;
    }
    Ok(look)
}

/// Opens a sink of one queue, which sends no results of earlier pilots.
pub(super) async fn open_for_a_moment(
    direction: Direction,
    queue: &str,
    address: &AmqpAddress,
    outage_policy: &OutagePolicy,
) -> Result<RabbitMqSink, BrokerError> {
    let at = address::place(direction, &[queue], address);
    let first = FirstConnection::for_a_moment();
    tokio::select! {
        biased;
        opened = RabbitMqSink::open(at.clone(), address, outage_policy, first) => opened,
        () = outage_policy.short_wait_over() => Err(BrokerError::ConnectionLost {
            at,
            detail: "the pilot had to end before it was connected".into(),
        }),
    }
}
