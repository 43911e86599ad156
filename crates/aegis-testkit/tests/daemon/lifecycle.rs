//! What can be done with instances.

use aegis_api::{CreateInstance, ErrorCode};
use aegis_client::{Action, Creation};
use aegis_testkit::Guest;
use aegis_types::{Handle, InstanceState, StopReason};

use crate::support::{Host, assert_lines, output, refusal, texts, within};

#[tokio::test]
async fn a_new_instance_is_starting_and_then_runs() {
    let host = Host::start().await;
    let created = host.client.create(&host.instance("web", &["sleep", "100000"])).await.unwrap();
    let Creation::Created(created) = created else { panic!("{created:?}") };
    assert_eq!(
        (created.state, created.handle.as_ref().map(Handle::as_str)),
        (InstanceState::Starting, Some("web"))
    );
    let info = host.reach(&created.id, InstanceState::Running).await;
    assert!(
        info.boot_ms.is_some() && info.harness_version.is_some() && info.enabled && info.stopped_at.is_none()
    );
    assert_eq!(host.client.status().await.unwrap().live_vms, 1);
    // By name as by id.
    assert_eq!(host.client.get("web").await.unwrap().id, created.id);
    host.end().await;
}

#[tokio::test]
async fn pause_halts_the_command_and_resume_lets_it_go_on() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    for _ in 0..2 {
        assert_eq!(host.client.action("web", Action::Pause).await.unwrap().status, "paused");
        assert_eq!(host.info(&id).await.state, InstanceState::Paused);
    }
    for _ in 0..2 {
        assert_eq!(host.client.action("web", Action::Resume).await.unwrap().status, "running");
        assert_eq!(host.info(&id).await.state, InstanceState::Running);
    }
    host.client.action("web", Action::Pause).await.unwrap();
    assert_eq!(host.client.action("web", Action::Stop).await.unwrap().status, "stopped");
    for action in [Action::Pause, Action::Resume] {
        assert_eq!(
            refusal(host.client.action("web", action).await.unwrap_err()),
            (409, ErrorCode::WrongState)
        );
    }
    host.end().await;
}

#[tokio::test]
async fn a_halted_command_prints_nothing_and_loses_nothing() {
    let host = Host::start().await;
    let id = host.sh("web", "n=0; while [ $n -lt 20000 ]; do n=$((n+1)); echo $n; done").await;
    let mut log = host.follow(&id).await;
    log.next().await.unwrap();
    let mut pauses = 0;
    // As often as it fits in before the command ends.
    while host.client.action("web", Action::Pause).await.is_ok() {
        pauses += 1;
        if host.client.action("web", Action::Resume).await.is_err() {
            break;
        }
    }
    assert!(pauses > 0);
    host.stopped(&id).await;
    assert_lines(&output(&host.log(&id).await), 20_000);
    host.end().await;
}

#[tokio::test]
async fn stop_gives_the_command_time_to_end() {
    let host = Host::start().await;
    let id = host
        .sh(
            "web",
            "exec 2>/dev/null; trap 'echo goodbye; exit 3' TERM; echo up; while :; do sleep 0.05; done",
        )
        .await;
    let mut log = host.follow(&id).await;
    assert_eq!(log.lines(1).await, ["up"]);
    for _ in 0..2 {
        assert_eq!(host.client.action("web", Action::Stop).await.unwrap().status, "stopped");
        let info = host.info(&id).await;
        assert_eq!((info.state, info.stop_reason), (InstanceState::Stopped, Some(StopReason::Requested)));
        assert!(info.enabled);
    }
    assert_eq!(texts(&log.until_exit().await), ["goodbye", "process exited (code=3)"]);
    assert_eq!(host.client.action("web", Action::Start).await.unwrap().status, "starting");
    host.reach(&id, InstanceState::Running).await;
    assert_eq!(log.lines(1).await, ["up"]);
    host.end().await;
}

#[tokio::test]
async fn restart_works_from_every_state() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    for action in [None, Some(Action::Pause), Some(Action::Stop), Some(Action::Disable)] {
        if let Some(action) = action {
            host.client.action("web", action).await.unwrap();
        }
        assert_eq!(host.client.action("web", Action::Restart).await.unwrap().status, "restarting");
        let info = host.info(&id).await;
        assert!(info.state != InstanceState::Paused, "after {action:?}");
        let before = host.reach(&id, InstanceState::Running).await;
        assert!(before.enabled, "after {action:?}");
    }
    let ended = host.sh("ended", "echo once").await;
    host.stopped(&ended).await;
    host.client.action("ended", Action::Restart).await.unwrap();
    let mut log = host.follow(&ended).await;
    log.until_exit().await;
    assert_eq!(texts(&log.until_exit().await), ["once", "process exited (code=0)"]);
    host.end().await;
}

#[tokio::test]
async fn the_state_leaves_running_before_restart_is_answered() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    // The next boot does not come up, so `running` could only be the old VM.
    host.home.script("web", &[Guest::Silent]);
    host.client.action("web", Action::Restart).await.unwrap();
    assert_ne!(host.info(&id).await.state, InstanceState::Running);
    host.client.delete("web").await.unwrap();
    host.end().await;
}

#[tokio::test]
async fn disable_stops_and_start_enables_again() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    for _ in 0..2 {
        assert_eq!(host.client.action("web", Action::Disable).await.unwrap().status, "disabled");
        let info = host.info(&id).await;
        assert_eq!((info.state, info.enabled), (InstanceState::Stopped, false));
        assert_eq!(info.stop_reason, Some(StopReason::Disabled));
    }
    host.client.action("web", Action::Start).await.unwrap();
    assert!(host.reach(&id, InstanceState::Running).await.enabled);
    host.end().await;
}

