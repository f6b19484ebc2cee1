//! Tests of the event loop's rules, one for each.

use super::*;
use crate::broker::Content;
use crate::fault::{ContainerRole, FaultClass};

const SIGTERM: i32 = 15;

fn rules(slots: usize) -> LoopRules {
    LoopRules {
        slots,
        window: slots,
        on_task_error: OnTaskError::StopListening {
            except: ["TimeoutError".to_owned()].into(),
        },
        max_deliveries: None,
        first_event_timeout: Duration::from_mins(1),
        idle_timeout: Duration::from_secs(2),
    }
}

fn state(slots: usize) -> PilotState {
    PilotState::new(rules(slots)).0
}

fn deliver(state: &mut PilotState) -> TaskId {
    let id = TaskId::random();
    let actions = state.on_event(PilotEvent::Delivered(id, Some(0)));
    assert!(actions.contains(&PilotAction::Start(id)), "{actions:?}");
    id
}

fn result() -> Content {
    Content::Frame(b"result".to_vec().into())
}

fn lost_session(detail: &str) -> PublishError {
    PublishError::SessionLost {
        detail: detail.to_owned(),
    }
}

fn too_large() -> PublishError {
    PublishError::TooLarge { bytes: 2, limit: 1 }
}

fn broken() -> TaskError {
    TaskError::ContainerRun {
        role: ContainerRole::Task,
        exit_code: Some(1),
        reason: "boom".to_owned(),
        class: FaultClass::Task,
    }
}

fn timed_out() -> TaskError {
    TaskError::Timeout {
        role: ContainerRole::Task,
        after: Duration::from_secs(5),
    }
}

fn settles(actions: &[PilotAction]) -> Vec<(TaskId, Verdict)> {
    actions
        .iter()
        .filter_map(|action| match action {
            PilotAction::Settle(id, verdict) => Some((*id, verdict.clone())),
            _ => None,
        })
        .collect()
}

#[test]
fn a_result_is_confirmed_before_its_event_is_acknowledged() {
    let mut state = state(1);
    let id = deliver(&mut state);
    let ended = state.on_event(PilotEvent::TaskEnded(id, TaskOutcome::Output(result())));
    assert_eq!(ended[0], PilotAction::Publish(id, result()));
    assert_eq!(settles(&ended), []);
    let confirmed = state.on_event(PilotEvent::Published(id, Ok(())));
    assert_eq!(settles(&confirmed), [(id, Verdict::Done)]);
}

#[test]
fn success_without_output_is_acknowledged_at_once() {
    let mut state = state(1);
    let id = deliver(&mut state);
    let actions = state.on_event(PilotEvent::TaskEnded(id, TaskOutcome::NoOutput));
    assert_eq!(settles(&actions), [(id, Verdict::Done)]);
}

#[test]
fn a_failure_closes_the_intake_before_its_event_goes_back() {
    let mut state = state(1);
    let id = deliver(&mut state);
    let failed = state.on_event(PilotEvent::TaskEnded(id, TaskOutcome::Failed(broken())));
    assert!(failed.contains(&PilotAction::StopIntake));
    assert_eq!(
        settles(&failed),
        [],
        "it would be delivered to this pilot again"
    );
    let stopped = state.on_event(PilotEvent::IntakeStopped);
    assert!(matches!(&settles(&stopped)[..], [(back, Verdict::Failed { .. })] if *back == id));
    assert!(!state.is_over(), "not settled yet");
    state.on_event(PilotEvent::Settled(id));
    assert!(state.is_over());
}

#[test]
fn an_okay_error_goes_back_and_the_intake_stays_open() {
    let mut state = state(1);
    let id = deliver(&mut state);
    let failed = state.on_event(PilotEvent::TaskEnded(id, TaskOutcome::Failed(timed_out())));
    assert!(!failed.contains(&PilotAction::StopIntake));
    assert!(matches!(
        &settles(&failed)[..],
        [(_, Verdict::Failed { .. })]
    ));
    state.on_event(PilotEvent::Settled(id));
    assert!(state.wants_event());
}

#[test]
fn with_continue_no_failure_closes_the_intake() {
    let (mut state, _) = PilotState::new(LoopRules {
        on_task_error: OnTaskError::Continue,
        ..rules(1)
    });
    let id = deliver(&mut state);
    let failed = state.on_event(PilotEvent::TaskEnded(id, TaskOutcome::Failed(broken())));
    assert!(!failed.contains(&PilotAction::StopIntake));
}

