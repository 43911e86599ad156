//! Terminals, users, and those who attach to the primary process.

use aegis_harness::sys::fake::FakeSys;
use aegis_proto::control::{Process, RUN, Run, Started, Streams};
use aegis_proto::exec::{Attach, ExecEvent, ExecRequest, Start};
use aegis_types::{ExitStatus, ProcessInput, TerminalSize};

use crate::vm::{Exec, Host, Vm, sh, within};

const SIZE: TerminalSize = TerminalSize { rows: 11, cols: 77 };

async fn on_terminal(host: &Host, process: Process) -> Exec {
    let mut exec = host.open(ExecRequest::Start(Start { process, stdin: true, tty: Some(SIZE) })).await;
    exec.started().await;
    exec
}

fn typed(text: &str) -> ExecRequest {
    ExecRequest::Input(ProcessInput::Data(text.as_bytes().to_vec()))
}

/// Reads until the text has been shown; what was shown.
async fn shown(exec: &mut Exec, text: &str) -> String {
    let mut all = String::new();
    while !all.contains(text) {
        match exec.next().await {
            Some(ExecEvent::Stdout(bytes)) => all.push_str(&String::from_utf8_lossy(&bytes)),
            other => panic!("{other:?} after {all:?}"),
        }
    }
    all
}

/// Everything up to the end.
async fn rest(exec: &mut Exec) -> (String, ExitStatus) {
    let mut all = String::new();
    loop {
        match exec.next().await {
            Some(ExecEvent::Stdout(bytes)) => all.push_str(&String::from_utf8_lossy(&bytes)),
            Some(ExecEvent::Exit(status)) => return (all, status),
            other => panic!("{other:?} after {all:?}"),
        }
    }
}

#[tokio::test]
async fn a_terminal_has_a_size_an_echo_and_a_session() {
    let vm = Vm::new();
    let host = vm.link().await;
    let script = "test -t 0 && test -t 1 && test -t 2 && tty </dev/tty >/dev/null && stty size; \
        trap 'stty size' WINCH; echo ready; while :; do read -r line && echo \"got $line\"; done";
    let mut exec = on_terminal(&host, sh(script)).await;
    assert!(shown(&mut exec, "ready\r\n").await.contains("11 77\r\n"));
    exec.send(typed("hello\n")).await;
    // The echo of the terminal, and the answer.
    assert_eq!(shown(&mut exec, "got hello\r\n").await, "hello\r\ngot hello\r\n");
    exec.send(ExecRequest::Input(ProcessInput::Resize(TerminalSize { rows: 50, cols: 132 }))).await;
    assert_eq!(shown(&mut exec, "50 132\r\n").await, "50 132\r\n");
    // Ctrl-C: the terminal makes a signal of it.
    exec.send(typed("\u{3}")).await;
    assert_eq!(rest(&mut exec).await.1, ExitStatus::killed(2));
}

