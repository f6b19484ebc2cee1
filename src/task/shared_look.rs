//! One look at the machine's processes for all tasks of a pilot that ask at about the same time. On a busy
//! machine a look reads thousands of files.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use super::process_tree::ProcessTable;
use crate::blocking;

/// The latest look of a pilot's tasks, kept as long as one of them takes part.
#[derive(Debug, Clone, Default)]
pub struct SharedLook(Arc<Mutex<Weak<LastLook>>>);

#[derive(Debug, Default)]
struct LastLook(AsyncMutex<Option<(Instant, Arc<ProcessTable>)>>);

#[derive(Debug)]
pub(super) struct Participant(Arc<LastLook>);

impl SharedLook {
    pub(super) fn join(&self) -> Participant {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Participant(last.upgrade().unwrap_or_else(|| {
            let new = Arc::new(LastLook::default());
            *last = Arc::downgrade(&new);
            new
        }))
    }
}

impl Participant {
    /// The machine's processes, seen at most `age` ago. `None` if the look failed.
    pub(super) async fn no_older_than(&self, age: Duration) -> Option<Arc<ProcessTable>> {
        let mut last = self.0.0.lock().await;
        if let Some((began, look)) = &*last
            && began.elapsed() <= age
        {
            return Some(Arc::clone(look));
        }
        let began = Instant::now();
        let look = blocking::start(ProcessTable::look).await.ok()?;
        let look = Arc::new(look);
        *last = Some((began, Arc::clone(&look)));
        Some(look)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn all_tasks_that_ask_at_the_same_time_share_one_look() {
        let shared = SharedLook::default();
        let tasks: Vec<Participant> = (0..64).map(|_| shared.join()).collect();
        let looks =
            futures_util::future::join_all(tasks.iter().map(|task| task.no_older_than(AGE)));
        let looks: Vec<_> = looks.await.into_iter().flatten().collect();
        assert_eq!(looks.len(), 64);
        assert!(looks.iter().all(|look| Arc::ptr_eq(look, &looks[0])));
    }

    #[tokio::test]
    async fn one_that_is_too_old_is_taken_again() {
        let task = SharedLook::default().join();
        let first = task.no_older_than(AGE).await.expect("looked");
        let again = task.no_older_than(Duration::ZERO).await.expect("looked");
        assert!(!Arc::ptr_eq(&first, &again));
    }

    #[tokio::test]
    async fn nothing_is_kept_when_no_task_takes_part() {
        let shared = SharedLook::default();
        let task = shared.join();
        let look = task.no_older_than(AGE).await.expect("looked");
        drop(task);
        assert_eq!(Arc::strong_count(&look), 1);
    }
}
