//! A daemon that dies, and the next one.

use aegis_client::Action;
use aegis_testkit::Guest;
use aegis_types::{InstanceState, StopReason};
use rustix::process::{Signal, kill_process};

use crate::support::{Gate, Host, assert_lines, output, texts, within};

/// The line by which a daemon says that it took an instance over.
const ADOPTED: &str = "the daemon was restarted; the VM goes on";

#[tokio::test]
async fn no_line_is_lost_or_doubled_by_a_crash() {
    let mut host = Host::start().await;
    let gate = Gate::new(&host.home, "gate");
    let id = host.sh("web", &format!("seq 1 3000; {}; seq 3001 6000", gate.wait())).await;
    let mut log = host.follow(&id).await;
    log.lines(100).await;
    host.crash().await;
    host.up().await;
    assert_eq!(host.info(&id).await.state, InstanceState::Running);
    gate.open().await;
    let entries = host.follow(&id).await.until_exit().await;
    assert_lines(&output(&entries), 6000);
    assert_eq!(host.stopped(&id).await.exit_code, Some(0));
    let exits = host.log(&id).await.into_iter().filter(|e| e.line.starts_with("process exited")).count();
    assert_eq!(exits, 1);
    host.end().await;
}

#[tokio::test]
async fn many_crashes_in_the_middle_of_output_lose_nothing() {
    let mut host = Host::start().await;
    let id = host.sh("web", "n=0; while [ $n -lt 20000 ]; do n=$((n+1)); echo $n; done").await;
    for round in 1..=4 {
        host.follow(&id).await.lines(round * 1000).await;
        host.crash().await;
        host.up().await;
    }
    let entries = host.follow(&id).await.until_exit().await;
    assert_lines(&output(&entries), 20_000);
    host.end().await;
}

#[tokio::test]
async fn an_adopted_instance_is_as_good_as_before() {
    let mut host = Host::start().await;
    let id = host.sleeper("web").await;
    let before = host.info(&id).await;
    host.crash().await;
    host.up().await;
    let after = host.info(&id).await;
    assert_eq!((after.state, &after.boot_ms), (InstanceState::Running, &before.boot_ms));
    assert_eq!(after.harness_version, before.harness_version);
    assert_eq!(host.exec(&id, &["echo", "hi"]).await.stdout, b"hi\n");
    host.client.action("web", Action::Pause).await.unwrap();
    host.client.action("web", Action::Resume).await.unwrap();
    host.client.action("web", Action::Stop).await.unwrap();
    host.nothing_runs().await;
    host.client.action("web", Action::Start).await.unwrap();
    host.reach(&id, InstanceState::Running).await;
    host.end().await;
}

#[tokio::test]
async fn a_paused_instance_stays_paused() {
    let mut host = Host::start().await;
    let id = host.sleeper("web").await;
    host.client.action("web", Action::Pause).await.unwrap();
    host.crash().await;
    host.up().await;
    assert_eq!(host.info(&id).await.state, InstanceState::Paused);
    host.client.action("web", Action::Resume).await.unwrap();
    assert_eq!(host.exec(&id, &["echo", "hi"]).await.stdout, b"hi\n");
    host.end().await;
}

