//! `aegis run`: whatever happens, the instance is deleted before it exits.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout};

use insta::assert_snapshot;
use rustix::process::{Pid, Signal, kill_process};

use crate::fake::{Fake, Reply, entry, finish, info, ok, spawn};

const CREATED: &str = r#"{"id":"inst-1","state":"starting","command":["x"],"image_ref":"base"}"#;
const RUN: [&str; 3] = ["run", "--", "x"];

fn exit_line(code: u8) -> String {
    entry("system", "stdout", &format!("process exited (code={code})"))
}

/// A daemon with one instance, its log and its state.
fn fake(log: Reply, info: &str) -> Fake {
    Fake::start()
        .on("POST /v1/instances", Reply::Json(201, CREATED.to_owned()))
        .on("GET /v1/instances/inst-1/logs", log)
        .on("GET /v1/instances/inst-1", ok(info))
        .on("DELETE /v1/instances/inst-1", ok(r#"{"status":"deleted"}"#))
}

/// A daemon whose instance writes a line and goes on.
fn fake_that_goes_on() -> Fake {
    fake(Reply::LinesUntilDeleted(vec![entry("server", "stdout", "first")]), &info("running", ""))
}

#[track_caller]
fn assert_deleted(fake: &Fake) {
    assert_eq!(fake.requests().iter().filter(|request| *request == "DELETE /v1/instances/inst-1").count(), 1);
}

/// Starts a run and waits for its first line.
fn running(fake: &Fake) -> (Child, BufReader<ChildStdout>) {
    first_line(fake.spawn(&RUN))
}

fn first_line(mut child: Child) -> (Child, BufReader<ChildStdout>) {
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "first\n");
    (child, stdout)
}

#[test]
fn only_the_guests_output_is_shown_and_its_exit_code_returned() {
    let raw = r#"{"ts":"2026-01-01T00:00:00Z","stream":"stdout","line":"?","source":"server","instance_id":"inst-1","partial":true,"raw":"/wA="}"#;
    let log = vec![
        entry("system", "stdout", "booted"),
        entry("server", "stdout", "out"),
        entry("exec", "stdout", "somebody else's"),
        entry("server", "stderr", "err"),
        raw.to_owned(),
        exit_line(42),
    ];
    let fake =
        fake(Reply::LinesUntilDeleted(log), &info("stopped", r#","stop_reason":"exited","exit_code":42"#));
    let output = fake.output(&RUN);
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(output.stdout, b"out\n\xff\x00");
    assert_eq!(output.stderr, b"err\n");
    assert_deleted(&fake);
}

#[test]
fn options_reach_the_daemon() {
    let fake = fake(Reply::LinesUntilDeleted(vec![exit_line(0)]), &info("stopped", r#","exit_code":0"#));
    let args = [
        "run",
        "--name",
        "web",
        "--image",
        "tools:1",
        "--memory",
        "256",
        "--cpus",
        "2",
        "--env",
        "A=b",
        "--workdir",
        "/srv",
        "--disk",
        "1G",
        "--",
        "sh",
        "-c",
        "echo -- hi",
    ];
    assert_eq!(fake.output(&args).status.code(), Some(0));
    let body = r#"{"command":["sh","-c","echo -- hi"],"handle":"web","image_ref":"tools:1","env":{"A":"b"},"workdir":"/srv","memory_mb":256,"disk_mb":1024,"vcpus":2,"ephemeral":true}"#;
    assert!(fake.requests().contains(&format!("POST /v1/instances {body}")));
}

#[test]
fn it_is_followed_as_what_must_stay_awake() {
    let fake = fake(Reply::LinesUntilDeleted(vec![exit_line(0)]), &info("stopped", r#","exit_code":0"#));
    assert_eq!(fake.output(&RUN).status.code(), Some(0));
    let log = "GET /v1/instances/inst-1/logs?follow=1&attach=1";
    assert!(fake.requests().iter().any(|request| request == log), "{:?}", fake.requests());
}

#[test]
fn ports_and_policies_reach_the_daemon_and_public_ports_are_said_apart_from_the_output() {
    let created = CREATED.replace(
        "}",
        r#","endpoints":[{"guest_port":80,"public_port":8080,"protocol":"tcp"},
            {"guest_port":81,"public_port":40001,"protocol":"http","problem":"it is in use"}]}"#,
    );
    let log = vec![entry("server", "stdout", "out"), exit_line(0)];
    let fake = Fake::start()
        .on("POST /v1/instances", Reply::Json(201, created))
        .on("GET /v1/instances/inst-1/logs", Reply::LinesUntilDeleted(log))
        .on("GET /v1/instances/inst-1", ok(&info("stopped", r#","exit_code":0"#)))
        .on("DELETE /v1/instances/inst-1", ok(r#"{"status":"deleted"}"#));
    let args = ["run", "--expose", "8080:80/tcp", "--expose=81", "--pause-after", "5s", "--max-lifetime=1h"];
    assert_snapshot!(fake.aegis(&[&args[..], &["--", "x"]].concat()), @r"
    exit: 0
    --- stdout
    out
    --- stderr
    warning: --pause-after and --hibernate-after have no effect: a run is not idle while it is followed
    Exposed: tcp://127.0.0.1:8080 → vm:80
    Exposed: http://127.0.0.1:40001 → vm:81
    warning: port 40001 does not work: it is in use
    ");
    let body = r#"{"command":["x"],"exposes":[{"port":80,"public_port":8080,"protocol":"tcp"},{"port":81,"protocol":"http"}],"pause_after_ms":5000,"max_lifetime_ms":3600000,"ephemeral":true}"#;
    assert!(fake.requests().contains(&format!("POST /v1/instances {body}")), "{:?}", fake.requests());
}

#[test]
fn the_end_of_the_lifetime_is_124() {
    let fake = fake(Reply::LinesUntilDeleted(vec![]), &info("stopped", r#","stop_reason":"lifetime""#));
    assert_snapshot!(fake.aegis(&["run", "--max-lifetime", "1s", "--", "x"]), @r"
    exit: 124
    --- stderr
    error: the instance reached its longest life before its command ended
    ");
    assert_deleted(&fake);
}

#[test]
fn no_memory_for_the_vm_is_125() {
    let refusal = r#"{"error":"no memory for instance `inst-1`","code":"no_memory"}"#;
    let fake = Fake::start().on("POST /v1/instances", Reply::Json(503, refusal.to_owned()));
    assert_eq!(fake.aegis(&RUN), "exit: 125\n--- stderr\nerror: no memory for instance `inst-1`\n");
}

#[test]
fn long_output_comes_whole() {
    let line = "x".repeat(60_000);
    let log = (0..100).map(|_| entry("server", "stdout", &line)).chain([exit_line(0)]).collect();
    let fake = fake(Reply::LinesUntilDeleted(log), &info("stopped", r#","exit_code":0"#));
    assert_eq!(fake.output(&RUN).stdout.len(), 100 * 60_001);
}

#[test]
fn an_existing_name_is_left_alone() {
    let fake = Fake::start().on("GET /v1/instances/web", ok(&info("stopped", "")));
    assert_snapshot!(fake.aegis(&["run", "--name", "web", "--", "x"]), @r"
    exit: 1
    --- stderr
    error: there is already an instance named `web`
      hint: choose another name; `aegis run` deletes its instance at the end
      hint: `aegis instance start web` starts the one that is there
    ");
    assert_eq!(fake.requests(), ["GET /v1/instances/web"]);
}

#[test]
fn an_instance_that_appeared_meanwhile_is_stopped_and_not_deleted() {
    let fake = Fake::start()
        .on("POST /v1/instances", Reply::Json(200, CREATED.to_owned()))
        .on("POST /v1/instances/inst-1/stop", ok(r#"{"status":"stopped"}"#));
    assert_eq!(fake.output(&["run", "--name", "web", "--", "x"]).status.code(), Some(1));
    assert_eq!(fake.requests().last().unwrap(), "POST /v1/instances/inst-1/stop");
}

#[test]
fn a_refused_create_is_an_error() {
    let refusal = r#"{"error":"no image named `nope`","code":"image_not_found"}"#;
    let fake = Fake::start().on("POST /v1/instances", Reply::Json(404, refusal.to_owned()));
    assert_eq!(fake.aegis(&RUN), "exit: 1\n--- stderr\nerror: no image named `nope`\n");
}

#[test]
fn a_failed_boot_is_125_with_cause_and_console() {
    let log = vec![
        entry("system", "stderr", "boot failed: the guest did not answer within 60 s"),
        entry("system", "stderr", "console: Kernel panic - not syncing"),
    ];
    let more = r#","stop_reason":"boot_failed","last_error":"the guest did not answer within 60 s""#;
    let fake = fake(Reply::LinesUntilDeleted(log), &info("stopped", more));
    assert_snapshot!(fake.aegis(&RUN), @r"
    exit: 125
    --- stderr
    error: the VM did not come up
      cause: the guest did not answer within 60 s
      cause: console: Kernel panic - not syncing
      hint: `aegis doctor` checks what VMs need
    ");
    assert_deleted(&fake);
}

#[test]
fn a_lost_vm_is_125_even_if_the_log_never_ends() {
    let fake = fake(Reply::LinesUntilDeleted(vec![]), &info("stopped", r#","stop_reason":"vmm_died""#));
    assert_snapshot!(fake.aegis(&RUN), @r"
    exit: 125
    --- stderr
    error: the VM was lost before its command ended
    ");
    assert_deleted(&fake);
}

#[test]
fn a_missing_command_is_127_with_the_reason() {
    // The VM is still being stopped when the log says it.
    let log = vec![entry("system", "stderr", "cannot run `x`: not found"), exit_line(127)];
    let fake = fake(Reply::LinesUntilDeleted(log), &info("running", ""));
    assert_snapshot!(fake.aegis(&RUN), @r"
    exit: 127
    --- stderr
    error: cannot run `x`: not found
    ");
    assert_deleted(&fake);
}

#[test]
fn a_deleted_instance_is_125() {
    let fake = fake(Reply::Lines(vec![entry("server", "stdout", "out")]), &info("running", ""));
    assert_snapshot!(fake.aegis(&RUN), @r"
    exit: 125
    --- stdout
    out
    --- stderr
    error: instance `inst-1` was deleted while its command ran
    ");
}

#[test]
fn a_lost_connection_is_125_after_the_output() {
    let fake = fake(Reply::LinesThenCut(vec![entry("server", "stdout", "out")]), &info("running", ""));
    assert_snapshot!(fake.aegis(&RUN), @r"
    exit: 125
    --- stdout
    out
    --- stderr
    error: lost the connection to aegisd
      cause: error reading a body from connection
      cause: unexpected EOF during chunk size line
      hint: `aegis status` says whether it runs; its log is `data/aegisd.log` in the home directory
    ");
    assert_deleted(&fake);
}

#[test]
fn signals_delete_the_instance() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let fake = fake_that_goes_on();
        let (child, _stdout) = running(&fake);
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = finish(child);
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(code), &b""[..]));
        assert_deleted(&fake);
    }
}

#[test]
fn a_hangup_that_nohup_ignores_stays_ignored() {
    let fake = fake_that_goes_on();
    let mut command = fake.command_with_signals("--ignore-signal=HUP", &RUN);
    let (child, _stdout) = first_line(spawn(&mut command));
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(finish(child).status.code(), Some(143));
    assert_deleted(&fake);
}

#[test]
fn an_interrupt_works_in_the_background_of_a_script() {
    let fake = fake_that_goes_on();
    let (child, _stdout) = first_line(spawn(&mut fake.command_with_signals("--ignore-signal=INT", &RUN)));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(finish(child).status.code(), Some(130));
    assert_deleted(&fake);
}

#[test]
fn a_signal_while_creating_waits_for_the_answer_and_deletes() {
    let fake = Fake::start()
        .on("POST /v1/instances", Reply::JsonWhenReleased(201, CREATED.to_owned()))
        .on("DELETE /v1/instances/inst-1", ok(r#"{"status":"deleted"}"#));
    let child = fake.spawn(&RUN);
    fake.wait_for("POST /v1/instances");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    fake.release();
    assert_eq!(finish(child).status.code(), Some(130));
    assert_deleted(&fake);
}

#[test]
fn a_second_signal_gives_up_on_deleting_and_says_so() {
    let fake = Fake::start()
        .on("POST /v1/instances", Reply::Json(201, CREATED.to_owned()))
        .on(
            "GET /v1/instances/inst-1/logs",
            Reply::LinesUntilDeleted(vec![entry("server", "stdout", "first")]),
        )
        .on("GET /v1/instances/inst-1", ok(&info("running", "")))
        .on("DELETE /v1/instances/inst-1", Reply::Never);
    let (child, _stdout) = running(&fake);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    fake.wait_for("DELETE");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_snapshot!(fake.render(&finish(child)), @r"
    exit: 130
    --- stderr
    error: instance `inst-1` was not deleted
      cause: interrupted
      hint: `aegis instance delete inst-1` deletes it
    ");
}

#[test]
fn a_closed_pipe_deletes_the_instance() {
    let lines = (0..200).map(|_| entry("server", "stdout", &"x".repeat(10_000)));
    let log = [entry("server", "stdout", "first")].into_iter().chain(lines).collect();
    let fake = fake(Reply::LinesUntilDeleted(log), &info("running", ""));
    let (child, stdout) = running(&fake);
    drop(stdout);
    let output = finish(child);
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(141), &b""[..]));
    assert_deleted(&fake);
}

#[test]
fn a_pipe_that_nobody_reads_does_not_hold_up_signals() {
    let lines = (0..200).map(|_| entry("server", "stdout", &"x".repeat(10_000)));
    let log = [entry("server", "stdout", "first")].into_iter().chain(lines).collect();
    let fake = fake(Reply::LinesUntilDeleted(log), &info("running", ""));
    let (child, _stdout) = running(&fake);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(finish(child).status.code(), Some(143));
    assert_deleted(&fake);
}

#[test]
fn a_timeout_is_124() {
    let fake = fake_that_goes_on();
    assert_snapshot!(fake.aegis(&["run", "--timeout", "1s", "--", "x"]), @r"
    exit: 124
    --- stdout
    first
    --- stderr
    error: the command did not end within 1 s
    ");
    assert_deleted(&fake);
}
