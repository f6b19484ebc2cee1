//! Threads for work that may block: file systems hang, the resolver waits for a server, an execve(2) waits
//! for both. A few threads are started up front and stay; more come while there is more to do.
//!
//! tokio's own `spawn_blocking` is not used: it starts its threads when they are needed, ends them when they
//! aren't, and panics when the system refuses one. The processes and threads of a user are counted together,
//! so another job of the user may use them up at any moment, and a finished result was lost that way. Here
//! the threads that stay then do the work, one piece after the other. Without any thread it is done in place:
//! a loop that waits for a disk is better than one that panics.
//!
//! # What event loops still do themselves
//!
//! | what | why it can stay |
//! | --- | --- |
//! | reads and writes of `/proc`, `/sys` and control groups | the kernel answers from memory |
//! | messages to the guardian | its pipe doesn't block |
//! | log lines, dumps, the progress line, records | they go into bounded queues, and threads write them |
//! | trying the lock on an image that is to be converted | start-up only, in the directory that the next step writes to |
//! | stopping all containers when the pilot is stopped (`SIGTSTP`) | it stops itself right after |
//!
//! When the pilot ends, work under way gets the time of [`finish`]; work that hangs longer ends with the
//! process.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use tokio::sync::oneshot;

/// Threads that stay. One may hang on a dead file system while the others go on.
const RESIDENTS: usize = 4;
/// The most threads for short work; further work waits. All work of a pilot is bounded by its window of events.
const MOST: usize = 256;
/// How long a thread beyond those that stay waits for further work.
const LINGER: Duration = Duration::from_secs(10);

/// The time limit of [`small_files`].
const SMALL_FILES_WITHIN: Duration = Duration::from_secs(30);

/// One pool for all short work of the process, because the limit on threads is the process's and sessions with brokers
/// have event loops of their own.
static POOL: Pool = Pool::new("blocking");
/// Threads for work that lasts as long as a container, one for each: in the other pool it would hold threads that
/// short work waits for.
static LONG_WORK: Pool = Pool::new("long-work");

/// Starts the threads that stay. Call this before the first event is taken; without it, all work is done on
/// threads that come and go, or in place.
///
/// # Errors
/// Fails if the system grants not a single thread.
pub fn prepare() -> io::Result<()> {
    POOL.prepare()
}

/// Begins `work` at once and returns a future of its result. Dropping the future doesn't end the work.
pub fn start<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> BlockingWork<T> {
    POOL.start(work)
}

/// Begins `work` that may take hours, and that no other work may wait for: on a thread of its own, which may have
/// done other such work before. A thread that is made and ended costs 0.1 ms of CPU.
///
/// # Errors
/// When the system grants no thread.
pub fn start_long(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    LONG_WORK.start_long(Box::new(work))
}

/// Like [`start`], but waits for `limit` at most. After that the work goes on, and its result is dropped.
///
/// # Errors
/// Fails if the work takes longer, or panics.
pub async fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NotDone> {
    match tokio::time::timeout(limit, start(work)).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(NotDone::InTime(limit)),
    }
}

/// Like [`within`], for work on small files, which takes long only on a disk that hangs.
///
/// # Errors
/// Returns the error of `work`. Also fails if the work takes longer than 30 s, or panics.
pub async fn small_files<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    within(SMALL_FILES_WITHIN, work)
        .await
        .unwrap_or_else(|error| Err(error.into()))
}

/// Blocks until no work waits or is under way, for `limit` at most. For the end of the process.
pub fn finish(limit: Duration) {
    POOL.finish(limit);
}

/// The addresses of a host, as the system's resolver knows them.
///
/// # Errors
/// Returns the resolver's error.
pub async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let host = host.to_owned();
    let resolving = start(move || Ok((host.as_str(), port).to_socket_addrs()?.collect()));
    resolving.await.unwrap_or_else(|died| Err(died.into()))
}

/// Keeps all signals from the calling thread, for threads that may hang in the kernel. Of all threads the kernel
/// chooses the one that started a child to be told of the child's end, and where that one hangs in a file
/// system, no thread is told: the pilot would wait for a task that is over.
pub fn take_no_signals() {
    // Only an invalid set is refused.
    let _refused = SigSet::all().thread_block();
}

#[derive(Debug)]
pub struct BlockingWork<T>(oneshot::Receiver<T>);

/// The work panicked; the panic hook has reported where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("work on files panicked")]
pub struct Panicked;

/// The reason why work gave no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    #[error(transparent)]
    Panicked(#[from] Panicked),
    #[error("no answer within {} s", .0.as_secs())]
    InTime(Duration),
}

impl From<NotDone> for io::Error {
    fn from(error: NotDone) -> Self {
        let kind = match error {
            NotDone::Panicked(_) => io::ErrorKind::Other,
            NotDone::InTime(_) => io::ErrorKind::TimedOut,
        };
        Self::new(kind, error)
    }
}

