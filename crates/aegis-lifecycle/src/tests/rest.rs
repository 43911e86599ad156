//! What idle instances do by themselves, and how they come back.

use std::time::Duration;

use aegis_types::{GuestPort, InstanceState, Policy, StopReason};
use tokio::time::Instant;

use crate::ports::Worker as _;
use crate::testing::{Line, World, alive, with_policy};
use crate::{Denied, Instance, Manager};

async fn running_with(policy: Policy) -> (std::sync::Arc<World>, Manager, Instance) {
    let (world, manager) = World::new();
    let instance = manager.create(with_policy(1, "web", policy)).await.unwrap();
    World::until_state(&instance, InstanceState::Running).await;
    (world, manager, instance)
}

fn start() -> aegis_proto::exec::Start {
    super::exec::start("echo")
}

#[tokio::test(start_paused = true)]
async fn an_idle_instance_is_paused_then_hibernated_and_an_exec_brings_it_back_alive() {
    let (world, _manager, instance) = running_with(Policy::default()).await;
    let began = Instant::now();
    World::until_state(&instance, InstanceState::Paused).await;
    assert!((60..62).contains(&began.elapsed().as_secs()));
    World::until_state(&instance, InstanceState::Hibernated).await;
    assert!((360..364).contains(&began.elapsed().as_secs()));
    let status = instance.status();
    assert!(status.vm.is_none() && status.enabled);
    assert_eq!(status.stopped.unwrap().reason, StopReason::Hibernated);
    assert!(!world.record(1).unwrap().live);
    world.guest(0).print("before");
    let session = instance.exec(start()).await.unwrap();
    let status = instance.status();
    assert_eq!(
        (status.state, status.counters.restore, status.counters.wakes),
        (InstanceState::Running, 1, 1)
    );
    assert!(!world.guest(1).calls().contains(&"run".to_owned()), "its command runs already");
    drop(session);
}

#[tokio::test(start_paused = true)]
async fn nobody_rests_while_somebody_uses_it_or_keeps_it_awake() {
    let (_world, _manager, instance) = running_with(Policy::default()).await;
    let session = instance.exec(start()).await.unwrap();
    let attached = instance.attach().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert_eq!(instance.status().state, InstanceState::Running);
    drop(session);
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert_eq!(instance.status().state, InstanceState::Running);
    instance.keep_awake(Duration::from_secs(500), Some("upload".to_owned())).await.unwrap();
    assert_eq!(instance.status().lease.unwrap().reason.unwrap(), "upload");
    drop(attached);
    tokio::time::sleep(Duration::from_secs(499)).await;
    assert_eq!(instance.status().state, InstanceState::Running);
    World::until_state(&instance, InstanceState::Paused).await;
    assert!(instance.status().lease.is_none());
}

/// A client whose connection the guest has not answered.
async fn connecting(world: &World, instance: &Instance) -> tokio::task::JoinHandle<()> {
    let client = instance.clone();
    let connecting = tokio::spawn(async move {
        client.connect(GuestPort::new(80).unwrap(), Duration::from_secs(30)).await.map(drop).unwrap();
    });
    World::eventually(|| world.guest(0).calls().contains(&"open Tcp".to_owned())).await;
    connecting
}

#[tokio::test(start_paused = true)]
async fn a_pause_does_not_leave_a_client_without_an_answer() {
    let (world, _manager, instance) = running_with(Policy::default()).await;
    let client = connecting(&world, &instance).await;
    instance.pause().await.unwrap();
    World::until_state(&instance, InstanceState::Running).await;
    world.guest(0).set(|s| s.listens = true);
    client.await.unwrap();
    // A connection that has been answered is no reason not to do what somebody asked for.
    let port = GuestPort::new(80).unwrap();
    let connection = instance.connect(port, Duration::from_secs(30)).await.unwrap();
    instance.pause().await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(instance.status().state, InstanceState::Paused);
    drop(connection);
}

