//! VMs that die and guests that misbehave: they take nobody along.

use aegis_testkit::Guest;
use aegis_types::{InstanceId, InstanceState, StopReason};
use rustix::process::{Signal, kill_process};

use crate::support::{Host, assert_lines, exec, texts, within};

/// The daemon and another instance are as before.
async fn unaffected(host: &Host, bystander: &InstanceId) {
    assert_eq!(host.info(bystander).await.state, InstanceState::Running);
    assert_eq!(host.exec(bystander, &["echo", "hi"]).await.stdout, b"hi\n");
}

#[tokio::test]
async fn a_worker_that_vanishes_is_noticed() {
    let host = Host::start().await;
    let bystander = host.sleeper("bystander").await;
    let id = host.create(&host.instance("web", &["sleep", "54321"])).await;
    host.reach(&id, InstanceState::Running).await;
    let mut log = host.follow(&id).await;
    kill_process(host.home.worker_pid(&id), Signal::KILL).unwrap();
    let info = host.stopped(&id).await;
    assert_eq!(info.stop_reason, Some(StopReason::VmmDied));
    let why = info.last_error.unwrap();
    assert!(why.contains("signal 9"), "{why}");
    assert!(log.lines(1).await[0].contains("signal 9"));
    assert!(!host.home.home().run_dir(&id).exists());
    unaffected(&host, &bystander).await;
    // A VM is gone with its worker, but the processes of this guest are the host's.
    for (pid, _) in
        host.home.processes().into_iter().filter(|(_, command)| command.starts_with("sleep 54321"))
    {
        kill_process(pid, Signal::KILL).unwrap();
    }
    // It is woken by the next command.
    assert_eq!(host.exec(&id, &["echo", "again"]).await.stdout, b"again\n");
    host.end().await;
}

#[tokio::test]
async fn a_vmm_that_dies_leaves_its_last_words() {
    let host = Host::start().await;
    let bystander = host.sleeper("bystander").await;
    let id = host.sleeper("web").await;
    host.home.vm(&id).die("assertion failed").await.unwrap();
    let info = host.stopped(&id).await;
    assert_eq!(info.stop_reason, Some(StopReason::VmmDied));
    assert!(info.last_error.unwrap().contains("assertion failed"));
    assert!(texts(&host.log(&id).await).iter().any(|line| line.contains("assertion failed")));
    unaffected(&host, &bystander).await;
    assert_eq!(host.exec(&id, &["echo", "again"]).await.stdout, b"again\n");
    host.end().await;
}

#[tokio::test]
async fn a_guest_that_switches_itself_off_is_stopped_and_can_be_woken() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    host.home.vm(&id).power_off().await.unwrap();
    assert_eq!(host.stopped(&id).await.stop_reason, Some(StopReason::GuestShutdown));
    assert_eq!(host.exec(&id, &["echo", "again"]).await.stdout, b"again\n");
    host.end().await;
}

#[tokio::test]
async fn a_link_that_breaks_is_restored_without_loss() {
    let host = Host::start().await;
    let id = host.sh("web", "n=0; while [ $n -lt 20000 ]; do n=$((n+1)); echo $n; done; sleep 100000").await;
    let mut log = host.follow(&id).await;
    let mut got = log.output(100).await;
    host.home.vm(&id).drop_link().await.unwrap();
    got.extend(log.output(19_900).await);
    assert_lines(&got, 20_000);
    assert_eq!(host.info(&id).await.state, InstanceState::Running);
    assert_eq!(host.exec(&id, &["echo", "hi"]).await.stdout, b"hi\n");
    host.end().await;
}

#[tokio::test]
async fn garbage_of_a_guest_ends_that_guest_only() {
    let host = Host::start().await;
    let bystander = host.sleeper("bystander").await;
    for (guest, name) in [
        (Guest::BreaksLink, "breaks-link"),
        (Guest::BreaksControl, "breaks-control"),
        (Guest::BreaksLogs, "breaks-logs"),
    ] {
        host.home.script(name, &[guest]);
        let id = host.create(&host.instance(name, &["true"])).await;
        let info = host.stopped(&id).await;
        let expected = [Some(StopReason::GuestFault), Some(StopReason::BootFailed)];
        assert!(expected.contains(&info.stop_reason), "{name}: {info:?}");
        if name == "breaks-logs" {
            assert_eq!(info.stop_reason, Some(StopReason::GuestFault));
        }
        assert!(info.last_error.is_some() && !host.log(&id).await.is_empty(), "{name}");
        unaffected(&host, &bystander).await;
    }
    host.end().await;
}

#[tokio::test]
async fn garbage_on_the_stream_of_an_exec_ends_that_guest_only() {
    let host = Host::start().await;
    let bystander = host.sleeper("bystander").await;
    host.home.script("web", &[Guest::BreaksExec]);
    let id = host.sleeper("web").await;
    let done = host.exec(&id, &["true"]).await.done;
    assert!(done.exit_code == 125 && done.error.is_some(), "{done:?}");
    let info = host.stopped(&id).await;
    assert_eq!(info.stop_reason, Some(StopReason::GuestFault));
    unaffected(&host, &bystander).await;
    host.end().await;
}

#[tokio::test]
async fn a_guest_that_turns_bad_later_is_stopped() {
    let host = Host::start().await;
    let bystander = host.sleeper("bystander").await;
    let id = host.sleeper("web").await;
    let mut log = host.follow(&id).await;
    host.home.vm(&id).garble().await.unwrap();
    // Whatever the guest says next is garbage. The fault may come before this command, which then wakes the instance.
    drop(within(host.client.exec("web", &exec(&["true"]))).await);
    let line = log.lines(1).await.remove(0);
    assert!(line.contains("the guest broke the rules of the link"), "{line}");
    unaffected(&host, &bystander).await;
    host.end().await;
}