#[test]
fn running_tasks_finish_and_are_published_after_the_intake_closed() {
    let mut state = state(2);
    let (bad, good) = (deliver(&mut state), deliver(&mut state));
    let failed = state.on_event(PilotEvent::TaskEnded(bad, TaskOutcome::Failed(broken())));
    assert!(failed.contains(&PilotAction::Report(Status::PendingRemainingTasks)));
    state.on_event(PilotEvent::IntakeStopped);
    let ended = state.on_event(PilotEvent::TaskEnded(good, TaskOutcome::Output(result())));
    assert_eq!(ended, [PilotAction::Publish(good, result())]);
    let confirmed = state.on_event(PilotEvent::Published(good, Ok(())));
    assert_eq!(settles(&confirmed), [(good, Verdict::Done)]);
}

#[test]
fn no_event_is_wanted_while_every_slot_is_busy_or_the_window_is_full() {
    let mut state = state(1);
    assert!(state.wants_event());
    let id = deliver(&mut state);
    assert!(!state.wants_event(), "the slot is busy");
    state.on_event(PilotEvent::TaskEnded(id, TaskOutcome::Output(result())));
    assert!(
        !state.wants_event(),
        "the window is full until the event is settled"
    );
    state.on_event(PilotEvent::Published(id, Ok(())));
    let settled = state.on_event(PilotEvent::Settled(id));
    assert!(state.wants_event());
    assert_eq!(
        settled,
        [PilotAction::StartIdleTimer(Duration::from_secs(2))]
    );
}

#[test]
fn a_lookahead_widens_the_window_and_the_queues_silence_counts_while_a_slot_is_free() {
    let mut state = state(1);
    let id = deliver(&mut state);
    assert_eq!(
        state.on_event(PilotEvent::Lookahead(2)),
        [],
        "the slot is busy"
    );
    assert!(state.wants_event());
    state.on_event(PilotEvent::TaskEnded(id, TaskOutcome::Output(result())));
    let ended = state.on_event(PilotEvent::Lookahead(0));
    assert_eq!(ended, [PilotAction::StopIdleTimer]);
    assert!(!state.wants_event());
    let widened = state.on_event(PilotEvent::Lookahead(1));
    let idle = PilotAction::StartIdleTimer(Duration::from_secs(2));
    assert_eq!(widened, [idle]);
}

#[test]
fn the_idle_time_stops_while_every_slot_is_busy() {
    let mut state = state(2);
    let first = state.on_event(PilotEvent::Delivered(TaskId::random(), None));
    assert!(first.contains(&PilotAction::StartIdleTimer(Duration::from_secs(2))));
    let second = state.on_event(PilotEvent::Delivered(TaskId::random(), None));
    assert!(second.contains(&PilotAction::StopIdleTimer));
}

#[test]
fn an_idle_pilot_waits_for_its_running_tasks() {
    let mut state = state(2);
    let id = deliver(&mut state);
    let idle = state.on_event(PilotEvent::IdleTimeout);
    assert!(idle.contains(&PilotAction::StopIntake));
    state.on_event(PilotEvent::IntakeStopped);
    assert!(!state.is_over());
    state.on_event(PilotEvent::TaskEnded(id, TaskOutcome::NoOutput));
    state.on_event(PilotEvent::Settled(id));
    assert!(state.is_over());
}

#[test]
fn a_signal_is_forwarded_and_a_second_one_kills() {
    let mut state = state(1);
    deliver(&mut state);
    let first = state.on_event(PilotEvent::Signal(SIGTERM));
    assert!(first.contains(&PilotAction::StopIntake));
    assert!(first.contains(&PilotAction::Tell(ShutdownPhase::Terminate(SIGTERM))));
    let second = state.on_event(PilotEvent::Signal(2));
    assert_eq!(second, [PilotAction::Tell(ShutdownPhase::Kill)]);
    let third = state.on_event(PilotEvent::Signal(1));
    assert_eq!(
        third,
        [PilotAction::Tell(ShutdownPhase::Kill)],
        "the will only moves forward"
    );
    assert_eq!(state.conclude().signal, Some(SIGTERM));
}

