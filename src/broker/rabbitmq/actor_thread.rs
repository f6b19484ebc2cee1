//! The thread of an actor, which runs each connection on a fresh tokio runtime.
//!
//! The fresh runtime contains whatever amqprs does after a fault. A writer stuck in a full socket that holds
//! megabytes, or a task that never ends, dies with the runtime of its connection, and the pilot's own runtime
//! never sees it. `shutdown_background` takes 13 µs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use tokio::runtime::{self, Runtime};

use crate::broker::{BrokerError, Endpoint};

/// The stack of the thread, on which amqprs decodes frames recursively: tables that a producer nests in a
/// header must not end the pilot. RabbitMQ's frames hold 131,072 bytes, which are 21,800 nested tables or
/// 26,200 nested arrays; to decode, clone, print and drop those takes less than 16 MiB, or 96 MiB in a build
/// without optimization (amqprs 2.1.5). The rest is a reserve, since an operator may allow larger frames. The
/// stack is reserved, not used: an idle thread takes as much memory as with the default of 2 MiB.
const STACK: usize = (if cfg!(debug_assertions) { 256 } else { 64 }) * 1024 * 1024;
/// The pause between two tries to make a runtime, while the process has no file descriptor left.
const NO_RUNTIME_PAUSE: Duration = Duration::from_secs(1);

/// What to do after a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterConnection {
    NextConnection,
    End,
}

/// An actor that serves one direction through all its connections.
pub(super) trait ConnectionActor: Send + 'static {
    /// Serves one connection, from the pause before it to its end.
    async fn serve_next(&mut self) -> AfterConnection;

    /// Handles a connection that ended by a panic, or that got no runtime.
    fn fail(&mut self, error: BrokerError) -> AfterConnection;
}

/// Runs an actor on a thread of its own.
///
/// # Errors
/// Fails when the system gives no thread.
pub(super) fn spawn(
    name: &str,
    at: &Endpoint,
    actor: impl ConnectionActor,
) -> Result<(), BrokerError> {
    let place = at.clone();
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK)
        .spawn(move || run(&place, actor))
        .map(drop)
        .map_err(|error| thread_error(at, &error))
}

fn run(at: &Endpoint, mut actor: impl ConnectionActor) {
    loop {
        let following = match fresh_runtime(at) {
            Ok(runtime) => {
                // The table is behind a lock and consistent after each step; anything else that a panic
                // leaves half done belongs to the connection.
                let served = AssertUnwindSafe(|| runtime.block_on(actor.serve_next()));
                let following = catch_unwind(served);
                runtime.shutdown_background();
                following.unwrap_or_else(|_told_by_the_hook| {
                    actor.fail(BrokerError::ConnectionLost {
                        at: at.clone(),
                        detail: "the thread that served it panicked".into(),
                    })
                })
            }
            Err(error) => {
                thread::sleep(NO_RUNTIME_PAUSE);
                actor.fail(error)
            }
        };
        if following == AfterConnection::End {
            return;
        }
    }
}

/// Runs `work` on a thread and a runtime of its own, and waits for its result.
///
/// # Errors
/// Returns the errors of `work`, and fails when there is no thread or runtime for it.
pub(super) async fn once<T: Send + 'static, F: Future<Output = Result<T, BrokerError>>>(
    at: &Endpoint,
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<T, BrokerError> {
    let (done, is_done) = tokio::sync::oneshot::channel();
    let place = at.clone();
    thread::Builder::new()
        .name("amqp-once".into())
        .stack_size(STACK)
        .spawn(move || {
            let result = fresh_runtime(&place).and_then(|runtime| {
                let result = runtime.block_on(work());
                runtime.shutdown_background();
                result
            });
            // The caller may have stopped waiting.
            let _gone = done.send(result);
        })
        .map_err(|error| thread_error(at, &error))?;
    is_done.await.unwrap_or_else(|_panicked| Err(vanished(at)))
}

/// The error for an actor whose thread ended unexpectedly.
pub(super) fn vanished(at: &Endpoint) -> BrokerError {
    BrokerError::ConnectionLost {
        at: at.clone(),
        detail: "its thread ended unexpectedly".into(),
    }
}

fn fresh_runtime(at: &Endpoint) -> Result<Runtime, BrokerError> {
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| thread_error(at, &error))
}

fn thread_error(at: &Endpoint, error: &std::io::Error) -> BrokerError {
    BrokerError::Thread {
        at: at.clone(),
        detail: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use amqprs::FieldTable;
    use tokio::sync::oneshot;

    use super::*;
    use crate::broker::Direction;

    /// RabbitMQ's `frame_max`.
    const FRAME: usize = 131_072;

    /// A table that holds one value, nested as deeply as a frame allows. Each level is of type `kind`; within
    /// a table it has an empty name.
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

    fn at() -> Endpoint {
        Endpoint {
            direction: Direction::Incoming,
            address: "mq:5672".into(),
            queues: vec!["q".into()],
        }
    }

    async fn is_decoded(bytes: Vec<u8>) {
        let at = at();
        let decoded = once(&at, async move || {
            let table: FieldTable = amqp_serde::from_bytes(&bytes).expect("it is a table");
            let copy = table.clone();
            assert!(!format!("{copy:?}").is_empty());
            drop((table, copy));
            Ok(())
        });
        decoded.await.expect("the thread lives");
    }

    /// Panics on its first connection; on the second, reports the error that [`fail`](ConnectionActor::fail)
    /// got for the first.
    struct Panicking {
        told: Option<BrokerError>,
        done: Option<oneshot::Sender<Option<BrokerError>>>,
    }

    impl ConnectionActor for Panicking {
        async fn serve_next(&mut self) -> AfterConnection {
            assert!(self.told.is_some(), "on purpose");
            let done = self.done.take().expect("it is the second connection");
            let _gone = done.send(self.told.take());
            AfterConnection::End
        }

        fn fail(&mut self, error: BrokerError) -> AfterConnection {
            self.told = Some(error);
            AfterConnection::NextConnection
        }
    }

    #[tokio::test]
    async fn a_panic_ends_its_connection_alone() {
        let (done, told) = oneshot::channel();
        let actor = Panicking {
            told: None,
            done: Some(done),
        };
        spawn("panicking", &at(), actor).expect("a thread");
        let told = told.await.expect("it serves another connection");
        assert!(matches!(told, Some(BrokerError::ConnectionLost { .. })));
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
