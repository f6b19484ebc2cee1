//! A session: one connection's life on a thread and a runtime of its own, ended as a whole. Knows
//! how sessions start, end and tell so; not what they do. Apart, because that is the cure for all
//! that amqprs does after a fault: its stuck writers and stray tasks, with the megabytes they
//! hold, end with their runtime, and the pilot's own runtime never sees them.

use std::future::Future;
use std::thread;

use tokio::runtime;
use tokio::sync::{oneshot, watch};

use crate::broker::{BrokerError, Place};
use crate::ids::Generation;

/// How a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// In order.
    Closed,
    /// Nobody holds it any more.
    Abandoned,
    /// By a fault.
    Lost(BrokerError),
}

/// The pilot's side. Dropping it ends the session at once.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) generation: Generation,
    pub(super) at: Place,
    lost: watch::Receiver<Option<BrokerError>>,
    _owner: oneshot::Sender<()>,
}

impl Hold {
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

fn vanished(at: &Place) -> BrokerError {
    BrokerError::ConnectionLost {
        at: at.clone(),
        detail: "its session ended unexpectedly".into(),
    }
}

/// Runs `serve` as a session and waits until it is ready.
pub(super) async fn start<S, F>(
    generation: Generation,
    at: &Place,
    serve: S,
) -> Result<Hold, BrokerError>
where
    S: FnOnce(oneshot::Sender<Result<(), BrokerError>>, oneshot::Receiver<()>) -> F
        + Send
        + 'static,
    F: Future<Output = End>,
{
    let (ready, is_ready) = oneshot::channel();
    let (owner_alive, owner) = oneshot::channel();
    let (lost, lost_watch) = watch::channel(None);
    let failed = |error: std::io::Error| BrokerError::Thread {
        at: at.clone(),
        detail: error.to_string(),
    };
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .map_err(failed)?;
    thread::Builder::new()
        .name(format!("amqp-{}", generation.0))
        .spawn(move || {
            let end = runtime.block_on(serve(ready, owner));
            if let End::Lost(error) = end {
                let error = in_mid_life(error);
                tracing::debug!(%error, generation = generation.0, "session lost");
                lost.send_replace(Some(error));
            }
            runtime.shutdown_background();
        })
        .map_err(failed)?;
    let hold = Hold {
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
