//! The cases that have a name.

use std::collections::BTreeSet;
use std::time::Duration;

use aegis_proto::control::{StartFailure, StartFailureKind};
use aegis_proto::worker::{ExitReason, Exited, Phase as WorkerPhase};
use aegis_types::{ExitStatus, InstanceState, Policy, StopReason, VmId};

use crate::error::Denied;
use crate::ports::SystemMessage;
use crate::step::{
    Ask, Defaults, Effect, Event, Found, Past, Phase, Rules, State, StopCause, Use, Users, restored, step,
};

fn vm(n: u64) -> VmId {
    VmId::from_random(n)
}

fn rules(policy: Policy) -> Rules {
    let defaults =
        Defaults { pause_after: Duration::from_secs(60), hibernate_after: Duration::from_secs(300) };
    Rules::new(&policy, &defaults)
}

/// Those of an instance that does nothing by itself.
fn quiet() -> Rules {
    rules(Policy { never_pause: true, ..Policy::default() })
}

fn created(vm: VmId) -> (State, Vec<Effect>) {
    super::super::created(quiet(), vm)
}

fn restored_with(enabled: bool, found: Found) -> (State, Vec<Effect>) {
    restored(quiet(), Past { enabled, ..Past::default() }, found)
}

fn in_phase(phase: Phase) -> State {
    with_rules(quiet(), phase)
}

fn with_rules(rules: Rules, phase: Phase) -> State {
    State {
        enabled: true,
        closing: false,
        saves_on_close: false,
        phase,
        waiting: Vec::new(),
        rules,
        users: Users::default(),
        leased: false,
        orphaned: false,
        crashes: 0,
        timers: BTreeSet::new(),
    }
}

fn running() -> State {
    in_phase(Phase::Running { vm: vm(1) })
}

fn stopped(reason: StopReason) -> State {
    in_phase(Phase::Stopped { cause: StopCause::plain(reason) })
}

fn ask(state: &State, ask: Ask) -> Result<(State, Vec<Effect>), Denied> {
    step(state, Event::Request { id: 7, ask })
}

fn happen(state: &State, event: Event) -> (State, Vec<Effect>) {
    step(state, event).unwrap()
}

fn answers(effects: &[Effect]) -> Vec<(u64, Result<(), Denied>)> {
    let answer = |e: &Effect| match e {
        Effect::Answer { id, outcome, .. } => Some((*id, outcome.clone())),
        _ => None,
    };
    effects.iter().filter_map(answer).collect()
}

fn gone(n: u64) -> Event {
    Event::Gone { vm: vm(n), exited: Exited { reason: ExitReason::Stopped, message: "stopped".to_owned() } }
}

#[test]
fn a_new_instance_is_starting_at_once() {
    let (state, effects) = created(vm(1));
    assert_eq!(state.shown(), InstanceState::Starting);
    assert_eq!(effects, [Effect::Launch { vm: vm(1), fresh: true }]);
}

#[test]
fn the_record_says_that_there_may_be_a_vm_before_one_is_launched() {
    let (state, effects) = ask(&stopped(StopReason::Requested), Ask::Start { next: vm(2) }).unwrap();
    assert_eq!(
        effects,
        [
            Effect::Record,
            Effect::Launch { vm: vm(2), fresh: true },
            Effect::Answer { id: 7, outcome: Ok(()), grant: None },
        ]
    );
    assert_eq!(state.vm(), Some(&vm(2)));
}

#[test]
fn only_some_ends_let_an_exec_wake() {
    for reason in [
        StopReason::Requested,
        StopReason::DaemonStopped,
        StopReason::VmmDied,
        StopReason::GuestShutdown,
        StopReason::GuestFault,
        StopReason::NeverStarted,
    ] {
        assert!(ask(&stopped(reason), Ask::Wake { next: vm(2), purpose: Use::Exec }).is_ok(), "{reason}");
    }
    let denied = |reason| ask(&stopped(reason), Ask::Wake { next: vm(2), purpose: Use::Exec }).unwrap_err();
    assert_eq!(denied(StopReason::Exited), Denied::CommandEnded { exit_code: None });
    assert!(matches!(denied(StopReason::BootFailed), Denied::BootFailed { .. }));
    let disabled = State { enabled: false, ..stopped(StopReason::Disabled) };
    assert_eq!(ask(&disabled, Ask::Wake { next: vm(2), purpose: Use::Exec }).unwrap_err(), Denied::Disabled);
    assert!(ask(&disabled, Ask::Start { next: vm(2) }).unwrap().0.enabled);
}

