//! The end of the machine.

use aegis_harness::sys::fake::Call;
use aegis_proto::control::{SHUTDOWN, Shutdown};

use crate::vm::{Host, Vm, sh, within};

async fn shut_down(host: &Host, grace_ms: u64) {
    let () = within(host.control.call(SHUTDOWN, &Shutdown { grace_ms })).await.unwrap();
}

fn last_calls(vm: &Vm) -> Vec<Call> {
    let calls = vm.sys.calls();
    let start = calls.iter().position(|call| matches!(call, Call::SignalAll(_))).unwrap();
    calls[start..].to_vec()
}

#[tokio::test]
async fn processes_that_obey_get_no_sigkill() {
    let vm = Vm::new();
    let host = vm.link().await;
    host.run(sh("exec 2>/dev/null; trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"))
        .await
        .unwrap();
    let mut logs = host.logs(0).await;
    assert_eq!(logs.lines(1).await, ["up"]);
    shut_down(&host, 60_000).await;
    assert_eq!(logs.lines(1).await, ["bye"]);
    within(vm.sys.powered_off()).await;
    use Call::{PowerOff, ReadOnly, SignalAll, Sync};
    assert_eq!(last_calls(&vm), [SignalAll(15), SignalAll(18), Sync, ReadOnly, PowerOff]);
}

#[tokio::test]
async fn processes_that_do_not_are_killed_before_the_disks_are_synced() {
    let vm = Vm::new();
    let host = vm.link().await;
    host.run(sh("trap '' TERM; echo up; while :; do sleep 1000; done")).await.unwrap();
    assert_eq!(host.logs(0).await.lines(1).await, ["up"]);
    shut_down(&host, 50).await;
    within(vm.sys.powered_off()).await;
    use Call::{PowerOff, ReadOnly, SignalAll, Sync};
    assert_eq!(last_calls(&vm), [SignalAll(15), SignalAll(18), SignalAll(9), Sync, ReadOnly, PowerOff]);
}

#[tokio::test]
async fn an_idle_machine_answers_before_it_goes() {
    let vm = Vm::new();
    let host = vm.link().await;
    shut_down(&host, 60_000).await;
    within(vm.sys.powered_off()).await;
}

#[tokio::test]
async fn the_last_words_are_with_the_host_before_the_power_goes() {
    let vm = Vm::new();
    let host = vm.link().await;
    host.run(sh("exec 2>/dev/null; trap 'head -c 5000000 /dev/zero | tr \\\\0 x; exit 6' TERM; echo up; while :; do sleep 0.05; done")).await.unwrap();
    let mut logs = host.logs(0).await;
    assert_eq!(logs.lines(1).await, ["up"]);
    shut_down(&host, 60_000).await;
    let off = vm.sys.powered_off();
    tokio::pin!(off);
    let read = async { logs.rest().await };
    let (bytes, dropped, status) = tokio::select! {
        biased;
        () = &mut off => panic!("the power went before the end was told"),
        rest = read => rest,
    };
    assert_eq!((bytes.len(), dropped, status.code), (5_000_000, 0, 6));
    within(off).await;
}

#[tokio::test]
async fn nothing_starts_while_the_machine_goes_down() {
    let vm = Vm::new();
    let host = vm.link().await;
    host.run(sh("trap '' TERM; echo up; while :; do sleep 1000; done")).await.unwrap();
    assert_eq!(host.logs(0).await.lines(1).await, ["up"]);
    shut_down(&host, 60_000).await;
    let failure = host.exec(sh("true"), false).await.refused().await;
    assert!(failure.message.contains("shutting down"), "{failure:?}");
}

#[tokio::test]
async fn the_machine_can_be_switched_off_from_inside() {
    let vm = Vm::new();
    vm.harness.shut_down();
    vm.harness.shut_down();
    within(vm.sys.powered_off()).await;
    assert_eq!(last_calls(&vm).iter().filter(|call| **call == Call::PowerOff).count(), 1);
}