#[tokio::test]
async fn a_command_that_ended_while_nobody_watched_is_known() {
    let mut host = Host::start().await;
    let gate = Gate::new(&host.home, "gate");
    let ended = host.home.scratch().join("ended");
    let script = format!("echo begun; {}; echo done; touch {}; exit 7", gate.wait(), ended.display());
    let id = host.sh("web", &script).await;
    host.follow(&id).await.lines(1).await;
    host.crash().await;
    gate.open().await;
    within(async {
        while !ended.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await;
    host.up().await;
    let info = host.stopped(&id).await;
    assert_eq!((info.stop_reason, info.exit_code), (Some(StopReason::Exited), Some(7)));
    assert_eq!(texts(&host.log(&id).await), ["begun", ADOPTED, "done", "process exited (code=7)"]);
    host.end().await;
}

#[tokio::test]
async fn a_guest_that_switched_off_while_nobody_watched_is_known() {
    let mut host = Host::start().await;
    let id = host.sleeper("web").await;
    host.crash().await;
    host.home.vm(&id).power_off().await.unwrap();
    host.nothing_runs().await;
    host.up().await;
    let info = host.info(&id).await;
    assert_eq!((info.state, info.stop_reason), (InstanceState::Stopped, Some(StopReason::GuestShutdown)));
    assert!(!host.home.home().run_dir(&id).exists());
    assert_eq!(host.exec(&id, &["echo", "hi"]).await.stdout, b"hi\n");
    host.end().await;
}

#[tokio::test]
async fn a_worker_that_died_while_nobody_watched_is_known() {
    let mut host = Host::start().await;
    let id = host.sleeper("web").await;
    host.crash().await;
    kill_guests(&host, &id);
    host.nothing_runs().await;
    host.up().await;
    let info = host.info(&id).await;
    assert_eq!(info.state, InstanceState::Stopped);
    assert!(
        matches!(info.stop_reason, Some(StopReason::VmmDied | StopReason::DaemonStopped)),
        "{:?}",
        info.stop_reason
    );
    assert_eq!(host.exec(&id, &["echo", "hi"]).await.stdout, b"hi\n");
    host.end().await;
}

/// Kills a worker and the processes of its guest, which a real VMM would take along.
fn kill_guests(host: &Host, id: &aegis_types::InstanceId) {
    kill_process(host.home.worker_pid(id), Signal::KILL).unwrap();
    for (pid, _) in host.home.processes() {
        // It may have ended already.
        let _ = kill_process(pid, Signal::KILL);
    }
}

#[tokio::test]
async fn a_boot_goes_on_under_the_next_daemon() {
    let mut host = Host::start().await;
    host.home.script("web", &[Guest::Silent]);
    let id = host.create(&host.instance("web", &["true"])).await;
    within(async {
        while host.home.vm(&id).print("still there").await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await;
    host.crash().await;
    host.up().await;
    assert_eq!(host.info(&id).await.state, InstanceState::Starting);
    assert!(host.client.console("web").await.unwrap().ends_with(b"still there\n"));
    within(host.client.action("web", Action::Disable)).await.unwrap();
    host.nothing_runs().await;
    host.end().await;
}

#[tokio::test]
async fn a_boot_that_failed_while_nobody_watched_is_known() {
    let mut host = Host::start().await;
    host.home.script("web", &[Guest::Silent]);
    let id = host.create(&host.instance("web", &["true"])).await;
    within(async {
        while host.home.vm(&id).print("about to die").await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await;
    host.crash().await;
    for attempt in ["first", "second"] {
        within(async {
            while host.home.vm(&id).die(attempt).await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        })
        .await;
    }
    host.nothing_runs().await;
    host.up().await;
    let info = host.info(&id).await;
    assert_eq!((info.state, info.stop_reason), (InstanceState::Stopped, Some(StopReason::BootFailed)));
    let error = info.last_error.unwrap();
    assert!(error.contains("second"), "{error}");
    host.end().await;
}

#[tokio::test]
async fn what_was_stopped_is_remembered_with_its_log() {
    let mut host = Host::start().await;
    let id = host.sh("web", "echo hello; exit 3").await;
    let before = host.stopped(&id).await;
    let log = host.log(&id).await;
    host.crash().await;
    host.up().await;
    assert_eq!(host.info(&id).await, before);
    assert_eq!(host.log(&id).await, log);
    host.end().await;
}

#[tokio::test]
async fn workers_and_files_of_unknown_instances_are_removed() {
    let mut host = Host::start().await;
    let id = host.sleeper("web").await;
    host.crash().await;
    for entry in std::fs::read_dir(host.home.home().data()).unwrap().flatten() {
        if entry.file_name().to_str().unwrap().starts_with("aegis.db") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    // Killed with its worker in a real VM.
    for (pid, command) in host.home.processes() {
        if command.starts_with("sleep") {
            kill_process(pid, Signal::KILL).unwrap();
        }
    }
    host.up().await;
    host.nothing_runs().await;
    assert!(!host.home.home().run_dir(&id).exists() && !host.home.home().instance_dir(&id).exists());
    assert_eq!(host.client.list(None).await.unwrap(), []);
    host.end().await;
}
