//! The client against scripted daemons.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use aegis_api::{
    Attach, AttachedExec, BuildTemplate, ErrorCode, ExecDone, ExecRequest, ExecStarted, ExposeRequest,
    KeepaliveRequest, LogStream, ProcessOutput, PruneTemplates, ShutdownMode, WaitFor, WaitQuery,
};
use aegis_client::{Action, Client, ClientError, ExecEvent, LogQuery};
use aegis_types::frame::{Frame, FrameDecoder};
use aegis_types::{Expose, GuestPort, ImageName, ProcessInput, PublicPort, TerminalSize};
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

const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: aegis-streams\r\n\r\n";

fn started() -> ProcessOutput {
    let started_at = "2026-01-01T00:00:00Z".parse().unwrap();
    ProcessOutput::Started(ExecStarted { exec_id: "e1".into(), started_at })
}

fn done(exit_code: u8) -> ProcessOutput {
    ProcessOutput::Done(ExecDone { exec_id: "e1".into(), exit_code, done: true, error: None })
}

/// The switch of protocols and these messages.
fn streams(messages: impl IntoIterator<Item = ProcessOutput>) -> Vec<u8> {
    let frames = messages.into_iter().flat_map(|message| message.into_frame().encode().unwrap());
    SWITCHED.bytes().chain(frames).collect()
}

#[tokio::test]
async fn a_process_with_streams_speaks_after_its_start_until_its_end() {
    let messages = [
        started(),
        ProcessOutput::Stdout(vec![b'x'; 64 << 10]),
        ProcessOutput::Stderr(vec![0, 255]),
        done(42),
    ];
    let daemon = daemon("}}", streams(messages.clone()));
    let exec = AttachedExec {
        exec: ExecRequest {
            command: vec!["sh".into()],
            user: Some("nobody".into()),
            ..ExecRequest::default()
        },
        stdin: true,
        tty: Some(TerminalSize { rows: 24, cols: 80 }),
    };
    let mut process = daemon.client.exec_attached("a/b", &exec).await.unwrap();
    for message in messages {
        assert_eq!(process.output.next().await.unwrap(), Some(message));
    }
    assert_eq!(process.output.next().await.unwrap(), None);
    let request = daemon.request.await.unwrap();
    assert!(request.starts_with("POST /v1/instances/a%2Fb/exec/attach HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("\r\nconnection: upgrade\r\nupgrade: aegis-streams\r\n"), "{request}");
    let body = r#"{"command":["sh"],"user":"nobody","stdin":true,"tty":{"rows":24,"cols":80}}"#;
    assert!(request.ends_with(body), "{request}");
}

#[tokio::test]
async fn what_a_process_is_told_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let heard = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !String::from_utf8_lossy(&request).ends_with("{}") {
            stream.read_buf(&mut request).await.unwrap();
        }
        stream.write_all(&streams([started()])).await.unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        // It still listens after it has said that it will say no more.
        stream.write_all(&done(0).into_frame().encode().unwrap()).await.unwrap();
        let mut decoder = FrameDecoder::default();
        decoder.push(&bytes);
        let mut inputs = Vec::new();
        while let Some(frame) = decoder.next_frame().unwrap() {
            inputs.push(ProcessInput::from_frame(frame).unwrap());
        }
        inputs
    });
    let client = Client::new(dir.path().join("s"));
    let mut process = client.attach("web", &Attach::default()).await.unwrap();
    assert_eq!(process.output.next().await.unwrap(), Some(started()));
    let inputs = [
        ProcessInput::Data(vec![3; 64 << 10]),
        ProcessInput::Resize(TerminalSize { rows: 1, cols: 2 }),
        ProcessInput::Signal(15),
        ProcessInput::End,
    ];
    for input in inputs.clone() {
        process.input.send(input).await.unwrap();
    }
    process.input.close().await.unwrap();
    assert_eq!(process.output.next().await.unwrap(), Some(done(0)));
    assert_eq!(heard.await.unwrap(), inputs);
}

#[tokio::test]
async fn streams_can_be_refused() {
    let body = r#"{"error":"no","code":"instance_not_found"}"#;
    let refused = daemon("{}", answer("404 Not Found", body));
    let error = refused.client.attach("web", &Attach::default()).await.err().unwrap();
    assert!(
        matches!(error, ClientError::Api { status: 404, body } if body.code == ErrorCode::InstanceNotFound)
    );
    let ignored = daemon("{}", answer("200 OK", "{}"));
    let error = ignored.client.attach("web", &Attach::default()).await.err().unwrap();
    assert!(matches!(error, ClientError::Protocol(_)), "{error:?}");
}

#[tokio::test]
async fn streams_that_break_are_errors() {
    let mut inside_a_frame = streams([started()]);
    inside_a_frame.extend_from_slice(&[0x83, 0, 0, 0, 9, b'x']);
    let mut too_large = streams([started()]);
    too_large.extend_from_slice(&[0x83, 0xff, 0, 0, 0]);
    let mut unknown = streams([started()]);
    unknown.extend(Frame::new(2, []).encode().unwrap());
    let cases = [
        (streams([]), "Cut"),
        (streams([started()]), "Cut"),
        (inside_a_frame, "Cut"),
        (too_large, "Protocol"),
        (unknown, "Protocol"),
        (streams([done(0)]), "Protocol"),
        (streams([started(), started()]), "Protocol"),
    ];
    for (bytes, expected) in cases {
        let daemon = daemon("{}", bytes);
        let mut process = daemon.client.attach("web", &Attach::default()).await.unwrap();
        let error = loop {
            match process.output.next().await {
                Ok(Some(ProcessOutput::Started(_))) => {}
                Ok(other) => panic!("{other:?} instead of {expected}"),
                Err(error) => break error,
            }
        };
        assert!(format!("{error:?}").starts_with(expected), "{error:?} instead of {expected}");
    }
}

#[tokio::test]
async fn waiting_for_a_process_can_be_given_up_without_loss() {
    let (mut ours, theirs) = tokio::io::duplex(1);
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !String::from_utf8_lossy(&request).ends_with("{}") {
            stream.read_buf(&mut request).await.unwrap();
        }
        // A byte whenever the client has given up once more.
        let mut turn = theirs;
        for byte in streams([started(), ProcessOutput::Stdout(b"abc".to_vec()), done(0)]) {
            stream.write_all(&[byte]).await.unwrap();
            let _ = turn.read_u8().await;
        }
    });
    let client = Client::new(dir.path().join("s"));
    let mut process = {
        let attach = Attach::default();
        let mut attaching = std::pin::pin!(client.attach("web", &attach));
        loop {
            tokio::select! {
                process = &mut attaching => break process.unwrap(),
                _ = ours.write_u8(0) => {}
            }
        }
    };
    let mut messages = Vec::new();
    while messages.last() != Some(&done(0)) {
        tokio::select! {
            biased;
            message = process.output.next() => messages.push(message.unwrap().unwrap()),
            // Ready as soon as the daemon asks, which drops the other future.
            _ = ours.write_u8(0) => {}
        }
    }
    assert_eq!(messages, [started(), ProcessOutput::Stdout(b"abc".to_vec()), done(0)]);
    server.abort();
}
