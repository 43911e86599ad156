//! Start, end and return of a daemon.

use aegis_api::ShutdownMode;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use aegis_types::{InstanceState, StopReason};
use aegisd::StartError;
use serde_json::Value;

use crate::fake::FakeLauncher;
use crate::support::{DEADLINE, LineStream, TestDaemon, home, start};

#[tokio::test]
async fn a_home_is_private_and_has_one_daemon() {
    let daemon = TestDaemon::new().await;
    let home = home(daemon.dir.path());
    let mode = |path: std::path::PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(home.socket()), mode(home.data()), mode(home.run())), (0o600, 0o700, 0o700));
    for file in [home.database(), home.pid_file(), home.lock_file()] {
        assert_eq!(mode(file), 0o600);
    }
    assert_eq!(fs::read_to_string(home.pid_file()).unwrap().trim(), std::process::id().to_string());
    let error = start(daemon.dir.path(), Arc::clone(&daemon.launcher)).await.err().unwrap().to_string();
    assert!(error.starts_with("another aegisd (pid "), "{error}");
    // The refused one took nothing away.
    daemon.text("GET", "/v1/status", "").await;
    daemon.running.shutdown(ShutdownMode::Stop).await;
    assert!(!home.socket().exists() && !home.pid_file().exists());
    assert!(!home.data().join("aegis.db-wal").exists());
}

#[tokio::test]
async fn a_stale_socket_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let home = home(dir.path());
    home.ensure().unwrap();
    drop(UnixListener::bind(home.socket()).unwrap());
    fs::write(home.pid_file(), "1\n").unwrap();
    let launcher = Arc::new(FakeLauncher::default());
    let running = start(dir.path(), Arc::clone(&launcher)).await.unwrap();
    let daemon = TestDaemon { dir, launcher, running };
    assert_eq!(daemon.text("GET", "/v1/status", "").await.0, 200);
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

#[tokio::test]
async fn a_home_too_deep_for_sockets_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("x".repeat(80usize.saturating_sub(dir.path().as_os_str().len())));
    let error = start(&deep, Arc::new(FakeLauncher::default())).await.err().unwrap();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(text.contains("AEGIS_HOME"), "{text}");
}

#[tokio::test]
async fn shutdown_stops_vms_ends_streams_and_keeps_instances_and_logs() {
    let daemon = TestDaemon::new().await;
    daemon.create("web", &["serve", "kept"]).await;
    let mut follower = LineStream::new(daemon.send("GET", "/v1/instances/web/logs?follow=1", "").await);
    while follower.entry().await.line != "kept" {}
    let mut exec =
        LineStream::new(daemon.send("POST", "/v1/instances/web/exec", r#"{"command":["hang"]}"#).await);
    let _: Value = exec.next().await.unwrap();
    let TestDaemon { dir, launcher, running } = daemon;
    running.shutdown(ShutdownMode::Stop).await;
    assert_eq!(launcher.live_count(), 0);
    let done: Value = exec.next().await.unwrap();
    assert_eq!(done["exit_code"], 125);
    while follower.next::<Value>().await.is_some() {}

    let running = start(dir.path(), Arc::clone(&launcher)).await.unwrap();
    let daemon = TestDaemon { dir, launcher, running };
    let info = daemon.info("web").await;
    assert_eq!((info.state, info.stop_reason), (InstanceState::Stopped, Some(StopReason::DaemonStopped)));
    let log = daemon.lines("GET", "/v1/instances/web/logs", "").await;
    assert_eq!(log.iter().filter(|entry| entry["line"] == "kept").count(), 1);
    let lines = daemon.lines("POST", "/v1/instances/web/exec", r#"{"command":["say","awake"]}"#).await;
    assert_eq!(lines[1]["line"], "awake");
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

/// The first daemon has a runtime of its own, so that its end is as sudden as a crash.
#[test]
fn a_crash_of_the_daemon_ends_no_vm() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let crashing = runtime();
    let (dir, launcher, running) = crashing.block_on(async {
        let daemon = TestDaemon::new().await;
        daemon.create("web", &["serve", "once"]).await;
        let mut follower = LineStream::new(daemon.send("GET", "/v1/instances/web/logs?follow=1", "").await);
        while follower.entry().await.line != "once" {}
        (daemon.dir, daemon.launcher, daemon.running)
    });
    crashing.shutdown_background();
    drop(running);
    runtime().block_on(async {
        // The thread that writes logs holds the home until it has finished what was queued.
        let free = async {
            loop {
                match start(dir.path(), Arc::clone(&launcher)).await {
                    Err(StartError::Lock(_)) => tokio::task::yield_now().await,
                    started => return started.unwrap(),
                }
            }
        };
        let running = tokio::time::timeout(DEADLINE, free).await.unwrap();
        let daemon = TestDaemon { dir, launcher, running };
        assert_eq!(daemon.info("web").await.state, InstanceState::Running);
        let lines = daemon.lines("POST", "/v1/instances/web/exec", r#"{"command":["say","alive"]}"#).await;
        assert_eq!(lines[1]["line"], "alive");
        daemon.running.shutdown(ShutdownMode::Stop).await;
        assert_eq!(daemon.launcher.live_count(), 0);
    });
}
