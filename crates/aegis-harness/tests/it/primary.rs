//! The primary process and its output.

use aegis_proto::control::{Process, StartFailureKind};
use aegis_proto::logs::{LogEvent, OutputStream};
use aegis_types::ExitStatus;

use crate::vm::{Vm, process, sh, sh_with, within};

#[tokio::test]
async fn output_and_exit_code_arrive_in_order() {
    let vm = Vm::new();
    let host = vm.link().await;
    let mut logs = host.logs(0).await;
    let started = host.run(sh("echo one; echo two; exit 42")).await.unwrap();
    assert_eq!(logs.lines(2).await, ["one", "two"]);
    assert_eq!(logs.next().await, Some(LogEvent::Exited(ExitStatus::exited(42))));
    assert_eq!(logs.next().await, None);
    let status = host.status().await;
    assert_eq!((status.primary_pid, status.primary_exit), (Some(started.pid), Some(ExitStatus::exited(42))));
}

#[tokio::test]
async fn standard_error_is_marked() {
    let vm = Vm::new();
    let host = vm.link().await;
    host.run(sh("echo oops >&2")).await.unwrap();
    let Some(LogEvent::Line(line)) = host.logs(0).await.next().await else { panic!() };
    assert_eq!((line.stream, line.bytes.as_slice(), line.seq), (OutputStream::Stderr, &b"oops"[..], 1));
}

#[tokio::test]
async fn a_second_run_fails_and_a_failed_one_may_be_repeated() {
    let vm = Vm::new();
    let host = vm.link().await;
    host.run_failure(process(&["/nonexistent"])).await;
    host.run(sh("true")).await.unwrap();
    assert!(host.run(sh("true")).await.unwrap_err().to_string().contains("already"));
}

#[tokio::test]
async fn death_by_signal_is_128_plus_its_number() {
    let vm = Vm::new();
    let host = vm.link().await;
    host.run(sh("kill -KILL $$")).await.unwrap();
    let (.., status) = host.logs(0).await.rest().await;
    assert_eq!((status.code, status.signal), (137, Some(9)));
}

#[tokio::test]
async fn the_program_is_looked_up_in_the_final_path() {
    let directory = tempfile::tempdir().unwrap();
    let tool = directory.path().join("only-here");
    std::os::unix::fs::symlink("/bin/true", tool).unwrap();
    let vm = Vm::new();
    let host = vm.link().await;
    assert_eq!(host.run_failure(process(&["only-here"])).await.kind, StartFailureKind::NotFound);
    let path = directory.path().to_str().unwrap().to_owned();
    host.run(Process { env: [("PATH".to_owned(), path)].into(), ..process(&["only-here"]) }).await.unwrap();
    let (.., status) = host.logs(0).await.rest().await;
    assert_eq!(status, ExitStatus::exited(0));
}

#[tokio::test]
async fn the_environment_is_the_base_with_the_request_over_it() {
    let vm = Vm::new();
    let host = vm.link().await;
    host.run(sh_with("echo $HOME $TERM $PYTHONUNBUFFERED $ADDED", &[("TERM", "dumb"), ("ADDED", "x y")]))
        .await
        .unwrap();
    let mut logs = host.logs(0).await;
    assert_eq!(logs.lines(1).await, ["/root dumb 1 x y"]);
    // Later processes start from the primary's environment.
    let output = host.output(sh_with("echo $ADDED $MORE", &[("MORE", "z")])).await;
    assert_eq!(output.stdout, b"x y z\n");
}

#[tokio::test]
async fn a_process_starts_clean() {
    let vm = Vm::new();
    let host = vm.link().await;
    // No signal blocked or ignored, a session of its own, no descriptor of ours, no input.
    let script = "grep -E '^Sig(Blk|Ign)' /proc/self/status | tr -s '\\t\\n' ' '; \
                  [ $(ps -o sid= -p $$) = $$ ] && echo leader; \
                  readlink /proc/self/fd/0; pwd; umask";
    host.run(Process { workdir: Some("/usr".to_owned()), ..sh(script) }).await.unwrap();
    let (text, ..) = host.logs(0).await.rest().await;
    let zero = "0000000000000000";
    let expected = format!("SigBlk: {zero} SigIgn: {zero} leader\n/dev/null\n/usr\n0022\n");
    assert_eq!(String::from_utf8(text).unwrap(), expected);
    // What the test itself was started with is not ours.
    let list = ["sh", "-c", "ls /proc/self/fd"];
    let elsewhere = std::process::Command::new(list[0]).args(&list[1..]).output().unwrap();
    assert_eq!(host.output(process(&list)).await.stdout, elsewhere.stdout);
}

