//! Boot, pause, streams, the link, and how a VM ends.

use aegis_link::rpc::{CallError, Client};
use aegis_proto::worker::{
    BootFailure, CONTROL_SOCKET, ExitReason, Exited, PAUSE, Phase, RESUME, Ready, WAIT_READY,
};
use aegis_vmm::VmExit;
use aegis_vmm_worker::probe;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::fake::{FakeVmm, Guest};
use crate::support::{Worker, config};

#[tokio::test]
async fn a_booted_guest_is_reported_to_every_client_at_any_time() {
    let worker = Worker::start([Guest::Normal]).await;
    let ready = worker.ready().await;
    assert_eq!((ready.harness_version.as_str(), ready.generation, ready.attempts), ("test", 1, 1));
    let second = UnixStream::connect(worker.dir.path().join(CONTROL_SOCKET)).await.unwrap();
    let (second, _notifications) = Client::new(second);
    assert_eq!(second.call::<_, Ready>(WAIT_READY, &()).await.unwrap(), ready);
    assert_eq!(worker.phase().await, Phase::Running);
    worker.stop(1000).await.unwrap();
    assert_eq!(worker.vmm.calls(), ["boot", "connect", "guest clock.set", "guest shutdown", "kill"]);
    assert_eq!(worker.ended().await.reason, ExitReason::Stopped);
}

#[tokio::test]
async fn the_guest_learns_who_it_is_before_anything_else() {
    let worker = Worker::start([Guest::Normal]).await;
    worker.ready().await;
    let hello = worker.vmm.hellos().remove(0);
    assert_eq!((hello.hostname.as_str(), hello.machine_id.len()), ("web", 32));
    assert_eq!((hello.seed.len(), hello.nonce.len()), (128, 32));
    // After 2020: the real time was sent.
    assert!(hello.time_unix_ns > 1_577_836_800_000_000_000);
    worker.stop(0).await.unwrap();
    worker.ended().await;
}

#[tokio::test]
async fn a_guest_that_does_not_answer_is_booted_once_more() {
    let worker = Worker::start_with_timeout([Guest::Silent, Guest::Normal], 2000).await;
    assert_eq!(worker.ready().await.attempts, 2);
    assert_eq!(worker.vmm.calls(), ["boot", "connect", "kill", "boot", "connect", "guest clock.set"]);
    worker.stop(0).await.unwrap();
    worker.ended().await;
}

#[tokio::test]
async fn a_failed_boot_says_what_happened_and_shows_the_console() {
    let worker = Worker::start_with_timeout([Guest::Silent, Guest::Silent], 200).await;
    let Err(CallError::Rpc(error)) = worker.client.call::<_, Ready>(WAIT_READY, &()).await else {
        panic!("expected a failure");
    };
    assert_eq!(error.message, "the kernel started but the harness did not answer within 0.2 s");
    let failure: BootFailure = serde_json::from_value(error.data.unwrap()).unwrap();
    assert_eq!((failure.message, failure.console), (error.message, vec!["console of boot 2".to_owned()]));
    assert_eq!(worker.ended().await.reason, ExitReason::BootFailed);
}

#[tokio::test]
async fn a_vmm_that_dies_while_booting_is_named() {
    let worker = Worker::start([Guest::Dies("no memory"), Guest::Dies("no memory")]).await;
    let failure = worker.client.call::<_, Ready>(WAIT_READY, &()).await.unwrap_err();
    assert_eq!(failure.to_string(), "the VMM ended: no memory");
    assert_eq!(worker.ended().await.reason, ExitReason::BootFailed);
}

#[tokio::test]
async fn a_missing_kernel_is_not_tried_twice() {
    let worker = Worker::start([Guest::Missing]).await;
    let failure = worker.client.call::<_, Ready>(WAIT_READY, &()).await.unwrap_err();
    assert_eq!(failure.to_string(), "cannot read the kernel `/fake`: entity not found");
    assert_eq!(worker.vmm.calls(), ["boot"]);
    assert_eq!(worker.ended().await.reason, ExitReason::BootFailed);
}

