//! Processes with streams, without a terminal.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use aegis_api::ProcessOutput;
use aegis_types::ProcessInput;
use insta::assert_snapshot;
use rustix::process::{Pid, Signal, kill_process};

use crate::fake::{DEADLINE, Fake, Peer, Reply, finish, info, ok, output, spawn};

const EXEC: [&str; 5] = ["exec", "-i", "web", "--", "x"];

/// A daemon that hands over the streams of these requests.
fn fake(request: &str) -> (Fake, mpsc::Receiver<Peer>) {
    let (sender, peers) = mpsc::channel();
    (Fake::start().on(request, Reply::Streams(sender)), peers)
}

fn with_pipe(fake: &Fake, args: &[&str]) -> Child {
    spawn(fake.command(args).stdin(Stdio::piped()))
}

/// Starts the process, and waits until that is known on the other side.
fn start(peer: &mut Peer, child: &mut Child) {
    peer.starts();
    peer.says(ProcessOutput::Stdout(b"up".to_vec()));
    let mut said = [0; 2];
    child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"up");
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_pipe_is_the_input_and_both_outputs_are_told_apart() {
    let (fake, peers) = fake("POST /v1/instances/web/exec/attach");
    let args =
        ["exec", "-i", "-u", "nobody:1", "-e", "A=b", "-w", "/srv", "--timeout", "1m", "web", "--", "x"];
    let mut child = with_pipe(&fake, &args);
    let mut peer = peers.recv_timeout(DEADLINE).unwrap();
    peer.starts();
    child.stdin.take().unwrap().write_all(b"x\n").unwrap();
    assert_eq!(peer.hears(), Some(ProcessInput::Data(b"x\n".to_vec())));
    assert_eq!(peer.hears(), Some(ProcessInput::End));
    // The end of the input is not the end of the command.
    peer.says(ProcessOutput::Stdout(vec![0, 255]));
    peer.says(ProcessOutput::Stderr(b"err".to_vec()));
    peer.ends(42, None);
    let output = finish(child);
    assert_eq!(output.status.code(), Some(42));
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&[0, 255][..], &b"err"[..]));
    let body = r#"{"command":["x"],"env":{"A":"b"},"workdir":"/srv","user":"nobody:1","timeout_ms":60000,"stdin":true}"#;
    assert_eq!(fake.requests(), [format!("POST /v1/instances/web/exec/attach {body}")]);
}

#[test]
fn a_megabyte_goes_through_while_as_much_comes_back() {
    let (fake, peers) = fake("POST /v1/instances/web/exec/attach");
    let mut child = with_pipe(&fake, &EXEC);
    let mut stdin = child.stdin.take().unwrap();
    let bytes: Vec<u8> = (0..1u32 << 20).map(|i| (i % 251) as u8).collect();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let mut peer = peers.recv_timeout(DEADLINE).unwrap();
    peer.starts();
    let echo = std::thread::spawn(move || {
        let mut heard = Vec::new();
        loop {
            match peer.hears() {
                Some(ProcessInput::Data(piece)) => {
                    heard.extend_from_slice(&piece);
                    peer.says(ProcessOutput::Stdout(piece));
                }
                Some(ProcessInput::End) => break,
                other => panic!("{other:?}"),
            }
        }
        peer.ends(0, None);
        heard
    });
    let output = finish(child);
    writer.join().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(echo.join().unwrap() == bytes && output.stdout == bytes);
}

#[test]
fn the_first_signal_is_the_commands_and_the_second_is_ours() {
    for (number, sent, code) in [(2, Signal::INT, 130), (15, Signal::TERM, 143), (3, Signal::QUIT, 131)] {
        let (fake, peers) = fake("POST /v1/instances/web/exec/attach");
        let mut child = with_pipe(&fake, &EXEC);
        let _stdin = child.stdin.take();
        let mut peer = peers.recv_timeout(DEADLINE).unwrap();
        start(&mut peer, &mut child);
        signal(&child, sent);
        assert_eq!(peer.hears(), Some(ProcessInput::Signal(number)));
        signal(&child, sent);
        assert_eq!(finish(child).status.code(), Some(code));
        assert_eq!(peer.hears(), None);
    }
}

