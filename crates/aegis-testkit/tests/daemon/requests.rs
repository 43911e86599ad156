//! Requests that make no sense, as a client of another make might send them.

use aegis_api::{ErrorBody, ErrorCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::support::{Host, within};

/// Sends a request and gives status and body of the answer.
async fn send(host: &Host, method: &str, path: &str, body: &[u8]) -> (u16, String) {
    let mut stream = UnixStream::connect(host.client.socket()).await.unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The daemon may answer and close before it has read a body that it does not want.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let _ = within(stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn refused(host: &Host, method: &str, path: &str, body: &[u8]) -> (u16, ErrorBody) {
    let (status, body) = send(host, method, path, body).await;
    let error =
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{method} {path}: {e}: {status} {body}"));
    (status, error)
}

#[tokio::test]
async fn instances_that_cannot_be_are_refused() {
    let host = Host::start().await;
    for (body, code) in [
        (r"{", ErrorCode::InvalidRequest),
        (r"[]", ErrorCode::InvalidRequest),
        (r"", ErrorCode::InvalidRequest),
        (r#"{"command":"true"}"#, ErrorCode::InvalidRequest),
        (r#"{"command":[]}"#, ErrorCode::InvalidRequest),
        (r#"{"command":[""]}"#, ErrorCode::InvalidRequest),
        (r#"{"command":["a\u0000b"]}"#, ErrorCode::InvalidRequest),
        (r#"{"command":["a"],"env":{"A=B":"c"}}"#, ErrorCode::InvalidRequest),
        (r#"{"command":["a"],"env":{"A":"\u0000"}}"#, ErrorCode::InvalidRequest),
        (r#"{"command":["a"],"workdir":"srv"}"#, ErrorCode::InvalidRequest),
        (r#"{"command":["a"],"memory_mb":1}"#, ErrorCode::InvalidRequest),
        (r#"{"command":["a"],"memory_mb":-1}"#, ErrorCode::InvalidRequest),
        (r#"{"command":["a"],"memory_mb":99999999999999999999}"#, ErrorCode::InvalidRequest),
        (r#"{"command":["a"],"disk_mb":63}"#, ErrorCode::InvalidRequest),
        (r#"{"command":["a"],"disk_mb":1048577}"#, ErrorCode::InvalidRequest),
        (r#"{"command":["a"],"disk_mb":-300}"#, ErrorCode::InvalidRequest),
        (r#"{"command":["a"],"disk_mb":"300M"}"#, ErrorCode::InvalidRequest),
        (r#"{"command":["a"],"vcpus":0}"#, ErrorCode::InvalidRequest),
        (r#"{"command":["a"],"handle":"../x"}"#, ErrorCode::InvalidRequest),
        (r#"{"command":["a"],"handle":""}"#, ErrorCode::InvalidRequest),
        (r#"{"command":["a"],"image_ref":"no/../image"}"#, ErrorCode::InvalidRequest),
        (r#"{"command":["a"],"image_ref":"unknown"}"#, ErrorCode::ImageNotFound),
        (r#"{"handle":"unknown"}"#, ErrorCode::InvalidRequest),
    ] {
        let (status, error) = refused(&host, "POST", "/v1/instances", body.as_bytes()).await;
        assert_eq!((status, error.code), (code.http_status(), code), "{body}: {error:?}");
        assert!(!error.error.is_empty() && !error.error.contains('\0'), "{body}");
    }
    assert_eq!(host.client.list(None).await.unwrap(), []);
    host.end().await;
}

#[tokio::test]
async fn a_body_without_bound_is_refused() {
    let host = Host::start().await;
    let body = format!(r#"{{"command":["{}"]}}"#, "x".repeat(4 << 20));
    let (status, error) = refused(&host, "POST", "/v1/instances", body.as_bytes()).await;
    assert_eq!(error.code, ErrorCode::InvalidRequest);
    assert!([400, 413].contains(&status), "{status}");
    host.end().await;
}

#[tokio::test]
async fn unknown_fields_are_ignored() {
    let host = Host::start().await;
    let body = br#"{"command":["true"],"from_the_future":{"a":[1]}}"#;
    assert_eq!(send(&host, "POST", "/v1/instances", body).await.0, 201);
    host.end().await;
}

#[tokio::test]
async fn commands_that_cannot_be_are_refused() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    for body in [
        r"{",
        r"{}",
        r#"{"command":[]}"#,
        r#"{"command":[""]}"#,
        r#"{"command":["a\u0000"]}"#,
        r#"{"command":["a"],"env":{"":"x"}}"#,
        r#"{"command":["a"],"workdir":"."}"#,
        r#"{"command":["a"],"timeout_ms":-1}"#,
    ] {
        let (status, error) = refused(&host, "POST", "/v1/instances/web/exec", body.as_bytes()).await;
        assert_eq!((status, error.code), (400, ErrorCode::InvalidRequest), "{body}: {error:?}");
    }
    // Large, but not too large for a request: it must not end the VM.
    let body = format!(r#"{{"command":["true","{}"]}}"#, "x".repeat(1_000_000));
    let (status, answer) = send(&host, "POST", "/v1/instances/web/exec", body.as_bytes()).await;
    assert!(status == 400 || answer.contains(r#""exit_code":126"#), "{status} {answer}");
    assert_eq!(host.exec(&id, &["echo", "hi"]).await.stdout, b"hi\n");
    host.end().await;
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let host = Host::start().await;
    for (method, path, status, code) in [
        ("GET", "/v1/instances/nope", 404, ErrorCode::InstanceNotFound),
        ("DELETE", "/v1/instances/nope", 404, ErrorCode::InstanceNotFound),
        ("POST", "/v1/instances/nope/start", 404, ErrorCode::InstanceNotFound),
        ("POST", "/v1/instances/nope/exec", 404, ErrorCode::InstanceNotFound),
        ("GET", "/v1/instances/nope/logs?follow=1", 404, ErrorCode::InstanceNotFound),
        ("GET", "/v1/instances/nope/console", 404, ErrorCode::InstanceNotFound),
        ("GET", "/v1/instances/..%2F..%2Fetc", 404, ErrorCode::InstanceNotFound),
        ("GET", "/v1/instances/%ff%00", 404, ErrorCode::InstanceNotFound),
        ("GET", "/v2/instances", 404, ErrorCode::InvalidRequest),
        ("PUT", "/v1/instances", 405, ErrorCode::InvalidRequest),
        ("POST", "/v1/instances/nope/self-destruct", 404, ErrorCode::InvalidRequest),
        ("GET", "/v1/instances?state=tired", 400, ErrorCode::InvalidRequest),
        ("POST", "/v1/instances/prune", 400, ErrorCode::InvalidRequest),
    ] {
        let (got, error) = refused(&host, method, path, br#"{"command":["true"]}"#).await;
        assert_eq!((got, error.code), (status, code), "{method} {path}: {error:?}");
    }
    host.end().await;
}