#[test]
fn a_boot_that_is_stopped_before_its_worker_is_there_is_stopped_when_it_is() {
    let (state, _) = created(vm(1));
    let (state, effects) = ask(&state, Ask::Disable).unwrap();
    assert_eq!(effects, [Effect::Record], "there is nobody to tell yet");
    let (state, effects) = happen(&state, Event::Launched { vm: vm(1) });
    assert_eq!(effects, [Effect::Stop { vm: vm(1), grace: Duration::ZERO }]);
    let (state, effects) = happen(&state, gone(1));
    assert_eq!(effects, [Effect::CleanUp { vm: vm(1) }]);
    let (state, effects) = happen(&state, Event::Cleaned { vm: vm(1) });
    assert_eq!(answers(&effects), [(7, Ok(()))]);
    assert_eq!(state.stopped().unwrap().reason, StopReason::Disabled);
    assert!(!state.enabled);
}

#[test]
fn the_end_of_the_command_is_told_and_what_it_left_gets_time() {
    let (state, effects) = happen(
        &running(),
        Event::ProcessExited { vm: vm(1), status: ExitStatus::exited(42), ran: Some(Duration::MAX) },
    );
    assert_eq!(
        effects,
        [
            Effect::Log(SystemMessage::Info("process exited (code=42)".to_owned())),
            Effect::Stop { vm: vm(1), grace: Duration::from_secs(2) },
        ]
    );
    let wake = ask(&state, Ask::Wake { next: vm(2), purpose: Use::Exec });
    assert_eq!(wake.unwrap_err(), Denied::CommandEnded { exit_code: Some(42) });
    let (state, _) = happen(&state, gone(1));
    let (state, effects) = happen(&state, Event::Cleaned { vm: vm(1) });
    let cause = StopCause { reason: StopReason::Exited, exit_code: Some(42), error: None };
    assert_eq!(effects, [Effect::RecordEnd(cause.clone())]);
    assert_eq!(state.phase, Phase::Stopped { cause });
}

#[test]
fn a_missing_command_counts_as_a_command_that_ended() {
    let booting = in_phase(Phase::Booting {
        vm: vm(1),
        launched: true,
        from: StopCause::plain(StopReason::NeverStarted),
    });
    let failure = StartFailure { kind: StartFailureKind::NotFound, message: "no `x`".to_owned() };
    let (state, effects) = happen(&booting, Event::StartFailed { vm: vm(1), failure });
    assert_eq!(
        effects[..2],
        [
            Effect::Log(SystemMessage::Error("no `x`".to_owned())),
            Effect::Log(SystemMessage::Info("process exited (code=127)".to_owned())),
        ]
    );
    let wake = ask(&state, Ask::Wake { next: vm(2), purpose: Use::Exec });
    assert_eq!(wake.unwrap_err(), Denied::CommandEnded { exit_code: Some(127) });
}

#[test]
fn a_restart_has_left_running_when_it_is_accepted() {
    let (state, effects) = ask(&running(), Ask::Restart { next: vm(2) }).unwrap();
    assert_eq!(state.shown(), InstanceState::Starting);
    assert_eq!(answers(&effects), [(7, Ok(()))]);
    let (state, _) = happen(&state, gone(1));
    let (state, effects) = happen(&state, Event::Cleaned { vm: vm(1) });
    assert!(effects.contains(&Effect::Launch { vm: vm(2), fresh: true }));
    assert_eq!(state.vm(), Some(&vm(2)));
}

#[test]
fn a_resume_during_a_pause_resumes_once() {
    let (state, effects) = ask(&running(), Ask::Pause).unwrap();
    assert_eq!(effects, [Effect::Pause { vm: vm(1) }]);
    let (state, effects) = step(&state, Event::Request { id: 8, ask: Ask::Resume { next: vm(2) } }).unwrap();
    assert_eq!(effects, []);
    let (state, effects) = happen(&state, Event::PauseDone { vm: vm(1), outcome: Ok(()) });
    assert_eq!(
        effects,
        [Effect::Answer { id: 7, outcome: Ok(()), grant: None }, Effect::Resume { vm: vm(1) }]
    );
    let (state, effects) = happen(&state, Event::ResumeDone { vm: vm(1), outcome: Ok(()) });
    assert_eq!(answers(&effects), [(8, Ok(()))]);
    assert_eq!(state, running());
}