#[test]
fn an_interrupted_task_is_no_failure_and_its_event_goes_back() {
    let mut state = state(1);
    let id = deliver(&mut state);
    state.on_event(PilotEvent::Signal(SIGTERM));
    state.on_event(PilotEvent::IntakeStopped);
    let actions = state.on_event(PilotEvent::TaskEnded(id, TaskOutcome::Interrupted));
    assert_eq!(settles(&actions), [(id, Verdict::Released)]);
    state.on_event(PilotEvent::Settled(id));
    let conclusion = state.conclude();
    assert_eq!(
        (conclusion.tally.failed, conclusion.tally.given_back),
        (0, 1)
    );
}

#[test]
fn an_event_that_comes_after_the_intake_closed_goes_back_unstarted() {
    let mut state = state(2);
    state.on_event(PilotEvent::IdleTimeout);
    let id = TaskId::random();
    let actions = state.on_event(PilotEvent::Delivered(id, Some(0)));
    assert_eq!(actions, [], "held until the intake is closed");
    let stopped = state.on_event(PilotEvent::IntakeStopped);
    assert_eq!(settles(&stopped), [(id, Verdict::Released)]);
}

#[test]
fn a_refused_result_fails_its_event_not_the_pilot() {
    let mut state = state(1);
    let id = deliver(&mut state);
    state.on_event(PilotEvent::TaskEnded(id, TaskOutcome::Output(result())));
    state.on_event(PilotEvent::Published(id, Err(too_large())));
    let stopped = state.on_event(PilotEvent::IntakeStopped);
    assert!(matches!(
        &settles(&stopped)[..],
        [(_, Verdict::Failed { .. })]
    ));
    state.on_event(PilotEvent::Settled(id));
    let conclusion = state.conclude();
    assert_eq!(conclusion.fatal, None);
    assert_eq!(conclusion.tally.failed, 1);
}

#[test]
fn a_lost_broker_ends_the_pilot_after_its_tasks_ended() {
    let mut state = state(2);
    let id = deliver(&mut state);
    let lost = state.on_event(PilotEvent::IntakeLost("connection lost".to_owned()));
    assert!(lost.contains(&PilotAction::StopIntake));
    state.on_event(PilotEvent::IntakeStopped);
    assert!(!state.is_over(), "the task still runs");
    state.on_event(PilotEvent::TaskEnded(id, TaskOutcome::Output(result())));
    let unpublished = state.on_event(PilotEvent::Published(id, Err(lost_session("gone"))));
    assert_eq!(settles(&unpublished), [(id, Verdict::Released)]);
    state.on_event(PilotEvent::Settled(id));
    assert!(state.is_over());
    assert_eq!(state.conclude().fatal.as_deref(), Some("connection lost"));
}

#[test]
fn a_report_about_a_task_that_is_not_there_changes_nothing() {
    let mut state = state(1);
    let id = deliver(&mut state);
    state.on_event(PilotEvent::TaskEnded(id, TaskOutcome::NoOutput));
    assert_eq!(
        state.on_event(PilotEvent::TaskEnded(id, TaskOutcome::NoOutput)),
        []
    );
    assert_eq!(state.on_event(PilotEvent::Published(id, Ok(()))), []);
    assert_eq!(state.tally().succeeded, 1);
}

/// An event fails after `earlier` of at most three deliveries; returns the actions that follow.
fn last_failure(error: TaskError, earlier: u64) -> (PilotState, TaskId, Vec<PilotAction>) {
    let (mut state, _) = PilotState::new(LoopRules {
        max_deliveries: Some(3),
        on_task_error: OnTaskError::Continue,
        ..rules(1)
    });
    let id = TaskId::random();
    state.on_event(PilotEvent::Delivered(id, Some(earlier)));
    let actions = state.on_event(PilotEvent::TaskEnded(id, TaskOutcome::Failed(error)));
    (state, id, actions)
}

#[test]
fn an_event_that_failed_too_often_is_put_away_before_it_is_settled() {
    let (mut state, id, failed) = last_failure(broken(), 2);
    let failure_note = FailureNote {
        error: broken(),
        deliveries: 3,
    };
    assert_eq!(settles(&failed), []);
    assert!(failed.contains(&PilotAction::PutAway(id, failure_note)));
    let away = state.on_event(PilotEvent::PutAway(id, Ok(Disposition::DeadLettered)));
    assert_eq!(settles(&away), [(id, Verdict::Done)]);
    assert_eq!((state.tally().failed, state.tally().dead_lettered), (1, 1));
}

