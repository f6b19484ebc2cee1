//! The queue that needs no server: a directory. One file is one event; its content is the event's
//! data, a JSON value if it is called `.json`, else text.
//!
//! ```text
//! QUEUE/NAME               waits; put it there under a name that starts with a dot, then rename
//! QUEUE/claimed/ID/NAME    held by a pilot that lives, or is about to be taken back
//! QUEUE/done/NAME          worked through
//! QUEUE/failed/NAME        given up after three tries; the error is in NAME.error.txt
//! QUEUE/.tries/NAME        how often a waiting event has failed, and its last error
//! ```
//!
//! Any number of pilots, on any number of machines, may share a queue: each step is one rename,
//! which can succeed only once. Events are taken in the order of their names. A result is a file
//! of its own, `TIME-ORDERED-UUID.json` or `.txt`, on disk before it is visible.
//!
//! | file | what it is |
//! | --- | --- |
//! | `layout` | directories, names, moves that never replace a file |
//! | `holder` | who holds claims, and whether they are dead |
//! | `claim` | one event: claim, read, settle |
//! | `backlog` | which file comes next |
//! | `notices` | what the kernel says about new files |
//!
//! All of these block; this file keeps them off the pilot's event loop.

use std::ffi::OsString;
use std::fs::{self, File};
use std::future::{self, Future};
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self as std_mpsc, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout};
use uuid::Uuid;

mod backlog;
mod claim;
mod holder;
mod layout;
mod notices;

use self::backlog::{Backlog, Next};
use self::claim::{Claim, Desk};
use self::holder::{Holder, REFRESH_EVERY, Whose};
use self::layout::{Layout, Trouble};
use self::notices::{Notice, Notices};
use super::{
    BrokerError, Content, Delivery, Direction, FileFormat, PublishError, ReceiptKind, SettleError,
    Verdict,
};
use crate::ids::Generation;

/// How soon an empty queue is looked at again where no notice comes: from a second to five, while
/// it stays empty.
const LOOK_AFTER: Duration = Duration::from_secs(1);
const LOOK_AFTER_MAX: Duration = Duration::from_secs(5);
/// For a file that can't be taken just now.
const NOT_YET: Duration = Duration::from_millis(300);

/// How often this machine's holders are looked at; a look is one open and one lock each.
const KEEP_EVERY: Duration = Duration::from_secs(5);
/// How often all are, in units of the above.
const EVERYONE_EVERY: u32 = 6;

/// A file system that hangs must not keep the pilot from ending.
const STOP_WITHIN: Duration = Duration::from_secs(12);

/// Results in flight, and their bytes.
const PUBLISHES_MAX: usize = 32;
const PUBLISH_BYTES_MAX: u32 = 64 * 1024 * 1024;

/// What looking for an event brought.
enum Taken {
    Event(Box<Claim>, Content),
    Nothing,
    NotYet,
}

type Work = JoinHandle<(Backlog, Result<Taken, Trouble>)>;

/// Events from a directory.
pub struct Source {
    desk: Arc<Desk>,
    keeper: Keeper,
    notices: Notices,
    window: Arc<Semaphore>,
    /// Room for the next event.
    room: Option<OwnedSemaphorePermit>,
    backlog: Backlog,
    /// Here and not on [`Source::recv`]'s stack, so that cancelling it loses no claim.
    work: Option<Work>,
    look_after: Duration,
    look_at: Instant,
    stopped: bool,
}

/// One claim.
pub(super) struct Receipt {
    claim: Box<Claim>,
    _room: OwnedSemaphorePermit,
}

impl Source {
    pub(super) async fn open(
        queue: &str,
        directory: &Path,
        window: NonZeroU32,
    ) -> Result<Self, BrokerError> {
        let layout = Layout::new(Direction::Incoming, queue, directory)?;
        let at = layout.at.clone();
        let opened = off_the_loop({
            let at = at.clone();
            move || {
                let open = || {
                    layout.create()?;
                    // Watched before the first look, so that nothing comes between.
                    let desk = Desk::open(layout, Generation(1))?;
                    desk.holder.take_back(&desk.layout, Whose::Everyone)?;
                    Ok(desk)
                };
                open().map_err(|trouble: Trouble| trouble.into_broker(&at))
            }
        });
        let desk = match opened.await {
            Ok(desk) => Arc::new(desk?),
            Err(error) => return Err(died(&at, &error)),
        };
        Ok(Self {
            keeper: Keeper::start(Arc::clone(&desk))?,
            notices: Notices::watch(&desk.layout.waiting),
            desk,
            window: Arc::new(Semaphore::new(window.get() as usize)),
            room: None,
            backlog: Backlog::new(),
            work: None,
            look_after: LOOK_AFTER,
            look_at: Instant::now(),
            stopped: false,
        })
    }