impl From<Panicked> for io::Error {
    fn from(panicked: Panicked) -> Self {
        Self::other(panicked)
    }
}

impl<T> Future for BlockingWork<T> {
    type Output = Result<T, Panicked>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let result = Pin::new(&mut self.0).poll(context);
        result.map(|result| result.map_err(|_dropped| Panicked))
    }
}

type BoxedWork = Box<dyn FnOnce() + Send>;

struct Pool {
    /// The name of its threads.
    name: &'static str,
    shared: Mutex<PoolState>,
    work_came: Condvar,
    work_done: Condvar,
}

struct PoolState {
    /// Bounded by the events that are held, and a few for the pilot itself.
    waiting: VecDeque<BoxedWork>,
    /// Pieces of work that wait or are under way.
    unfinished: usize,
    /// Whether [`Pool::finish`] waits for that to be zero: a notification that no thread waits for costs a
    /// system call, too.
    is_finishing: bool,
    threads: usize,
    idle: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ThreadLifetime {
    Never,
    WhenIdle,
}

impl Pool {
    const fn new(name: &'static str) -> Self {
        Self {
            name,
            shared: Mutex::new(PoolState {
                waiting: VecDeque::new(),
                unfinished: 0,
                is_finishing: false,
                threads: 0,
                idle: 0,
            }),
            work_came: Condvar::new(),
            work_done: Condvar::new(),
        }
    }