#[test]
fn without_a_dead_letter_queue_it_is_rejected_for_good() {
    let (mut state, id, _) = last_failure(broken(), 7);
    let away = state.on_event(PilotEvent::PutAway(id, Ok(Disposition::Kept)));
    assert_eq!(settles(&away), [(id, Verdict::Rejected)]);
    assert_eq!(state.tally().rejected, 1);
}

#[test]
fn an_event_that_could_not_be_put_away_stays_in_its_queue() {
    let (mut state, id, _) = last_failure(broken(), 2);
    let failed = NotPutAway::Failed("no such queue".to_owned());
    let back = state.on_event(PilotEvent::PutAway(id, Err(failed)));
    assert!(back.contains(&PilotAction::StopIntake), "{back:?}");
    assert_eq!(
        settles(&back),
        [],
        "it would fail here again, and be deleted in the end"
    );
    let stopped = state.on_event(PilotEvent::IntakeStopped);
    assert_eq!(settles(&stopped), [(id, Verdict::Released)]);
    assert_eq!(state.conclude().fatal, None);
}

#[test]
fn an_event_that_the_dead_letter_queue_refuses_goes_back_unmarked_and_ends_the_pilot() {
    let (mut state, id, _) = last_failure(broken(), 2);
    let refused = NotPutAway::Refused("full".to_owned());
    let back = state.on_event(PilotEvent::PutAway(id, Err(refused)));
    assert!(back.contains(&PilotAction::StopIntake), "{back:?}");
    assert_eq!(settles(&back), [], "it would come to this pilot again");
    let stopped = state.on_event(PilotEvent::IntakeStopped);
    assert_eq!(settles(&stopped), [(id, Verdict::Released)]);
    state.on_event(PilotEvent::Settled(id));
    assert!(state.is_over());
    assert_eq!(state.conclude().fatal.as_deref(), Some("full"));
}

#[test]
fn only_faults_of_task_or_event_make_poison_and_only_at_the_last_delivery() {
    let machine = TaskError::Os("no space left".to_owned());
    for (error, earlier) in [(machine, 2), (broken(), 1)] {
        let (_, _, actions) = last_failure(error, earlier);
        let away = |action: &PilotAction| matches!(action, PilotAction::PutAway(..));
        assert!(!actions.iter().any(away), "{actions:?}");
    }
}

#[test]
fn the_end_of_the_wall_time_drains_then_tells_then_kills_and_is_no_failure() {
    let mut state = state(1);
    let id = deliver(&mut state);
    let drained = state.on_event(PilotEvent::WallTime(DeadlineStep::NoMoreTasks));
    assert!(drained.contains(&PilotAction::StopIntake));
    let told = state.on_event(PilotEvent::WallTime(DeadlineStep::TellTasks));
    assert_eq!(told, [PilotAction::Tell(ShutdownPhase::Terminate(SIGTERM))]);
    let killed = state.on_event(PilotEvent::WallTime(DeadlineStep::KillTasks));
    assert_eq!(killed, [PilotAction::Tell(ShutdownPhase::Kill)]);
    state.on_event(PilotEvent::IntakeStopped);
    let ended = state.on_event(PilotEvent::TaskEnded(id, TaskOutcome::Interrupted));
    assert_eq!(settles(&ended), [(id, Verdict::Released)]);
    let conclusion = state.conclude();
    assert_eq!((conclusion.signal, conclusion.tally.failed), (None, 0));
}

#[test]
fn a_full_disk_closes_the_intake_and_ends_tasks() {
    let mut state = state(1);
    deliver(&mut state);
    let actions = state.on_event(PilotEvent::DiskLow("full".to_owned()));
    assert!(actions.contains(&PilotAction::StopIntake));
    assert!(actions.contains(&PilotAction::Tell(ShutdownPhase::Terminate(SIGTERM))));
    assert_eq!(state.conclude().disk_low.as_deref(), Some("full"));
}

fn of_class(class: FaultClass) -> TaskError {
    TaskError::ContainerRun {
        role: ContainerRole::Task,
        exit_code: Some(255),
        reason: "boom".to_owned(),
        class,
    }
}

