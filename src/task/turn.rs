//! What the event loop tells a task, step by step: that its container may be made, its event, and that it may
//! start. The container may be made before the event is known, and the event may come before a slot is free.

use tokio::sync::oneshot;

use super::GpuLease;
use crate::broker::Content;

/// The event loop's end. Dropping it calls the task off.
#[derive(Debug)]
pub struct TurnSender {
    container: Option<oneshot::Sender<GpuLease>>,
    event: Option<oneshot::Sender<Content>>,
    start: Option<oneshot::Sender<()>>,
}

/// The task's end.
#[derive(Debug)]
pub struct TaskTurn {
    /// The container may be made, with these GPUs.
    pub(super) container: oneshot::Receiver<GpuLease>,
    pub(super) event: oneshot::Receiver<Content>,
    pub(super) start: oneshot::Receiver<()>,
}

impl TurnSender {
    #[must_use]
    pub fn new() -> (Self, TaskTurn) {
        let (container, make) = oneshot::channel();
        let (event, given) = oneshot::channel();
        let (start, started) = oneshot::channel();
        let sender = Self {
            container: Some(container),
            event: Some(event),
            start: Some(start),
        };
        let turn = TaskTurn {
            container: make,
            event: given,
            start: started,
        };
        (sender, turn)
    }

    /// Whether the container is being made, or is.
    #[must_use]
    pub fn has_container(&self) -> bool {
        self.container.is_none()
    }

    /// Lets the container be made. A second call changes nothing.
    pub fn make_container(&mut self, gpus: GpuLease) {
        if let Some(container) = self.container.take() {
            // A task that has ended reports that itself, and so for the other steps.
            let _ended = container.send(gpus);
        }
    }

    pub fn give_event(&mut self, event: Content) {
        if let Some(sender) = self.event.take() {
            let _ended = sender.send(event);
        }
    }

    pub fn start(&mut self) {
        if let Some(start) = self.start.take() {
            let _ended = start.send(());
        }
    }
}
