//! What the API promises.

use aegis_api::{
    CreatedInstance, DaemonStatus, ErrorCode, ImageSummary, InstanceSummary, LogEntry, PruneReply,
    ShutdownMode, StateReply, WorkspaceEntry, WorkspaceSummary, WorkspaceUsage,
};
use aegis_types::{Accelerator, InstanceState, StopReason};
use serde_json::{Value, json};

use crate::support::{LineStream, TestDaemon};

#[tokio::test]
async fn status_shows_the_daemon() {
    let daemon = TestDaemon::new().await;
    let status: DaemonStatus = daemon.ok("GET", "/v1/status", "").await;
    assert_eq!((status.status.as_str(), status.backend.as_str()), ("running", "qemu"));
    assert_eq!((status.pid, status.live_vms), (std::process::id(), 0));
    assert_eq!(status.accelerator, Some(Accelerator::Tcg));
    assert_eq!(status.assets.len(), 6);
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

#[tokio::test]
async fn an_instance_is_created_shown_and_deleted() {
    let daemon = TestDaemon::new().await;
    let body = json!({"command": ["serve", "hi"], "handle": "web", "env": {"SECRET": "x"}, "memory_mb": 256, "new": 1});
    let (status, text) = daemon.text("POST", "/v1/instances", &body.to_string()).await;
    let created: CreatedInstance = serde_json::from_str(&text).unwrap();
    assert_eq!((status, created.state), (201, InstanceState::Starting));
    let info = daemon.until("web", InstanceState::Running).await;
    assert_eq!(info.id, created.id);
    assert_eq!((info.memory_mb.get(), info.vcpus.get(), info.image_ref.as_str()), (256, 1, "base"));
    assert_eq!((info.env_keys, info.boot_ms), (vec!["SECRET".to_owned()], Some(7)));
    assert_eq!(info.harness_version.as_deref(), Some("1.2.3"));
    assert_eq!(info.confinement.as_deref(), Some("landlock (ABI 3), seccomp, no_new_privs"));
    let by_id = daemon.info(created.id.as_str()).await;
    assert_eq!(by_id.id, created.id);
    let reply: StateReply = daemon.ok("DELETE", "/v1/instances/web", "").await;
    assert_eq!(reply.status, "deleted");
    assert_eq!(*daemon.launcher.removed.lock().unwrap(), [created.id]);
    assert_eq!(daemon.refused("GET", "/v1/instances/web", "").await.0, 404);
    assert_eq!(std::fs::read_dir(daemon.dir.path().join("home/data/logs")).unwrap().count(), 0);
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

#[tokio::test]
async fn actions_change_the_state_that_the_next_look_shows() {
    let daemon = TestDaemon::new().await;
    daemon.create("web", &["serve"]).await;
    for (action, word, state, enabled) in [
        ("pause", "paused", InstanceState::Paused, true),
        ("pause", "paused", InstanceState::Paused, true),
        ("resume", "running", InstanceState::Running, true),
        ("stop", "stopped", InstanceState::Stopped, true),
        ("stop", "stopped", InstanceState::Stopped, true),
        ("disable", "disabled", InstanceState::Stopped, false),
    ] {
        let reply: StateReply = daemon.ok("POST", &format!("/v1/instances/web/{action}"), "").await;
        let info = daemon.info("web").await;
        assert_eq!((reply.status.as_str(), info.state, info.enabled), (word, state, enabled), "{action}");
    }
    let (status, error) = daemon.refused("POST", "/v1/instances/web/pause", "").await;
    assert_eq!((status, error.code), (409, ErrorCode::WrongState));
    assert_eq!(error.error, "cannot pause instance `web`: it is stopped");
    let (status, error) = daemon.refused("POST", "/v1/instances/web/exec", r#"{"command":["say"]}"#).await;
    assert_eq!((status, error.code), (409, ErrorCode::Disabled));
    for action in ["start", "restart"] {
        let _: StateReply = daemon.ok("POST", &format!("/v1/instances/web/{action}"), "").await;
        assert!(daemon.until("web", InstanceState::Running).await.enabled);
    }
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

#[tokio::test]
async fn a_name_starts_its_stopped_instance_and_refuses_a_second_one() {
    let daemon = TestDaemon::new().await;
    let id = daemon.create("web", &["serve", "a"]).await;
    let (status, error) = daemon.refused("POST", "/v1/instances", r#"{"handle":"web"}"#).await;
    assert_eq!((status, error.code), (409, ErrorCode::AlreadyExists));
    assert_eq!(error.error, "instance `web` exists already and is running");
    let _: StateReply = daemon.ok("POST", "/v1/instances/web/disable", "").await;
    let body = json!({"handle": "web", "command": ["other"]}).to_string();
    let (status, text) = daemon.text("POST", "/v1/instances", &body).await;
    let restarted: CreatedInstance = serde_json::from_str(&text).unwrap();
    assert_eq!((status, restarted.id.as_str(), restarted.state), (200, id.as_str(), InstanceState::Starting));
    assert_eq!(restarted.command, ["serve", "a"]);
    assert_eq!(restarted.warnings, ["the instance exists already and keeps its own command"]);
    daemon.until("web", InstanceState::Running).await;
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

#[tokio::test]
async fn lists_are_ordered_and_filtered() {
    let daemon = TestDaemon::new().await;
    for name in ["off", "stopped", "paused", "second", "first"] {
        daemon.create(name, &["serve"]).await;
    }
    for (name, action) in [("off", "disable"), ("stopped", "stop"), ("paused", "pause")] {
        let _: StateReply = daemon.ok("POST", &format!("/v1/instances/{name}/{action}"), "").await;
    }
    let names = |list: Vec<InstanceSummary>| -> Vec<String> {
        list.into_iter().map(|instance| instance.handle.unwrap().into()).collect()
    };
    let list = names(daemon.ok("GET", "/v1/instances", "").await);
    assert_eq!(list, ["second", "first", "paused", "stopped", "off"]);
    let stopped = names(daemon.ok("GET", "/v1/instances?state=stopped", "").await);
    assert_eq!(stopped, ["stopped", "off"]);
    assert_eq!(daemon.refused("GET", "/v1/instances?state=tired", "").await.0, 400);
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_in_one_form() {
    let daemon = TestDaemon::new().await;
    daemon.create("web", &["serve"]).await;
    let create = "/v1/instances";
    let big = format!(r#"{{"command":["{}"]}}"#, "x".repeat(2 << 20));
    for (method, path, body, status, code, text) in [
        ("POST", create, "{", 400, ErrorCode::InvalidRequest, "EOF"),
        ("POST", create, "{}", 400, ErrorCode::InvalidRequest, "`command` is required"),
        (
            "POST",
            create,
            r#"{"command":["a"],"memory_mb":5}"#,
            400,
            ErrorCode::InvalidRequest,
            "memory in MiB must be",
        ),
        (
            "POST",
            create,
            r#"{"command":["a"],"handle":"a b"}"#,
            400,
            ErrorCode::InvalidRequest,
            "instance name `a b`",
        ),
        ("POST", create, r#"{"command":["a"],"image_ref":"tools"}"#, 404, ErrorCode::ImageNotFound, "tools"),
        ("POST", create, &big, 413, ErrorCode::InvalidRequest, "larger"),
        ("GET", "/v1/instances/wbe", "", 404, ErrorCode::InstanceNotFound, "wbe"),
        ("POST", "/v1/instances/web/exec", "{}", 400, ErrorCode::InvalidRequest, "`command`"),
        ("POST", "/v1/instances/prune", "", 400, ErrorCode::InvalidRequest, "older_than"),
        ("POST", "/v1/instances/prune?older_than=5x", "", 400, ErrorCode::InvalidRequest, "duration"),
        ("GET", "/v1/instances/web/logs?tail=x", "", 400, ErrorCode::InvalidRequest, "tail"),
        ("POST", "/v1/images/import", "", 400, ErrorCode::InvalidRequest, "name"),
        ("POST", "/v1/images/import?name=A", "", 400, ErrorCode::InvalidRequest, "image name"),
        ("POST", "/v1/images/import?name=a", "no tar", 400, ErrorCode::InvalidRequest, "import"),
        ("GET", "/v1/nothing", "", 404, ErrorCode::InvalidRequest, "/v1/nothing"),
        ("PUT", create, "", 405, ErrorCode::InvalidRequest, "PUT"),
    ] {
        let (got, error) = daemon.refused(method, path, body).await;
        assert_eq!((got, error.code), (status, code), "{method} {path}: {error:?}");
        assert!(error.error.contains(text), "{method} {path}: {error:?}");
    }
    let (_, error) = daemon.refused("GET", "/v1/instances/wbe", "").await;
    assert_eq!(error.hint.as_deref(), Some("did you mean `web`?"));
    let (_, error) = daemon.refused("POST", create, r#"{"command":["a"],"image_ref":"tools"}"#).await;
    assert!(error.hint.unwrap().contains("base"));
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

#[tokio::test]
async fn an_instance_may_be_named_like_a_route() {
    let daemon = TestDaemon::new().await;
    daemon.create("prune", &["serve"]).await;
    assert_eq!(daemon.info("prune").await.handle.unwrap().as_str(), "prune");
    let _: StateReply = daemon.ok("DELETE", "/v1/instances/prune", "").await;
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

#[tokio::test]
async fn a_command_that_ends_leaves_its_code_and_one_line() {
    let daemon = TestDaemon::new().await;
    let body = json!({"command": ["exit", "42"], "handle": "job"}).to_string();
    let _: CreatedInstance = daemon.ok("POST", "/v1/instances", &body).await;
    let info = daemon.until("job", InstanceState::Stopped).await;
    assert_eq!((info.stop_reason, info.exit_code), (Some(StopReason::Exited), Some(42)));
    let log = daemon.lines("GET", "/v1/instances/job/logs", "").await;
    let exits: Vec<_> = log.iter().filter(|entry| entry["line"] == "process exited (code=42)").collect();
    assert_eq!((exits.len(), exits[0]["source"].as_str()), (1, Some("system")));
    let (status, error) = daemon.refused("POST", "/v1/instances/job/exec", r#"{"command":["say"]}"#).await;
    assert_eq!((status, error.code), (409, ErrorCode::WrongState));
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

#[tokio::test]
async fn a_boot_failure_is_kept_and_logged() {
    let daemon = TestDaemon::new().await;
    let body = json!({"command": ["unlaunchable"], "handle": "bad"}).to_string();
    let _: CreatedInstance = daemon.ok("POST", "/v1/instances", &body).await;
    let info = daemon.until("bad", InstanceState::Stopped).await;
    assert_eq!(info.stop_reason, Some(StopReason::BootFailed));
    assert!(info.last_error.unwrap().contains("no kernel"));
    let log = daemon.lines("GET", "/v1/instances/bad/logs", "").await;
    assert!(log.iter().any(|entry| entry["line"].as_str().unwrap().contains("no kernel")), "{log:?}");
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

#[tokio::test]
async fn prune_takes_old_stopped_instances_only() {
    let daemon = TestDaemon::new().await;
    let stopped = daemon.create("stopped", &["serve"]).await;
    daemon.create("running", &["serve"]).await;
    let _: StateReply = daemon.ok("POST", "/v1/instances/stopped/stop", "").await;
    let none: PruneReply = daemon.ok("POST", "/v1/instances/prune?older_than=7d", "").await;
    assert_eq!((none.pruned, none.ids.len()), (0, 0));
    let pruned: PruneReply = daemon.ok("POST", "/v1/instances/prune?older_than=0s", "").await;
    assert_eq!(pruned.ids.iter().map(|id| id.as_str()).collect::<Vec<_>>(), [stopped.as_str()]);
    let left: Vec<InstanceSummary> = daemon.ok("GET", "/v1/instances", "").await;
    assert_eq!(left.len(), 1);
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

async fn exec(daemon: &TestDaemon, body: Value) -> Vec<Value> {
    daemon.lines("POST", "/v1/instances/web/exec", &body.to_string()).await
}

#[tokio::test]
async fn exec_streams_start_output_and_end() {
    let daemon = TestDaemon::new().await;
    daemon.create("web", &["serve"]).await;
    let lines = exec(&daemon, json!({"command": ["say", "one", "two"]})).await;
    let id = lines[0]["exec_id"].as_str().unwrap();
    assert!(id.starts_with("exec-") && lines[0]["started_at"].is_string());
    let output: Vec<&str> = lines[1..3].iter().map(|entry| entry["line"].as_str().unwrap()).collect();
    assert_eq!(output, ["one", "two"]);
    assert!(
        lines[1..3].iter().all(|e| e["source"] == "exec" && e["stream"] == "stdout" && e["exec_id"] == id)
    );
    assert_eq!(lines[3], json!({"exec_id": id, "exit_code": 0, "done": true}));
    let logged = daemon.lines("GET", &format!("/v1/instances/web/logs?exec_id={id}"), "").await;
    assert_eq!(logged, lines[1..3]);
    for (command, code) in [(vec!["exit", "3"], 3), (vec!["nonsense"], 127)] {
        let lines = exec(&daemon, json!({ "command": command })).await;
        assert_eq!(lines.last().unwrap()["exit_code"], code);
    }
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

#[tokio::test]
async fn a_prompt_is_shown_and_a_timeout_kills() {
    let daemon = TestDaemon::new().await;
    daemon.create("web", &["serve"]).await;
    let lines = exec(&daemon, json!({"command": ["ask", "name? "], "timeout_ms": 300})).await;
    assert_eq!((lines[1]["line"].as_str(), lines[1]["partial"].as_bool()), (Some("name? "), Some(true)));
    assert_eq!(lines[1]["stream"], "stderr");
    assert_eq!(lines[2]["exit_code"], 124);
    assert_eq!(lines[2]["error"], "the command was killed after 300 ms");
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

#[tokio::test]
async fn a_client_gets_every_line_of_a_flood() {
    let daemon = TestDaemon::new().await;
    daemon.create("web", &["serve"]).await;
    let count = 50_000;
    let body = json!({"command": ["flood", count.to_string()]}).to_string();
    let mut lines = LineStream::new(daemon.send("POST", "/v1/instances/web/exec", &body).await);
    let _: Value = lines.next().await.unwrap();
    for n in 0..count {
        assert_eq!(lines.entry().await.line, format!("line {n}"));
    }
    let done: Value = lines.next().await.unwrap();
    assert_eq!(done["exit_code"], 0);
    assert!(lines.next::<Value>().await.is_none());
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

#[tokio::test]
async fn a_client_that_leaves_does_not_end_the_command() {
    let daemon = TestDaemon::new().await;
    daemon.create("web", &["serve"]).await;
    let count = 20_000;
    let body = json!({"command": ["flood", count.to_string()]}).to_string();
    let mut lines = LineStream::new(daemon.send("POST", "/v1/instances/web/exec", &body).await);
    let started: Value = lines.next().await.unwrap();
    drop(lines);
    let id = started["exec_id"].as_str().unwrap();
    let path = format!("/v1/instances/web/logs?follow=1&exec_id={id}");
    let mut log = LineStream::new(daemon.send("GET", &path, "").await);
    for n in 0..count {
        assert_eq!(log.entry().await.line, format!("line {n}"));
    }
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

#[tokio::test]
async fn a_command_whose_vm_dies_is_reported_as_lost() {
    let daemon = TestDaemon::new().await;
    let id = daemon.create("web", &["serve"]).await;
    let mut lines =
        LineStream::new(daemon.send("POST", "/v1/instances/web/exec", r#"{"command":["hang"]}"#).await);
    let _: Value = lines.next().await.unwrap();
    assert_eq!(daemon.info("web").await.active_execs, 1);
    daemon.launcher.crash(&aegis_types::InstanceId::parse(&id).unwrap());
    let done: Value = lines.next().await.unwrap();
    assert_eq!((done["exit_code"].as_u64(), done["error"].is_string()), (Some(125), true));
    let info = daemon.until("web", InstanceState::Stopped).await;
    assert_eq!(info.stop_reason, Some(StopReason::VmmDied));
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

#[tokio::test]
async fn logs_are_cut_filtered_and_followed() {
    let daemon = TestDaemon::new().await;
    let body = json!({"command": ["serve", "a", "b", "c"], "handle": "web"}).to_string();
    let _: CreatedInstance = daemon.ok("POST", "/v1/instances", &body).await;
    let mut follower =
        LineStream::new(daemon.send("GET", "/v1/instances/web/logs?follow=true&tail=1000", "").await);
    let mut seen: Vec<LogEntry> = Vec::new();
    while seen.last().is_none_or(|entry| entry.line != "c") {
        seen.push(follower.entry().await);
    }
    let server: Vec<&str> =
        seen.iter().filter(|e| e.source == aegis_api::LogSource::Server).map(|e| e.line.as_str()).collect();
    assert_eq!(server, ["a", "b", "c"]);
    let log = daemon.lines("GET", "/v1/instances/web/logs?tail=2", "").await;
    assert_eq!(log.iter().map(|e| e["line"].as_str().unwrap()).collect::<Vec<_>>(), ["b", "c"]);
    let since = seen.iter().find(|entry| entry.line == "a").unwrap().ts;
    let path = format!("/v1/instances/web/logs?since={}", aegis_api::paths::encode(&since.to_string()));
    let log = daemon.lines("GET", &path, "").await;
    assert!(log.iter().all(|e| e["line"] != "a") && log.iter().any(|e| e["line"] == "c"), "{log:?}");
    let _: StateReply = daemon.ok("POST", "/v1/instances/web/stop", "").await;
    let _: StateReply = daemon.ok("DELETE", "/v1/instances/web", "").await;
    while let Some(entry) = follower.next::<LogEntry>().await {
        assert_eq!(entry.source, aegis_api::LogSource::System);
    }
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

#[tokio::test]
async fn images_are_imported_and_listed() {
    let daemon = TestDaemon::new().await;
    let list: Vec<ImageSummary> = daemon.ok("GET", "/v1/images", "").await;
    assert!(list.len() == 1 && list[0].builtin && list[0].name.as_str() == "base");
    // Two empty blocks: an archive of nothing.
    let tar = "\0".repeat(1024);
    let imported: aegis_api::ImageImported =
        daemon.ok("POST", "/v1/images/import?name=tools%3Av1", &tar).await;
    assert_eq!(imported.name.as_str(), "tools:v1");
    let list: Vec<ImageSummary> = daemon.ok("GET", "/v1/images", "").await;
    assert_eq!(
        list.iter().map(|i| (i.name.as_str(), i.builtin)).collect::<Vec<_>>(),
        [("base", true), ("tools:v1", false)]
    );
    assert_eq!(list[1].digest, imported.digest);
    let body = json!({"command": ["serve"], "image_ref": "tools:v1"}).to_string();
    let created: CreatedInstance = daemon.ok("POST", "/v1/instances", &body).await;
    assert_eq!(created.image_ref.as_str(), "tools:v1");
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

#[tokio::test]
async fn a_console_that_is_not_there_is_empty() {
    let daemon = TestDaemon::new().await;
    daemon.create("web", &["serve"]).await;
    assert_eq!(daemon.text("GET", "/v1/instances/web/console", "").await, (200, String::new()));
    let kept = daemon.dir.path().join("home/data/logs");
    let id = daemon.info("web").await.id;
    std::fs::write(kept.join(format!("{id}.console.log")), b"boot\x1b[31m\r\nok\n").unwrap();
    assert_eq!(
        daemon.text("GET", "/v1/instances/web/console", "").await,
        (200, "boot [31m\nok\n".to_owned())
    );
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

#[tokio::test]
async fn files_of_a_workspace_are_read_written_and_listed() {
    let daemon = TestDaemon::new().await;
    daemon.create("web", &["serve"]).await;
    let path = daemon.info("web").await.workspace.unwrap();
    let files = "/v1/instances/web/workspace";
    assert_eq!(daemon.text("GET", &format!("{files}/tree"), "").await, (200, "[]".to_owned()));
    let reply: StateReply = daemon.ok("POST", &format!("{files}?path=a%2Fb.txt"), "content").await;
    assert_eq!(reply.status, "ok");
    assert_eq!(std::fs::read_to_string(path.join("a/b.txt")).unwrap(), "content");
    assert_eq!(daemon.text("GET", &format!("{files}?path=a/b.txt"), "").await, (200, "content".to_owned()));
    let tree: Vec<WorkspaceEntry> = daemon.ok("GET", &format!("{files}/tree?path=a"), "").await;
    assert_eq!(tree, [WorkspaceEntry { name: "b.txt".to_owned(), is_dir: false, size: 7 }]);
    std::os::unix::fs::symlink("/etc", path.join("etc")).unwrap();
    for (path, status) in [
        ("", 400),
        ("?path=/etc/passwd", 400),
        ("?path=../x", 400),
        ("?path=a", 400),
        ("?path=etc/passwd", 403),
        ("?path=none", 404),
    ] {
        assert_eq!(daemon.refused("GET", &format!("{files}{path}"), "").await.0, status, "{path}");
    }
    assert_eq!(daemon.refused("POST", &format!("{files}?path=etc/x"), "x").await.0, 403);
    // Named ones, and those that are in use.
    let list: Vec<WorkspaceSummary> = daemon.ok("GET", "/v1/workspaces", "").await;
    assert!(list.len() == 1 && list[0].name == "web" && list[0].auto && list[0].path == path);
    let (status, body) = daemon.refused("DELETE", "/v1/workspaces/web", "").await;
    assert_eq!((status, body.code), (409, ErrorCode::WorkspaceInUse));
    let usage: WorkspaceUsage = daemon.ok("GET", "/v1/workspaces/web/usage", "").await;
    assert_eq!(usage.entries, 3);
    for (method, path) in [("DELETE", "/v1/workspaces/none"), ("GET", "/v1/workspaces/..%2F..%2Fetc/usage")] {
        let (status, body) = daemon.refused(method, path, "").await;
        assert_eq!((status, body.code), (404, ErrorCode::WorkspaceNotFound), "{path}");
    }
    daemon.running.shutdown(ShutdownMode::Stop).await;
}

#[tokio::test]
async fn every_method_of_every_route_is_described() {
    let daemon = TestDaemon::new().await;
    let described: Value = daemon.ok("GET", "/v1/openapi.json", "").await;
    let paths = described["paths"].as_object().unwrap();
    assert!(paths.len() > 20);
    for (path, operations) in paths {
        // Nobody takes this method: the refusal names those that are taken, and no handler runs.
        let response = daemon.send("TRACE", path, "").await;
        assert_eq!(response.status(), 405, "{path}");
        let mut taken: Vec<String> = response.headers()["allow"]
            .to_str()
            .unwrap()
            .split(',')
            .map(|method| method.trim().to_lowercase())
            // Comes with every GET.
            .filter(|method| method != "head")
            .collect();
        if [aegis_api::paths::PRUNE, aegis_api::paths::SECRETS_ROTATE_KEY].contains(&path.as_str()) {
            // An instance or a secret of that name keeps its routes.
            taken = vec!["post".to_owned()];
        }
        taken.sort();
        let described: Vec<&String> = operations.as_object().unwrap().keys().collect();
        assert!(described.iter().eq(&taken.iter().collect::<Vec<_>>()), "{path}: {described:?} {taken:?}");
    }
    daemon.running.shutdown(ShutdownMode::Stop).await;
}
