//! `aegis exec`.

use insta::assert_snapshot;

use crate::fake::{Fake, Reply, entry};

const STARTED: &str = r#"{"exec_id":"e1","started_at":"2026-01-01T00:00:00Z"}"#;

fn done(code: u8, more: &str) -> String {
    format!(r#"{{"exec_id":"e1","exit_code":{code},"done":true{more}}}"#)
}

fn fake(lines: &[&str]) -> Fake {
    let lines = lines.iter().map(|line| (*line).to_owned()).collect();
    Fake::start().on("POST /v1/instances/web/exec", Reply::Lines(lines))
}

#[test]
fn output_and_exit_code_are_the_commands() {
    let raw = r#"{"ts":"2026-01-01T00:00:00Z","stream":"stdout","line":"?","source":"exec","instance_id":"inst-1","partial":true,"raw":"/wA="}"#;
    let fake = fake(&[STARTED, &entry("exec", "stderr", "err"), raw, &done(42, "")]);
    let args = [
        "exec",
        "--env",
        "A=b",
        "--workdir",
        "/srv",
        "--user",
        "1:2",
        "--timeout",
        "1m",
        "web",
        "--",
        "sh",
        "-c",
        "x",
    ];
    let output = fake.output(&args);
    assert_eq!(output.status.code(), Some(42));
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"\xff\x00"[..], &b"err\n"[..]));
    let body =
        r#"{"command":["sh","-c","x"],"env":{"A":"b"},"workdir":"/srv","user":"1:2","timeout_ms":60000}"#;
    assert_eq!(fake.requests(), [format!("POST /v1/instances/web/exec {body}")]);
}

#[test]
fn a_command_that_cannot_be_run_says_why() {
    let fake = fake(&[STARTED, &done(127, r#","error":"cannot run `nope`: not found""#)]);
    assert_snapshot!(fake.aegis(&["exec", "web", "--", "nope"]), @r"
    exit: 127
    --- stderr
    error: cannot run `nope`: not found
    ");
}

#[test]
fn a_timeout_is_124() {
    let fake = fake(&[STARTED, &done(124, "")]);
    assert_snapshot!(fake.aegis(&["exec", "--timeout", "1500ms", "web", "--", "x"]), @r"
    exit: 124
    --- stderr
    error: the command did not end within 1500 ms
    ");
}

#[test]
fn a_lost_command_is_125_after_its_output() {
    let fake = fake(&[STARTED, &entry("exec", "stdout", "out")]);
    assert_snapshot!(fake.aegis(&["exec", "web", "--", "x"]), @r"
    exit: 125
    --- stdout
    out
    --- stderr
    error: lost the command in instance `web`
      cause: aegisd gave an answer that makes no sense: the stream ends before the command does
      hint: `aegis logs web` may show the rest of its output
    ");
}
