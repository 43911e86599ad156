//! Processes on streams of their own.

use std::os::unix::fs::PermissionsExt as _;

use aegis_proto::control::{Process, StartFailureKind};
use aegis_proto::exec::{ExecEvent, ExecRequest};
use aegis_proto::frame::Frame;
use aegis_types::{ExitStatus, ProcessInput};

use crate::vm::{Vm, process, sh, within};

#[tokio::test]
async fn fifty_in_a_row_and_twenty_at_once() {
    let vm = Vm::new();
    let host = vm.link().await;
    for n in 0..50u8 {
        let done = host.output(sh(&format!("echo {n}; echo e{n} >&2; exit {n}"))).await;
        assert_eq!(done.stdout, format!("{n}\n").as_bytes());
        assert_eq!(done.stderr, format!("e{n}\n").as_bytes());
        assert_eq!(done.status, ExitStatus::exited(n));
    }
    let mut running = Vec::new();
    for n in 0..20u8 {
        running.push((n, host.exec(sh(&format!("seq 1 1000; exit {n}")), false).await));
    }
    for (n, exec) in running {
        let done = exec.finish().await;
        assert_eq!((done.stdout.len(), done.status), (3893, ExitStatus::exited(n)));
    }
}

#[tokio::test]
async fn input_is_echoed_until_its_end() {
    let vm = Vm::new();
    let host = vm.link().await;
    let mut exec = host.exec(process(&["cat"]), true).await;
    exec.started().await;
    // More than all buffers on the way hold: input and output have to move at the same time.
    let chunk: Vec<u8> = (0..60_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let (mut writer, mut reader) = exec.split();
    let send = async {
        for _ in 0..40 {
            writer.send(ExecRequest::Input(ProcessInput::Data(chunk.clone()))).await;
        }
        writer.send(ExecRequest::Input(ProcessInput::End)).await;
    };
    let receive = async {
        let mut received = Vec::new();
        loop {
            match reader.next().await.unwrap() {
                ExecEvent::Stdout(bytes) => received.extend(bytes),
                ExecEvent::Exit(status) => return (received, status),
                other => panic!("{other:?}"),
            }
        }
    };
    let ((), (received, status)) = tokio::join!(send, receive);
    assert_eq!(status, ExitStatus::exited(0));
    assert!(received == chunk.repeat(40));
}

fn stdout(event: Option<ExecEvent>) -> Vec<u8> {
    match event {
        Some(ExecEvent::Stdout(bytes)) => bytes,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn without_input_there_is_nothing_to_read() {
    let vm = Vm::new();
    let done = vm.link().await.output(process(&["cat"])).await;
    assert_eq!((done.stdout, done.status), (vec![], ExitStatus::exited(0)));
}

#[tokio::test]
async fn a_signal_reaches_the_whole_process_group() {
    let vm = Vm::new();
    let host = vm.link().await;
    let mut exec = host.exec(sh("sleep 1000 & echo ready; wait; echo never"), false).await;
    exec.started().await;
    assert_eq!(stdout(exec.next().await), b"ready\n");
    exec.send(ExecRequest::Input(ProcessInput::Signal(15))).await;
    // The background child held the pipe; that the end comes without the grace for it shows that it died, too.
    assert_eq!(exec.next().await, Some(ExecEvent::Exit(ExitStatus::killed(15))));
}

#[tokio::test]
async fn failed_starts_say_why() {
    use StartFailureKind::{BadWorkdir, Invalid, NotExecutable, NotFound};
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("no-interpreter-line");
    std::fs::write(&script, "echo hello\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let lost = directory.path().join("lost");
    std::fs::write(&lost, "#!/nonexistent/interpreter\n").unwrap();
    std::fs::set_permissions(&lost, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (script, lost) = (script.to_str().unwrap(), lost.to_str().unwrap());
    let at =
        |workdir: &str, command: &[&str]| Process { workdir: Some(workdir.to_owned()), ..process(command) };
    let vm = Vm::new();
    let host = vm.link().await;
    for (request, kind, code, word) in [
        (process(&["no-such-program"]), NotFound, 127, "no-such-program"),
        (process(&["/no/such/program"]), NotFound, 127, "/no/such/program"),
        (process(&["/etc/passwd"]), NotExecutable, 126, "permission denied"),
        (process(&["/usr"]), NotExecutable, 126, "directory"),
        (process(&[script]), NotExecutable, 126, "#!"),
        (process(&[lost]), NotExecutable, 126, "interpreter"),
        (process(&[]), Invalid, 126, "empty"),
        (process(&[""]), Invalid, 126, "empty"),
        (process(&["a\0b"]), Invalid, 126, "NUL"),
        (at("/no/such/place", &["true"]), BadWorkdir, 126, "/no/such/place"),
        (at("/etc/passwd", &["true"]), BadWorkdir, 126, "not a directory"),
        (at("usr", &["true"]), BadWorkdir, 126, "absolute"),
    ] {
        let mut exec = host.exec(request.clone(), false).await;
        let failure = exec.refused().await;
        assert_eq!((failure.kind, failure.kind.exit_code()), (kind, code), "{request:?}: {failure:?}");
        assert!(failure.message.contains(word), "{failure:?}");
        assert_eq!(exec.next().await, None);
    }
}

#[tokio::test]
async fn a_relative_program_is_found_from_the_working_directory() {
    let vm = Vm::new();
    let request = Process { workdir: Some("/bin".to_owned()), ..process(&["./sh", "-c", "pwd -P"]) };
    let done = vm.link().await.output(request).await;
    let bin = std::fs::canonicalize("/bin").unwrap();
    assert_eq!(done.stdout, format!("{}\n", bin.display()).as_bytes());
}

#[tokio::test]
async fn binary_output_is_exact() {
    let vm = Vm::new();
    let done = vm.link().await.output(sh("head -c 3000000 /dev/zero; printf '\\377\\000\\n'")).await;
    assert_eq!(done.stdout.len(), 3_000_003);
    assert!(done.stdout.ends_with(&[0xff, 0, b'\n']));
}

#[tokio::test]
async fn a_background_child_that_writes_on_does_not_hide_the_end() {
    let vm = Vm::new();
    let done = vm.link().await.exec(sh("yes & exit 4"), false).await.finish().await;
    assert_eq!(done.status, ExitStatus::exited(4));
}

#[tokio::test]
async fn a_process_outlives_its_stream() {
    let vm = Vm::new();
    let directory = tempfile::tempdir().unwrap();
    let done = directory.path().join("done");
    let host = vm.link().await;
    let script = format!("echo first; read go; seq 1 100000; touch {}", done.display());
    let mut exec = host.exec(sh(&script), true).await;
    exec.started().await;
    assert_eq!(stdout(exec.next().await), b"first\n");
    drop(exec);
    within(async {
        while !done.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_begins_with_nonsense_ends_alone() {
    let vm = Vm::new();
    let host = vm.link().await;
    for frame in
        [Frame::new(99, []), ExecRequest::Input(ProcessInput::End).into_frame(), Frame::new(1, b"{".to_vec())]
    {
        let mut stream = within(host.link.open(aegis_proto::service::Service::Exec)).await.unwrap();
        aegis_link::frames::write_frame(&mut stream, &frame).await.unwrap();
        let mut frames = aegis_link::frames::FrameReader::new(stream);
        assert!(matches!(within(frames.next()).await, Ok(None) | Err(_)));
    }
    assert_eq!(host.output(sh("exit 7")).await.status.code, 7);
}