#[test]
fn a_signal_before_the_start_is_ours() {
    let (fake, peers) = fake("POST /v1/instances/web/attach");
    let fake = fake.on("GET /v1/instances/web", ok(&info("running", r#","tty":true"#)));
    let child = fake.spawn(&["attach", "web"]);
    let mut peer = peers.recv_timeout(DEADLINE).unwrap();
    signal(&child, Signal::TERM);
    assert_eq!(finish(child).status.code(), Some(143));
    // Nothing at all, if it did not even know yet that it was attached.
    assert!(std::iter::from_fn(|| peer.hears()).all(|input| input == ProcessInput::End));
}

#[test]
fn a_hangup_is_ours_at_once() {
    let (fake, peers) = fake("POST /v1/instances/web/exec/attach");
    let mut child = with_pipe(&fake, &EXEC);
    let _stdin = child.stdin.take();
    let mut peer = peers.recv_timeout(DEADLINE).unwrap();
    start(&mut peer, &mut child);
    signal(&child, Signal::HUP);
    assert_eq!(finish(child).status.code(), Some(129));
    assert_eq!(peer.hears(), None);
}

#[test]
fn a_command_that_reads_nothing_ends_while_input_waits() {
    let (fake, peers) = fake("POST /v1/instances/web/exec/attach");
    let mut command = fake.command(&EXEC);
    let child = spawn(command.stdin(std::fs::File::open("/dev/zero").unwrap()));
    let mut peer = peers.recv_timeout(DEADLINE).unwrap();
    peer.starts();
    assert!(matches!(peer.hears(), Some(ProcessInput::Data(_))));
    peer.ends(7, None);
    assert_eq!(finish(child).status.code(), Some(7));
}

#[test]
fn a_command_that_cannot_be_run_says_why() {
    let (fake, peers) = fake("POST /v1/instances/web/exec/attach");
    let child = fake.spawn(&EXEC);
    let mut peer = peers.recv_timeout(DEADLINE).unwrap();
    peer.starts();
    peer.ends(127, Some("cannot run `x`: not found"));
    assert_snapshot!(fake.render(&finish(child)), @r"
    exit: 127
    --- stderr
    error: cannot run `x`: not found
    ");
}

#[test]
fn lost_streams_are_125_after_the_output() {
    let (fake, peers) = fake("POST /v1/instances/web/exec/attach");
    let child = fake.spawn(&EXEC);
    let mut peer = peers.recv_timeout(DEADLINE).unwrap();
    peer.starts();
    peer.says(ProcessOutput::Stdout(b"out\n".to_vec()));
    while peer.hears() != Some(ProcessInput::End) {}
    drop(peer);
    assert_snapshot!(fake.render(&finish(child)), @r"
    exit: 125
    --- stdout
    out
    --- stderr
    error: lost the command in instance `web`
      cause: lost the connection to aegisd
      cause: the stream ends before the command does
      hint: `aegis logs web` may show the rest of its output
    ");
}

#[test]
fn refusals_are_those_of_every_command() {
    let fake = Fake::start().on("GET /v1/instances", ok(r#"[]"#));
    assert_snapshot!(fake.aegis(&EXEC), @r"
    exit: 1
    --- stderr
    error: no instance named `web`
      hint: `aegis instance list` shows all instances
    ");
    assert_eq!(fake.aegis(&["attach", "web"]), fake.aegis(&EXEC));
}

#[test]
fn a_terminal_needs_a_terminal() {
    let fake = Fake::start().on("GET /v1/instances/web", ok(&info("running", r#","tty":true,"stdin":true"#)));
    let expected = "exit: 2\n--- stderr\nerror: the input device is not a terminal\n  hint: leave out `-t`\n";
    for args in [
        &["exec", "-it", "web", "--", "x"][..],
        &["exec", "-t", "web", "--", "x"],
        &["run", "-it", "--", "x"],
    ] {
        assert_eq!(fake.aegis(args), expected);
    }
    assert_eq!(fake.requests().len(), 0);
    assert_snapshot!(fake.aegis(&["attach", "web"]), @r"
    exit: 2
    --- stderr
    error: the input device is not a terminal
      hint: `--no-stdin` shows the output of the command
    ");
}

#[test]
fn commands_can_be_piped_into_a_shell() {
    let (fake, peers) = fake("POST /v1/instances/web/exec/attach");
    let mut child = with_pipe(&fake, &["shell", "web", "-u", "nobody"]);
    let mut peer = peers.recv_timeout(DEADLINE).unwrap();
    peer.starts();
    child.stdin.take().unwrap().write_all(b"id\n").unwrap();
    assert_eq!(peer.hears(), Some(ProcessInput::Data(b"id\n".to_vec())));
    peer.ends(3, None);
    assert_eq!(finish(child).status.code(), Some(3));
    let request = fake.requests().remove(0);
    assert!(
        request.starts_with(r#"POST /v1/instances/web/exec/attach {"command":["/bin/sh","-c","#),
        "{request}"
    );
    assert!(request.ends_with(r#","user":"nobody","stdin":true}"#), "{request}");
}

#[test]
fn who_attaches_gets_output_and_exit_code_and_gives_input_and_signals() {
    let (fake, peers) = fake("POST /v1/instances/web/attach");
    let fake = fake.on("GET /v1/instances/web", ok(&info("running", r#","stdin":true"#)));
    let mut child = with_pipe(&fake, &["attach", "web"]);
    let mut peer = peers.recv_timeout(DEADLINE).unwrap();
    start(&mut peer, &mut child);
    child.stdin.take().unwrap().write_all(b"x").unwrap();
    assert_eq!(peer.hears(), Some(ProcessInput::Data(b"x".to_vec())));
    assert_eq!(peer.hears(), Some(ProcessInput::End));
    signal(&child, Signal::INT);
    assert_eq!(peer.hears(), Some(ProcessInput::Signal(2)));
    peer.says(ProcessOutput::Stdout(b"out".to_vec()));
    peer.ends(130, None);
    let output = finish(child);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(130), &b"out"[..]));
    assert_eq!(fake.requests(), ["GET /v1/instances/web", "POST /v1/instances/web/attach {}"]);
}

#[test]
fn who_only_looks_on_leaves_without_a_trace() {
    for more in [r#","stdin":true"#, r#","stdin":true,"tty":true"#] {
        let (fake, peers) = fake("POST /v1/instances/web/attach");
        let fake = fake.on("GET /v1/instances/web", ok(&info("running", more)));
        let mut child = with_pipe(&fake, &["attach", "--no-stdin", "web"]);
        child.stdin.take().unwrap().write_all(b"x").unwrap();
        let mut peer = peers.recv_timeout(DEADLINE).unwrap();
        start(&mut peer, &mut child);
        signal(&child, Signal::INT);
        assert_eq!(finish(child).status.code(), Some(130));
        let heard: Vec<_> = std::iter::from_fn(|| peer.hears()).collect();
        // A terminal is told that it is left alone.
        let expected = if more.contains("tty") { vec![ProcessInput::End] } else { vec![] };
        assert_eq!(heard, expected);
    }
}

const CREATED: &str = r#"{"id":"inst-1","state":"starting","command":["x"],"image_ref":"base"}"#;

#[test]
fn a_run_with_input_ends_with_its_command_and_is_deleted() {
    let (fake, peers) = fake("POST /v1/instances/inst-1/attach");
    let fake = fake
        .on("POST /v1/instances", Reply::Json(201, CREATED.to_owned()))
        .on("DELETE /v1/instances/inst-1", ok(r#"{"status":"deleted"}"#));
    let mut child = with_pipe(&fake, &["run", "-i", "-u", "nobody", "--", "x"]);
    child.stdin.take().unwrap().write_all(b"x").unwrap();
    let mut peer = peers.recv_timeout(DEADLINE).unwrap();
    peer.starts();
    assert_eq!(peer.hears(), Some(ProcessInput::Data(b"x".to_vec())));
    assert_eq!(peer.hears(), Some(ProcessInput::End));
    peer.says(ProcessOutput::Stdout(b"x".to_vec()));
    peer.ends(9, None);
    let output = finish(child);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(9), &b"x"[..]));
    assert_eq!(
        fake.requests(),
        [
            r#"POST /v1/instances {"command":["x"],"user":"nobody","stdin":true,"ephemeral":true}"#,
            "POST /v1/instances/inst-1/attach {}",
            "DELETE /v1/instances/inst-1",
        ]
    );
}

#[test]
fn a_run_with_input_that_is_lost_says_what_became_of_its_vm() {
    let lost = r#","stop_reason":"vmm_died""#;
    for (info, expected) in [
        (info("stopped", lost), "error: the VM was lost before its command ended\n"),
        (info("stopped", r#","stop_reason":"exited","exit_code":5"#), ""),
        (
            info("running", ""),
            "error: the command was lost before its end\n  cause: lost the connection to aegisd\n  \
                               cause: the stream ends before the command does\n",
        ),
    ] {
        let (fake, peers) = fake("POST /v1/instances/inst-1/attach");
        let fake = fake
            .on("POST /v1/instances", Reply::Json(201, CREATED.to_owned()))
            .on("GET /v1/instances/inst-1/wait", ok(r#"{"status":"stopped"}"#))
            .on("GET /v1/instances/inst-1", ok(&info))
            .on("DELETE /v1/instances/inst-1", ok(r#"{"status":"deleted"}"#));
        let child = fake.spawn(&["run", "-i", "--", "x"]);
        let mut peer = peers.recv_timeout(DEADLINE).unwrap();
        peer.starts();
        assert_eq!(peer.hears(), Some(ProcessInput::End));
        drop(peer);
        let output = finish(child);
        let code = if expected.is_empty() { 5 } else { 125 };
        assert_eq!(
            (output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()),
            (Some(code), expected)
        );
        assert_eq!(fake.requests().last().unwrap(), "DELETE /v1/instances/inst-1");
    }
}

#[test]
fn an_instance_is_created_with_input_and_a_terminal() {
    let fake = Fake::start().on("POST /v1/instances", Reply::Json(201, CREATED.to_owned()));
    let start = ["instance", "start", "-it", "-u", "1:2", "-e", "A=b", "-w", "/srv", "--", "x"];
    let mut command: Command = fake.command(&start);
    assert_eq!(output(command.env("TERM", "xterm-test")).status.code(), Some(0));
    let body = r#"{"command":["x"],"env":{"A":"b","TERM":"xterm-test"},"workdir":"/srv","user":"1:2","tty":true,"stdin":true}"#;
    assert_eq!(fake.requests(), [format!("POST /v1/instances {body}")]);
    let given =
        output(fake.command(&["instance", "start", "-t", "-e", "TERM=dumb", "--", "x"]).env("TERM", "xterm"));
    assert_eq!(given.status.code(), Some(0));
    assert!(fake.requests()[1].contains(r#""env":{"TERM":"dumb"}"#), "{:?}", fake.requests());
}
