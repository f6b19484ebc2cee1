//! What a broker's words mean to the loop: an answer to a publish, a count of deliveries. Logs what
//! nobody else will see; decides nothing.

use tracing::{error, warn};

use super::events::Publication;
use crate::broker::PublishError;
use crate::fault::{FaultClass, TaskError};
use crate::ids::TaskId;

/// Deliveries after which a broker with default settings deletes an event (RabbitMQ 4.0, quorum queues),
/// and how many before that are warned of.
const DELETED_AFTER: u64 = 20;
const WARNED_BEFORE: u64 = 3;

/// Loud, because the event would be gone without a trace.
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

/// Whether a result is there.
pub(super) fn publication_of(id: TaskId, result: Result<(), PublishError>) -> Publication {
    match result {
        Ok(()) => Publication::Confirmed,
        Err(error @ (PublishError::SessionLost { .. } | PublishError::Spool { .. })) => {
            error!(task_id = %id, %error, "a result was not confirmed");
            Publication::Lost(error.to_string())
        }
        Err(
            error @ (PublishError::TooLarge { .. }
            | PublishError::Unroutable { .. }
            | PublishError::Nacked { .. }
            | PublishError::WrongEncoding),
        ) => {
            error!(task_id = %id, %error, "the broker refused a result");
            let class = match error {
                PublishError::TooLarge { .. } => FaultClass::Task,
                _ => FaultClass::Broker,
            };
            Publication::Refused(TaskError::Publish {
                message: error.to_string(),
                class,
            })
        }
    }
}