#[test]
fn a_fault_of_the_machine_gives_the_event_back_unmarked_and_takes_no_more() {
    for class in [FaultClass::Ep, FaultClass::Image, FaultClass::Broker] {
        let mut lenient = rules(1);
        lenient.on_task_error = OnTaskError::Continue;
        for rules in [rules(1), lenient] {
            let mut state = PilotState::new(rules).0;
            let id = deliver(&mut state);
            let ended = state.on_event(PilotEvent::TaskEnded(
                id,
                TaskOutcome::Failed(of_class(class)),
            ));
            assert!(
                ended.contains(&PilotAction::StopIntake),
                "{class}: {ended:?}"
            );
            let stopped = state.on_event(PilotEvent::IntakeStopped);
            assert_eq!(settles(&stopped), [(id, Verdict::Released)], "{class}");
            state.on_event(PilotEvent::Settled(id));
            assert!(state.is_over());
            assert_eq!(state.conclude().broken, Some(class));
        }
    }
}

#[test]
fn no_okay_error_excuses_a_broken_machine() {
    let mut rules = rules(1);
    rules.on_task_error = OnTaskError::StopListening {
        except: ["ContainerRunError".to_owned()].into(),
    };
    let mut state = PilotState::new(rules).0;
    let id = deliver(&mut state);
    let failed = PilotEvent::TaskEnded(id, TaskOutcome::Failed(of_class(FaultClass::Ep)));
    assert!(state.on_event(failed).contains(&PilotAction::StopIntake));
}

#[test]
fn a_fault_of_the_task_or_event_is_counted_and_blames_nobody_else() {
    for class in [FaultClass::Task, FaultClass::Event] {
        let mut state = state(1);
        let id = deliver(&mut state);
        state.on_event(PilotEvent::TaskEnded(
            id,
            TaskOutcome::Failed(of_class(class)),
        ));
        let stopped = state.on_event(PilotEvent::IntakeStopped);
        assert!(
            matches!(&settles(&stopped)[..], [(_, Verdict::Failed { .. })]),
            "{class}"
        );
        state.on_event(PilotEvent::Settled(id));
        assert_eq!(state.conclude().broken, None);
    }
}

/// A refused result waits.
fn one_is_refused(rules: LoopRules) -> (PilotState, TaskId) {
    let mut state = PilotState::new(rules).0;
    let id = deliver(&mut state);
    state.on_event(PilotEvent::TaskEnded(id, TaskOutcome::Output(result())));
    state.on_event(PilotEvent::ResultAcceptance(ResultAcceptance::Refuses));
    (state, id)
}

#[test]
fn while_results_are_refused_no_event_is_taken_no_task_started_and_no_time_is_idle() {
    let window = 3;
    let mut state = PilotState::new(LoopRules { window, ..rules(2) }).0;
    let (running, done) = (deliver(&mut state), deliver(&mut state));
    let next = TaskId::random();
    state.on_event(PilotEvent::Delivered(next, None));
    let refused = state.on_event(PilotEvent::ResultAcceptance(ResultAcceptance::Refuses));
    assert_eq!(refused, [], "the slots were busy: no time was idle");
    for id in [running, done] {
        let ended = state.on_event(PilotEvent::TaskEnded(id, TaskOutcome::Output(result())));
        assert_eq!(ended, [PilotAction::Publish(id, result())]);
        assert!(!state.wants_event());
    }
    let taken = state.on_event(PilotEvent::ResultAcceptance(ResultAcceptance::Takes));
    assert_eq!(taken, [PilotAction::Start(next)], "the window is full");
    state.on_event(PilotEvent::Published(done, Ok(())));
    let settled = state.on_event(PilotEvent::Settled(done));
    assert_eq!(
        settled,
        [PilotAction::StartIdleTimer(rules(2).idle_timeout)]
    );
    assert!(state.wants_event());
    assert_eq!((state.tally().failed, state.tally().given_back), (0, 0));
}