#[tokio::test]
async fn a_megabyte_without_newline_arrives_whole() {
    let vm = Vm::new();
    let host = vm.link().await;
    host.run(sh("head -c 1048576 /dev/zero | tr '\\0' x")).await.unwrap();
    let (bytes, dropped, _) = host.logs(0).await.rest().await;
    assert_eq!((bytes.len(), dropped), (1 << 20, 0));
    assert!(bytes.iter().all(|&b| b == b'x'));
}

#[tokio::test]
async fn an_unread_flood_neither_blocks_the_process_nor_grows() {
    let vm = Vm::new();
    let host = vm.link().await;
    host.run(sh("yes 0123456789012345678901234567890123456789 | head -c 20000000; exit 3")).await.unwrap();
    within(async {
        while host.status().await.primary_exit != Some(ExitStatus::exited(3)) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let (bytes, dropped, status) = host.logs(0).await.rest().await;
    assert_eq!(status.code, 3);
    assert!(bytes.len() <= 8 << 20 && dropped > 0);
    let (lines, all) = (bytes.iter().filter(|&&b| b == b'\n').count() as u64 + dropped, 20_000_000 / 41);
    // On a busy machine a line may come in two pieces, and each piece that is dropped counts.
    assert!((all..=all + all / 100).contains(&lines), "{lines} of {all}");
}

#[tokio::test]
async fn a_reader_that_keeps_up_loses_nothing() {
    let vm = Vm::new();
    let host = vm.link().await;
    let mut logs = host.logs(0).await;
    host.run(sh("seq 1 400000")).await.unwrap();
    let (bytes, dropped, _) = logs.rest().await;
    let expected: String = (1..=400_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(dropped, 0);
    assert!(bytes == expected.as_bytes());
}

#[tokio::test]
async fn a_later_subscription_continues_where_the_host_was() {
    let vm = Vm::new();
    let host = vm.link().await;
    host.run(sh("seq 1 5")).await.unwrap();
    assert_eq!(host.logs(0).await.lines(3).await, ["1", "2", "3"]);
    let mut again = host.logs(3).await;
    assert_eq!(again.lines(2).await, ["4", "5"]);
    assert_eq!(again.next().await, Some(LogEvent::Exited(ExitStatus::exited(0))));
    // The end is told to every subscriber.
    assert_eq!(host.logs(5).await.next().await, Some(LogEvent::Exited(ExitStatus::exited(0))));
    assert_eq!(host.logs(999).await.next().await, Some(LogEvent::Exited(ExitStatus::exited(0))));
}

#[tokio::test]
async fn the_newest_subscriber_takes_over() {
    let vm = Vm::new();
    let host = vm.link().await;
    let mut old = host.logs(0).await;
    host.run(sh("echo one; sleep 1000")).await.unwrap();
    assert_eq!(old.lines(1).await, ["one"]);
    let mut new = host.logs(0).await;
    assert_eq!(new.lines(1).await, ["one"]);
    assert_eq!(old.next().await, None);
}

#[tokio::test]
async fn a_prompt_is_shown_before_its_line_ends() {
    let vm = Vm::new();
    let host = vm.link().await;
    let fifo = tempfile::tempdir().unwrap();
    let path = fifo.path().join("go");
    let script = "mkfifo $FIFO; printf 'name? '; read answer < $FIFO; echo $answer";
    host.run(sh_with(script, &[("FIFO", path.to_str().unwrap())])).await.unwrap();
    let mut logs = host.logs(0).await;
    assert_eq!(logs.lines(1).await, ["name? \\"]);
    tokio::task::spawn_blocking(move || std::fs::write(path, "bob\n").unwrap()).await.unwrap();
    assert_eq!(logs.lines(1).await, ["bob"]);
}

#[tokio::test]
async fn a_background_child_that_holds_the_pipes_does_not_hide_the_end() {
    let vm = Vm::new();
    let host = vm.link().await;
    host.run(sh("echo started; sleep 1000 & exit 5")).await.unwrap();
    let (bytes, _, status) = host.logs(0).await.rest().await;
    assert_eq!((bytes.as_slice(), status), (&b"started\n"[..], ExitStatus::exited(5)));
}
