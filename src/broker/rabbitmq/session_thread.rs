//! A session: one connection's life on a thread and a runtime of its own, ended as a whole. Knows
//! how sessions start, end and tell so; not what they do. Apart, because that is the cure for all
//! that amqprs does after a fault: its stuck writers and stray tasks, with the megabytes they
//! hold, end with their runtime, and the pilot's own runtime never sees them.

use std::future::Future;
use std::thread;

use tokio::runtime;
use tokio::sync::{oneshot, watch};

use crate::broker::{BrokerError, Endpoint};
use crate::ids::Generation;

/// The stack of a session's thread, which amqprs decodes frames on, table within table: what a producer
/// nests in a header must not end the pilot. RabbitMQ's frames hold 131,072 bytes, which are 21,800 nested
/// tables or 26,200 nested arrays; to decode, clone, print and drop those takes less than 16 MiB, or 96 in
/// a build without optimization (amqprs 2.1.5). An operator may allow larger frames. It is reserved, not
/// used: an idle session takes as much memory as with the default of 2 MiB.
const STACK: usize = (if cfg!(debug_assertions) { 256 } else { 64 }) * 1024 * 1024;

#[derive(Debug)]
pub(super) enum SessionEnd {
    /// In order.
    Closed,
    Abandoned,
    Lost(BrokerError),
}

/// The pilot's side. Dropping it ends the session at once.
#[derive(Debug)]
pub(super) struct SessionThread {
    pub(super) generation: Generation,
    pub(super) at: Endpoint,
    lost: watch::Receiver<Option<BrokerError>>,
    _owner: oneshot::Sender<()>,
}

impl SessionThread {
    /// Why the session was lost, if it was.
    pub(super) fn loss(&self) -> Option<BrokerError> {
        self.lost.borrow().clone()
    }

    /// Resolves when the session was lost. Cancel-safe.
    pub(super) async fn lost(&mut self) -> BrokerError {
        match self.lost.wait_for(Option::is_some).await {
            Ok(error) => error.clone().unwrap_or_else(|| vanished(&self.at)),
            Err(_ended_without_reason) => vanished(&self.at),
        }
    }
}

/// A server that has answered before was not given a wrong address.
fn in_mid_life(error: BrokerError) -> BrokerError {
    match error {
        BrokerError::TimedOut { at, step, after } => {
            let detail = format!("no answer within `{}` s ({step})", after.as_secs());
            BrokerError::ConnectionLost { at, detail }
        }
        error => error,
    }
}

fn vanished(at: &Endpoint) -> BrokerError {
    BrokerError::ConnectionLost {
        at: at.clone(),
        detail: "its session ended unexpectedly".into(),
    }
}

/// Runs `serve` as a session and waits until it is ready.
pub(super) async fn start<S, F>(
    generation: Generation,
    at: &Endpoint,
    serve: S,
) -> Result<SessionThread, BrokerError>
where
    S: FnOnce(oneshot::Sender<Result<(), BrokerError>>, oneshot::Receiver<()>) -> F
        + Send
        + 'static,
    F: Future<Output = SessionEnd>,
{
    let (ready, is_ready) = oneshot::channel();
    let (owner_alive, owner) = oneshot::channel();
    let (lost, lost_watch) = watch::channel(None);
    let failed = {
        let at = at.clone();
        move |error: std::io::Error| BrokerError::Thread {
            at: at.clone(),
            detail: error.to_string(),
        }
    };
    let of_runtime = failed.clone();
    thread::Builder::new()
        .name(format!("amqp-{}", generation.0))
        .stack_size(STACK)
        .spawn(move || {
            // Not before there is a thread: dropped for want of one, in the midst of the pilot's own
            // runtime, it would panic.
            let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    // Whoever wanted the session may have stopped waiting.
                    let _ = ready.send(Err(of_runtime(error)));
                    return;
                }
            };
            let end = runtime.block_on(serve(ready, owner));
            if let SessionEnd::Lost(error) = end {
                let error = in_mid_life(error);
                tracing::debug!(%error, generation = generation.0, "session lost");
                lost.send_replace(Some(error));
            }
            runtime.shutdown_background();
        })
        .map_err(failed)?;
    let hold = SessionThread {
        generation,
        at: at.clone(),
        lost: lost_watch,
        _owner: owner_alive,
    };
    match is_ready.await {
        Ok(Ok(())) => Ok(hold),
        Ok(Err(error)) => Err(error),
        Err(_died) => Err(hold.loss().unwrap_or_else(|| vanished(at))),
    }
}

#[cfg(test)]
mod tests {
    use amqprs::FieldTable;

    use super::*;
    use crate::broker::Direction;

    /// RabbitMQ's `frame_max`.
    const FRAME: usize = 131_072;

    /// A table that holds one value, nested as deeply as a frame allows; each level is `kind`, after a name
    /// of no bytes in a table.
    fn nested(kind: u8, name: &[u8]) -> Vec<u8> {
        let level = name.len() + 1 + 4;
        let levels = (FRAME - 64) / level;
        let mut bytes = Vec::new();
        let size = |bytes: &mut Vec<u8>, inner: usize| {
            bytes.extend(u32::try_from(inner).expect("it fits").to_be_bytes());
        };
        size(&mut bytes, 6 + levels * level);
        bytes.extend([0, kind]);
        for inner in (0..=levels).rev() {
            size(&mut bytes, inner * level);
            if inner > 0 {
                bytes.extend(name);
                bytes.push(kind);
            }
        }
        bytes
    }

    async fn is_decoded(bytes: Vec<u8>) {
        let at = Endpoint {
            direction: Direction::Incoming,
            address: "mq:5672".into(),
            queues: vec!["q".into()],
        };
        let held = start(Generation(1), &at, |ready, _owner| async move {
            let table: FieldTable = amqp_serde::from_bytes(&bytes).expect("it is a table");
            let copy = table.clone();
            assert!(!format!("{copy:?}").is_empty());
            drop((table, copy));
            let _gone = ready.send(Ok(()));
            SessionEnd::Closed
        });
        held.await.expect("the session lives");
    }

    #[tokio::test]
    async fn tables_nested_as_deeply_as_a_frame_allows_fit_on_the_stack() {
        is_decoded(nested(b'F', &[0])).await;
    }

    #[tokio::test]
    async fn arrays_nested_as_deeply_as_a_frame_allows_fit_on_the_stack() {
        is_decoded(nested(b'A', &[])).await;
    }
}