    pub(super) async fn recv(&mut self) -> Result<Delivery, BrokerError> {
        loop {
            if self.stopped {
                return future::pending().await;
            }
            if self.work.is_some() {
                if let Some((claim, content)) = self.finish_work().await? {
                    return self.deliver(claim, content);
                }
                continue;
            }
            if self.room.is_none() {
                let Ok(room) = Arc::clone(&self.window).acquire_owned().await else {
                    return future::pending().await;
                };
                self.room = Some(room);
            }
            if !self.backlog.has_names() {
                tokio::select! {
                    biased;
                    () = sleep_until(self.look_at) => self.backlog.look_again(),
                    notices = self.notices.next() => self.note(notices),
                }
            }
            let (mut backlog, desk) = (std::mem::take(&mut self.backlog), Arc::clone(&self.desk));
            self.work = Some(spawn_blocking(move || {
                let taken = take(&mut backlog, &desk);
                (backlog, taken)
            }));
        }
    }

    fn note(&mut self, notices: Vec<Notice>) {
        for notice in notices {
            match notice {
                Notice::Complete(name) => self.backlog.announce(name),
                Notice::Unclear => self.backlog.look_again(),
            }
        }
    }

    async fn finish_work(&mut self) -> Result<Option<(Box<Claim>, Content)>, BrokerError> {
        let Some(work) = &mut self.work else {
            return Ok(None);
        };
        let worked = work.await;
        self.work = None;
        let (backlog, taken) = worked.map_err(|error| died(&self.desk.layout.at, &error))?;
        self.backlog = backlog;
        let wait = match taken {
            Ok(Taken::Event(claim, content)) => {
                self.look_after = LOOK_AFTER;
                return Ok(Some((claim, content)));
            }
            Ok(Taken::NotYet) => NOT_YET,
            Ok(Taken::Nothing) => {
                let wait = self.look_after;
                self.look_after = (wait * 2).min(LOOK_AFTER_MAX);
                wait
            }
            Err(trouble) if self.was_taken_for_dead(&trouble) => {
                self.renew().await?;
                Duration::ZERO
            }
            Err(trouble) => return Err(trouble.into_broker(&self.desk.layout.at)),
        };
        self.look_at = Instant::now() + wait;
        Ok(None)
    }

    fn deliver(&mut self, claim: Box<Claim>, content: Content) -> Result<Delivery, BrokerError> {
        let Some(room) = self.room.take() else {
            // Work is only started with room for its event.
            let detail = "an event without room for it".into();
            return Err(BrokerError::Thread {
                at: self.desk.layout.at.clone(),
                detail,
            });
        };
        let earlier_deliveries = Some(claim.failures);
        let receipt = ReceiptKind::Spool(Receipt { claim, _room: room });
        Ok(Delivery {
            content,
            earlier_deliveries,
            receipt: super::Receipt::new(receipt),
        })
    }

    fn was_taken_for_dead(&self, trouble: &Trouble) -> bool {
        trouble.error.kind() == io::ErrorKind::NotFound && !self.desk.holder.directory.exists()
    }

    /// A new holder. Claims of the old one are other pilots' by now.
    async fn renew(&mut self) -> Result<(), BrokerError> {
        let layout = self.desk.layout.clone();
        let at = layout.at.clone();
        let generation = Generation(self.desk.holder.generation.0 + 1);
        tracing::warn!(
            %at, generation = generation.0,
            "other pilots took this one for dead, as it did not run for a minute; its events are \
             theirs now"
        );
        let desk = match off_the_loop(move || Desk::open(layout, generation)).await {
            Ok(desk) => Arc::new(desk.map_err(|trouble| trouble.into_broker(&at))?),
            Err(error) => return Err(died(&at, &error)),
        };
        self.keeper = Keeper::start(Arc::clone(&desk))?;
        self.desk = desk;
        self.backlog.look_again();
        Ok(())
    }

