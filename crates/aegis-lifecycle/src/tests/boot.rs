//! From `create` to the end of the command.

use std::sync::atomic::Ordering;
use std::time::Duration;

use aegis_proto::control::StartFailureKind;
use aegis_proto::worker::{BootFailure, ExitReason};
use aegis_types::{InstanceState, StopReason};

use super::running;
use crate::ports::LaunchError;
use crate::testing::{Line, RunMode, World, ready, spec};
use crate::{CreateError, Denied};

fn info(text: &str) -> Line {
    Line::Info(text.to_owned())
}

fn error(text: &str) -> Line {
    Line::Error(text.to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_new_instance_is_recorded_and_starting_before_create_returns() {
    let (world, manager) = World::new();
    world.may_launch.send_replace(false);
    let instance = manager.create(spec(1, "web")).await.unwrap();
    assert_eq!(instance.status().state, InstanceState::Starting);
    assert!(world.record(1).unwrap().live);
    assert!(manager.find("web").is_some() && manager.find(instance.spec().id.as_str()).is_some());
    world.may_launch.send_replace(true);
    let status = World::until_state(&instance, InstanceState::Running).await;
    let vm = status.vm.unwrap();
    assert_eq!(vm.vm_id, world.guest(0).vm);
    assert_eq!((vm.ready.unwrap(), vm.confinement.unwrap().landlock_abi), (ready(1), 4));
}

#[tokio::test(start_paused = true)]
async fn the_output_is_stored_before_the_end_is_told_and_the_vm_is_gone_after_it() {
    let (world, _manager, instance, guest) = running().await;
    guest.print("one");
    guest.print("two");
    guest.exit(42);
    let status = World::until_state(&instance, InstanceState::Stopped).await;
    let stopped = status.stopped.unwrap();
    assert_eq!((stopped.reason, stopped.exit_code), (StopReason::Exited, Some(42)));
    let output = |text: &str| Line::Output(text.to_owned());
    assert_eq!(world.lines(), [output("one"), output("two"), info("process exited (code=42)")]);
    assert!(!guest.is_alive() && status.vm.is_none() && status.enabled);
    assert_eq!(world.calls(), ["launch", "clean_up"]);
    // The record is written after the state is shown; an answered request comes after both.
    instance.stop().await.unwrap();
    let record = world.record(1).unwrap();
    assert_eq!((record.live, record.last_stop.unwrap().exit_code), (false, Some(42)));
}

#[tokio::test(start_paused = true)]
async fn a_command_that_ends_at_once_is_reported_once() {
    let (world, manager) = World::new();
    world.prepare(|guest| {
        guest.print("hi");
        guest.exit(0);
    });
    let instance = manager.create(spec(1, "web")).await.unwrap();
    let status = World::until_state(&instance, InstanceState::Stopped).await;
    assert_eq!(status.stopped.unwrap().reason, StopReason::Exited);
    assert_eq!(world.lines(), [Line::Output("hi".to_owned()), info("process exited (code=0)")]);
}

#[tokio::test(start_paused = true)]
async fn a_missing_command_ends_like_one_with_code_127() {
    let (world, manager) = World::new();
    world.prepare(|guest| guest.set(|s| s.run = RunMode::Refuse(StartFailureKind::NotFound)));
    let instance = manager.create(spec(1, "web")).await.unwrap();
    let status = World::until_state(&instance, InstanceState::Stopped).await;
    let stopped = status.stopped.unwrap();
    assert_eq!((stopped.reason, stopped.exit_code), (StopReason::Exited, Some(127)));
    assert_eq!(stopped.error.unwrap(), "cannot run `x`");
    assert_eq!(world.lines(), [error("cannot run `x`"), info("process exited (code=127)")]);
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_does_not_come_up_is_explained_with_its_console() {
    let (world, manager) = World::new();
    world.prepare(|guest| {
        let console = vec!["Kernel panic\x1b[2J".to_owned()];
        guest.set(|s| s.ready = Some(Err(BootFailure { message: "no answer".to_owned(), console })));
        guest.die(ExitReason::BootFailed);
    });
    let instance = manager.create(spec(1, "web")).await.unwrap();
    let status = World::until_state(&instance, InstanceState::Stopped).await;
    let stopped = status.stopped.unwrap();
    assert_eq!((stopped.reason, stopped.error.unwrap().as_str()), (StopReason::BootFailed, "no answer"));
    assert_eq!(world.lines(), [error("boot failed: no answer"), error("console: Kernel panic [2J")]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_without_a_word_during_the_boot_is_a_failed_boot() {
    let (world, manager) = World::new();
    world.prepare(|guest| {
        guest.set(|s| s.ready = None);
        guest.die(ExitReason::VmmDied);
    });
    let instance = manager.create(spec(1, "web")).await.unwrap();
    let status = World::until_state(&instance, InstanceState::Stopped).await;
    assert_eq!(status.stopped.unwrap().reason, StopReason::BootFailed);
    assert_eq!(world.lines(), [error("boot failed: VmmDied")]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_cannot_be_started_is_a_failed_boot_with_a_hint() {
    let (world, manager) = World::new();
    let failure =
        LaunchError { message: "no access to /dev/kvm".to_owned(), hint: Some("join kvm".to_owned()) };
    *world.launch_error.lock().unwrap() = Some(failure);
    let instance = manager.create(spec(1, "web")).await.unwrap();
    World::until_state(&instance, InstanceState::Stopped).await;
    assert_eq!(world.lines(), [error("boot failed: no access to /dev/kvm"), error("hint: join kvm")]);
    // The next start tries again.
    instance.start().await.unwrap();
    World::until_state(&instance, InstanceState::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_command_that_lacks_what_it_needs_gets_no_vm_and_may_have_it_later() {
    let (world, manager) = World::new();
    let lacks = || LaunchError { message: "it needs secret `K`".to_owned(), hint: Some("set it".to_owned()) };
    *world.inject_error.lock().unwrap() = Some(lacks());
    let instance = manager.create(spec(1, "web")).await.unwrap();
    World::until_state(&instance, InstanceState::Stopped).await;
    assert_eq!(world.lines(), [error("boot failed: it needs secret `K`"), error("hint: set it")]);
    assert_eq!(world.boots(), 0);
    instance.start().await.unwrap();
    World::until_state(&instance, InstanceState::Running).await;
    // The command of a saved VM runs already: it needs nothing.
    instance.hibernate().await.unwrap();
    *world.inject_error.lock().unwrap() = Some(lacks());
    instance.resume().await.unwrap();
    assert_eq!(instance.status().state, InstanceState::Running);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_start_the_command_is_stopped() {
    for (mode, reason) in [
        (RunMode::Hang, StopReason::BootFailed),
        (RunMode::CloseStream, StopReason::BootFailed),
        (RunMode::Nonsense, StopReason::GuestFault),
    ] {
        let (world, manager) = World::new();
        world.prepare(move |guest| guest.set(|s| s.run = mode.clone()));
        let instance = manager.create(spec(1, "web")).await.unwrap();
        let status = World::until_state(&instance, InstanceState::Stopped).await;
        assert_eq!(status.stopped.unwrap().reason, reason);
        assert!(!world.guest(0).is_alive());
    }
}

#[tokio::test(start_paused = true)]
async fn a_boot_that_needed_several_attempts_is_mentioned() {
    let (world, manager) = World::new();
    world.prepare(|guest| guest.set(|s| s.ready = Some(Ok(ready(2)))));
    let instance = manager.create(spec(1, "web")).await.unwrap();
    World::until_state(&instance, InstanceState::Running).await;
    assert_eq!(world.lines(), [error("the VM came up only at attempt 2")]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_started_that_could_not_be_recorded() {
    let (world, manager) = World::new();
    world.registry_fails.store(true, Ordering::SeqCst);
    assert!(matches!(manager.create(spec(1, "web")).await, Err(CreateError::Registry(_))));
    assert!(manager.list().is_empty() && world.calls().is_empty());
    world.registry_fails.store(false, Ordering::SeqCst);
    let instance = manager.create(spec(1, "web")).await.unwrap();
    World::until_state(&instance, InstanceState::Running).await;
    instance.stop().await.unwrap();
    world.registry_fails.store(true, Ordering::SeqCst);
    assert!(matches!(instance.start().await, Err(Denied::Registry(_))));
    assert!(matches!(instance.disable().await, Err(Denied::Registry(_))));
    let status = instance.status();
    assert_eq!((status.state, status.enabled, world.boots()), (InstanceState::Stopped, true, 1));
}

#[tokio::test(start_paused = true)]
async fn names_and_ids_are_unique() {
    let (_world, manager, _instance, _guest) = running().await;
    let taken = manager.create(spec(2, "web")).await.err().unwrap();
    assert!(matches!(taken, CreateError::HandleTaken { state: InstanceState::Running, .. }));
    assert!(matches!(manager.create(spec(1, "other")).await, Err(CreateError::IdTaken(_))));
    let (one, two) = tokio::join!(manager.create(spec(3, "twin")), manager.create(spec(4, "twin")));
    assert_eq!([one.is_ok(), two.is_ok()].iter().filter(|ok| **ok).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_boot_belongs_to_the_driver_and_not_to_its_caller() {
    let (world, manager) = World::new();
    world.may_launch.send_replace(false);
    let instance = manager.create(spec(1, "web")).await.unwrap();
    let start = crate::tests::exec::start("echo");
    let waited = tokio::time::timeout(Duration::from_secs(1), instance.exec(start)).await;
    assert!(waited.is_err());
    world.may_launch.send_replace(true);
    let status = World::until(&instance, |s| s.state == InstanceState::Running && s.users.execs == 0).await;
    assert!(status.vm.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_short_lives_at_once_each_end_once_and_in_order() {
    let (world, manager) = World::new();
    world.prepare(|guest| {
        guest.print("hi");
        guest.exit(0);
        guest.die(ExitReason::GuestShutdown);
    });
    for round in 0..200 {
        let instance = manager.create(spec(round, &format!("web{round}"))).await.unwrap();
        World::until_state(&instance, InstanceState::Stopped).await;
        instance.delete().await.unwrap();
    }
    assert!(manager.list().is_empty() && world.records.lock().unwrap().is_empty());
    let (world, manager) = World::new();
    world.prepare(|guest| {
        guest.print("hi");
        guest.exit(0);
    });
    for round in 0..200 {
        let instance = manager.create(spec(round, &format!("web{round}"))).await.unwrap();
        World::until_state(&instance, InstanceState::Stopped).await;
    }
    let life = [Line::Output("hi".to_owned()), info("process exited (code=0)")];
    assert_eq!(world.lines(), vec![life; 200].concat());
}

#[tokio::test(start_paused = true)]
async fn a_start_that_waits_for_its_image_is_given_up_when_nobody_wants_it() {
    let (world, manager) = World::new();
    world.is_provided.send_replace(false);
    let instance = manager.create(spec(1, "web")).await.unwrap();
    assert_eq!(instance.status().state, InstanceState::Starting);
    instance.stop().await.unwrap();
    let stopped = instance.status().stopped.unwrap();
    assert_eq!((stopped.reason, world.boots()), (StopReason::Requested, 0));
    // The next one waits until it is there.
    instance.start().await.unwrap();
    world.is_provided.send_replace(true);
    World::until_state(&instance, InstanceState::Running).await;
    world.is_provided.send_replace(false);
    instance.restart().await.unwrap();
    instance.delete().await.unwrap();
    assert!(world.record(1).is_none());
}

#[tokio::test(start_paused = true)]
async fn an_image_that_cannot_be_had_is_a_failed_boot_without_a_vm() {
    let (world, manager) = World::new();
    let nowhere = LaunchError { message: "cannot pull `x`".to_owned(), hint: Some("import it".to_owned()) };
    *world.provide_error.lock().unwrap() = Some(nowhere);
    let instance = manager.create(spec(1, "web")).await.unwrap();
    let status = World::until_state(&instance, InstanceState::Stopped).await;
    let stopped = status.stopped.unwrap();
    assert_eq!((stopped.reason, stopped.error.as_deref()), (StopReason::BootFailed, Some("cannot pull `x`")));
    assert_eq!(world.lines(), [error("boot failed: cannot pull `x`"), error("hint: import it")]);
    assert_eq!(world.boots(), 0);
}
