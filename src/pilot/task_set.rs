//! The tasks of the pilot: those with an event, and those whose container waits for one. Makes as many wait as
//! [`super::warm_start`] says, and lets them go.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::warm_start::{WarmPolicy, WarmRules};
use crate::broker::Content;
use crate::config::Gpu;
use crate::fault::TaskError;
use crate::ids::TaskId;
use crate::process::{ShutdownPhase, ShutdownSender, give_idle_memory_back};
use crate::task::{
    ContainerLoss, ContainerPids, TaskEnd, TaskReport, TaskRunner, TaskStart, TurnSender,
};

/// How long the end of containers that wait may take: they are killed.
const GONE_WITHIN: Duration = Duration::from_secs(3);

/// A task before its start: what the event loop has told it.
#[derive(Debug)]
pub(super) struct TaskHandle {
    turn: TurnSender,
    /// Those of its container, once that may be made.
    gpus: Vec<Gpu>,
    /// When its container was begun.
    made: Option<Instant>,
}

#[derive(Debug)]
struct SpareTask {
    id: TaskId,
    handle: TaskHandle,
    /// Whether its container was seen to wait.
    waits: bool,
}

/// What ended, or changed, among the tasks.
#[derive(Debug)]
pub(super) enum TaskNews {
    Ended(TaskId, Box<TaskReport>),
    /// A container could not be made, or too many died: no task can run here.
    NoContainers(TaskError),
    /// The number of containers that wait changed, or should.
    Waiting,
}

pub(super) struct TaskSet {
    runner: Rc<TaskRunner>,
    shutdown: ShutdownSender,
    policy: WarmPolicy,
    /// Tasks without an event, in the order in which they were made.
    spare: VecDeque<SpareTask>,
    /// Bounded by the window of events and by the spare tasks.
    under_way: FuturesUnordered<LocalBoxFuture<'static, (TaskId, TaskEnd)>>,
    waiting: watch::Receiver<ContainerPids>,
    /// Whether a container was seen to wait since one died.
    is_proven: bool,
    /// Whether no event came for so long that the memory of the last ones was given back.
    is_small: bool,
}

impl TaskSet {
    pub(super) fn new(runner: TaskRunner, rules: WarmRules) -> Self {
        let waiting = runner.context.waiting.watch();
        Self {
            // Without a gate none can wait.
            is_proven: runner.context.task_start == TaskStart::WithContainer,
            runner: Rc::new(runner),
            shutdown: ShutdownSender::new(),
            policy: WarmPolicy::new(rules),
            spare: VecDeque::new(),
            under_way: FuturesUnordered::new(),
            waiting,
            is_small: false,
        }
    }

    pub(super) fn runner(&self) -> &TaskRunner {
        &self.runner
    }

    /// Tells every task.
    pub(super) fn tell(&self, shutdown: ShutdownPhase) {
        self.shutdown.advance(shutdown);
    }

    /// Whether a container is known to start, so that an event may be taken.
    pub(super) fn may_take_event(&self) -> bool {
        self.is_proven
    }

    /// Makes the first container that waits.
    ///
    /// # Errors
    /// When none can be made, or it died.
    pub(super) async fn first_waits(&mut self) -> Result<(), TaskError> {
        self.make_spare();
        loop {
            if self.is_proven {
                return Ok(());
            }
            let (_, end) = tokio::select! {
                biased;
                // The list is never dropped before the runner.
                _ = self.waiting.changed() => {
                    self.look();
                    continue;
                }
                Some(ended) = self.under_way.next() => ended,
            };
            if let TaskEnd::Unused(ContainerLoss::Broken(error) | ContainerLoss::Died(error)) = end
            {
                return Err(error);
            }
        }
    }

    /// A task for a new event: one whose container waits, if there is one.
    pub(super) fn next_task(&mut self) -> (TaskId, TaskHandle) {
        self.policy.event_came();
        self.is_small = false;
        let place = self.spare.iter().position(|spare| spare.waits).unwrap_or(0);
        match self.spare.remove(place) {
            Some(spare) => (spare.id, spare.handle),
            None => self.new_task(),
        }
    }

    /// Gives a task its event, before it may start.
    pub(super) fn prepare(handle: &mut TaskHandle, event: Content) {
        handle.turn.give_event(event);
    }

    /// Starts a task. Returns its GPUs.
    pub(super) fn start(&self, mut handle: TaskHandle, event: Option<Content>) -> Vec<Gpu> {
        self.make_container(&mut handle);
        if let Some(event) = event {
            handle.turn.give_event(event);
        }
        handle.turn.start();
        handle.gpus
    }

