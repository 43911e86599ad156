//! Restart policies and crash loops.

use std::time::Duration;

use aegis_types::{InstanceState, Policy, RestartPolicy, StopReason};

use crate::testing::{World, with_policy};
use crate::{Denied, ExecError};

fn policy(restart: RestartPolicy) -> Policy {
    Policy { restart, never_pause: true, ..Policy::default() }
}

#[tokio::test(start_paused = true)]
async fn what_ended_is_started_again_as_its_policy_says() {
    for (restart, code, again) in [
        (RestartPolicy::No, 1, false),
        (RestartPolicy::OnFailure, 0, false),
        (RestartPolicy::OnFailure, 1, true),
        (RestartPolicy::Always, 0, true),
    ] {
        let (world, manager) = World::new();
        let instance = manager.create(with_policy(1, "web", policy(restart))).await.unwrap();
        World::until_state(&instance, InstanceState::Running).await;
        world.guest(0).exit(code);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(world.boots() == 2, again, "{restart} {code}");
        assert_eq!(instance.status().counters.restarts, u64::from(again));
    }
}

#[tokio::test(start_paused = true)]
async fn five_crashes_in_a_row_end_it_until_somebody_asks() {
    let (world, manager) = World::new();
    world.prepare(|guest| guest.exit(3));
    let instance = manager.create(with_policy(1, "web", policy(RestartPolicy::Always))).await.unwrap();
    World::eventually(|| world.boots() == 5).await;
    World::until(&instance, |s| s.state == InstanceState::Stopped && s.counters.crashes == 5).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.boots(), 5);
    let denied = instance.exec(super::exec::start("echo")).await.err().unwrap();
    assert!(matches!(denied, ExecError::Denied(Denied::CrashLoop { count: 5 })), "{denied}");
    instance.start().await.unwrap();
    World::eventually(|| world.boots() == 6).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_restarts() {
    let (world, manager) = World::new();
    let instance = manager.create(with_policy(1, "web", policy(RestartPolicy::Always))).await.unwrap();
    World::until_state(&instance, InstanceState::Running).await;
    instance.stop().await.unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.boots(), 1);
    world.prepare(|guest| guest.exit(1));
    instance.start().await.unwrap();
    World::until_state(&instance, InstanceState::Stopped).await;
    instance.stop().await.unwrap();
    let boots = world.boots();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!((world.boots(), instance.status().stopped.unwrap().reason), (boots, StopReason::Exited));
}
