//! A mailbox between the pilot and an actor: the pilot changes a shared state without waiting, the actor
//! acts on it when a change is due. Used where only the newest state counts (HTCondor's attributes, the
//! status file), so that a slow disk or server never holds up the pilot.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep_until, timeout};

/// The pilot's end. When the last clone is dropped the actor gets [`Mail::Closed`].
#[derive(Debug)]
pub struct MailboxSender<T> {
    shared: Arc<Shared<T>>,
    requests: mpsc::Sender<oneshot::Sender<()>>,
}

/// The actor's end.
#[derive(Debug)]
pub struct Mailbox<T> {
    shared: Arc<Shared<T>>,
    requests: mpsc::Receiver<oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Shared<T> {
    /// Locked for moves in memory only, never across an await.
    state: Mutex<T>,
    changed: Notify,
}

/// Why the actor wakes up.
#[derive(Debug)]
pub enum Mail {
    Changed,
    Due,
    /// Sent by [`MailboxSender::request`], which waits until this is answered or dropped.
    Request(oneshot::Sender<()>),
    Closed,
}

/// Both ends of a mailbox around `state`.
pub fn mailbox<T>(state: T) -> (MailboxSender<T>, Mailbox<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(state),
        changed: Notify::new(),
    });
    let (sender, requests) = mpsc::channel(1);
    let sender = MailboxSender {
        shared: Arc::clone(&shared),
        requests: sender,
    };
    (sender, Mailbox { shared, requests })
}

impl<T> Clone for MailboxSender<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            requests: self.requests.clone(),
        }
    }
}

impl<T> MailboxSender<T> {
    /// Changes the state at once and wakes the actor.
    pub fn change(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.shared.lock());
        self.shared.changed.notify_one();
    }

    /// Sends the actor [`Mail::Request`] and waits until it is answered, or the actor is gone.
    ///
    /// # Errors
    /// Fails if no answer comes `within` that time.
    pub async fn request(&self, within: Duration) -> Result<(), Elapsed> {
        let (done, is_done) = oneshot::channel();
        timeout(within, async {
            if self.requests.send(done).await.is_ok() {
                // An error means that the actor is gone, and with it any reason to wait.
                let _ = is_done.await;
            }
        })
        .await
    }
}

impl<T> Mailbox<T> {
    /// Locks the state, to read or change it without waking the actor. Don't hold the guard across an await.
    pub fn state(&self) -> MutexGuard<'_, T> {
        self.shared.lock()
    }

    /// Waits for a request, until `due`, or for a change, in this order. Cancel-safe.
    pub async fn next(&mut self, due: Option<Instant>) -> Mail {
        tokio::select! {
            biased;
            request = self.requests.recv() => request.map_or(Mail::Closed, Mail::Request),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => Mail::Due,
            () = self.shared.changed.notified() => Mail::Changed,
        }
    }
}

impl<T> Shared<T> {
    /// States are consistent after every line of their methods, so a panic of another holder changes nothing.
    fn lock(&self) -> MutexGuard<'_, T> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_wakes_the_actor_and_a_request_waits_for_its_answer() {
        let (sender, mut mailbox) = mailbox(0);
        sender.change(|state| *state += 1);
        assert!(matches!(mailbox.next(None).await, Mail::Changed));
        assert_eq!(*mailbox.state(), 1);
        let asking = tokio::spawn(async move { sender.request(Duration::from_secs(9)).await });
        match mailbox.next(None).await {
            Mail::Request(done) => done.send(()).expect("it waits"),
            other => panic!("{other:?}"),
        }
        assert!(asking.await.expect("it ended").is_ok());
        assert!(matches!(mailbox.next(None).await, Mail::Closed));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_due_comes_before_a_change_and_a_request_without_an_answer_has_an_end() {
        let (sender, mut mailbox) = mailbox(());
        sender.change(|()| {});
        assert!(matches!(
            mailbox.next(Some(Instant::now())).await,
            Mail::Due
        ));
        assert!(matches!(mailbox.next(None).await, Mail::Changed));
        assert!(sender.request(Duration::from_secs(9)).await.is_err());
    }
}
