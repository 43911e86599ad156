//! Commands with input, terminals and users, and those who attach to an instance's own command.

use aegis_api::{Attach, AttachedExec, CreateInstance, ExecRequest, ProcessOutput};
use aegis_client::{ClientError, Process};
use aegis_types::{InstanceId, InstanceState, ProcessInput, TerminalSize};

use crate::support::{Host, exec, refusal, within};

const SIZE: TerminalSize = TerminalSize { rows: 12, cols: 34 };

/// Reads until the text was shown; everything that was.
async fn shown(process: &mut Process, text: &str) -> String {
    let mut all = String::new();
    while !all.contains(text) {
        match within(process.output.next()).await.unwrap() {
            Some(ProcessOutput::Stdout(bytes)) => all.push_str(&String::from_utf8_lossy(&bytes)),
            Some(ProcessOutput::Started(_)) => {}
            other => panic!("{other:?} after {all:?}"),
        }
    }
    all
}

/// Everything up to the end, and the exit code.
async fn rest(process: &mut Process) -> (Vec<u8>, u8) {
    let mut all = Vec::new();
    loop {
        match within(process.output.next()).await.unwrap() {
            Some(ProcessOutput::Stdout(bytes) | ProcessOutput::Stderr(bytes)) => all.extend(bytes),
            Some(ProcessOutput::Started(_)) => {}
            Some(ProcessOutput::Done(done)) => return (all, done.exit_code),
            None => panic!("no end after {all:?}"),
        }
    }
}

async fn send(process: &mut Process, input: ProcessInput) {
    within(process.input.send(input)).await.unwrap();
}

async fn typed(process: &mut Process, text: &str) {
    send(process, ProcessInput::Data(text.as_bytes().to_vec())).await;
}

fn attached(command: &[&str], stdin: bool, tty: Option<TerminalSize>) -> AttachedExec {
    AttachedExec { exec: exec(command), stdin, tty }
}

