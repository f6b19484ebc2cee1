//! An unchanged copy of an event, kept while its task runs in case it goes to the dead-letter queue. A large
//! one waits on the disk, so that a full prefetch window takes no memory. The infile can't serve as the copy,
//! because the task can change it.

use std::io;

use crate::broker::{BodyStore, Content};

#[derive(Debug)]
pub enum EventCopy {
    Kept(Content),
    /// It could not be kept. The broker still has it.
    Lost(String),
}

impl EventCopy {
    /// # Errors
    /// When the copy was lost.
    pub fn into_content(self) -> io::Result<Content> {
        match self {
            Self::Kept(content) => {
                drop(content.body().reader()?);
                Ok(content)
            }
            Self::Lost(reason) => Err(io::Error::other(reason)),
        }
    }
}

/// An event whose copy is written while the task's container starts.
#[derive(Debug, Clone)]
pub(super) struct PendingCopy {
    pub(super) event: Content,
    pub(super) bodies: BodyStore,
}

impl PendingCopy {
    /// Moves a large event to the disk.
    pub(super) async fn put_by(self) -> Self {
        let Self { event, bodies } = self;
        if !bodies.would_put_by(event.body()) {
            return Self { event, bodies };
        }
        let (body, keep) = (event.body().clone(), bodies.clone());
        let event = match crate::blocking::start(move || keep.put_by(body)).await {
            Ok(body) => event.with_body(body),
            // No thread could be started: the event stays in memory.
            Err(_died) => event,
        };
        Self { event, bodies }
    }

    pub(super) async fn kept(self) -> EventCopy {
        EventCopy::Kept(self.put_by().await.event)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::broker::{Body, FileFormat, LARGE_BYTES};

    #[tokio::test]
    async fn events_of_any_size_come_back_as_they_were_and_no_large_one_stays_in_memory() {
        let scratch = tempfile::tempdir().expect("a directory");
        for size in [0, 64 * 1024, 3_000_000, LARGE_BYTES + 1] {
            let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(size).collect();
            for event in [
                Content::Frame(Body::from(bytes.clone())),
                Content::File(FileFormat::Text, Body::from(bytes.clone())),
            ] {
                let bodies = BodyStore::new(scratch.path().to_owned());
                let keeping = PendingCopy {
                    event: event.clone(),
                    bodies,
                };
                let kept = keeping.kept().await.into_content().expect("kept");
                assert_eq!(kept.body().in_memory().is_some(), size <= 64 * 1024);
                assert!(kept == event, "{kept:?}");
            }
        }
    }

    #[tokio::test]
    async fn what_could_not_be_kept_is_an_error_that_says_so() {
        let keeping = PendingCopy {
            event: Content::Frame(Body::from(vec![0; 100_000])),
            bodies: BodyStore::new(Path::new("/proc/none").to_owned()),
        };
        assert!(keeping.kept().await.into_content().is_err());
        assert!(EventCopy::Lost("why".into()).into_content().is_err());
    }
}
