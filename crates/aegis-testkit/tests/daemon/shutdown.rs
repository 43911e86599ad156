//! The end of a daemon.

use aegis_client::{ClientError, LogQuery};
use aegis_testkit::TestDaemon;
use aegis_types::{InstanceState, StopReason};
use aegisd::StartError;

use crate::support::{Host, new_home, texts, within};

#[tokio::test]
async fn a_daemon_that_ends_in_order_stops_everything_in_order() {
    let mut host = Host::start().await;
    let trap = "exec 2>/dev/null; trap 'echo goodbye; exit 5' TERM; echo up; while :; do sleep 0.05; done";
    let polite = host.sh("polite", trap).await;
    let paused = host.sleeper("paused").await;
    host.client.action("paused", aegis_client::Action::Pause).await.unwrap();
    let mut log = host.follow(&polite).await;
    assert_eq!(log.lines(1).await, ["up"]);
    let exec = host.begin_exec(&polite, &["sleep", "100000"]).await;
    host.down().await;
    host.nothing_runs().await;
    // Streams that were open came to an end.
    assert_eq!(texts(&log.rest().await), ["goodbye", "process exited (code=5)"]);
    let done = exec.finish().await.done;
    assert!([125, 143].contains(&done.exit_code), "{done:?}");
    assert!(matches!(host.client.status().await, Err(ClientError::NotRunning { .. })));
    assert!(!host.home.home().pid_file().exists());
    assert_eq!(std::fs::read_dir(host.home.home().run()).unwrap().count(), 0);

    host.up().await;
    for id in [&polite, &paused] {
        let info = host.info(id).await;
        assert_eq!((info.state, info.stop_reason), (InstanceState::Stopped, Some(StopReason::DaemonStopped)));
        assert!(info.enabled);
    }
    assert_eq!(texts(&host.log(&polite).await), ["up", "goodbye", "process exited (code=5)"]);
    assert_eq!(host.exec(&paused, &["echo", "awake"]).await.stdout, b"awake\n");
    host.end().await;
}

#[tokio::test]
async fn the_time_for_commands_is_bounded() {
    let mut host =
        Host::start_with(|options| options.stop_grace = std::time::Duration::from_millis(100)).await;
    let id = host.sh("stubborn", "trap '' TERM; echo up; while :; do sleep 0.05; done").await;
    host.follow(&id).await.lines(1).await;
    host.down().await;
    host.nothing_runs().await;
    host.up().await;
    assert_eq!(host.info(&id).await.stop_reason, Some(StopReason::DaemonStopped));
    host.end().await;
}

#[tokio::test]
async fn a_home_has_one_daemon() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    let error = within(TestDaemon::start(&host.home)).await.err().unwrap();
    assert!(matches!(&error, StartError::Lock(_)), "{error}");
    assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
    // The one that was there is as before.
    assert_eq!(host.info(&id).await.state, InstanceState::Running);
    assert!(host.home.home().pid_file().exists());
    host.end().await;
}

#[tokio::test]
async fn two_homes_are_two_installations() {
    let (one, two) = (Host::start().await, Host::start().await);
    one.sleeper("web").await;
    assert_eq!(two.client.list(None).await.unwrap(), []);
    two.sleeper("web").await;
    one.end().await;
    assert_eq!(two.client.list(None).await.unwrap().len(), 1);
    two.end().await;
}

#[tokio::test]
async fn a_fresh_home_has_the_built_in_image() {
    let home = new_home();
    let daemon = within(TestDaemon::start(&home)).await.unwrap();
    let images = daemon.client().images().await.unwrap();
    assert_eq!(images.len(), 1);
    assert!(images[0].builtin && images[0].name.as_str() == "base");
    let status = daemon.client().status().await.unwrap();
    assert!(status.assets.iter().all(|asset| asset.problem.is_none()), "{:?}", status.assets);
    within(daemon.shut_down()).await;
}

#[tokio::test]
async fn a_reader_that_does_not_read_does_not_hold_up_the_end() {
    let mut host = Host::start().await;
    let id = host.sh("web", "seq 1 30000; sleep 100000").await;
    let unread = host.client.logs("web", &LogQuery { follow: true, ..LogQuery::default() }).await.unwrap();
    host.follow(&id).await.lines(30_000).await;
    host.down().await;
    drop(unread);
    host.nothing_runs().await;
}
