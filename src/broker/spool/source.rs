//! Events from a directory: when it is searched, claimed from and settled. All file work is done on threads
//! for blocking work.

use std::future;
use std::io;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

use super::backlog::{Backlog, NextName};
use super::claim::{Claim, ClaimTable};
use super::inotify::{DirectoryEvent, DirectoryWatch};
use super::lease::LeaseScope;
use super::lease_renewer::LeaseRenewer;
use super::paths::{SpoolError, SpoolPaths};
use super::{died, off_the_loop};
use crate::blocking;
use crate::broker::{
    BrokerError, Content, Delivery, Direction, Endpoint, ReceiptKind, SettleError, Verdict,
};
use crate::ids::Generation;

/// How soon an empty queue is searched again if the kernel reports nothing; grows from one second to five
/// while the queue stays empty.
const LOOK_AFTER: Duration = Duration::from_secs(1);
const LOOK_AFTER_MAX: Duration = Duration::from_secs(5);
/// How soon a file that can't be taken yet is tried again.
const NOT_YET: Duration = Duration::from_millis(300);

/// A file system that hangs must not keep the pilot from ending.
const STOP_WITHIN: Duration = Duration::from_secs(12);

/// The outcome of looking for an event.
pub(super) enum TakeOutcome {
    Event(Box<Claim>, Content),
    Nothing,
    NotYet,
}

pub(super) type TakeWork = blocking::BlockingWork<(Backlog, Result<TakeOutcome, SpoolError>)>;

pub struct SpoolSource {
    pub(super) desk: Arc<ClaimTable>,
    keeper: LeaseRenewer,
    directory_watch: DirectoryWatch,
    window: Arc<Semaphore>,
    room: Option<OwnedSemaphorePermit>,
    backlog: Backlog,
    /// Stored here and not in the future of [`SpoolSource::recv`], so that cancelling that loses no claim.
    pub(super) work: Option<TakeWork>,
    look_after: Duration,
    look_at: Instant,
    stopped: bool,
}

pub(in crate::broker) struct SpoolReceipt {
    claim: Box<Claim>,
    /// `None` after the event was set aside.
    room: Option<OwnedSemaphorePermit>,
}

impl SpoolSource {
    pub(in crate::broker) async fn open(
        queue: &str,
        directory: &Path,
        window: NonZeroU32,
    ) -> Result<Self, BrokerError> {
        let paths = SpoolPaths::new(Direction::Incoming, queue, directory)?;
        let at = paths.at.clone();
        let opened = off_the_loop({
            let at = at.clone();
            move || {
                let open = || {
                    paths.create()?;
                    // The directory is watched before it is first searched, so that no file is missed in
                    // between.
                    let desk = ClaimTable::open(paths, Generation(1))?;
                    desk.own_lease
                        .take_back(&desk.paths, LeaseScope::Everyone)?;
                    Ok(desk)
                };
                open().map_err(|trouble: SpoolError| trouble.into_broker(&at))
            }
        });
        let desk = match opened.await {
            Ok(desk) => Arc::new(desk?),
            Err(error) => return Err(died(&at, error)),
        };
        Ok(Self {
            keeper: LeaseRenewer::start(Arc::clone(&desk))?,
            directory_watch: DirectoryWatch::watch(&desk.paths.waiting),
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

    pub(in crate::broker) fn place(&self) -> &Endpoint {
        &self.desk.paths.at
    }

    pub(in crate::broker) async fn recv(&mut self) -> Result<Delivery, BrokerError> {
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
                    directory_watch = self.directory_watch.next() => self.note(directory_watch),
                }
            }
            let (mut backlog, desk) = (std::mem::take(&mut self.backlog), Arc::clone(&self.desk));
            self.work = Some(blocking::start(move || {
                let taken = take(&mut backlog, &desk);
                (backlog, taken)
            }));
        }
    }

    fn note(&mut self, directory_watch: Vec<DirectoryEvent>) {
        for notice in directory_watch {
            match notice {
                DirectoryEvent::Complete(name) => self.backlog.announce(name),
                DirectoryEvent::Unclear => self.backlog.look_again(),
            }
        }
    }

    async fn finish_work(&mut self) -> Result<Option<(Box<Claim>, Content)>, BrokerError> {
        let Some(work) = &mut self.work else {
            return Ok(None);
        };
        let worked = work.await;
        self.work = None;
        let (backlog, taken) = worked.map_err(|error| died(&self.desk.paths.at, error))?;
        self.backlog = backlog;
        let wait = match taken {
            Ok(TakeOutcome::Event(claim, content)) => {
                self.look_after = LOOK_AFTER;
                return Ok(Some((claim, content)));
            }
            Ok(TakeOutcome::NotYet) => NOT_YET,
            Ok(TakeOutcome::Nothing) => {
                let wait = self.look_after;
                self.look_after = (wait * 2).min(LOOK_AFTER_MAX);
                wait
            }
            Err(trouble) if self.was_taken_for_dead(&trouble) => {
                self.renew().await?;
                Duration::ZERO
            }
            Err(trouble) => return Err(trouble.into_broker(&self.desk.paths.at)),
        };
        self.look_at = Instant::now() + wait;
        Ok(None)
    }