#[tokio::test(start_paused = true)]
async fn nor_does_a_hibernation() {
    let (world, _manager, instance) = running_with(Policy::default()).await;
    let client = connecting(&world, &instance).await;
    world.prepare(|guest| guest.set(|s| s.listens = true));
    // It is saved, and woken at once: which of both it is told about depends on who is faster.
    let hibernated = instance.hibernate().await;
    assert!(matches!(hibernated, Ok(()) | Err(Denied::InUse)), "{hibernated:?}");
    client.await.unwrap();
    let status = instance.status();
    assert_eq!((status.state, status.counters.restore), (InstanceState::Running, 1));
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_wait_of_a_client() {
    let (world, _manager, instance) = running_with(Policy::default()).await;
    let client = connecting(&world, &instance).await;
    instance.stop().await.unwrap();
    assert!(client.await.unwrap_err().is_panic(), "it is refused");
    assert_eq!((instance.status().state, world.boots()), (InstanceState::Stopped, 1));
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_saved_is_not() {
    for policy in
        [Policy { no_hibernate: true, ..Policy::default() }, Policy { ephemeral: true, ..Policy::default() }]
    {
        let (world, _manager, instance) = running_with(policy).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(instance.status().state, InstanceState::Paused);
        assert!(matches!(instance.hibernate().await, Err(Denied::KeepsMemory { .. })));
        assert!(!world.guest(0).calls().contains(&"hibernate".to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_takes_long_to_save_is_hibernated_as_soon_as_it_is_saved() {
    let (world, _manager, instance) = running_with(Policy { never_pause: true, ..Policy::default() }).await;
    world.guest(0).set(|s| s.hibernate_takes = Duration::from_secs(3));
    let began = Instant::now();
    instance.hibernate().await.unwrap();
    assert_eq!(instance.status().state, InstanceState::Hibernated);
    // In the time of the test.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_hibernation_that_fails_leaves_it_running_and_says_why() {
    let (world, _manager, instance) = running_with(Policy { never_pause: true, ..Policy::default() }).await;
    world.guest(0).set(|s| s.hibernate_fails = true);
    assert_eq!(instance.hibernate().await, Err(Denied::Worker("the disk is full".to_owned())));
    assert_eq!(instance.status().state, InstanceState::Running);
    assert_eq!(world.lines(), [Line::Error("cannot hibernate: the disk is full".to_owned())]);
    instance.exec(start()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn stop_restart_and_disable_give_up_what_was_saved() {
    for what in ["stop", "restart", "disable"] {
        let (world, _manager, instance) = running_with(Policy::default()).await;
        instance.hibernate().await.unwrap();
        assert_eq!(instance.status().state, InstanceState::Hibernated);
        match what {
            "stop" => instance.stop().await.unwrap(),
            "disable" => instance.disable().await.unwrap(),
            _ => instance.restart().await.unwrap(),
        }
        assert!(world.saved(&instance.spec().id).is_none(), "{what}");
        if what == "restart" {
            World::until_state(&instance, InstanceState::Running).await;
            assert_eq!(instance.status().counters.cold, 2);
        } else {
            assert_eq!(instance.status().state, InstanceState::Stopped);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn resume_and_start_go_on_from_what_was_saved() {
    for what in ["resume", "start"] {
        let (_world, _manager, instance) = running_with(Policy::default()).await;
        instance.hibernate().await.unwrap();
        instance.hibernate().await.unwrap();
        if what == "resume" {
            instance.resume().await.unwrap()
        } else {
            instance.start().await.unwrap()
        }
        World::until_state(&instance, InstanceState::Running).await;
        assert_eq!(instance.status().counters.restore, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_hibernates_and_the_next_daemon_leaves_it_so_until_it_is_needed() {
    let (world, manager, instance) = running_with(Policy::default()).await;
    world.guest(0).print("one");
    World::eventually(|| world.lines().contains(&Line::Output("one".to_owned()))).await;
    manager.shutdown(Duration::from_secs(5), true).await;
    assert_eq!(instance.status().state, InstanceState::Hibernated);
    let manager = world.manager(None);
    manager.restore(vec![world.record(1).unwrap()]).await;
    let instance = manager.find("web").unwrap();
    tokio::time::sleep(Duration::from_secs(10_000)).await;
    assert_eq!((instance.status().state, world.boots()), (InstanceState::Hibernated, 1));
    instance.exec(start()).await.unwrap();
    world.guest(1).print("two");
    World::eventually(|| world.lines().contains(&Line::Output("two".to_owned()))).await;
    let outputs = world.lines().into_iter().filter(|line| matches!(line, Line::Output(_))).count();
    assert_eq!(outputs, 2, "no line twice");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_had_saved_before_the_next_daemon_could_ask_it_costs_no_memory() {
    // It ended while it was asked how it is, or it had not begun when it was.
    for ends_first in [true, false] {
        let (world, _dead, _) = running_with(Policy::default()).await;
        let guest = world.guest(0);
        if ends_first {
            guest.set(|s| s.status_fails = true);
            guest.hibernate().await.unwrap();
        }
        world.adoption.lock().unwrap().insert(world.record(1).unwrap().spec.id, alive(&guest));
        let manager = world.manager(None);
        manager.restore(vec![world.record(1).unwrap()]).await;
        let instance = manager.find("web").unwrap();
        if !ends_first {
            guest.hibernate().await.unwrap();
        }
        let status = World::until_state(&instance, InstanceState::Hibernated).await;
        assert_eq!(status.counters.crashes, 0);
        instance.exec(start()).await.unwrap();
        assert_eq!(instance.status().counters.restore, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn saved_memory_that_vanished_is_told() {
    let (world, manager, instance) = running_with(Policy::default()).await;
    instance.hibernate().await.unwrap();
    manager.shutdown(Duration::ZERO, true).await;
    world.guest(0).saved.store(false, std::sync::atomic::Ordering::SeqCst);
    let manager = world.manager(None);
    manager.restore(vec![world.record(1).unwrap()]).await;
    let instance = manager.find("web").unwrap();
    assert_eq!(instance.status().state, InstanceState::Stopped);
    assert!(
        world.lines().iter().any(|l| matches!(l, Line::Error(text) if text.contains("saved memory is gone")))
    );
    instance.exec(start()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_life_ends_when_it_is_over_also_while_hibernated() {
    let policy = Policy { max_lifetime: Some(Duration::from_secs(700)), ..Policy::default() };
    let (world, _manager, instance) = running_with(policy).await;
    World::until_state(&instance, InstanceState::Hibernated).await;
    let status = World::until_state(&instance, InstanceState::Stopped).await;
    assert_eq!(status.stopped.unwrap().reason, StopReason::Lifetime);
    assert!(world.saved(&instance.spec().id).is_none());
    assert!(matches!(instance.exec(start()).await, Err(crate::ExecError::Denied(Denied::LifetimeOver))));
    instance.start().await.unwrap();
    World::until_state(&instance, InstanceState::Running).await;
}

#[tokio::test(start_paused = true)]
async fn the_budget_hibernates_whoever_was_used_least_recently() {
    let (world, manager) = World::with_budget(Some(1024));
    let mut instances = Vec::new();
    for n in 1..=3 {
        let instance = manager.create(with_policy(n, &format!("i{n}"), Policy::default())).await.unwrap();
        World::until_state(&instance, InstanceState::Running).await;
        instances.push(instance);
    }
    let states: Vec<_> = instances.iter().map(|i| i.status().state).collect();
    assert_eq!(states, [InstanceState::Hibernated, InstanceState::Running, InstanceState::Running]);
    assert_eq!(manager.memory(), (Some(1024), 1024));
    let using = instances[1].exec(start()).await.unwrap();
    instances[0].exec(start()).await.unwrap();
    assert_eq!(instances[2].status().state, InstanceState::Hibernated, "the other one is in use");
    let also = instances[0].exec(start()).await.unwrap();
    let denied = instances[2].exec(start()).await.err().unwrap();
    assert!(denied.to_string().contains("there is no memory for the VM"), "{denied}");
    drop((using, also));
    instances[2].start().await.unwrap();
    World::until_state(&instances[2], InstanceState::Running).await;
    assert!(world.boots() >= 5);
}

#[tokio::test(start_paused = true)]
async fn fifty_instances_share_the_memory_of_four_and_all_answer() {
    let (_world, manager) = World::with_budget(Some(2048));
    let mut instances = Vec::new();
    for n in 1..=50 {
        instances.push(manager.create(with_policy(n, &format!("i{n}"), Policy::default())).await.unwrap());
    }
    let mut asking = tokio::task::JoinSet::new();
    for instance in instances {
        asking.spawn(async move { drop(instance.exec(start()).await.unwrap()) });
    }
    assert_eq!(asking.join_all().await.len(), 50);
    assert!(manager.memory().1 <= 2048);
}
