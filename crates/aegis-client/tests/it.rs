//! The client against scripted daemons.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use aegis_api::{
    BuildTemplate, ErrorCode, ExecRequest, ExposeRequest, KeepaliveRequest, LogStream, PruneTemplates,
    ShutdownMode, WaitFor, WaitQuery,
};
use aegis_client::{Action, Client, ClientError, ExecEvent, LogQuery};
use aegis_types::{Expose, GuestPort, ImageName, PublicPort};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

struct Daemon {
    client: Client,
    /// What the client sent.
    request: JoinHandle<String>,
    _dir: TempDir,
}

/// Answers one request, whose end is recognised by `until`, with these bytes, then closes.
fn daemon(until: &'static str, answer: impl Into<Vec<u8>>) -> Daemon {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let answer = answer.into();
    let request = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !String::from_utf8_lossy(&request).contains(until) {
            assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0, "the request ended early");
        }
        // The client may have heard enough before the end.
        let _ = stream.write_all(&answer).await;
        String::from_utf8(request).unwrap()
    });
    Daemon { client: Client::new(socket), request, _dir: dir }
}

const HEAD_END: &str = "\r\n\r\n";

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

const STARTED: &str = r#"{"exec_id":"e1","started_at":"2026-01-01T00:00:00Z"}"#;
const ENTRY: &str = r#"{"ts":"2026-01-01T00:00:00Z","stream":"stderr","line":"oops \"done\":true","source":"exec","instance_id":"inst-1","exec_id":"e1"}"#;
const DONE: &str = r#"{"exec_id":"e1","exit_code":42,"done":true}"#;

#[tokio::test]
async fn no_socket_means_not_running() {
    let error = Client::new(PathBuf::from("/nonexistent/aegisd.sock")).status().await.unwrap_err();
    assert!(matches!(error, ClientError::NotRunning { .. }), "{error:?}");
    assert!(error.to_string().contains("aegisd is not running"));
}

#[tokio::test]
async fn a_dead_daemons_socket_means_not_running() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    drop(UnixListener::bind(&socket).unwrap());
    let error = Client::new(socket).status().await.unwrap_err();
    assert!(matches!(error, ClientError::NotRunning { .. }), "{error:?}");
}

#[tokio::test]
async fn refusals_keep_code_cause_and_hint() {
    let body = r#"{"error":"no","code":"disabled","cause":"c","hint":"h","new":1}"#;
    let daemon = daemon(HEAD_END, answer("409 Conflict", body));
    let error = daemon.client.action("a/b", Action::Pause).await.unwrap_err();
    let ClientError::Api { status: 409, body } = error else { panic!("{error:?}") };
    assert_eq!(
        (body.code, body.cause.as_deref(), body.hint.as_deref()),
        (ErrorCode::Disabled, Some("c"), Some("h"))
    );
    assert!(daemon.request.await.unwrap().starts_with("POST /v1/instances/a%2Fb/pause HTTP/1.1"));
}

#[tokio::test]
async fn answers_that_are_not_json_become_errors_with_the_text() {
    let error = daemon(HEAD_END, answer("404 Not Found", "nope\n")).client.list(None).await.unwrap_err();
    let ClientError::Api { status: 404, body } = error else { panic!("{error:?}") };
    assert_eq!(body.cause.as_deref(), Some("nope"));
    let error = daemon(HEAD_END, answer("200 OK", "nope")).client.list(None).await.unwrap_err();
    assert!(matches!(error, ClientError::Protocol(_)), "{error:?}");
}

