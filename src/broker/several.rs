//! Several queues as one: events from all incoming ones in turn, each result to all outgoing ones.
//! Talks to single sources and sinks only. Apart, because no queue need know that there are others.
//!
//! Each queue has a session of its own for each direction, also where several are on one broker: a
//! fault of one, an acknowledgement that is late for instance, then costs the others nothing.

use std::num::NonZeroU32;
use std::time::Duration;

use futures_util::future::{join_all, select_all, try_join_all};
use tokio::time::Instant;

use super::{
    Address, BrokerError, Content, Delivery, Encoding, PublishError, Resilience, Sink, Source,
};

/// Opens all queues that events come from. Each may hold `window` unsettled events; more than one
/// pilot's tasks need are then held only while several queues are full.
///
/// # Errors
/// That of the first that can't be opened.
pub async fn open_sources(
    queues: &[(&str, Address<'_>)],
    window: NonZeroU32,
    resilience: &Resilience,
) -> Result<Source, BrokerError> {
    let opening = queues
        .iter()
        .map(|&(queue, broker)| super::open_source(queue, broker, window, resilience));
    let mut sources = try_join_all(opening).await?;
    Ok(match sources.len() {
        1 => sources.remove(0),
        _ => Source::Several(Sources { sources, first: 0 }),
    })
}

/// Opens all queues that results go to. All are of one [`Encoding`].
///
/// # Errors
/// That of the first that can't be opened.
pub async fn open_sinks(
    queues: &[(&str, Address<'_>)],
    resilience: &Resilience,
) -> Result<Sink, BrokerError> {
    let opening = queues
        .iter()
        .map(|&(queue, broker)| super::open_sink(queue, broker, resilience));
    let mut sinks = try_join_all(opening).await?;
    Ok(match sinks.len() {
        1 => sinks.remove(0),
        _ => Sink::Several(Sinks { sinks }),
    })
}

/// Events from several queues.
pub struct Sources {
    sources: Vec<Source>,
    /// Whose turn it is.
    first: usize,
}

impl Sources {
    /// A queue that has just given an event is asked last: a busy one does not starve the others.
    pub(super) async fn recv(&mut self) -> Result<Delivery, BrokerError> {
        let count = self.sources.len();
        let (early, late) = self.sources.split_at_mut(self.first);
        let in_turn = late.iter_mut().chain(early);
        let (delivery, place, _) = select_all(in_turn.map(|source| Box::pin(source.recv()))).await;
        self.first = (self.first + place + 1) % count;
        delivery
    }

    pub(super) fn idle_not_before(&self, wait: Duration) -> Option<Instant> {
        let ends = self.sources.iter();
        ends.filter_map(|source| source.idle_not_before(wait)).max()
    }

    pub(super) async fn stop(&mut self) -> Result<(), BrokerError> {
        let stopping = self
            .sources
            .iter_mut()
            .map(|source| Box::pin(source.stop()));
        join_all(stopping).await.into_iter().collect()
    }

    pub(super) async fn close(self) {
        join_all(
            self.sources
                .into_iter()
                .map(|source| Box::pin(source.close())),
        )
        .await;
    }
}

/// Results to several queues.
pub struct Sinks {
    sinks: Vec<Sink>,
}

impl Sinks {
    pub(super) fn encoding(&self) -> Encoding {
        self.sinks.first().map_or(Encoding::Frame, Sink::encoding)
    }

    /// Resolves when the last queue has it. When one does not, the event is as good as not done: it
    /// will be run again, and the other queues get its result twice.
    pub(super) fn publish(
        &self,
        content: &Content,
        headers: &[(&'static str, String)],
    ) -> impl Future<Output = Result<(), PublishError>> + Send + use<> + 'static {
        let publishing = self.sinks.iter().map(|sink| {
            Box::pin(sink.publish_with(content.clone(), headers.to_vec())) as Publishing
        });
        let all = join_all(publishing.collect::<Vec<_>>());
        async move { all.await.into_iter().collect() }
    }

    pub(super) async fn close(self) {
        join_all(self.sinks.into_iter().map(|sink| Box::pin(sink.close()))).await;
    }
}

type Publishing = std::pin::Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send>>;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::broker::{FileFormat, Verdict};

    fn resilience(directory: &Path) -> Resilience {
        Resilience::new(Duration::ZERO, directory.join("unsent"))
    }

    fn put(directory: &Path, queue: &str, name: &str) {
        let queue = directory.join(queue);
        fs::create_dir_all(&queue).unwrap();
        fs::write(queue.join(format!(".{name}")), name).unwrap();
        fs::rename(queue.join(format!(".{name}")), queue.join(name)).unwrap();
    }

    #[tokio::test]
    async fn queues_take_turns_and_each_settles_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        for name in ["a1", "a2", "a3", "a4"] {
            put(spool, "busy", name);
        }
        put(spool, "quiet", "b1");
        let queues = ["busy", "quiet"].map(|queue| (queue, Address::Spool(spool)));
        let window = NonZeroU32::new(8).unwrap();
        let mut source = open_sources(&queues, window, &resilience(spool))
            .await
            .unwrap();
        let mut order = Vec::new();
        for _ in 0..5 {
            let delivery = source.recv().await.unwrap();
            let Content::File(FileFormat::Text, bytes) = delivery.content else {
                panic!("it is text")
            };
            order.push(String::from_utf8(bytes).unwrap());
            delivery.receipt.settle(Verdict::Done).await.unwrap();
        }
        let quiet = order.iter().position(|name| name == "b1").unwrap();
        assert!(quiet <= 2, "{order:?}");
        for (queue, count) in [("busy", 4), ("quiet", 1)] {
            let done = fs::read_dir(spool.join(queue).join("done")).unwrap();
            assert_eq!(done.count(), count, "{queue}");
        }
        source.close().await;
    }

    #[tokio::test]
    async fn a_result_goes_to_every_queue() {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        let queues = ["left", "right"].map(|queue| (queue, Address::Spool(spool)));
        let sink = open_sinks(&queues, &resilience(spool)).await.unwrap();
        let result = Content::File(FileFormat::Text, b"1".to_vec());
        sink.publish(result).await.unwrap();
        sink.close().await;
        for queue in ["left", "right"] {
            let files = fs::read_dir(spool.join(queue)).unwrap();
            let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
            assert_eq!(
                names.filter(|name| name.ends_with("txt")).count(),
                1,
                "{queue}"
            );
        }
    }
}
