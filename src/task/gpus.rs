//! The job's GPUs while tasks run: each task takes its share at its start and gives it back at its end.

use std::sync::{Arc, Mutex, PoisonError};

use crate::config::{Gpu, GpuSet, TaskGpus};

/// The job's GPUs, and how many tasks use each.
#[derive(Debug, Clone, Default)]
pub struct GpuPool {
    gpus: TaskGpus,
    /// Tasks that use each of them, in their order.
    users: Arc<Mutex<Vec<usize>>>,
}

/// The GPUs of one task. Dropping it gives them back.
#[derive(Debug, Default)]
pub struct GpuLease {
    seen: Option<GpuSet>,
    /// Their places in the pool.
    taken: Vec<usize>,
    users: Arc<Mutex<Vec<usize>>>,
}

impl GpuPool {
    #[must_use]
    pub fn new(gpus: TaskGpus) -> Self {
        let count = gpus.given.as_ref().map_or(0, |given| given.gpus.len());
        Self {
            gpus,
            users: Arc::new(Mutex::new(vec![0; count])),
        }
    }

    /// Takes a task's GPUs: those that the fewest tasks use. So none is shared while there are enough.
    #[must_use]
    pub fn take(&self) -> GpuLease {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let mut places: Vec<usize> = (0..users.len()).collect();
        places.sort_by_key(|&place| users[place]);
        places.truncate(self.gpus.each);
        places.sort_unstable();
        for &place in &places {
            users[place] += 1;
        }
        GpuLease {
            seen: self.view(places.iter().copied()),
            taken: places,
            users: Arc::clone(&self.users),
        }
    }

    /// All GPUs of the job, for a container that runs alone, if tasks get any.
    #[must_use]
    pub fn all(&self) -> Option<GpuSet> {
        let count = match self.gpus.each {
            0 => 0,
            _ => self.given().len(),
        };
        self.view(0..count)
    }

    /// The GPUs that the job was given, whether tasks get them or not.
    #[must_use]
    pub fn given(&self) -> &[Gpu] {
        let given = self.gpus.given.as_ref();
        given.map_or(&[], |given| &given.gpus)
    }

    /// `2 × NVIDIA A100`; GPUs of different models one after another. `None` if the job was given none.
    #[must_use]
    pub fn summary(&self) -> Option<String> {
        let mut counts: Vec<(usize, &str)> = Vec::new();
        for gpu in self.given() {
            let model = gpu.model.as_deref().unwrap_or("GPU of unknown model");
            match counts.iter_mut().find(|(_, known)| *known == model) {
                Some((count, _)) => *count += 1,
                None => counts.push((1, model)),
            }
        }
        let texts: Vec<String> = counts
            .iter()
            .map(|(count, model)| format!("{count} × {model}"))
            .collect();
        (!texts.is_empty()).then(|| texts.join(", "))
    }

    /// Notes the models that were found on the machine, in the order of the GPUs.
    pub fn set_models(&mut self, models: Vec<Option<String>>) {
        let gpus = self.gpus.given.iter_mut().flat_map(|given| &mut given.gpus);
        for (gpu, model) in gpus.zip(models) {
            if model.is_some() {
                gpu.model = model;
            }
        }
    }

    fn view(&self, places: impl Iterator<Item = usize>) -> Option<GpuSet> {
        let given = self.gpus.given.as_ref()?;
        Some(GpuSet {
            vendor: given.vendor,
            gpus: places.map(|place| given.gpus[place].clone()).collect(),
            order: given.order.clone(),
        })
    }
}

impl GpuLease {
    /// What the task's container sees; `None` if the job has no GPU.
    #[must_use]
    pub fn seen(&self) -> Option<&GpuSet> {
        self.seen.as_ref()
    }

    #[must_use]
    pub fn gpus(&self) -> &[Gpu] {
        self.seen.as_ref().map_or(&[], |seen| &seen.gpus)
    }
}

impl Drop for GpuLease {
    fn drop(&mut self) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        for &place in &self.taken {
            users[place] -= 1;
        }
    }
}

/// The models of some GPUs, each once.
#[must_use]
pub fn models(gpus: &[Gpu]) -> Option<String> {
    let mut models: Vec<&str> = gpus.iter().filter_map(|gpu| gpu.model.as_deref()).collect();
    models.dedup();
    (!models.is_empty()).then(|| models.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GpuVendor;

    fn pool(count: usize, each: usize) -> GpuPool {
        let gpus = (0..count).map(|number| Gpu {
            id: number.to_string(),
            uuid: None,
            model: None,
        });
        GpuPool::new(TaskGpus {
            given: Some(GpuSet {
                vendor: GpuVendor::Nvidia,
                gpus: gpus.collect(),
                order: None,
            }),
            each,
        })
    }

    fn ids(lease: &GpuLease) -> Vec<&str> {
        lease.gpus().iter().map(|gpu| gpu.id.as_str()).collect()
    }

    #[test]
    fn each_task_has_its_own_and_the_next_gets_what_was_given_back() {
        let pool = pool(4, 2);
        let first = pool.take();
        let second = pool.take();
        assert_eq!(
            (ids(&first), ids(&second)),
            (vec!["0", "1"], vec!["2", "3"])
        );
        drop(first);
        assert_eq!(ids(&pool.take()), ["0", "1"]);
        drop(second);
    }

    #[test]
    fn gpus_are_shared_evenly_where_there_are_more_tasks() {
        let pool = pool(2, 1);
        let mut running: Vec<GpuLease> = (0..4).map(|_| pool.take()).collect();
        let all: Vec<_> = running.iter().map(ids).collect();
        assert_eq!(all, [["0"], ["1"], ["0"], ["1"]]);
        running.remove(1);
        running.remove(2);
        assert_eq!(ids(&pool.take()), ["1"]);
    }

    #[test]
    fn equal_models_are_counted() {
        let mut pool = pool(3, 1);
        assert_eq!(pool.summary().as_deref(), Some("3 × GPU of unknown model"));
        pool.set_models(["A", "B", "A"].map(|model| Some(model.to_owned())).into());
        assert_eq!(pool.summary().as_deref(), Some("2 × A, 1 × B"));
        assert_eq!(GpuPool::default().summary(), None);
    }

    #[test]
    fn without_gpus_for_tasks_the_jobs_are_hidden_and_none_are_said_where_it_has_none() {
        let hidden = pool(2, 0);
        let lease = hidden.take();
        assert!(lease.seen().is_some_and(|seen| seen.gpus.is_empty()));
        assert!(hidden.all().is_some_and(|seen| seen.gpus.is_empty()));
        assert_eq!(pool(2, 1).all().map(|all| all.gpus.len()), Some(2));
        let none = GpuPool::default();
        assert_eq!((none.take().seen(), none.all()), (None, None));
    }
}