    fn prepare(&'static self) -> io::Result<()> {
        for number in 0..RESIDENTS {
            match self.add_thread(ThreadLifetime::Never, None) {
                Err(error) if number == 0 => return Err(error),
                // One thread is enough to go on.
                Err(_) => break,
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn start<T: Send + 'static>(
        &'static self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> BlockingWork<T> {
        let (done, result) = oneshot::channel();
        self.submit(Box::new(move || {
            // The caller may have stopped waiting.
            let _ = done.send(work());
        }));
        BlockingWork(result)
    }

    fn submit(&'static self, job: BoxedWork) {
        let mut shared = self.lock();
        shared.waiting.push_back(job);
        shared.unfinished += 1;
        // A thread that was woken still counts as idle until it has taken its work.
        if shared.idle >= shared.waiting.len() {
            drop(shared);
            self.work_came.notify_one();
            return;
        }
        let threads = shared.threads;
        drop(shared);
        if threads < MOST && self.add_thread(ThreadLifetime::WhenIdle, None).is_ok() {
            return;
        }
        self.without_another_thread();
    }

    fn start_long(&'static self, job: BoxedWork) -> io::Result<()> {
        let mut shared = self.lock();
        // A thread that was woken still counts as idle until it has taken its work.
        if shared.idle > shared.waiting.len() {
            shared.waiting.push_back(job);
            shared.unfinished += 1;
            drop(shared);
            self.work_came.notify_one();
            return Ok(());
        }
        drop(shared);
        self.add_thread(ThreadLifetime::WhenIdle, Some(job))
    }

    /// Leaves waiting work to the existing threads, or does it here if there are none.
    fn without_another_thread(&self) {
        let mut shared = self.lock();
        while shared.threads == 0
            && let Some(job) = shared.waiting.pop_front()
        {
            drop(shared);
            run(job);
            shared = self.lock();
            shared.unfinished -= 1;
        }
        drop(shared);
        self.work_came.notify_one();
    }

    /// Adds a thread, which does `first` before it takes waiting work.
    fn add_thread(
        &'static self,
        leaves: ThreadLifetime,
        first: Option<BoxedWork>,
    ) -> io::Result<()> {
        // Counted before it runs: without threads, work would be done in place.
        self.lock().threads += 1;
        let started = thread::Builder::new()
            .name(self.name.into())
            .spawn(move || {
                take_no_signals();
                if let Some(first) = first {
                    run(first);
                }
                self.serve(leaves);
            });
        if let Err(error) = started {
            self.lock().threads -= 1;
            return Err(error);
        }
        Ok(())
    }

    fn serve(&self, leaves: ThreadLifetime) {
        let mut shared = self.lock();
        loop {
            if let Some(job) = shared.waiting.pop_front() {
                drop(shared);
                run(job);
                shared = self.lock();
                shared.unfinished -= 1;
                if shared.unfinished == 0 && shared.is_finishing {
                    self.work_done.notify_all();
                }
                continue;
            }
            shared.idle += 1;
            let waited = match leaves {
                ThreadLifetime::Never => self.work_came.wait(shared).map(|shared| (shared, false)),
                ThreadLifetime::WhenIdle => match self.work_came.wait_timeout(shared, LINGER) {
                    Ok((shared, waited)) => Ok((shared, waited.timed_out())),
                    Err(poisoned) => Ok((poisoned.into_inner().0, false)),
                },
            };
            let (woken, is_over) = waited.unwrap_or_else(|poisoned| (poisoned.into_inner(), false));
            shared = woken;
            shared.idle -= 1;
            if is_over && shared.waiting.is_empty() {
                shared.threads -= 1;
                return;
            }
        }
    }

    fn finish(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut shared = self.lock();
        shared.is_finishing = true;
        while shared.unfinished > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.work_done.wait_timeout(shared, left);
            shared = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        // The state is consistent after every statement, and no work runs under the lock.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A panic ends only the work: its sender is dropped with it, and the thread goes on.
fn run(job: BoxedWork) {
    let _told_by_the_hook = catch_unwind(AssertUnwindSafe(job));
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use nix::sys::signal::Signal;

    use super::*;

    fn pool() -> &'static Pool {
        Box::leak(Box::new(Pool::new("test")))
    }

    #[tokio::test]
    async fn work_comes_back_and_a_panic_ends_it_alone() {
        let pool = pool();
        assert_eq!(pool.start(|| 7).await, Ok(7));
        pool.prepare().expect("threads");
        for _ in 0..2 * RESIDENTS {
            let panicking = pool.start(|| -> i32 { panic!("on purpose") });
            assert_eq!(panicking.await, Err(Panicked));
        }
        assert_eq!(pool.start(|| 8).await, Ok(8));
    }

    #[tokio::test]
    async fn work_that_hangs_does_not_hold_up_other_work() {
        static DONE: AtomicUsize = AtomicUsize::new(0);
        let pool = pool();
        pool.prepare().expect("threads");
        let (release, released) = mpsc::channel::<()>();
        let released = std::sync::Arc::new(Mutex::new(released));
        let hanging: Vec<_> = (0..3 * RESIDENTS)
            .map(|_| {
                let released = std::sync::Arc::clone(&released);
                pool.start(move || {
                    let _gone = released.lock().expect("whole").recv();
                    DONE.fetch_add(1, Ordering::Relaxed);
                })
            })
            .collect();
        assert_eq!(pool.start(|| 7).await, Ok(7));
        assert_eq!(DONE.load(Ordering::Relaxed), 0);
        drop(release);
        for work in hanging {
            assert_eq!(work.await, Ok(()));
        }
    }

    #[test]
    fn long_work_waits_for_no_other_and_threads_that_are_done_do_more_of_it() {
        let pool = pool();
        let (told, thread) = mpsc::channel();
        let begin = |hangs: mpsc::Receiver<()>| {
            let told = told.clone();
            let work = move || {
                told.send(thread::current().id()).expect("a reader");
                let _gone = hangs.recv();
            };
            pool.start_long(Box::new(work)).expect("a thread");
            thread.recv().expect("it began")
        };
        let (releases, hangs): (Vec<_>, Vec<_>) = (0..8).map(|_| mpsc::channel()).unzip();
        let first: HashSet<_> = hangs.into_iter().map(begin).collect();
        assert_eq!(first.len(), 8);
        drop::<Vec<mpsc::Sender<()>>>(releases);
        while pool.lock().idle < 8 {
            thread::yield_now();
        }
        let (_releases, hangs): (Vec<_>, Vec<_>) = (0..8).map(|_| mpsc::channel()).unzip();
        let second: HashSet<_> = hangs.into_iter().map(begin).collect();
        assert_eq!(first, second);
    }

    #[tokio::test]
    async fn a_thread_that_may_hang_takes_no_signal() {
        let pool = pool();
        pool.prepare().expect("threads");
        let mask = pool.start(SigSet::thread_get_mask).await.expect("done");
        let mask = mask.expect("there is one");
        assert!(mask.contains(Signal::SIGCHLD) && mask.contains(Signal::SIGTERM));
    }

    #[test]
    fn the_end_waits_for_work_under_way_but_not_for_work_that_hangs() {
        static DONE: AtomicUsize = AtomicUsize::new(0);
        let pool = pool();
        pool.prepare().expect("threads");
        for _ in 0..3 * RESIDENTS {
            drop(pool.start(|| DONE.fetch_add(1, Ordering::Relaxed)));
        }
        pool.finish(Duration::from_secs(30));
        assert_eq!(DONE.load(Ordering::Relaxed), 3 * RESIDENTS);
        let (_never, hangs) = mpsc::channel::<()>();
        drop(pool.start(move || hangs.recv()));
        pool.finish(Duration::from_millis(50));
    }

    #[test]
    fn a_host_has_addresses() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let found = runtime.block_on(resolve("localhost", 5672)).expect("known");
        assert!(found.iter().all(|address| address.ip().is_loopback()));
        assert!(!found.is_empty());
        let unknown = runtime.block_on(resolve("no-such-host.invalid", 1));
        let said = unknown.expect_err("it is reserved").to_string();
        assert!(said.contains("failed to lookup address"), "{said}");
    }
}