#[test]
fn the_idle_time_begins_anew_when_results_are_taken_again() {
    let (mut state, id) = one_is_refused(rules(2));
    assert!(!state.wants_event());
    let again = state.on_event(PilotEvent::ResultAcceptance(ResultAcceptance::Refuses));
    assert_eq!(again, [], "it is known");
    let taken = state.on_event(PilotEvent::ResultAcceptance(ResultAcceptance::Takes));
    assert_eq!(taken, [PilotAction::StartIdleTimer(rules(2).idle_timeout)]);
    let refused = state.on_event(PilotEvent::ResultAcceptance(ResultAcceptance::Refuses));
    assert_eq!(refused, [PilotAction::StopIdleTimer]);
    state.on_event(PilotEvent::Published(id, Ok(())));
    let settled = state.on_event(PilotEvent::Settled(id));
    assert_eq!(settled, [], "another one is refused still");
}

#[test]
fn a_result_that_was_refused_for_too_long_gives_its_event_back_unmarked_and_ends_the_pilot() {
    let mut lenient = rules(1);
    lenient.on_task_error = OnTaskError::Continue;
    for rules in [rules(1), lenient] {
        let (mut state, id) = one_is_refused(rules);
        let lost = Err(lost_session("full"));
        let given_up = state.on_event(PilotEvent::Published(id, lost));
        assert!(given_up.contains(&PilotAction::StopIntake), "{given_up:?}");
        assert_eq!(settles(&given_up), [], "it would come to this pilot again");
        let stopped = state.on_event(PilotEvent::IntakeStopped);
        assert_eq!(settles(&stopped), [(id, Verdict::Released)]);
        state.on_event(PilotEvent::Settled(id));
        let conclusion = state.conclude();
        assert_eq!((conclusion.tally.failed, conclusion.tally.started), (0, 1));
        assert_eq!(conclusion.fatal, Some(lost_session("full").to_string()));
    }
}

#[test]
fn an_event_that_would_fail_each_time_is_put_away_the_first_time_if_that_was_asked_for() {
    let (mut state, _) = PilotState::new(LoopRules {
        max_deliveries: Some(9),
        ..rules(1)
    });
    let id = TaskId::random();
    state.on_event(PilotEvent::Delivered(id, Some(2)));
    let error = TaskError::ResultTooLarge { bytes: 2, limit: 1 };
    let failed = PilotEvent::TaskEnded(id, TaskOutcome::Failed(error.clone()));
    let actions = state.on_event(failed);
    let deliveries = 3;
    let failure_note = FailureNote { error, deliveries };
    assert!(
        actions.contains(&PilotAction::PutAway(id, failure_note)),
        "{actions:?}"
    );
    state.on_event(PilotEvent::IntakeStopped);
    let actions = state.on_event(PilotEvent::PutAway(id, Ok(Disposition::Kept)));
    assert_eq!(settles(&actions), [(id, Verdict::Rejected)]);
}

#[test]
fn an_event_that_would_fail_each_time_goes_back_like_any_other_unless_asked() {
    let mut state = state(1);
    let id = deliver(&mut state);
    let error = TaskError::ResultTooLarge { bytes: 2, limit: 1 };
    let failed = state.on_event(PilotEvent::TaskEnded(id, TaskOutcome::Failed(error)));
    assert!(failed.contains(&PilotAction::StopIntake), "{failed:?}");
    let stopped = state.on_event(PilotEvent::IntakeStopped);
    assert!(matches!(
        &settles(&stopped)[..],
        [(_, Verdict::Failed { .. })]
    ));
}

/// One task runs, another waits for its slot.
fn one_waits() -> (PilotState, TaskId, TaskId) {
    let window = 2;
    let (mut state, _) = PilotState::new(LoopRules { window, ..rules(1) });
    let running = deliver(&mut state);
    assert!(state.wants_event());
    let next = TaskId::random();
    let actions = state.on_event(PilotEvent::Delivered(next, None));
    assert_eq!(
        actions,
        [PilotAction::Prepare(next), PilotAction::StopIdleTimer]
    );
    assert!(!state.wants_event(), "the window is full");
    assert_eq!(state.running(), 1);
    (state, running, next)
}

#[test]
fn what_was_made_ready_starts_while_the_result_before_it_is_on_its_way() {
    let (mut state, running, next) = one_waits();
    let ended = state.on_event(PilotEvent::TaskEnded(
        running,
        TaskOutcome::Output(result()),
    ));
    assert_eq!(
        ended,
        [
            PilotAction::Publish(running, result()),
            PilotAction::Start(next)
        ]
    );
    assert_eq!(state.tally().started, 2);
    state.on_event(PilotEvent::Published(running, Ok(())));
    let settled = state.on_event(PilotEvent::Settled(running));
    assert_eq!(settled, [], "the slot is busy: no time is idle");
    assert!(state.wants_event());
}