#[tokio::test]
async fn exec_events_come_in_order_and_end() {
    let daemon = daemon("}", answer("200 OK", &format!("{STARTED}\n{ENTRY}\n{DONE}\n")));
    let exec = ExecRequest { command: vec!["true".into()], ..ExecRequest::default() };
    let mut events = daemon.client.exec("web", &exec).await.unwrap();
    assert!(matches!(events.next().await.unwrap(), Some(ExecEvent::Started(s)) if s.exec_id == "e1"));
    let Some(ExecEvent::Entry(entry)) = events.next().await.unwrap() else { panic!("entry") };
    assert_eq!((entry.stream, entry.line.as_str()), (LogStream::Stderr, "oops \"done\":true"));
    assert!(matches!(events.next().await.unwrap(), Some(ExecEvent::Done(d)) if d.exit_code == 42));
    assert_eq!(events.next().await.unwrap(), None);
    assert!(daemon.request.await.unwrap().ends_with(r#"{"command":["true"]}"#));
}

#[tokio::test]
async fn a_cut_off_exec_is_an_error() {
    let whole_lines = answer("200 OK", &format!("{STARTED}\n{ENTRY}\n"));
    let inside_a_line = answer("200 OK", &format!("{STARTED}\n{{\"exec"));
    let connection_lost =
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n36\r\n{STARTED}\n\r\n");
    for text in [whole_lines, inside_a_line, connection_lost] {
        let daemon = daemon("}", text.clone());
        let mut events = daemon.client.exec("web", &ExecRequest::default()).await.unwrap();
        let error = loop {
            match events.next().await {
                Ok(Some(ExecEvent::Done(_)) | None) => panic!("no error for {text}"),
                Ok(Some(_)) => {}
                Err(e) => break e,
            }
        };
        assert!(matches!(error, ClientError::Protocol(_) | ClientError::Lost(_)), "{error:?}");
    }
}

#[tokio::test]
async fn endless_lines_are_refused() {
    let daemon = daemon(HEAD_END, answer("200 OK", &"x".repeat(3 << 20)));
    let mut logs = daemon.client.logs("web", &LogQuery::default()).await.unwrap();
    let error = logs.next().await.unwrap_err();
    assert!(error.to_string().contains("longer than"), "{error}");
}

#[tokio::test]
async fn a_log_query_says_only_what_was_asked() {
    let daemon = daemon(HEAD_END, answer("200 OK", &format!("{ENTRY}\n")));
    let query = LogQuery {
        follow: true,
        attach: true,
        since: Some("2026-01-01T00:00:00Z".parse().unwrap()),
        tail: Some(5),
        exec_id: Some("e 1".into()),
    };
    let mut logs = daemon.client.logs("web", &query).await.unwrap();
    assert!(logs.next().await.unwrap().is_some());
    assert!(logs.next().await.unwrap().is_none());
    let expected = "GET /v1/instances/web/logs?follow=1&attach=1&since=2026-01-01T00:00:00Z&tail=5&exec_id=e%201 HTTP/1.1";
    assert!(daemon.request.await.unwrap().starts_with(expected));
}

#[tokio::test]
async fn an_import_streams_the_tar() {
    let body = r#"{"name":"tools","digest":"sha256:00","size_bytes":4096}"#;
    let daemon = daemon("0\r\n\r\n", answer("200 OK", body));
    let name = ImageName::parse("tools").unwrap();
    let imported = daemon.client.import(&name, &b"tar bytes"[..]).await.unwrap();
    assert_eq!(imported.size_bytes, 4096);
    let request = daemon.request.await.unwrap();
    assert!(request.starts_with("POST /v1/images/import?name=tools HTTP/1.1"), "{request}");
    assert!(request.contains("9\r\ntar bytes\r\n"), "{request}");
}

#[tokio::test]
async fn ports_are_exposed_and_taken_back() {
    let reply =
        r#"{"guest_port":80,"public_port":8080,"protocol":"tcp","url":"http://127.0.0.1:8080","new":1}"#;
    let asked = daemon("}", answer("200 OK", reply));
    let expose = ExposeRequest::from("8080:80/tcp".parse::<Expose>().unwrap());
    let exposed = asked.client.expose("web", &expose).await.unwrap();
    assert_eq!(exposed.public_port, PublicPort::new(8080).unwrap());
    let request = asked.request.await.unwrap();
    assert!(request.starts_with("POST /v1/instances/web/expose HTTP/1.1"), "{request}");
    assert!(request.ends_with(r#"{"port":80,"public_port":8080,"protocol":"tcp"}"#), "{request}");

    let taken = r#"{"error":"port 8080 is in use","code":"port_taken"}"#;
    let error = daemon("}", answer("409 Conflict", taken)).client.expose("web", &expose).await.unwrap_err();
    assert!(matches!(error, ClientError::Api { body, .. } if body.code == ErrorCode::PortTaken));

    let asked = daemon(HEAD_END, answer("200 OK", r#"{"status":"ok"}"#));
    asked.client.unexpose("web", GuestPort::new(80).unwrap()).await.unwrap();
    assert!(asked.request.await.unwrap().starts_with("DELETE /v1/instances/web/expose/80 HTTP/1.1"));
}

#[tokio::test]
async fn a_wait_says_what_for_and_how_long() {
    let port = Some(GuestPort::new(80).unwrap());
    for (query, path) in [
        (WaitQuery { goal: WaitFor::Hibernated, port: None, timeout_ms: None }, "for=hibernated"),
        (WaitQuery { goal: WaitFor::Port, port, timeout_ms: Some(5) }, "for=port&port=80&timeout_ms=5"),
    ] {
        let daemon = daemon(HEAD_END, answer("200 OK", r#"{"status":"running"}"#));
        assert_eq!(daemon.client.wait("web", &query).await.unwrap().status, "running");
        let expected = format!("GET /v1/instances/web/wait?{path} HTTP/1.1");
        assert!(daemon.request.await.unwrap().starts_with(&expected));
    }
}

#[tokio::test]
async fn a_lease_is_taken_and_given_up() {
    let taken = daemon("}", answer("200 OK", r#"{"status":"held"}"#));
    let lease = KeepaliveRequest { ttl_ms: 1000, reason: Some("job".into()) };
    taken.client.keepalive("web", &lease).await.unwrap();
    let request = taken.request.await.unwrap();
    assert!(request.starts_with("POST /v1/instances/web/keepalive HTTP/1.1"), "{request}");
    assert!(request.ends_with(r#"{"ttl_ms":1000,"reason":"job"}"#), "{request}");
    let released = daemon(HEAD_END, answer("200 OK", r#"{"status":"released"}"#));
    released.client.release("web").await.unwrap();
    assert!(released.request.await.unwrap().starts_with("DELETE /v1/instances/web/keepalive HTTP/1.1"));
}

#[tokio::test]
async fn templates_are_built_and_pruned() {
    let template = r#"{"key":"k","image":"base","memory_mb":512,"vcpus":1,"size_bytes":7,
        "created_at":"2026-01-01T00:00:00Z","state":"ready"}"#;
    let built = daemon("}", answer("200 OK", template));
    let template = built.client.build_template(&BuildTemplate::default()).await.unwrap();
    assert_eq!((template.key.as_str(), template.loaded), ("k", false));
    let request = built.request.await.unwrap();
    assert!(request.starts_with("POST /v1/templates HTTP/1.1") && request.ends_with("{}"), "{request}");
    let pruned = daemon("}", answer("200 OK", r#"{"pruned":1,"freed_bytes":7}"#));
    let prune = PruneTemplates { max_age: Some("1d".into()) };
    assert_eq!(pruned.client.prune_templates(&prune).await.unwrap().freed_bytes, 7);
    let request = pruned.request.await.unwrap();
    assert!(request.starts_with("POST /v1/templates/prune HTTP/1.1"), "{request}");
    assert!(request.ends_with(r#"{"max_age":"1d"}"#), "{request}");
}

#[tokio::test]
async fn a_shutdown_says_what_becomes_of_the_instances() {
    let daemon = daemon("}", answer("200 OK", r#"{"status":"stopping"}"#));
    daemon.client.shutdown(ShutdownMode::Stop).await.unwrap();
    let request = daemon.request.await.unwrap();
    assert!(request.starts_with("POST /v1/shutdown HTTP/1.1"), "{request}");
    assert!(request.ends_with(r#"{"mode":"stop"}"#), "{request}");
}
