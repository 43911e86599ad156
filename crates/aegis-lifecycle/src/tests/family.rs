//! Children follow their parent.

use std::sync::Arc;
use std::time::Duration;

use aegis_types::{InstanceId, InstanceState, Policy, StopReason};

use crate::record::InstanceSpec;
use crate::testing::{World, spec, with_policy};
use crate::{CreateError, Denied, ExecError, Instance, Manager};

fn child_of(parent: u64, n: u64, policy: Policy) -> InstanceSpec {
    let parent = Some(InstanceId::from_unix_nanos(parent));
    InstanceSpec { parent, ..with_policy(n, &format!("child{n}"), policy) }
}

/// A parent, its child and the child of that one, all running.
async fn family() -> (Arc<World>, Manager, [Instance; 3]) {
    let (world, manager) = World::new();
    let policy = Policy { never_pause: true, ..Policy::default() };
    let parent = manager.create(spec(1, "parent")).await.unwrap();
    let child = manager.create(child_of(1, 2, policy.clone())).await.unwrap();
    let grandchild = manager.create(child_of(2, 3, policy)).await.unwrap();
    let all = [parent, child, grandchild];
    for instance in &all {
        World::until_state(instance, InstanceState::Running).await;
    }
    (world, manager, all)
}

/// When everybody waits, time passes.
async fn settled() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

async fn is_denied(instance: &Instance) {
    let exec = instance.exec(super::exec::start("echo")).await;
    assert!(matches!(exec, Err(ExecError::Denied(Denied::ParentStopped))));
    assert_eq!(instance.start().await, Err(Denied::ParentStopped));
}

#[tokio::test(start_paused = true)]
async fn they_stop_with_it_and_may_be_woken_when_it_is_back() {
    let (_world, _manager, [parent, child, grandchild]) = family().await;
    parent.disable().await.unwrap();
    for instance in [&child, &grandchild] {
        let status = World::until_state(instance, InstanceState::Stopped).await;
        assert_eq!(status.stopped.unwrap().reason, StopReason::ParentStopped);
        is_denied(instance).await;
    }
    parent.start().await.unwrap();
    World::until_state(&parent, InstanceState::Running).await;
    settled().await;
    child.start().await.unwrap();
    World::until_state(&child, InstanceState::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_or_a_hibernation_of_the_parent_is_no_stop() {
    let (_world, _manager, [parent, child, _]) = family().await;
    parent.pause().await.unwrap();
    parent.hibernate().await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(child.status().state, InstanceState::Running);
    child.exec(super::exec::start("echo")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn they_are_deleted_with_it_also_if_the_daemon_died_in_between() {
    let (world, manager, [parent, ..]) = family().await;
    parent.delete().await.unwrap();
    World::eventually(|| manager.list().is_empty()).await;
    assert!((1..=3).all(|n| world.record(n).is_none()));

    let (world, manager, [..]) = family().await;
    manager.shutdown(Duration::ZERO, false).await;
    // The record of the parent went, and then the daemon.
    let records = [2, 3].map(|n| world.record(n).unwrap());
    let manager = world.manager(None);
    manager.restore(records.to_vec()).await;
    World::eventually(|| manager.list().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn the_next_daemon_keeps_them_together() {
    let (world, manager, [parent, ..]) = family().await;
    parent.stop().await.unwrap();
    manager.shutdown(Duration::ZERO, false).await;
    let manager = world.manager(None);
    manager.restore((1..=3).map(|n| world.record(n).unwrap()).collect()).await;
    let child = manager.find("child2").unwrap();
    settled().await;
    is_denied(&child).await;
    manager.shutdown(Duration::ZERO, false).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_belongs_to_an_instance_that_does_not_exist() {
    let (_world, manager) = World::new();
    let refused = manager.create(child_of(7, 1, Policy::default())).await.err();
    assert_eq!(refused, Some(CreateError::NoParent(InstanceId::from_unix_nanos(7))));
    assert!(manager.list().is_empty());
}