async fn idle(host: &Host, id: &InstanceId) {
    within(async {
        while host.info(id).await.active_execs > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn input_goes_through_a_command_byte_by_byte() {
    let host = Host::start().await;
    host.sleeper("web").await;
    let mut cat = within(host.client.exec_attached("web", &attached(&["cat"], true, None))).await.unwrap();
    let piece: Vec<u8> = (0..=255).cycle().take(50_000).collect();
    let Process { mut input, mut output } = cat;
    let send_all = async {
        for _ in 0..30 {
            input.send(ProcessInput::Data(piece.clone())).await.unwrap();
        }
        input.send(ProcessInput::End).await.unwrap();
        input
    };
    let receive = async {
        let mut all = Vec::new();
        loop {
            match output.next().await.unwrap() {
                Some(ProcessOutput::Stdout(bytes)) => all.extend(bytes),
                Some(ProcessOutput::Started(_)) => {}
                Some(ProcessOutput::Done(done)) => return (all, done.exit_code),
                other => panic!("{other:?}"),
            }
        }
    };
    let (_input, (all, code)) = within(async { tokio::join!(send_all, receive) }).await;
    assert_eq!((all == piece.repeat(30), code), (true, 0));
    // Signals, limits and refusals.
    cat = within(host.client.exec_attached("web", &attached(&["cat"], true, None))).await.unwrap();
    send(&mut cat, ProcessInput::Signal(15)).await;
    assert_eq!(rest(&mut cat).await.1, 143);
    let limited = AttachedExec {
        exec: ExecRequest { timeout_ms: Some(50), ..exec(&["sleep", "100000"]) },
        ..AttachedExec::default()
    };
    let mut late = within(host.client.exec_attached("web", &limited)).await.unwrap();
    assert_eq!(rest(&mut late).await.1, 124);
    let mut missing =
        within(host.client.exec_attached("web", &attached(&["no-such-program"], false, None))).await.unwrap();
    assert_eq!(rest(&mut missing).await.1, 127);
    match within(host.client.exec_attached("nobody", &attached(&["true"], false, None))).await {
        Err(error @ ClientError::Api { .. }) => assert_eq!(refusal(error).0, 404),
        other => panic!("{:?}", other.err()),
    }
    host.end().await;
}

#[tokio::test]
async fn a_terminal_is_resized_and_one_who_detaches_leaves_it_alone() {
    let host = Host::start().await;
    let id = host.sleeper("web").await;
    let script = "stty size; while read -r line; do echo \"<$line>\"; stty size; done";
    let request = attached(&["sh", "-c", script], true, Some(SIZE));
    let mut shell = within(host.client.exec_attached("web", &request)).await.unwrap();
    shown(&mut shell, "12 34\r\n").await;
    send(&mut shell, ProcessInput::Resize(TerminalSize { rows: 50, cols: 60 })).await;
    typed(&mut shell, "hi\n").await;
    assert!(shown(&mut shell, "50 60\r\n").await.contains("<hi>"));
    // Hung up: it ends with its user.
    assert_eq!(host.info(&id).await.active_execs, 1);
    drop(shell);
    idle(&host, &id).await;
    // Detached: it goes on until it ends by itself.
    let flag = tempfile::tempdir().unwrap();
    let path = flag.path().join("go");
    let script = format!("echo ready; until test -e {}; do sleep 0.05; done", path.display());
    let request = attached(&["sh", "-c", &script], true, Some(SIZE));
    let mut shell = within(host.client.exec_attached("web", &request)).await.unwrap();
    shown(&mut shell, "ready").await;
    send(&mut shell, ProcessInput::End).await;
    drop(shell);
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(host.info(&id).await.active_execs, 1);
    std::fs::write(&path, "").unwrap();
    idle(&host, &id).await;
    host.end().await;
}

#[tokio::test]
async fn a_command_with_a_terminal_can_be_attached_to_again_and_again() {
    let host = Host::start().await;
    let script = "stty size; while read -r line; do echo \"<$line>\"; stty size; done; exit 9";
    let request = CreateInstance { tty: true, stdin: true, ..host.instance("bot", &["sh", "-c", script]) };
    let id = host.create(&request).await;
    // Before it runs: the client waits.
    let mut first = within(host.client.attach("bot", &Attach { size: Some(SIZE) })).await.unwrap();
    typed(&mut first, "one\n").await;
    shown(&mut first, "12 34\r\n").await;
    drop(first);
    let info = host.info(&id).await;
    assert_eq!((info.tty, info.stdin, info.state), (true, true, InstanceState::Running));
    let mut second = within(host.client.attach("bot", &Attach { size: None })).await.unwrap();
    let screen = shown(&mut second, "<one>").await;
    assert!(screen.contains("one\r\n"), "{screen:?}");
    typed(&mut second, "\u{4}").await;
    assert_eq!(rest(&mut second).await.1, 9);
    assert_eq!(host.stopped(&id).await.exit_code, Some(9));
    host.end().await;
}

#[tokio::test]
async fn a_run_that_is_attached_to_misses_nothing() {
    let host = Host::start().await;
    let request = CreateInstance {
        stdin: true,
        ephemeral: true,
        ..host.instance("quick", &["sh", "-c", "echo out; echo err >&2; exit 3"])
    };
    let id = host.create(&request).await;
    host.reach(&id, InstanceState::Running).await;
    let mut process = within(host.client.attach("quick", &Attach::default())).await.unwrap();
    let (mut all, code) = rest(&mut process).await;
    all.sort_unstable();
    let mut expected = b"out\nerr\n".to_vec();
    expected.sort_unstable();
    assert_eq!((all, code), (expected, 3));
    assert_eq!(host.stopped(&id).await.exit_code, Some(3));
    host.end().await;
}

#[tokio::test]
async fn an_unknown_user_is_told() {
    let host = Host::start().await;
    let id =
        host.create(&CreateInstance { user: Some("ghost".into()), ..host.instance("bot", &["true"]) }).await;
    let info = host.stopped(&id).await;
    assert!(info.last_error.as_deref().is_some_and(|text| text.contains("no user `ghost`")), "{info:?}");
    host.sleeper("web").await;
    let request = AttachedExec {
        exec: ExecRequest { user: Some("ghost".into()), ..exec(&["true"]) },
        ..AttachedExec::default()
    };
    let mut refused = within(host.client.exec_attached("web", &request)).await.unwrap();
    assert_eq!(rest(&mut refused).await.1, 126);
    for user in ["", "a\nb", &"x".repeat(300)] {
        let request = CreateInstance { user: Some(user.to_owned()), ..host.instance("bad", &["true"]) };
        assert_eq!(refusal(within(host.client.create(&request)).await.unwrap_err()).0, 400);
    }
    host.end().await;
}
