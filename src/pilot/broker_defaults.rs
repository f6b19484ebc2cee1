//! Warns of two defaults of RabbitMQ: it deletes an event that was delivered 20 times, and takes back one
//! that isn't acknowledged within 30 minutes.

use std::time::Duration;

use tracing::{info, warn};

use crate::config::{BrokerConfig, Config};
use crate::ids::TaskId;

/// Deliveries after which a broker with default settings deletes an event (RabbitMQ 4.0, quorum queues),
/// and how many deliveries before that the warnings begin.
const DELETED_AFTER: u64 = 20;
const WARNED_BEFORE: u64 = 3;

/// Warns in capitals, because the event would be gone without a trace.
pub(super) fn warn_of_deletion(id: TaskId, earlier_deliveries: Option<u64>) {
    let deliveries = earlier_deliveries.unwrap_or(0);
    if deliveries.saturating_add(WARNED_BEFORE) >= DELETED_AFTER {
        warn!(
            task_id = %id, deliveries,
            "AN EVENT IS ABOUT TO BE DELETED: a broker with default settings does so after 20 deliveries; \
             raise the queue's `delivery-limit`, or set EWMS_PILOT_MAX_DELIVERIES and \
             EWMS_PILOT_QUEUE_DEAD_LETTER to keep it"
        );
    }
}

/// A broker with default settings takes back an event that isn't acknowledged after half an hour.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_mins(30);
/// Time beyond the task's own, for sending its result to the broker.
const SPARE: Duration = Duration::from_mins(5);

/// Warns of tasks that take longer than that. This pilot would not run the event again, but another might,
/// and each delivery brings it closer to its deletion.
pub(super) fn advise_on_long_tasks(config: &Config) {
    let mut brokers = config.incoming.iter().map(|queue| &queue.broker);
    if !brokers.any(|broker| matches!(broker, BrokerConfig::RabbitMq(_))) {
        return;
    }
    match config.task.timeout {
        Some(timeout) if timeout + SPARE < ACKNOWLEDGED_WITHIN => {}
        Some(timeout) => warn!(
            task_timeout_secs = timeout.as_secs(),
            "tasks may run for longer than a broker with default settings waits for an acknowledgement, \
             30 minutes: have the policy `consumer-timeout` set on the incoming queue, in milliseconds \
             and above EWMS_PILOT_TASK_TIMEOUT"
        ),
        None => info!(
            "tasks may run for any time: if some take more than 25 minutes, have the policy \
             `consumer-timeout` set on the incoming queue, in milliseconds and above the longest"
        ),
    }
}