    /// Makes containers wait, first for events that wait for a slot, while so many tasks run; lets all go that are
    /// of no use any more.
    pub(super) fn tend<'a>(
        &mut self,
        running: usize,
        is_open: bool,
        prepared: impl Iterator<Item = &'a mut TaskHandle>,
    ) {
        self.look();
        if running == 0 && self.policy.is_quiet() && !self.is_small {
            self.is_small = true;
            give_idle_memory_back();
        }
        if self.runner.context.task_start == TaskStart::WithContainer {
            return;
        }
        let wanted = if is_open {
            self.policy.wanted(running)
        } else {
            0
        };
        let mut held = self.spare.len();
        let mut without = Vec::new();
        for handle in prepared {
            if handle.turn.has_container() {
                held += 1;
            } else {
                without.push(handle);
            }
        }
        let mut starting = held.saturating_sub(self.waiting.borrow().len());
        let most = self.policy.starts_at_once();
        let mut without = without.into_iter();
        while held < wanted && starting < most {
            match without.next() {
                Some(handle) => self.make_container(handle),
                None => self.make_spare(),
            }
            held += 1;
            starting += 1;
        }
        if wanted == 0 || self.policy.is_quiet() {
            let surplus = held.saturating_sub(wanted).min(self.spare.len());
            self.spare.truncate(self.spare.len() - surplus);
        }
    }

    /// The next task that ended, or change among the containers that wait. Cancel-safe.
    pub(super) async fn next(&mut self) -> TaskNews {
        let changes_at = self
            .policy
            .changes_at()
            .filter(|_| !self.spare.is_empty() || !self.is_proven || !self.is_small);
        loop {
            tokio::select! {
                biased;
                Some((id, end)) = self.under_way.next() => if let Some(news) = self.news(id, end) {
                    return news;
                },
                Ok(()) = self.waiting.changed() => return TaskNews::Waiting,
                () = reached(changes_at) => return TaskNews::Waiting,
            }
        }
    }

    /// Waits until the containers that wait are gone.
    pub(super) async fn let_go(&mut self) {
        self.spare.clear();
        let gone = async { while self.under_way.next().await.is_some() {} };
        if timeout(GONE_WITHIN, gone).await.is_err() {
            warn!("containers that waited for an event are still being removed");
        }
    }

    fn news(&mut self, id: TaskId, end: TaskEnd) -> Option<TaskNews> {
        let loss = match end {
            TaskEnd::Task(report) => {
                if report.trace.began.is_some() {
                    self.policy.task_ended(report.wall);
                }
                return Some(TaskNews::Ended(id, report));
            }
            TaskEnd::Unused(loss) => loss,
        };
        self.spare.retain(|spare| spare.id != id);
        match loss {
            // Outdated is only what has an event.
            ContainerLoss::CalledOff | ContainerLoss::Outdated => None,
            ContainerLoss::Broken(error) => Some(TaskNews::NoContainers(error)),
            ContainerLoss::Died(error) => {
                self.is_proven = false;
                let Some(pause) = self.policy.died() else {
                    return Some(TaskNews::NoContainers(error));
                };
                let pause_secs = pause.as_secs();
                warn!(task_id = %id, error = %error.message(), pause_secs, "a container that waited for its event died: another will be made");
                Some(TaskNews::Waiting)
            }
        }
    }

    /// Looks which containers wait by now.
    fn look(&mut self) {
        let waiting = self.waiting.borrow_and_update();
        for spare in self.spare.iter_mut().filter(|spare| !spare.waits) {
            if waiting.contains_key(&spare.id.to_string()) {
                spare.waits = true;
                self.is_proven = true;
                if let Some(made) = spare.handle.made {
                    self.policy.started(made.elapsed());
                }
            }
        }
    }

    fn make_spare(&mut self) {
        let (id, mut handle) = self.new_task();
        self.make_container(&mut handle);
        self.spare.push_back(SpareTask {
            id,
            handle,
            waits: false,
        });
    }

    fn make_container(&self, handle: &mut TaskHandle) {
        if handle.turn.has_container() {
            return;
        }
        let gpus = self.runner.context.gpus.take();
        handle.gpus = gpus.gpus().to_vec();
        handle.made = Some(Instant::now());
        handle.turn.make_container(gpus);
    }

    fn new_task(&self) -> (TaskId, TaskHandle) {
        let id = TaskId::random();
        let (turn, its_turn) = TurnSender::new();
        let (runner, shutdown) = (Rc::clone(&self.runner), self.shutdown.subscribe());
        self.under_way.push(Box::pin(async move {
            (id, runner.run(id, its_turn, shutdown).await)
        }));
        let handle = TaskHandle {
            turn,
            gpus: Vec::new(),
            made: None,
        };
        (id, handle)
    }
}

async fn reached(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