    pub(super) async fn stop(&mut self) -> Result<(), BrokerError> {
        self.stopped = true;
        let at = self.desk.layout.at.clone();
        let give_back = async {
            if let Some((claim, _content)) = self.finish_work().await? {
                let settled = off_the_loop(move || claim.settle(&Verdict::Released)).await;
                settled
                    .map_err(|error| died(&at, &error))?
                    .map_err(|trouble| trouble.into_broker(&at))?;
            }
            Ok(())
        };
        timeout(STOP_WITHIN, give_back)
            .await
            .unwrap_or_else(|_elapsed| {
                let (step, after) = ("giving an event back", STOP_WITHIN);
                Err(BrokerError::TimedOut {
                    at: self.desk.layout.at.clone(),
                    step,
                    after,
                })
            })
    }

    pub(super) async fn close(mut self) {
        if let Err(error) = self.stop().await {
            tracing::warn!(%error, "the incoming spool was not closed in order");
        }
        let Self { desk, keeper, .. } = self;
        let at = desk.layout.at.clone();
        let retire = off_the_loop(move || {
            keeper.stop();
            desk.holder.retire(&desk.layout)
        });
        match timeout(STOP_WITHIN, retire).await {
            Ok(Ok(Ok(0))) => {}
            Ok(Ok(Ok(events))) => tracing::warn!(%at, events, "unsettled events were given back"),
            Ok(Ok(Err(trouble))) => {
                let error = trouble.into_broker(&at);
                tracing::warn!(%error, "this pilot's claims are left for others to take back");
            }
            Ok(Err(_)) | Err(_) => {
                tracing::warn!(%at, "this pilot's claims are left for others to take back");
            }
        }
    }
}

/// The next event that can be read. One that can't has failed a try.
fn take(backlog: &mut Backlog, desk: &Arc<Desk>) -> Result<Taken, Trouble> {
    loop {
        let claim = match backlog.claim_next(desk)? {
            Next::Claimed(claim) => claim,
            Next::Empty => return Ok(Taken::Nothing),
            Next::NotYet => return Ok(Taken::NotYet),
        };
        match claim.read() {
            Ok(content) => return Ok(Taken::Event(claim, content)),
            Err(trouble) if trouble.error.kind() == io::ErrorKind::NotFound => {}
            Err(trouble) => {
                let reason = format!("can't {}: {}", trouble.action, trouble.error);
                tracing::warn!(file = %trouble.path.display(), reason, "an event can't be read");
                claim.settle(&Verdict::Failed { reason })?;
            }
        }
    }
}

impl Receipt {
    pub(super) fn generation(&self) -> Generation {
        self.claim.desk().holder.generation
    }

    pub(super) async fn settle(self, verdict: Verdict) -> Result<(), SettleError> {
        // All of the receipt, so that the room is free only when the file has moved.
        let settled = off_the_loop(move || {
            let Self { claim, _room } = self;
            claim.settle(&verdict)
        });
        match settled.await {
            Ok(settled) => settled.map_err(Trouble::into_settle),
            Err(_died) => Err(SettleError::SessionLost),
        }
    }

    pub(super) fn report_drop(self) {
        let file = self.claim.name().to_string_lossy();
        tracing::error!(%file, "a delivery was dropped unsettled; its event stays claimed until this pilot ends");
    }
}