#[test]
fn a_failed_pause_leaves_it_running_and_says_so() {
    let (state, _) = ask(&running(), Ask::Pause).unwrap();
    let (state, effects) = happen(&state, Event::PauseDone { vm: vm(1), outcome: Err("no".to_owned()) });
    assert_eq!(answers(&effects), [(7, Err(Denied::Worker("no".to_owned())))]);
    assert_eq!(state, running());
}

#[test]
fn a_delete_shortens_a_stop_that_is_under_way() {
    let (state, _) = ask(&running(), Ask::Stop).unwrap();
    let (_, effects) = step(&state, Event::Request { id: 8, ask: Ask::Delete }).unwrap();
    assert_eq!(effects, [Effect::Stop { vm: vm(1), grace: Duration::ZERO }]);
}

#[test]
fn a_failed_removal_leaves_a_stopped_instance_that_can_be_deleted_again() {
    let (state, effects) = ask(&stopped(StopReason::Exited), Ask::Delete).unwrap();
    assert_eq!(effects, [Effect::Remove]);
    let denied = Denied::Files("busy".to_owned());
    let (state, effects) = happen(&state, Event::Removed(Err(denied.clone())));
    assert_eq!(answers(&effects), [(7, Err(denied))]);
    assert_eq!(state, stopped(StopReason::Exited));
}

#[test]
fn nobody_waits_without_bound() {
    let (mut state, _) = created(vm(1));
    let denied = loop {
        match ask(&state, Ask::Wake { next: vm(2), purpose: Use::Exec }) {
            Ok((next, _)) => state = next,
            Err(denied) => break denied,
        }
    };
    assert_eq!((denied, state.waiting.len()), (Denied::Busy, super::super::transition::WAITING_MAX));
}

#[test]
fn what_an_earlier_daemon_left_is_taken_over() {
    let alive = |phase| Found::Alive { vm: vm(1), phase: Ok(phase) };
    let (state, effects) = restored_with(true, alive(WorkerPhase::Running));
    assert_eq!(state.vm(), Some(&vm(1)));
    assert!(effects.contains(&Effect::Attach { vm: vm(1) }));
    let (state, effects) = restored_with(true, alive(WorkerPhase::Paused));
    assert_eq!(state.phase, Phase::Paused { vm: vm(1) });
    assert!(!effects.contains(&Effect::Attach { vm: vm(1) }), "a halted guest cannot answer");
    for (enabled, found) in [
        (false, alive(WorkerPhase::Running)),
        (true, alive(WorkerPhase::Stopping)),
        (true, Found::Alive { vm: vm(1), phase: Err("no answer".to_owned()) }),
    ] {
        let (state, effects) = restored_with(enabled, found);
        assert!(matches!(state.phase, Phase::Stopping(_)));
        assert!(effects.iter().any(|e| matches!(e, Effect::Stop { .. })));
    }
}

#[test]
fn what_ended_while_no_daemon_was_there_is_recorded() {
    let exited = |reason| Found::Gone(Some(Exited { reason, message: "why".to_owned() }));
    for (found, reason) in [
        (Found::Gone(None), StopReason::DaemonStopped),
        (exited(ExitReason::Stopped), StopReason::DaemonStopped),
        (exited(ExitReason::VmmDied), StopReason::VmmDied),
        (exited(ExitReason::GuestShutdown), StopReason::GuestShutdown),
        (exited(ExitReason::LinkViolation), StopReason::GuestFault),
        (exited(ExitReason::BootFailed), StopReason::BootFailed),
    ] {
        let (state, effects) = restored_with(true, found);
        assert_eq!(state.stopped().unwrap().reason, reason);
        assert!(matches!(effects[..], [Effect::Log(_), Effect::RecordEnd(_)]));
    }
    let (_, effects) = restored_with(true, Found::Recorded(StopCause::plain(StopReason::Exited)));
    assert_eq!(effects, []);
}