    fn deliver(&mut self, claim: Box<Claim>, content: Content) -> Result<Delivery, BrokerError> {
        let Some(room) = self.room.take() else {
            // Work is only started with room for its event.
            let detail = "an event without room for it".into();
            return Err(BrokerError::Thread {
                at: self.desk.paths.at.clone(),
                detail,
            });
        };
        let earlier_deliveries = Some(claim.failures);
        let name = Some(claim.name().to_owned());
        let receipt = ReceiptKind::Spool(SpoolReceipt {
            claim,
            room: Some(room),
        });
        Ok(Delivery {
            content,
            name,
            earlier_deliveries,
            receipt: crate::broker::Receipt::new(receipt),
        })
    }

    fn was_taken_for_dead(&self, trouble: &SpoolError) -> bool {
        trouble.error.kind() == io::ErrorKind::NotFound && !self.desk.own_lease.directory.exists()
    }

    /// Takes a new lease. The claims of the old one belong to other pilots by now.
    async fn renew(&mut self) -> Result<(), BrokerError> {
        let paths = self.desk.paths.clone();
        let at = paths.at.clone();
        let generation = Generation(self.desk.own_lease.generation.0 + 1);
        tracing::warn!(
            %at, generation = generation.0,
            "other pilots took this one for dead, as it did not run for a minute; its events are \
             theirs now"
        );
        let desk = match off_the_loop(move || ClaimTable::open(paths, generation)).await {
            Ok(desk) => Arc::new(desk.map_err(|trouble| trouble.into_broker(&at))?),
            Err(error) => return Err(died(&at, error)),
        };
        self.keeper = LeaseRenewer::start(Arc::clone(&desk))?;
        self.desk = desk;
        self.backlog.look_again();
        Ok(())
    }

    pub(in crate::broker) async fn stop(&mut self) -> Result<(), BrokerError> {
        self.stopped = true;
        let at = self.desk.paths.at.clone();
        let give_back = async {
            if let Some((claim, _content)) = self.finish_work().await? {
                let settled = off_the_loop(move || claim.settle(&Verdict::Released)).await;
                settled
                    .map_err(|error| died(&at, error))?
                    .map_err(|trouble| trouble.into_broker(&at))?;
            }
            Ok(())
        };
        timeout(STOP_WITHIN, give_back)
            .await
            .unwrap_or_else(|_elapsed| {
                let (step, after) = ("giving an event back", STOP_WITHIN);
                Err(BrokerError::TimedOut {
                    at: self.desk.paths.at.clone(),
                    step,
                    after,
                })
            })
    }

    pub(in crate::broker) async fn close(mut self) {
        if let Err(error) = self.stop().await {
            tracing::warn!(%error, "the incoming spool was not closed in order");
        }
        let Self { desk, keeper, .. } = self;
        let at = desk.paths.at.clone();
        let retire = off_the_loop(move || {
            keeper.stop();
            desk.own_lease.retire(&desk.paths)
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

/// The next event that can be read. An event that can't be read counts as failed once.
pub(super) fn take(
    backlog: &mut Backlog,
    desk: &Arc<ClaimTable>,
) -> Result<TakeOutcome, SpoolError> {
    loop {
        let claim = match backlog.claim_next(desk)? {
            NextName::Claimed(claim) => claim,
            NextName::Empty => return Ok(TakeOutcome::Nothing),
            NextName::NotYet => return Ok(TakeOutcome::NotYet),
        };
        match claim.read() {
            Ok(content) => return Ok(TakeOutcome::Event(claim, content)),
            Err(trouble) if trouble.error.kind() == io::ErrorKind::NotFound => {}
            Err(trouble) => {
                let reason = format!("can't {}: {}", trouble.action, trouble.error);
                tracing::warn!(file = %trouble.path.display(), reason, "an event can't be read");
                claim.settle(&Verdict::Failed { reason })?;
            }
        }
    }
}

impl SpoolReceipt {
    pub(in crate::broker) fn generation(&self) -> Generation {
        self.claim.desk().own_lease.generation
    }

    pub(in crate::broker) fn set_aside(&mut self) {
        self.room = None;
    }

    pub(in crate::broker) async fn settle(self, verdict: Verdict) -> Result<(), SettleError> {
        // Moves the whole receipt, so that its room is freed only when the file has moved.
        let settled = off_the_loop(move || {
            let Self { claim, room } = self;
            let settled = claim.settle(&verdict);
            drop(room);
            settled
        });
        match settled.await {
            Ok(settled) => settled.map_err(SpoolError::into_settle),
            Err(_died) => Err(SettleError::SessionLost),
        }
    }

    pub(in crate::broker) fn report_drop(self) {
        let file = self.claim.name().to_string_lossy();
        tracing::error!(%file, "a delivery was dropped unsettled; its event stays claimed until this pilot ends");
    }
}