/// Keeps the lease fresh and looks for dead holders, on a thread of its own: a pilot that is busy,
/// or whose event loop waits for a slow file system, is not dead.
struct Keeper {
    alive: std_mpsc::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Keeper {
    fn start(desk: Arc<Desk>) -> Result<Self, BrokerError> {
        let (alive, owner) = std_mpsc::channel::<()>();
        let at = desk.layout.at.clone();
        let thread = thread::Builder::new()
            .name("spool-lease".into())
            .spawn(move || {
                let mut round: u32 = 0;
                while owner.recv_timeout(KEEP_EVERY) == Err(RecvTimeoutError::Timeout) {
                    round = round.wrapping_add(1);
                    if let Err(trouble) = keep(&desk, round) {
                        let error = trouble.into_broker(&desk.layout.at);
                        tracing::warn!(%error, "the spool's lease or claims can't be looked after");
                    }
                    if !desk.holder.directory.exists() {
                        break;
                    }
                }
            })
            .map_err(|error| BrokerError::Thread {
                at,
                detail: error.to_string(),
            })?;
        Ok(Self { alive, thread })
    }

    fn stop(self) {
        drop(self.alive);
        // Its panic was told by the panic hook, and there is nothing left for it to do.
        let _panicked = self.thread.join();
    }
}

fn keep(desk: &Desk, round: u32) -> Result<(), Trouble> {
    let refresh_every = u32::try_from(REFRESH_EVERY.as_secs() / KEEP_EVERY.as_secs()).unwrap_or(1);
    if round.is_multiple_of(refresh_every) {
        desk.holder.refresh()?;
    }
    let everyone = round.is_multiple_of(EVERYONE_EVERY);
    let whose = if everyone {
        Whose::Everyone
    } else {
        Whose::ThisMachine
    };
    desk.holder.take_back(&desk.layout, whose).map(|_events| ())
}

impl Desk {
    fn open(layout: Layout, generation: Generation) -> Result<Self, Trouble> {
        let holder = Holder::create(&layout, generation)?;
        Ok(Self::new(layout, holder))
    }
}

/// Results into a directory.
pub struct Sink {
    layout: Arc<Layout>,
    slots: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

impl Sink {
    pub(super) async fn open(queue: &str, directory: &Path) -> Result<Self, BrokerError> {
        let layout = Arc::new(Layout::new(Direction::Outgoing, queue, directory)?);
        let created = {
            let layout = Arc::clone(&layout);
            off_the_loop(move || layout.create()).await
        };
        match created {
            Ok(Ok(())) => {}
            Ok(Err(trouble)) => return Err(trouble.into_broker(&layout.at)),
            Err(error) => return Err(died(&layout.at, &error)),
        }
        let slots = Arc::new(Semaphore::new(PUBLISHES_MAX));
        let bytes = Arc::new(Semaphore::new(PUBLISH_BYTES_MAX as usize));
        Ok(Self {
            layout,
            slots,
            bytes,
        })
    }

    pub(super) fn publish(
        &self,
        content: Content,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + use<> + 'static {
        let layout = Arc::clone(&self.layout);
        let (slots, room) = (Arc::clone(&self.slots), Arc::clone(&self.bytes));
        async move {
            let Content::File(format, bytes) = content else {
                return Err(PublishError::WrongEncoding);
            };
            let gone = || PublishError::SessionLost {
                detail: "the spool was closed".into(),
            };
            // A file has no limit; one that is larger than all the room takes all of it.
            let weight = u32::try_from(bytes.len())
                .unwrap_or(u32::MAX)
                .min(PUBLISH_BYTES_MAX);
            let slot = slots.acquire_owned().await.map_err(|_closed| gone())?;
            let room = room
                .acquire_many_owned(weight)
                .await
                .map_err(|_closed| gone())?;
            let written = off_the_loop(move || {
                let _while_writing = (slot, room);
                write_result(&layout, format, &bytes).map_err(Trouble::into_publish)
            });
            written.await.unwrap_or_else(|_died| Err(gone()))
        }
    }
}

/// On disk first, then visible, then the name on disk too.
fn write_result(layout: &Layout, format: FileFormat, bytes: &[u8]) -> Result<(), Trouble> {
    let suffix = match format {
        FileFormat::Json => "json",
        FileFormat::Text => "txt",
    };
    let directory = &layout.waiting;
    let name = OsString::from(format!("{}.{suffix}", Uuid::now_v7()));
    let hidden = directory.join(format!(".{}", Uuid::new_v4().simple()));
    let write = || {
        let mut file = File::create_new(&hidden)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    let written = write()
        .map_err(Trouble::on("write", &hidden))
        .and_then(|()| {
            fs::rename(&hidden, directory.join(&name)).map_err(Trouble::on("move", &hidden))
        });
    if written.is_err() {
        // The reason is in the error; a leftover hidden file harms nobody.
        let _leftover = fs::remove_file(&hidden);
    }
    written?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(Trouble::on("sync directory", directory))
}

fn off_the_loop<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T, JoinError>> {
    spawn_blocking(work)
}

fn died(at: &super::Place, error: &JoinError) -> BrokerError {
    BrokerError::Thread {
        at: at.clone(),
        detail: error.to_string(),
    }
}

#[cfg(test)]
mod tests;
