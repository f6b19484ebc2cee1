//! The containers that run now: the name of each one's directory and its first process. The status file shows
//! them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use super::process_tree::Pid;

/// The name of each container's directory, and its first process once that is known.
pub type ContainerPids = BTreeMap<String, Option<Pid>>;

/// The list of running containers.
#[derive(Debug, Clone)]
pub struct ActiveContainers(Arc<watch::Sender<ContainerPids>>);

impl Default for ActiveContainers {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(ContainerPids::new())))
    }
}

impl ActiveContainers {
    /// A receiver that changes when a container is added, its first process becomes known, or it is removed.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<ContainerPids> {
        self.0.subscribe()
    }

    /// Adds a container to the list until the returned value is dropped.
    pub(super) fn enter(&self, name: String) -> ActiveContainer {
        self.0.send_modify(|all| {
            all.insert(name.clone(), None);
        });
        ActiveContainer {
            name,
            list: self.clone(),
        }
    }
}

/// A container on the list. Dropping it removes the container.
#[derive(Debug)]
pub(super) struct ActiveContainer {
    name: String,
    list: ActiveContainers,
}

impl ActiveContainer {
    pub(super) fn found(&self, leader: Pid) {
        let leader = Some(leader);
        self.list.0.send_modify(|all| {
            all.insert(self.name.clone(), leader);
        });
    }
}

impl Drop for ActiveContainer {
    fn drop(&mut self) {
        self.list.0.send_modify(|all| {
            all.remove(&self.name);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_on_the_list_from_its_start_to_its_end() {
        let running = ActiveContainers::default();
        let list = || running.watch().borrow().clone();
        let (a, b) = (running.enter("a".into()), running.enter("b".into()));
        a.found(7);
        let both = [("a".to_owned(), Some(7)), ("b".to_owned(), None)];
        assert_eq!(list(), ContainerPids::from(both));
        drop(a);
        assert_eq!(list(), ContainerPids::from([("b".to_owned(), None)]));
        drop(b);
        assert!(list().is_empty());
    }
}
