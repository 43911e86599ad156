//! Exec sessions, and what they wake.

use std::collections::BTreeMap;

use aegis_proto::control::Process;
use aegis_proto::exec::{ExecEvent, ExecRequest, Start};
use aegis_types::{ExitStatus, InstanceState, ProcessInput, StopReason};

use super::running;
use crate::testing::World;
use crate::{Denied, ExecError, ExecLost, ExecSession};

pub(super) fn start(program: &str) -> Start {
    let process =
        Process { command: vec![program.to_owned()], env: BTreeMap::new(), workdir: None, user: None };
    Start { process, stdin: true, tty: None }
}

async fn all(session: &mut ExecSession) -> Vec<Result<ExecEvent, ExecLost>> {
    let mut events = Vec::new();
    while let Some(event) = session.next().await {
        events.push(event);
    }
    events
}

fn exit() -> Result<ExecEvent, ExecLost> {
    Ok(ExecEvent::Exit(ExitStatus::exited(0)))
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_with_the_exit_and_counts_until_then() {
    let (_world, _manager, instance, _guest) = running().await;
    let before = instance.status().last_active_at.unwrap();
    let mut session = instance.exec(start("echo")).await.unwrap();
    assert_eq!(instance.status().users.execs, 1);
    let events = all(&mut session).await;
    assert_eq!(events[1..], [Ok(ExecEvent::Stdout(b"hi".to_vec())), exit()]);
    let status = World::until(&instance, |s| s.users.execs == 0).await;
    assert!(status.last_active_at.unwrap() >= before);
}

#[tokio::test(start_paused = true)]
async fn input_reaches_the_process() {
    let (_world, _manager, instance, _guest) = running().await;
    let mut session = instance.exec(start("cat")).await.unwrap();
    session.send(ExecRequest::Input(ProcessInput::Data(b"abc".to_vec()))).await.unwrap();
    session.send(ExecRequest::Input(ProcessInput::End)).await.unwrap();
    assert_eq!(all(&mut session).await[1..], [Ok(ExecEvent::Stdout(b"abc".to_vec())), exit()]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_process_is_an_event_and_not_a_fault() {
    let (_world, _manager, instance, _guest) = running().await;
    let mut session = instance.exec(start("missing")).await.unwrap();
    assert!(matches!(all(&mut session).await[..], [Ok(ExecEvent::Refused(_))]));
    World::until(&instance, |s| s.users.execs == 0).await;
    assert_eq!(instance.status().state, InstanceState::Running);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_session_does_not_count_any_more() {
    let (_world, _manager, instance, _guest) = running().await;
    let session = instance.exec(start("hang")).await.unwrap();
    assert_eq!(instance.status().users.execs, 1);
    drop(session);
    World::until(&instance, |s| s.users.execs == 0).await;
}

#[tokio::test(start_paused = true)]
async fn exec_resumes_a_paused_instance() {
    let (world, _manager, instance, guest) = running().await;
    instance.pause().await.unwrap();
    let sessions = tokio::join!(instance.exec(start("echo")), instance.exec(start("echo")));
    assert!(sessions.0.is_ok() && sessions.1.is_ok());
    assert_eq!((instance.status().state, world.boots()), (InstanceState::Running, 1));
    assert_eq!(guest.calls().iter().filter(|c| *c == "resume").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn exec_boots_an_instance_that_somebody_stopped() {
    let (world, _manager, instance, _guest) = running().await;
    instance.stop().await.unwrap();
    let mut session = instance.exec(start("echo")).await.unwrap();
    assert_eq!(all(&mut session).await.last(), Some(&exit()));
    assert_eq!(world.boots(), 2);
}

#[tokio::test(start_paused = true)]
async fn exec_is_denied_after_the_command_ended_and_while_disabled() {
    let (world, _manager, instance, guest) = running().await;
    guest.exit(3);
    World::until_state(&instance, InstanceState::Stopped).await;
    let denied = |result: Result<ExecSession, ExecError>| match result {
        Err(ExecError::Denied(denied)) => denied,
        _ => panic!("it must be denied"),
    };
    let exec = instance.exec(start("echo")).await;
    assert_eq!(denied(exec), Denied::CommandEnded { exit_code: Some(3) });
    instance.disable().await.unwrap();
    assert_eq!(denied(instance.exec(start("echo")).await), Denied::Disabled);
    assert_eq!(world.boots(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_session_is_lost_with_its_vm() {
    let (_world, _manager, instance, _guest) = running().await;
    let mut session = instance.exec(start("hang")).await.unwrap();
    session.next().await.unwrap().unwrap();
    instance.stop().await.unwrap();
    assert!(matches!(all(&mut session).await[..], [Err(ExecLost::Ended(_))]));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_breaks_the_exec_protocol_loses_its_vm() {
    for program in ["garbage", "early"] {
        let (_world, _manager, instance, guest) = running().await;
        let mut session = instance.exec(start(program)).await.unwrap();
        assert!(matches!(all(&mut session).await.last(), Some(Err(ExecLost::Violation(_)))));
        let status = World::until_state(&instance, InstanceState::Stopped).await;
        assert_eq!(status.stopped.unwrap().reason, StopReason::GuestFault);
        assert!(!guest.is_alive());
    }
}