#[tokio::test]
async fn a_boot_can_be_stopped() {
    let worker = Worker::start([Guest::Silent]).await;
    worker.vmm.connected(1).await;
    assert!(worker.call(PAUSE).await.unwrap_err().to_string().contains("still booting"));
    let (stop, ready) = tokio::join!(worker.stop(5000), worker.client.call::<_, Ready>(WAIT_READY, &()));
    stop.unwrap();
    assert!(ready.is_err());
    assert_eq!(worker.ended().await.reason, ExitReason::Stopped);
}

#[tokio::test]
async fn pause_and_resume_are_idempotent_and_set_the_clock_once() {
    let worker = Worker::start([Guest::Normal]).await;
    worker.ready().await;
    for method in [PAUSE, PAUSE] {
        worker.call(method).await.unwrap();
        assert_eq!(worker.phase().await, Phase::Paused);
    }
    assert_eq!(worker.stream("CONNECT 2\n").await.1, "ERR paused\n");
    for method in [RESUME, RESUME] {
        worker.call(method).await.unwrap();
        assert_eq!(worker.phase().await, Phase::Running);
    }
    let calls =
        ["boot", "connect", "guest clock.set", "pause", "pause", "resume", "guest clock.set", "resume"];
    assert_eq!(worker.vmm.calls(), calls);
    worker.stop(0).await.unwrap();
    worker.ended().await;
}

#[tokio::test]
async fn a_paused_guest_is_resumed_to_stop_in_order() {
    let worker = Worker::start([Guest::Normal]).await;
    worker.ready().await;
    worker.call(PAUSE).await.unwrap();
    worker.stop(1000).await.unwrap();
    assert_eq!(
        worker.vmm.calls(),
        ["boot", "connect", "guest clock.set", "pause", "resume", "guest shutdown", "kill"]
    );
    assert_eq!(worker.ended().await.message, "stopped in order");
}

#[tokio::test]
async fn a_guest_that_ignores_the_stop_can_be_forced_meanwhile() {
    let worker = Worker::start([Guest::Stubborn]).await;
    worker.ready().await;
    let forced = async {
        worker.vmm.called("guest shutdown").await;
        assert_eq!(worker.phase().await, Phase::Stopping);
        assert!(worker.call(RESUME).await.is_err());
        worker.stop(0).await
    };
    let (orderly, forced) = tokio::join!(worker.stop(3_600_000), forced);
    orderly.and(forced).unwrap();
    assert_eq!(worker.ended().await.message, "stopped by force");
}

#[tokio::test]
async fn streams_reach_their_service_and_keep_half_close() {
    let worker = Worker::start([Guest::Normal]).await;
    worker.ready().await;
    // The first bytes arrive together with the preface.
    let (mut stream, answer) = worker.stream("CONNECT 2\nearly ").await;
    assert_eq!(answer, "OK\n");
    stream.write_all(b"late").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut echoed = String::new();
    stream.read_to_string(&mut echoed).await.unwrap();
    // The guest answers only after it has seen our end.
    assert_eq!(echoed, "early late|end");
    worker.stop(0).await.unwrap();
    worker.ended().await;
}

#[tokio::test]
async fn bad_prefaces_are_refused_in_words() {
    let worker = Worker::start([Guest::Normal]).await;
    worker.ready().await;
    assert_eq!(worker.stream("CONNECT 99\n").await.1, "ERR unknown service 99\n");
    assert_eq!(worker.stream("GET / HTTP/1.1\n").await.1, "ERR expected `CONNECT <service number>`\n");
    assert_eq!(worker.stream(&"x".repeat(100)).await.1, "ERR expected `CONNECT <service number>`\n");
    worker.stop(0).await.unwrap();
    worker.ended().await;
}

