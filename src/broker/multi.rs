//! Several queues as one: events from all incoming queues in turn, each result to all outgoing ones.
//!
//! Queues at one [`Address`] of a RabbitMQ share a connection and its thread in each direction, see
//! [`rabbitmq`]. Queues of different addresses are combined here. A spool has no connection to share.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::iter::repeat_n;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use futures_util::future::{join_all, select_all, try_join_all};

use super::{
    Address, BrokerError, ConnectionState, Content, Delivery, Encoding, OutagePolicy, PublishError,
    Sink, Source, StartSignal, rabbitmq, spool,
};
use crate::config::AmqpAddress;

/// Opens all queues of events, and takes none before `start_signal` allows it. Each queue may hold `window`
/// unsettled events, so a pilot holds more than its tasks need only while several queues are full.
///
/// # Errors
/// Returns the [`BrokerError`] of the first queue that can't be opened. A transient error is returned only
/// after about 20 s; or, if the broker is known to let us in, after as long as an outage is tolerated,
/// counted from when everything else is ready.
pub async fn open_sources(
    queues: &[(&str, Address<'_>)],
    window: NonZeroU32,
    outage_policy: &OutagePolicy,
    start_signal: &StartSignal,
) -> Result<Source, BrokerError> {
    let groups = groups(queues);
    let opening = groups.iter().map(async |group| {
        let source = match group {
            BrokerGroup::RabbitMq(queues, address) => Source::RabbitMq(
                rabbitmq::open_source(queues, address, window, outage_policy, start_signal).await?,
            ),
            BrokerGroup::Spool(queue, directory) => {
                // There is no connection to make ahead, and the directory must not be touched before.
                start_signal.clone().wait().await;
                let source = spool::SpoolSource::open(queue, directory, window).await?;
                outage_policy.note(source.place(), ConnectionState::Up);
                Source::Spool(source)
            }
        };
        Ok(source)
    });
    let mut sources = try_join_all(opening).await?;
    Ok(match sources.len() {
        1 => sources.remove(0),
        _ => Source::Several(MultiSource {
            sources,
            turns: ReceiveTurns::of(groups.iter().map(BrokerGroup::size)),
        }),
    })
}

/// Opens all queues of results once everything else is ready, having connected to them before, and first
/// sends the results that earlier pilots left. All queues are of one [`Encoding`].
///
/// # Errors
/// Returns the errors of [`open_sources`].
pub async fn open_sinks(
    queues: &[(&str, Address<'_>)],
    outage_policy: &OutagePolicy,
    start_signal: &StartSignal,
) -> Result<Sink, BrokerError> {
    let groups = groups(queues);
    let opening = groups.iter().map(async |group| match group {
        BrokerGroup::RabbitMq(queues, address) => {
            rabbitmq::open_sink(queues, address, outage_policy, start_signal)
                .await
                .map(Sink::RabbitMq)
        }
        BrokerGroup::Spool(queue, directory) => {
            start_signal.clone().until_all_else_is_ready().await;
            let sink = spool::SpoolSink::open(queue, directory, outage_policy).await?;
            outage_policy.note(sink.place(), ConnectionState::Up);
            Ok(Sink::Spool(sink))
        }
    });
    let mut sinks = try_join_all(opening).await?;
    Ok(match sinks.len() {
        1 => sinks.remove(0),
        _ => Sink::Several(MultiSink { sinks }),
    })
}

#[derive(Debug, PartialEq, Eq)]
enum BrokerGroup<'a> {
    RabbitMq(Vec<&'a str>, &'a AmqpAddress),
    Spool(&'a str, &'a Path),
}

impl BrokerGroup<'_> {
    fn size(&self) -> usize {
        match self {
            Self::RabbitMq(queues, _) => queues.len(),
            Self::Spool(..) => 1,
        }
    }
}

/// Groups the queues by address, in the order of their first queues.
fn groups<'a>(queues: &[(&'a str, Address<'a>)]) -> Vec<BrokerGroup<'a>> {
    let mut groups = Vec::new();
    for &(queue, broker) in queues {
        let address = match broker {
            Address::RabbitMq(address) => address,
            Address::Spool(directory) => {
                groups.push(BrokerGroup::Spool(queue, directory));
                continue;
            }
        };
        let same = groups.iter_mut().find_map(|group| match group {
            BrokerGroup::RabbitMq(queues, of) if *of == address => Some(queues),
            BrokerGroup::RabbitMq(..) | BrokerGroup::Spool(..) => None,
        });
        match same {
            Some(queues) => queues.push(queue),
            None => groups.push(BrokerGroup::RabbitMq(vec![queue], address)),
        }
    }
    groups
}

pub struct MultiSource {
    sources: Vec<Source>,
    turns: ReceiveTurns,
}

impl MultiSource {
    /// The next event of any queue. The queue that gave the last event is asked last, so that a busy queue
    /// does not starve the others.
    pub(super) async fn recv(&mut self) -> Result<Delivery, BrokerError> {
        let turns = &self.turns;
        let mut sources: Vec<_> = self.sources.iter_mut().enumerate().collect();
        sources.sort_by_key(|&(source, _)| turns.rank(source));
        let asking = sources
            .into_iter()
            .map(|(source, events)| Box::pin(async move { (source, events.recv().await) }));
        let ((source, delivery), ..) = select_all(asking).await;
        self.turns.took(source);
        delivery
    }

    pub(super) fn start_idle_clock(&mut self) {
        for source in &mut self.sources {
            source.start_idle_clock();
        }
    }

    pub(super) fn idle_left(&self, wait: Duration) -> Duration {
        let left = self.sources.iter().map(|source| source.idle_left(wait));
        left.max().unwrap_or_default()
    }

    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.sources.iter().filter_map(Source::round_trip).max()
    }

    pub(super) fn look_ahead(&self, events: u16) {
        for source in &self.sources {
            source.look_ahead(events);
        }
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

/// The order in which the sources are asked. Each has as many turns as queues.
struct ReceiveTurns(VecDeque<usize>);

impl ReceiveTurns {
    fn of(sizes: impl Iterator<Item = usize>) -> Self {
        let turns = sizes.enumerate();
        Self(
            turns
                .flat_map(|(source, size)| repeat_n(source, size))
                .collect(),
        )
    }

    fn rank(&self, source: usize) -> usize {
        let mut turns = self.0.iter();
        turns.position(|turn| *turn == source).unwrap_or(usize::MAX)
    }

    /// Moves a source that gave an event to the end. The others keep their turns.
    fn took(&mut self, source: usize) {
        if let Some(turn) = self.0.remove(self.rank(source)) {
            self.0.push_back(turn);
        }
    }
}

pub struct MultiSink {
    sinks: Vec<Sink>,
}

impl MultiSink {
    pub(super) fn encoding(&self) -> Encoding {
        self.sinks.first().map_or(Encoding::Frame, Sink::encoding)
    }

    /// Resolves when all queues have the result. If one fails, the event counts as not done: it is run again,
    /// and the other queues get its result twice.
    pub(super) fn publish(
        &self,
        content: &Content,
        headers: &[(&'static str, String)],
    ) -> impl Future<Output = Result<(), PublishError>> + Send + use<> + 'static {
        let sinks = self.sinks.iter();
        all_of(
            sinks
                .map(|sink| Box::pin(sink.publish_with(content.clone(), headers)) as Publishing)
                .collect(),
        )
    }

    /// As [`publish`](Self::publish), for the result of the event `event`.
    pub(super) fn publish_named(
        &self,
        content: &Content,
        event: Option<&OsStr>,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + use<> + 'static {
        let sinks = self.sinks.iter();
        let named = |sink: &Sink| {
            let event = event.map(OsStr::to_owned);
            Box::pin(sink.publish_named(content.clone(), event)) as Publishing
        };
        all_of(sinks.map(named).collect())
    }

    pub(super) async fn close(self) {
        join_all(self.sinks.into_iter().map(|sink| Box::pin(sink.close()))).await;
    }
}

fn all_of(
    publishing: Vec<Publishing>,
) -> impl Future<Output = Result<(), PublishError>> + Send + 'static {
    let all = join_all(publishing);
    async move { all.await.into_iter().collect() }
}

type Publishing = std::pin::Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send>>;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::broker::{FileFormat, Verdict};
    use crate::config::Secret;

    fn outage_policy(directory: &Path) -> OutagePolicy {
        OutagePolicy::new(Duration::ZERO, directory.join("unsent"))
    }

    fn put(directory: &Path, queue: &str, name: &str) {
        let queue = directory.join(queue);
        fs::create_dir_all(&queue).unwrap();
        fs::write(queue.join(format!(".{name}")), name).unwrap();
        fs::rename(queue.join(format!(".{name}")), queue.join(name)).unwrap();
    }

    fn address(text: &str, token: &str) -> AmqpAddress {
        AmqpAddress::parse(text, token).unwrap()
    }

    #[test]
    fn queues_at_one_address_are_opened_as_one_and_others_by_themselves() {
        let here = address("me@mq:5672/v", "hush");
        // Each differs in one field only.
        let others = [
            address("amqps://me@mq:5672/v", "hush"),
            address("me@other:5672/v", "hush"),
            address("me@mq:5673/v", "hush"),
            address("me@mq:5672/w", "hush"),
            address("you@mq:5672/v", "hush"),
            AmqpAddress {
                password: Secret::new("psst".into()),
                ..here.clone()
            },
        ];
        let again = here.clone();
        let mut queues = vec![("a", Address::RabbitMq(&here))];
        queues.extend(others.iter().map(|other| ("x", Address::RabbitMq(other))));
        queues.push(("b", Address::RabbitMq(&again)));
        let mut expected = vec![BrokerGroup::RabbitMq(vec!["a", "b"], &here)];
        expected.extend(
            others
                .iter()
                .map(|other| BrokerGroup::RabbitMq(vec!["x"], other)),
        );
        assert_eq!(groups(&queues), expected);
    }

    #[test]
    fn queues_of_a_spool_are_opened_by_themselves() {
        let spool = Path::new("spool");
        let queues = ["a", "b"].map(|queue| (queue, Address::Spool(spool)));
        let each = ["a", "b"].map(|queue| BrokerGroup::Spool(queue, spool));
        assert_eq!(groups(&queues), each);
    }

    #[test]
    fn a_source_of_three_queues_gives_three_times_as_many_events_as_one_of_one() {
        let mut turns = ReceiveTurns::of([3, 1].into_iter());
        let mut given = [0, 0];
        for _ in 0..40 {
            let source = usize::from(turns.rank(1) < turns.rank(0));
            turns.took(source);
            given[source] += 1;
        }
        assert_eq!(given, [30, 10]);
        // The source gave no event for a while.
        for _ in 0..10 {
            turns.took(0);
        }
        assert!(turns.rank(1) < turns.rank(0));
    }

    #[tokio::test]
    async fn queues_take_turns_and_each_settles_its_own() {
        const EACH: usize = 30;
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        for queue in ["left", "right"] {
            for number in 0..EACH {
                put(spool, queue, &format!("{queue}-{number:02}"));
            }
        }
        let queues = ["left", "right"].map(|queue| (queue, Address::Spool(spool)));
        let window = NonZeroU32::new(8).unwrap();
        let mut source = open_sources(
            &queues,
            window,
            &outage_policy(spool),
            &StartSignal::given(),
        )
        .await
        .unwrap();
        let mut from_left = Vec::new();
        for _ in 0..2 * EACH {
            let delivery = source.recv().await.unwrap();
            let Content::File(FileFormat::Text, body) = delivery.content else {
                panic!("it is text")
            };
            from_left.push(body.read().unwrap().starts_with(b"left"));
            delivery.receipt.settle(Verdict::Done).await.unwrap();
        }
        // One of them may be ready later than the other.
        let both = from_left.iter().position(|left| *left != from_left[0]);
        let together: Vec<bool> = from_left[both.unwrap()..].to_vec();
        let left = together[..8].iter().filter(|left| **left).count();
        assert!((2..=6).contains(&left), "{from_left:?}");
        for queue in ["left", "right"] {
            let done = fs::read_dir(spool.join(queue).join("done")).unwrap();
            assert_eq!(done.count(), EACH, "{queue}");
        }
        source.close().await;
    }

    #[tokio::test]
    async fn a_result_goes_to_every_queue() {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        let queues = ["left", "right"].map(|queue| (queue, Address::Spool(spool)));
        let sink = open_sinks(&queues, &outage_policy(spool), &StartSignal::given())
            .await
            .unwrap();
        let result = Content::File(FileFormat::Text, b"1".to_vec().into());
        sink.publish_named(result, None).await.unwrap();
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
