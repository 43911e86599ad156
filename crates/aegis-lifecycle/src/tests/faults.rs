//! Workers that die and guests that lie.

use aegis_proto::worker::ExitReason;
use aegis_types::{InstanceState, StopReason};

use super::running;
use crate::testing::{Line, World};

#[tokio::test(start_paused = true)]
async fn a_vm_that_ends_by_itself_is_told_and_cleaned_up() {
    for (exit, reason) in [
        (ExitReason::VmmDied, StopReason::VmmDied),
        (ExitReason::GuestShutdown, StopReason::GuestShutdown),
        (ExitReason::LinkViolation, StopReason::GuestFault),
    ] {
        let (world, _manager, instance, guest) = running().await;
        guest.die(exit);
        let status = World::until_state(&instance, InstanceState::Stopped).await;
        assert_eq!(status.stopped.unwrap().reason, reason);
        assert_eq!(world.lines(), [Line::Error(format!("the VM ended: {exit:?}"))]);
        assert_eq!(world.calls(), ["launch", "clean_up"]);
        instance.stop().await.unwrap();
        assert!(!world.record(1).unwrap().live);
        instance.start().await.unwrap();
        World::until_state(&instance, InstanceState::Running).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_vm_that_dies_is_noticed() {
    let (_world, _manager, instance, guest) = running().await;
    instance.pause().await.unwrap();
    guest.die(ExitReason::VmmDied);
    let status = World::until_state(&instance, InstanceState::Stopped).await;
    assert_eq!(status.stopped.unwrap().reason, StopReason::VmmDied);
}

#[tokio::test(start_paused = true)]
async fn output_that_was_on_its_way_when_the_worker_died_is_stored() {
    let (world, _manager, instance, guest) = running().await;
    guest.set(|s| {
        s.primary.lines.push(b"last words".to_vec());
        s.exited = Some(aegis_proto::worker::Exited {
            reason: ExitReason::GuestShutdown,
            message: "power off".to_owned(),
        });
    });
    World::until_state(&instance, InstanceState::Stopped).await;
    assert_eq!(
        world.lines(),
        [Line::Output("last words".to_owned()), Line::Error("the VM ended: power off".to_owned())]
    );
}

#[tokio::test(start_paused = true)]
async fn a_broken_log_stream_is_opened_again_where_it_ended() {
    let (world, _manager, instance, guest) = running().await;
    for n in 0..20 {
        guest.print(&format!("line {n}"));
        World::eventually(|| world.lines().len() > n).await;
        guest.set(|s| s.log_epoch += 1);
    }
    guest.exit(0);
    World::until_state(&instance, InstanceState::Stopped).await;
    let expected = (0..20).map(|n| Line::Output(format!("line {n}")));
    let end = std::iter::once(Line::Info("process exited (code=0)".to_owned()));
    assert_eq!(world.lines(), expected.chain(end).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_give_its_output_is_stopped() {
    let (_world, _manager, instance, guest) = running().await;
    guest.set(|s| {
        s.logs_refused = true;
        s.log_epoch += 1;
    });
    let status = World::until_state(&instance, InstanceState::Stopped).await;
    assert_eq!(status.stopped.unwrap().reason, StopReason::GuestFault);
}

#[tokio::test(start_paused = true)]
async fn nobody_talks_to_a_paused_guest() {
    let (_world, _manager, instance, guest) = running().await;
    instance.pause().await.unwrap();
    guest.set(|s| s.log_epoch += 1);
    let before = guest.calls();
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert_eq!(guest.calls(), before);
    instance.resume().await.unwrap();
    guest.exit(0);
    let status = World::until_state(&instance, InstanceState::Stopped).await;
    assert_eq!(status.stopped.unwrap().reason, StopReason::Exited);
}

#[tokio::test(start_paused = true)]
async fn garbage_on_the_log_stream_ends_the_vm_with_a_clear_line() {
    let (world, _manager, instance, guest) = running().await;
    guest.set(|s| s.logs_garbage = true);
    let status = World::until_state(&instance, InstanceState::Stopped).await;
    assert_eq!(status.stopped.unwrap().reason, StopReason::GuestFault);
    assert!(guest.calls().contains(&"stop 0".to_owned()));
    let lines = world.lines();
    assert!(
        matches!(&lines[..], [Line::Error(text)] if text.contains("guest fault: log stream: frame of")),
        "{lines:?}"
    );
}