#[tokio::test]
async fn streams_are_bounded() {
    let worker = Worker::start([Guest::Normal]).await;
    worker.ready().await;
    let mut held = Vec::new();
    loop {
        let (stream, answer) = worker.stream("CONNECT 2\n").await;
        if answer != "OK\n" {
            assert_eq!(answer, "ERR too many streams\n");
            break;
        }
        held.push(stream);
        assert!(held.len() <= 120);
    }
    // The worker's own control stream still finds room.
    worker.call(PAUSE).await.unwrap();
    worker.call(RESUME).await.unwrap();
    worker.stop(1000).await.unwrap();
    assert_eq!(worker.ended().await.message, "stopped in order");
}

#[tokio::test]
async fn a_lost_link_is_restored_with_a_new_greeting() {
    let worker = Worker::start([Guest::Normal]).await;
    worker.ready().await;
    worker.vmm.drop_link();
    worker.vmm.connected(2).await;
    loop {
        let (_, answer) = worker.stream("CONNECT 2\n").await;
        if answer == "OK\n" {
            break;
        }
        assert!(answer.starts_with("ERR "), "{answer}");
        tokio::task::yield_now().await;
    }
    let hellos = worker.vmm.hellos();
    assert_eq!(hellos.len(), 2);
    assert!(hellos[0].nonce != hellos[1].nonce && hellos[0].seed != hellos[1].seed);
    worker.stop(1000).await.unwrap();
    assert_eq!(worker.ended().await.message, "stopped in order");
}

#[tokio::test]
async fn a_link_that_does_not_come_back_ends_the_vm() {
    let worker = Worker::start([Guest::NeverAgain]).await;
    worker.ready().await;
    worker.vmm.drop_link();
    let exited = worker.ended().await;
    assert_eq!(exited.reason, ExitReason::LinkViolation);
    assert!(exited.message.contains("did not answer again"));
}

#[tokio::test]
async fn a_guest_that_breaks_the_link_rules_is_ended() {
    let worker = Worker::start([Guest::Hostile]).await;
    let exited = worker.ended().await;
    assert_eq!(exited.reason, ExitReason::LinkViolation, "{}", exited.message);
}

#[tokio::test]
async fn a_guest_that_switches_off_is_not_mistaken_for_a_lost_link() {
    let worker = Worker::start([Guest::Normal]).await;
    worker.ready().await;
    worker.vmm.exit(VmExit::GuestShutdown);
    assert_eq!(worker.ended().await.reason, ExitReason::GuestShutdown);
}

#[tokio::test]
async fn a_dead_vmm_ends_the_worker_and_its_streams() {
    let worker = Worker::start([Guest::Normal]).await;
    worker.ready().await;
    let (mut stream, _) = worker.stream("CONNECT 2\n").await;
    worker.vmm.exit(VmExit::Died("signal 9".into()));
    let exited = worker.ended().await;
    assert_eq!(exited, Exited { reason: ExitReason::VmmDied, message: "the VMM ended: signal 9".into() });
    let mut rest = Vec::new();
    // Ended or reset, but over.
    let _ = stream.read_to_end(&mut rest).await;
}

#[tokio::test]
async fn a_worker_that_is_told_to_end_stops_its_guest() {
    let mut worker = Worker::start([Guest::Normal]).await;
    worker.ready().await;
    worker.terminate.take().unwrap().send(()).unwrap();
    let exited = worker.ended().await;
    assert_eq!((exited.reason, exited.message.as_str()), (ExitReason::Stopped, "stopped in order"));
}

#[tokio::test]
async fn a_probe_boots_once_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let vmm = FakeVmm::new([Guest::Normal, Guest::Silent]);
    assert!(probe(&config(dir.path(), 30_000), &vmm).await.ok);
    let report = probe(&config(dir.path(), 200), &vmm).await;
    assert!(!report.ok && report.message.contains("did not answer"), "{report:?}");
    assert_eq!(vmm.alive(), 0);
}