#[tokio::test]
async fn delete_removes_everything_before_it_is_answered() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    let mut log = host.follow(&id).await;
    let home = host.home.home();
    assert!(home.run_dir(&id).exists() && home.instance_dir(&id).exists());
    assert_eq!(host.client.delete("web").await.unwrap().status, "deleted");
    host.nothing_runs().await;
    assert!(!home.run_dir(&id).exists() && !home.instance_dir(&id).exists());
    let logs: Vec<_> = std::fs::read_dir(home.logs()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(logs.is_empty(), "{logs:?}");
    while log.next().await.is_some() {}
    assert_eq!(refusal(host.client.get("web").await.unwrap_err()), (404, ErrorCode::InstanceNotFound));
    assert_eq!(
        refusal(host.client.delete(id.as_str()).await.unwrap_err()),
        (404, ErrorCode::InstanceNotFound)
    );
    // The name is free again.
    host.sleeper("web").await;
    host.end().await;
}

#[tokio::test]
async fn a_boot_that_hangs_can_be_stopped_disabled_and_deleted() {
    let host = Host::start().await;
    host.home.script("web", &[Guest::Silent]);
    for action in [Action::Stop, Action::Disable] {
        let id = host.create(&host.instance("web", &["true"])).await;
        within(host.client.action("web", action)).await.unwrap();
        let info = host.info(&id).await;
        assert_eq!((info.state, info.enabled), (InstanceState::Stopped, action == Action::Stop));
        host.nothing_runs().await;
        within(host.client.delete("web")).await.unwrap();
    }
    let id = host.create(&host.instance("web", &["true"])).await;
    within(host.client.delete("web")).await.unwrap();
    host.nothing_runs().await;
    assert!(!host.home.home().run_dir(&id).exists());
    host.end().await;
}

#[tokio::test]
async fn prune_deletes_what_has_been_stopped_for_long_enough() {
    let host = Host::start().await;
    let running = host.sleeper("running").await;
    let ended = host.sh("ended", "true").await;
    host.stopped(&ended).await;
    let disabled = host.sleeper("disabled").await;
    host.client.action("disabled", Action::Disable).await.unwrap();
    assert_eq!(host.client.prune("1h").await.unwrap().pruned, 0);
    let reply = host.client.prune("0s").await.unwrap();
    assert_eq!((reply.pruned, reply.ids), (2, vec![ended, disabled]));
    let left: Vec<_> = host.client.list(None).await.unwrap().into_iter().map(|i| i.id).collect();
    assert_eq!(left, [running]);
    assert_eq!(refusal(host.client.prune("soon").await.unwrap_err()), (400, ErrorCode::InvalidRequest));
    host.end().await;
}

#[tokio::test]
async fn lists_show_what_runs_first_and_disabled_last() {
    let host = Host::start().await;
    host.home.script("starting", &[Guest::Silent]);
    host.sleeper("disabled").await;
    host.client.action("disabled", Action::Disable).await.unwrap();
    let stopped = host.sh("stopped", "true").await;
    host.stopped(&stopped).await;
    host.sleeper("paused").await;
    host.client.action("paused", Action::Pause).await.unwrap();
    host.create(&host.instance("starting", &["true"])).await;
    host.sleeper("running-1").await;
    host.sleeper("running-2").await;
    let names = |list: Vec<aegis_api::InstanceSummary>| {
        list.into_iter().map(|i| i.handle.unwrap().as_str().to_owned()).collect::<Vec<_>>()
    };
    let all = names(host.client.list(None).await.unwrap());
    assert_eq!(all, ["running-1", "running-2", "starting", "paused", "stopped", "disabled"]);
    let stopped = names(host.client.list(Some(InstanceState::Stopped)).await.unwrap());
    assert_eq!(stopped, ["stopped", "disabled"]);
    host.client.delete("starting").await.unwrap();
    host.end().await;
}

#[tokio::test]
async fn a_name_is_taken_while_its_instance_lives_and_starts_it_again_when_stopped() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    for action in [None, Some(Action::Pause)] {
        if let Some(action) = action {
            host.client.action("web", action).await.unwrap();
        }
        let again = host.client.create(&host.instance("web", &["true"])).await;
        assert_eq!(refusal(again.unwrap_err()), (409, ErrorCode::AlreadyExists));
    }
    for action in [Action::Stop, Action::Disable] {
        host.client.action("web", action).await.unwrap();
        let by_name =
            CreateInstance { handle: Some(Handle::parse("web").unwrap()), ..CreateInstance::default() };
        let Creation::Restarted(started) = host.client.create(&by_name).await.unwrap() else { panic!() };
        assert_eq!((&started.id, started.state), (&id, InstanceState::Starting));
        assert_eq!(started.command, ["sleep", "100000"]);
        assert!(host.reach(&id, InstanceState::Running).await.enabled);
    }
    host.end().await;
}

#[tokio::test]
async fn of_many_who_want_a_name_at_once_one_gets_it() {
    let host = Host::start().await;
    let instance = host.instance("web", &["sleep", "100000"]);
    let all = futures::future::join_all((0..10).map(|_| host.client.create(&instance))).await;
    let (won, lost): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    for error in lost {
        assert_eq!(refusal(error.unwrap_err()), (409, ErrorCode::AlreadyExists));
    }
    host.end().await;
}