#[tokio::test]
async fn what_a_terminal_is_sent_arrives_unchanged() {
    let vm = Vm::new();
    let host = vm.link().await;
    // As editors do: raw, another screen, and back.
    let script = "stty raw -echo; printf '\\033[?1049h\\033[2J\\033[H\\000\\001\\377'; head -c 3 | od -An -tx1; printf '\\033[?1049l'";
    let mut exec =
        host.open(ExecRequest::Start(Start { process: sh(script), stdin: true, tty: Some(SIZE) })).await;
    exec.started().await;
    let screen = b"\x1b[?1049h\x1b[2J\x1b[H\x00\x01\xff";
    let mut all = Vec::new();
    while all.len() < screen.len() {
        match exec.next().await {
            Some(ExecEvent::Stdout(bytes)) => all.extend(bytes),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(all, screen);
    exec.send(ExecRequest::Input(ProcessInput::Data(vec![3, 4, 26]))).await;
    let (text, status) = rest(&mut exec).await;
    assert_eq!((text.as_str(), status), (" 03 04 1a\n\u{1b}[?1049l", ExitStatus::exited(0)));
}

#[tokio::test]
async fn all_output_of_a_terminal_comes_before_its_end() {
    let vm = Vm::new();
    let host = vm.link().await;
    let mut exec = on_terminal(&host, sh("stty -opost; seq 1 20000; exit 7")).await;
    let (text, status) = rest(&mut exec).await;
    assert_eq!((text.lines().count(), status), (20_000, ExitStatus::exited(7)));
}

#[tokio::test]
async fn a_terminal_is_hung_up_when_its_user_goes_away() {
    let vm = Vm::new();
    let host = vm.link().await;
    let directory = tempfile::tempdir().unwrap();
    let told = directory.path().join("told");
    let script =
        format!("trap 'echo hup > {}; exit' HUP; echo ready; while :; do sleep 0.05; done", told.display());
    let mut exec = on_terminal(&host, sh(&script)).await;
    shown(&mut exec, "ready").await;
    drop(exec);
    within(async {
        while !told.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn users_are_looked_up_in_the_guest() {
    let sys = FakeSys::new()
        .with_file("/etc/passwd", b"app:x:12345:12346::/home/app:/bin/sh\n")
        .with_file("/etc/group", b"app:x:12346:\nextra:x:12347:app\n");
    let vm = Vm::on(sys);
    let host = vm.link().await;
    let as_user = |user: &str, script: &str| {
        let process = Process { user: Some(user.to_owned()), ..sh(script) };
        ExecRequest::Start(Start { process, stdin: false, tty: None })
    };
    let failure = host.open(as_user("ghost", "true")).await.refused().await;
    assert_eq!((failure.kind.exit_code(), failure.message.contains("`ghost`")), (126, true));
    if !rustix::process::geteuid().is_root() {
        return; // only root can become somebody else
    }
    let done = host.open(as_user("app", "id -u; id -g; id -G; echo $HOME")).await.finish().await;
    assert_eq!(String::from_utf8(done.stdout).unwrap(), "12345\n12346\n12346 12347\n/home/app\n");
    let done = host.open(as_user("app:7", "id -u; id -g; id -G")).await.finish().await;
    assert_eq!(String::from_utf8(done.stdout).unwrap(), "12345\n7\n7\n");
    // A terminal belongs to its user; the harness is still root.
    let process = Process { user: Some("app".to_owned()), ..sh("test -O $(tty) && id -u && : > $(tty)") };
    let (text, status) = rest(&mut on_terminal(&host, process).await).await;
    assert_eq!((text.as_str(), status), ("12345\r\n", ExitStatus::exited(0)));
    let done = host.output(sh("id -u")).await;
    assert_eq!(done.stdout, b"0\n");
}

async fn run(host: &Host, process: Process, streams: Streams) -> Started {
    let run = Run { process, secret_files: Vec::new(), streams };
    within(host.control.call(RUN, &run)).await.unwrap()
}

async fn attach(host: &Host, size: Option<TerminalSize>) -> Exec {
    let mut exec = host.open(ExecRequest::Attach(Attach { size })).await;
    exec.started().await;
    exec
}

#[tokio::test]
async fn nobody_misses_anything_who_attaches_first() {
    let vm = Vm::new();
    let host = vm.link().await;
    let streams = Streams { stdin: true, tty: false, attach_first: true };
    // Long over before anybody is there.
    run(&host, sh("echo out; echo err >&2; cat; exit 9"), streams).await;
    let mut exec = attach(&host, None).await;
    exec.send(typed("input")).await;
    exec.send(ExecRequest::Input(ProcessInput::End)).await;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let status = loop {
        match exec.next().await.unwrap() {
            ExecEvent::Stdout(bytes) => stdout.extend(bytes),
            ExecEvent::Stderr(bytes) => stderr.extend(bytes),
            ExecEvent::Exit(status) => break status,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        (&stdout[..], &stderr[..], status),
        (&b"out\ninput"[..], &b"err\n"[..], ExitStatus::exited(9))
    );
    // The log has it, too.
    assert_eq!(host.logs(0).await.rest().await.2, ExitStatus::exited(9));
}

#[tokio::test]
async fn one_detaches_and_another_sees_the_screen() {
    let vm = Vm::new();
    let host = vm.link().await;
    let streams = Streams { stdin: true, tty: true, attach_first: false };
    run(&host, sh("echo prompt; while read -r line; do echo \"<$line>\"; stty size; done"), streams).await;
    let mut first = attach(&host, Some(SIZE)).await;
    shown(&mut first, "prompt\r\n").await;
    first.send(typed("one\n")).await;
    assert!(shown(&mut first, "11 77\r\n").await.contains("<one>"));
    drop(first);
    let mut second = attach(&host, Some(TerminalSize { rows: 5, cols: 6 })).await;
    assert_eq!(shown(&mut second, "77\r\n").await, "prompt\r\none\r\n<one>\r\n11 77\r\n", "as it was");
    let mut third = attach(&host, None).await;
    shown(&mut third, "77\r\n").await;
    second.send(typed("two\n")).await;
    for exec in [&mut second, &mut third] {
        assert!(shown(exec, "5 6\r\n").await.contains("<two>"));
    }
    // End of input as a user types it.
    third.send(typed("\u{4}")).await;
    assert_eq!(rest(&mut second).await.1, ExitStatus::exited(0));
    assert_eq!(rest(&mut third).await.1, ExitStatus::exited(0));
    let mut late = attach(&host, None).await;
    assert!(rest(&mut late).await.0.contains("<two>"));
}

#[tokio::test]
async fn before_a_command_runs_there_is_nothing_to_attach_to() {
    let vm = Vm::new();
    let host = vm.link().await;
    let failure = host.open(ExecRequest::Attach(Attach { size: None })).await.refused().await;
    assert!(failure.message.contains("has not been started"), "{}", failure.message);
}
