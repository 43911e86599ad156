//! Stop, restart, disable, delete, pause, resume and shutdown, from where they are awkward.

use std::sync::atomic::Ordering;
use std::time::Duration;

use aegis_types::{DiskSize, InstanceState, Mib, StopReason};

use super::running;
use crate::record::{Idle, Update};
use crate::testing::{Line, World, spec};
use crate::{CreateError, Denied};

#[tokio::test(start_paused = true)]
async fn stop_asks_politely_and_returns_when_the_vm_is_gone() {
    let (world, _manager, instance, guest) = running().await;
    instance.stop().await.unwrap();
    let status = instance.status();
    assert_eq!(status.state, InstanceState::Stopped);
    assert_eq!(status.stopped.unwrap().reason, StopReason::Requested);
    assert!(status.enabled && !guest.is_alive());
    assert!(guest.calls().contains(&"stop 5".to_owned()));
    assert_eq!(world.lines(), [Line::Info("process exited (code=143)".to_owned())]);
    assert!(!world.record(1).unwrap().live);
    instance.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_ignores_a_stop_is_ended_by_force() {
    let (_world, _manager, instance, guest) = running().await;
    guest.set(|s| s.ignores_stop = true);
    instance.stop().await.unwrap();
    assert_eq!(guest.calls().last().unwrap(), "stop 0");
    assert!(!guest.is_alive());
}

#[tokio::test(start_paused = true)]
async fn a_boot_is_cancelled_by_stop_disable_and_delete() {
    for held in [true, false] {
        for what in ["stop", "disable", "delete"] {
            let (world, manager) = World::new();
            // Either the worker is not there yet, or its guest does not answer yet.
            world.may_launch.send_replace(!held);
            world.prepare(|guest| guest.set(|s| s.ready = None));
            let instance = manager.create(spec(1, "web")).await.unwrap();
            if !held {
                World::eventually(|| world.boots() > 0).await;
            }
            let request = async {
                match what {
                    "stop" => instance.stop().await,
                    "disable" => instance.disable().await,
                    _ => instance.delete().await,
                }
            };
            let release = async {
                tokio::task::yield_now().await;
                world.may_launch.send_replace(true);
            };
            let (outcome, ()) = tokio::join!(request, release);
            outcome.unwrap();
            let status = instance.status();
            assert_eq!((status.state, status.deleted), (InstanceState::Stopped, what == "delete"));
            assert_eq!(status.enabled, what != "disable");
            assert!(world.guests.lock().unwrap().iter().all(|g| !g.is_alive()));
            assert!(world.lines().is_empty(), "a cancelled boot is no failure");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn restart_works_from_every_state() {
    for prepare in ["running", "paused", "stopped", "disabled", "starting"] {
        let (world, _manager, instance, _) = running().await;
        match prepare {
            "paused" => instance.pause().await.unwrap(),
            "stopped" => instance.stop().await.unwrap(),
            "disabled" => instance.disable().await.unwrap(),
            "starting" => instance.restart().await.unwrap(),
            _ => {}
        }
        world.may_launch.send_replace(false);
        instance.restart().await.unwrap();
        assert_eq!(instance.status().state, InstanceState::Starting, "{prepare}");
        world.may_launch.send_replace(true);
        let status = World::until_state(&instance, InstanceState::Running).await;
        assert!(status.enabled);
        let guests = world.guests.lock().unwrap().clone();
        assert_eq!(guests.iter().filter(|g| g.is_alive()).count(), 1, "{prepare}");
    }
}

#[tokio::test(start_paused = true)]
async fn pause_and_resume_are_visible_when_they_return() {
    let (_world, _manager, instance, guest) = running().await;
    for _ in 0..2 {
        instance.pause().await.unwrap();
        assert_eq!(instance.status().state, InstanceState::Paused);
    }
    for _ in 0..2 {
        instance.resume().await.unwrap();
        assert_eq!(instance.status().state, InstanceState::Running);
    }
    let pauses = guest.calls().iter().filter(|c| *c == "pause").count();
    assert_eq!(pauses, 1);
    guest.set(|s| s.pause_fails = true);
    assert!(matches!(instance.pause().await, Err(Denied::Worker(_))));
    assert_eq!(instance.status().state, InstanceState::Running);
    instance.stop().await.unwrap();
    let denied = Denied::NotRunning { state: InstanceState::Stopped };
    assert_eq!(instance.pause().await, Err(denied.clone()));
    assert_eq!(instance.resume().await, Err(denied));
}

#[tokio::test(start_paused = true)]
async fn starting_a_paused_instance_resumes_it() {
    let (world, _manager, instance, _guest) = running().await;
    instance.pause().await.unwrap();
    instance.start().await.unwrap();
    assert_eq!((instance.status().state, world.boots()), (InstanceState::Running, 1));
}

#[tokio::test(start_paused = true)]
async fn delete_leaves_nothing_and_frees_the_name() {
    let (world, manager, instance, guest) = running().await;
    guest.set(|s| s.ignores_stop = true);
    let (stopped, deleted) = tokio::join!(instance.stop(), instance.delete());
    stopped.unwrap();
    deleted.unwrap();
    assert!(manager.find("web").is_none() && manager.list().is_empty());
    assert_eq!(world.record(1), None);
    assert_eq!(world.calls(), ["launch", "clean_up", "remove"]);
    assert_eq!(instance.start().await, Err(Denied::Deleted));
    assert!(instance.status().deleted);
    manager.create(spec(2, "web")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_fails_can_be_repeated() {
    let (world, manager, instance, _guest) = running().await;
    world.remove_fails.store(true, Ordering::SeqCst);
    assert!(matches!(instance.delete().await, Err(Denied::Files(_))));
    assert_eq!(instance.status().state, InstanceState::Stopped);
    world.remove_fails.store(false, Ordering::SeqCst);
    world.registry_fails.store(true, Ordering::SeqCst);
    assert!(matches!(instance.delete().await, Err(Denied::Registry(_))));
    assert!(manager.find("web").is_some());
    world.registry_fails.store(false, Ordering::SeqCst);
    instance.delete().await.unwrap();
    assert!(manager.find("web").is_none());
}

#[tokio::test(start_paused = true)]
async fn shutdown_stops_everything_and_refuses_new_work() {
    let (world, manager, instance, guest) = running().await;
    world.may_launch.send_replace(false);
    let booting = manager.create(spec(2, "slow")).await.unwrap();
    let release = async {
        tokio::task::yield_now().await;
        world.may_launch.send_replace(true);
    };
    tokio::join!(manager.shutdown(Duration::from_secs(3), false), release);
    for instance in [&instance, &booting] {
        let status = instance.status();
        assert_eq!(status.stopped.unwrap().reason, StopReason::DaemonStopped);
        assert!(status.enabled);
    }
    assert!(guest.calls().contains(&"stop 3".to_owned()));
    assert!(!world.record(1).unwrap().live && !world.record(2).unwrap().live);
    assert!(matches!(manager.create(spec(3, "new")).await, Err(CreateError::ShuttingDown)));
    assert_eq!(instance.start().await, Err(Denied::ShuttingDown));
}

#[tokio::test(start_paused = true)]
async fn shutdown_uses_force_after_the_grace() {
    let (_world, manager, _instance, guest) = running().await;
    guest.set(|s| s.ignores_stop = true);
    manager.shutdown(Duration::from_secs(1), false).await;
    assert!(!guest.is_alive());
}

#[tokio::test(start_paused = true)]
async fn a_disk_may_grow_and_nothing_of_an_update_that_shrinks_it_is_done() {
    let (world, _manager, instance, _guest) = running().await;
    let size = |mib| DiskSize::new(mib).unwrap();
    let shrink = Update { disk: Some(size(300)), memory: Some(Mib::new(1024).unwrap()), ..Update::default() };
    let denied = instance.update(shrink).await.unwrap_err();
    assert_eq!(denied, Denied::DiskShrinks { has: DiskSize::DEFAULT, wanted: size(300) });
    assert_eq!(instance.status().spec.memory, Mib::DEFAULT);
    instance.update(Update { disk: Some(size(20 << 10)), ..Update::default() }).await.unwrap();
    assert_eq!(world.record(1).unwrap().spec.disk, size(20 << 10));
    let back = Update { disk: Some(DiskSize::DEFAULT), ..Update::default() };
    assert!(matches!(instance.update(back).await, Err(Denied::DiskShrinks { .. })));
}

#[tokio::test(start_paused = true)]
async fn an_update_holds_for_the_next_start_and_its_idle_times_at_once() {
    let (world, _manager, instance, _guest) = running().await;
    let update = Update {
        memory: Some(Mib::new(1024).unwrap()),
        env: [("NEW".to_owned(), "1".to_owned())].into(),
        pause: Some(Idle::After(Duration::from_secs(1))),
        ..Update::default()
    };
    instance.update(update).await.unwrap();
    let status = instance.status();
    assert_eq!((status.spec.memory.get(), status.spec.env["NEW"].as_str()), (1024, "1"));
    assert_eq!(status.rules.pause_after, Some(Duration::from_secs(1)));
    assert_eq!(world.record(1).unwrap().spec, *status.spec, "it survives the daemon");
    World::until_state(&instance, InstanceState::Paused).await;
    let unset = Update { unset_env: vec!["NEW".to_owned()], pause: Some(Idle::Never), ..Update::default() };
    instance.update(unset).await.unwrap();
    let status = instance.status();
    assert!(!status.spec.env.contains_key("NEW") && status.spec.policy.never_pause);
    assert_eq!((status.rules.pause_after, status.spec.memory.get()), (None, 1024));
    assert_eq!(status.state, InstanceState::Paused);
}
