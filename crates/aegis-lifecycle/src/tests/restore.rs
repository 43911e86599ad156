//! What a new daemon makes of what an earlier one left.

use std::sync::Arc;

use aegis_proto::worker::{ExitReason, Exited, Phase};
use aegis_types::{InstanceState, StopReason, VmId};
use jiff::Timestamp;

use crate::ports::Adoption;
use crate::record::{LastStop, Record};
use crate::testing::{Guest, Line, World, alive, spec};
use crate::{Instance, Manager};

fn record(live: bool, enabled: bool, last_stop: Option<LastStop>) -> Record {
    let updated_at = Timestamp::UNIX_EPOCH;
    Record {
        spec: spec(1, "web"),
        enabled,
        live,
        updated_at,
        last_active_at: None,
        life_began_at: None,
        crashes: 0,
        last_stop,
    }
}

async fn restore(record: Record, adoption: Option<Adoption>) -> (Arc<World>, Manager, Instance) {
    let (world, manager) = World::new();
    if let Some(adoption) = adoption {
        world.adoption.lock().unwrap().insert(record.spec.id.clone(), adoption);
    }
    manager.restore(vec![record]).await;
    let instance = manager.find("web").unwrap();
    (world, manager, instance)
}

fn guest(change: impl FnOnce(&Guest)) -> Arc<Guest> {
    let guest = Guest::new(VmId::from_random(9));
    guest.set(|s| s.primary.started = true);
    change(&guest);
    Arc::new(guest)
}

#[tokio::test(start_paused = true)]
async fn a_running_vm_goes_on_and_its_output_is_read_from_where_it_was() {
    let guest = guest(|g| {
        g.print("old");
        g.print("new");
    });
    let (world, manager) = World::new();
    world.stored(&guest.vm, 1);
    let record = record(true, true, None);
    world.adoption.lock().unwrap().insert(record.spec.id.clone(), alive(&guest));
    manager.restore(vec![record]).await;
    let instance = manager.find("web").unwrap();
    assert_eq!(instance.status().state, InstanceState::Running);
    assert_eq!(instance.status().vm.unwrap().vm_id, guest.vm);
    guest.exit(5);
    let status = World::until_state(&instance, InstanceState::Stopped).await;
    assert_eq!(status.stopped.unwrap().exit_code, Some(5));
    assert_eq!(
        world.lines(),
        [
            Line::Info("the daemon was restarted; the VM goes on".to_owned()),
            Line::Output("new".to_owned()),
            Line::Info("process exited (code=5)".to_owned()),
        ]
    );
    assert!(!guest.calls().contains(&"run".to_owned()), "the command runs already");
    assert_eq!(world.boots(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_ended_in_between_is_reported() {
    let guest = guest(|g| g.exit(1));
    let (world, _manager, instance) = restore(record(true, true, None), Some(alive(&guest))).await;
    let status = World::until_state(&instance, InstanceState::Stopped).await;
    assert_eq!(status.stopped.unwrap().reason, StopReason::Exited);
    assert!(world.lines().contains(&Line::Info("process exited (code=1)".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn a_command_that_was_never_started_is_started() {
    let guest = guest(|g| g.set(|s| s.primary.started = false));
    let (_world, _manager, instance) = restore(record(true, true, None), Some(alive(&guest))).await;
    assert_eq!(instance.status().state, InstanceState::Running);
    assert!(guest.calls().contains(&"run".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_paused_vm_stays_paused_and_is_asked_nothing_until_it_is_resumed() {
    let guest = guest(|g| g.set(|s| s.phase = Phase::Paused));
    let (_world, _manager, instance) = restore(record(true, true, None), Some(alive(&guest))).await;
    assert_eq!(instance.status().state, InstanceState::Paused);
    assert!(guest.calls().is_empty());
    instance.resume().await.unwrap();
    guest.exit(0);
    let status = World::until_state(&instance, InstanceState::Stopped).await;
    assert_eq!(status.stopped.unwrap().reason, StopReason::Exited);
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_should_not_be_is_stopped() {
    let disabled = guest(|_| {});
    let (_world, _manager, instance) = restore(record(true, false, None), Some(alive(&disabled))).await;
    let status = World::until_state(&instance, InstanceState::Stopped).await;
    assert_eq!(status.stopped.unwrap().reason, StopReason::Disabled);
    let mute = guest(|g| g.set(|s| s.status_fails = true));
    let (_world, _manager, instance) = restore(record(true, true, None), Some(alive(&mute))).await;
    let status = World::until_state(&instance, InstanceState::Stopped).await;
    assert_eq!(status.stopped.unwrap().reason, StopReason::VmmDied);
    assert!(!disabled.is_alive() && !mute.is_alive());
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_gone_is_repaired_with_a_line_that_says_so() {
    let exited = Exited { reason: ExitReason::VmmDied, message: "killed".to_owned() };
    for (adoption, reason, how) in [
        (None, StopReason::DaemonStopped, "its end was not seen"),
        (Some(Adoption::Gone(Some(exited))), StopReason::VmmDied, "killed"),
    ] {
        let (world, _manager, instance) = restore(record(true, true, None), adoption).await;
        let status = instance.status();
        assert_eq!((status.state, status.stopped.unwrap().reason), (InstanceState::Stopped, reason));
        instance.stop().await.unwrap();
        assert!(!world.record(1).unwrap().live);
        assert_eq!(
            world.lines(),
            [Line::Error(format!("the VM ended while the daemon was not there: {how}"))]
        );
        assert_eq!(world.calls(), ["clean_up"]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_stopped_is_as_it_was() {
    let last = LastStop {
        at: Timestamp::from_second(7).unwrap(),
        reason: StopReason::Exited,
        exit_code: Some(3),
        error: None,
    };
    let (_world, _manager, instance) = restore(record(false, false, Some(last.clone())), None).await;
    let status = instance.status();
    assert_eq!((status.state, status.enabled, status.stopped), (InstanceState::Stopped, false, Some(last)));
    assert_eq!(status.updated_at, Timestamp::UNIX_EPOCH);
    let (_world, _manager, instance) = restore(record(false, true, None), None).await;
    assert_eq!(instance.status().stopped.unwrap().reason, StopReason::NeverStarted);
}