#[test]
fn what_was_made_ready_is_called_off_and_given_back_when_the_intake_closes() {
    let failure = |running| PilotEvent::TaskEnded(running, TaskOutcome::Failed(broken()));
    for close in [failure, |_| PilotEvent::Signal(SIGTERM)] {
        let (mut state, running, next) = one_waits();
        let closed = state.on_event(close(running));
        assert!(closed.contains(&PilotAction::CallOff(next)), "{closed:?}");
        assert!(!closed.contains(&PilotAction::Start(next)), "{closed:?}");
        state.on_event(PilotEvent::TaskEnded(running, TaskOutcome::Interrupted));
        let called_off = state.on_event(PilotEvent::TaskEnded(next, TaskOutcome::Interrupted));
        assert_eq!(called_off, [], "the intake is still closing");
        let stopped = settles(&state.on_event(PilotEvent::IntakeStopped));
        assert!(stopped.contains(&(next, Verdict::Released)), "{stopped:?}");
        for id in [running, next] {
            state.on_event(PilotEvent::Settled(id));
        }
        assert!(state.is_over());
        assert_eq!(state.tally().started, 1);
    }
}

/// An event that failed before fails again.
fn fails_again(state: &mut PilotState) -> (TaskId, Vec<PilotAction>) {
    let id = TaskId::random();
    state.on_event(PilotEvent::Delivered(id, Some(3)));
    let actions = state.on_event(PilotEvent::TaskEnded(id, TaskOutcome::Failed(broken())));
    (id, actions)
}

fn going_on(slots: usize) -> PilotState {
    let rules = LoopRules {
        on_task_error: OnTaskError::Continue,
        ..rules(slots)
    };
    PilotState::new(rules).0
}

#[test]
fn a_failed_event_that_waits_takes_no_place_from_others() {
    let mut state = going_on(1);
    let (id, actions) = fails_again(&mut state);
    let pause = Duration::from_secs(1);
    assert!(
        actions.contains(&PilotAction::SetAside(id, pause)),
        "{actions:?}"
    );
    assert_eq!(settles(&actions), []);
    assert!(state.wants_event());
    let idle = PilotAction::StartIdleTimer(Duration::from_secs(2));
    assert!(actions.contains(&idle), "{actions:?}");
    deliver(&mut state);
    assert!(!state.wants_event());
    let settled = settles(&state.on_event(PilotEvent::PauseOver(id)));
    assert_eq!(settled.len(), 1, "{settled:?}");
    assert!(matches!(&settled[0], (of, Verdict::Failed { .. }) if *of == id));
    assert_eq!(settles(&state.on_event(PilotEvent::PauseOver(id))), []);
}

#[test]
fn more_failed_events_than_are_set_aside_take_places_until_the_oldest_may_go() {
    let mut state = going_on(2);
    let ids: Vec<TaskId> = (0..33).map(|_| fails_again(&mut state).0).collect();
    assert!(state.wants_event(), "one of two places is free");
    deliver(&mut state);
    assert!(!state.wants_event());
    let settled = settles(&state.on_event(PilotEvent::Rested(ids[0])));
    assert!(
        matches!(settled.as_slice(), [(of, Verdict::Failed { .. })] if *of == ids[0]),
        "{settled:?}"
    );
    state.on_event(PilotEvent::Settled(ids[0]));
    assert!(state.wants_event());
}

#[test]
fn events_set_aside_go_back_when_the_intake_is_closed_and_not_before() {
    let mut state = going_on(1);
    let (id, _) = fails_again(&mut state);
    let actions = state.on_event(PilotEvent::Signal(SIGTERM));
    assert_eq!(settles(&actions), []);
    assert_eq!(settles(&state.on_event(PilotEvent::PauseOver(id))), []);
    let settled = settles(&state.on_event(PilotEvent::IntakeStopped));
    assert!(
        matches!(settled.as_slice(), [(of, Verdict::Failed { .. })] if *of == id),
        "{settled:?}"
    );
    assert!(!state.is_over());
    state.on_event(PilotEvent::Settled(id));
    assert!(state.is_over());
}
