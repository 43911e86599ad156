//! Saving and restoring.

use std::fs;
use std::path::{Path, PathBuf};

use aegis_proto::saved::{SAVED_FILE, SAVED_VERSION, STATE_FILE, SavedVm};
use aegis_proto::worker::{ExitReason, HIBERNATE, PAUSE, Phase, RESUME, Restore, WorkerConfig};
use aegis_types::{Mib, Ram, StartKind, VmId, VmSpec};
use tempfile::TempDir;

use crate::fake::{FakeVmm, Guest, Save};
use crate::support::{Worker, config};

const MEMORY_MIB: u64 = 128;
const MEMORY_BYTES: u64 = MEMORY_MIB << 20;

/// A VM whose memory is a file, in a directory of its own.
fn with_file(dir: &Path) -> WorkerConfig {
    let memory = dir.join("memory");
    fs::create_dir_all(&memory).unwrap();
    let config = config(dir, 30_000);
    let ram = Ram::File { path: memory.join("ram") };
    let vm = VmSpec { ram, memory: Mib::new(MEMORY_MIB).unwrap(), ..config.vm };
    WorkerConfig { vm, machine: "this machine".to_owned(), ..config }
}

/// The same with saved state, and memory that is as long as it should be.
fn with_state(dir: &Path, kind: StartKind) -> WorkerConfig {
    let config = with_file(dir);
    let memory = dir.join("memory");
    fs::write(memory.join(STATE_FILE), "saved devices").unwrap();
    let ram = fs::File::create(memory.join("ram")).unwrap();
    ram.set_len(MEMORY_BYTES).unwrap();
    std::io::Write::write_all(&mut &ram, b"remembered").unwrap();
    let boot_id = (kind == StartKind::Restore).then(|| VmId::from_random(77));
    WorkerConfig { restore: Some(Restore { state: memory.join(STATE_FILE), kind, boot_id }), ..config }
}

async fn start(vmm: FakeVmm) -> Worker {
    let dir = tempfile::tempdir().unwrap();
    let config = with_file(dir.path());
    Worker::start_with(dir, config, vmm).await
}

async fn restore(kind: StartKind, vmm: FakeVmm) -> Worker {
    let dir = tempfile::tempdir().unwrap();
    let config = with_state(dir.path(), kind);
    Worker::start_with(dir, config, vmm).await
}

fn file(dir: &TempDir, name: &str) -> PathBuf {
    dir.path().join("memory").join(name)
}

fn saved(dir: &TempDir) -> SavedVm {
    serde_json::from_slice(&fs::read(file(dir, SAVED_FILE)).unwrap()).unwrap()
}

/// Names beside the memory.
fn leftovers(dir: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(dir.path().join("memory")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "ram").collect()
}

/// The directory outlives the worker.
async fn ended(worker: Worker) -> (TempDir, ExitReason) {
    let (dir, exited) = worker.ended_in().await;
    (dir, exited.reason)
}

#[tokio::test]
async fn a_hibernated_vm_is_complete_on_the_disk_and_gone() {
    let worker = start(FakeVmm::new([Guest::Normal])).await;
    worker.ready().await;
    worker.call(HIBERNATE).await.unwrap();
    assert_eq!(worker.vmm.calls(), ["boot", "connect", "guest clock.set", "guest park", "save", "kill"]);
    let (dir, reason) = ended(worker).await;
    assert_eq!(reason, ExitReason::Hibernated);
    let saved = saved(&dir);
    assert_eq!((saved.version, saved.machine.as_str()), (SAVED_VERSION, "this machine"));
    assert_eq!((saved.boot_id, saved.generation), (VmId::from_random(1), 1));
    assert_eq!((saved.ram_bytes, saved.state_bytes, saved.state_sha256.as_str()), (MEMORY_BYTES, 7, "hash"));
    assert_eq!((saved.host_boot.len(), saved.durable), (36, false));
    assert_eq!(fs::read_to_string(file(&dir, STATE_FILE)).unwrap(), "devices");
    assert_eq!(fs::metadata(file(&dir, "ram")).unwrap().len(), MEMORY_BYTES);
}

#[tokio::test]
async fn a_restored_vm_goes_on_and_keeps_its_boot() {
    // The fake CPUs start when the host is at the link, so this also says that it is there before they do.
    let worker = restore(StartKind::Restore, FakeVmm::new([Guest::Normal])).await;
    let ready = worker.ready().await;
    assert_eq!((ready.start, ready.attempts, ready.fallback), (StartKind::Restore, 1, None));
    assert_eq!(ready.boot_id, Some(VmId::from_random(77)));
    assert_eq!((ready.phases.vmm_us, ready.phases.load_us), (1, 2));
    assert_eq!(worker.vmm.calls()[..2], ["restore saved devices", "connect"]);
    assert!(fs::read(file(&worker.dir, "ram")).unwrap().starts_with(b"remembered"));
    worker.call(HIBERNATE).await.unwrap();
    let (dir, _) = ended(worker).await;
    assert_eq!(saved(&dir).boot_id, VmId::from_random(77));
}

#[tokio::test]
async fn a_clone_of_a_template_begins_a_boot_of_its_own() {
    let worker = restore(StartKind::Template, FakeVmm::new([Guest::Normal])).await;
    let ready = worker.ready().await;
    assert_eq!((ready.start, ready.boot_id), (StartKind::Template, None));
    worker.call(HIBERNATE).await.unwrap();
    let (dir, _) = ended(worker).await;
    assert_eq!(saved(&dir).boot_id, VmId::from_random(1));
}

#[tokio::test]
async fn a_vm_that_cannot_be_restored_is_booted_on_empty_memory() {
    let guests = [Guest::Dies("bad state"), Guest::Silent, Guest::Normal];
    let dir = tempfile::tempdir().unwrap();
    let config = with_state(dir.path(), StartKind::Restore);
    let config = WorkerConfig { boot_timeout_ms: 1000, ..config };
    let worker = Worker::start_with(dir, config, FakeVmm::new(guests)).await;
    let ready = worker.ready().await;
    // The attempt to restore is not one of the two to boot.
    assert_eq!((ready.start, ready.attempts, ready.boot_id), (StartKind::Cold, 3, None));
    assert_eq!(ready.fallback.as_deref(), Some("the VMM ended: bad state"));
    assert_eq!(ready.phases.load_us, 0);
    assert!(fs::read(file(&worker.dir, "ram")).unwrap().iter().all(|&byte| byte == 0));
    worker.call(HIBERNATE).await.unwrap();
    let (dir, _) = ended(worker).await;
    assert_eq!(saved(&dir).boot_id, VmId::from_random(1));
}

#[tokio::test]
async fn memory_of_the_wrong_size_is_not_restored() {
    let dir = tempfile::tempdir().unwrap();
    let config = with_state(dir.path(), StartKind::Restore);
    fs::write(file(&dir, "ram"), "truncated").unwrap();
    let worker = Worker::start_with(dir, config, FakeVmm::new([Guest::Normal])).await;
    let fallback = worker.ready().await.fallback.unwrap();
    assert!(fallback.contains("it has 9 bytes, the memory 134217728"), "{fallback}");
    assert!(!worker.vmm.calls().iter().any(|call| call.starts_with("restore")));
    worker.stop(0).await.unwrap();
    worker.ended().await;
}

#[tokio::test]
async fn the_memory_of_a_template_is_never_booted_on() {
    let dir = tempfile::tempdir().unwrap();
    let config = with_state(dir.path(), StartKind::Template);
    let vm = VmSpec { ram: Ram::Template, ..config.vm };
    let config = WorkerConfig { vm, ..config };
    let vmm = FakeVmm::new([Guest::Dies("bad state"), Guest::Normal]);
    let worker = Worker::start_with(dir, config, vmm).await;
    assert!(worker.ready().await.fallback.is_some());
    assert_eq!(worker.vmm.rams(), [Ram::Template, Ram::Anonymous]);
    worker.stop(0).await.unwrap();
    worker.ended().await;
}

#[tokio::test]
async fn a_vm_that_cannot_be_saved_runs_on_and_can_be_saved_later() {
    let vmm = FakeVmm::new([Guest::Normal]).saves([Save::Fails("no room")]);
    let worker = start(vmm).await;
    worker.ready().await;
    let error = worker.call(HIBERNATE).await.unwrap_err().to_string();
    assert_eq!(error, "the VMM refused `save`: no room");
    assert_eq!((worker.phase().await, leftovers(&worker.dir).len()), (Phase::Running, 0));
    assert_eq!(worker.vmm.hellos().len(), 2);
    assert_eq!(worker.stream("CONNECT 2\n").await.1, "OK\n");
    worker.call(PAUSE).await.unwrap();
    worker.call(RESUME).await.unwrap();
    worker.call(HIBERNATE).await.unwrap();
    assert_eq!(ended(worker).await.1, ExitReason::Hibernated);
}

#[tokio::test]
async fn a_vm_whose_end_cannot_be_written_down_runs_on() {
    let worker = start(FakeVmm::new([Guest::Normal])).await;
    worker.ready().await;
    // A name that cannot be replaced by a file.
    fs::create_dir_all(file(&worker.dir, SAVED_FILE).join("occupied")).unwrap();
    let error = worker.call(HIBERNATE).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot write down that the VM is saved"), "{error}");
    let calls = worker.vmm.calls();
    assert_eq!(calls[calls.len() - 3..], ["save", "resume", "connect"]);
    assert_eq!((worker.phase().await, leftovers(&worker.dir)), (Phase::Running, vec![SAVED_FILE.to_owned()]));
    worker.stop(0).await.unwrap();
    worker.ended().await;
}

#[tokio::test]
async fn a_guest_that_does_not_park_runs_on() {
    let worker = start(FakeVmm::new([Guest::Restless])).await;
    worker.ready().await;
    let error = worker.call(HIBERNATE).await.unwrap_err().to_string();
    assert!(error.contains("the guest did not park") && error.contains("no rest"), "{error}");
    assert_eq!(worker.phase().await, Phase::Running);
    assert!(!worker.vmm.calls().contains(&"save".to_owned()));
    worker.stop(1000).await.unwrap();
    assert_eq!(worker.ended().await.message, "stopped in order");
}

#[tokio::test]
async fn a_paused_vm_runs_to_be_saved() {
    let worker = start(FakeVmm::new([Guest::Normal])).await;
    worker.ready().await;
    worker.call(PAUSE).await.unwrap();
    worker.call(HIBERNATE).await.unwrap();
    assert_eq!(worker.vmm.calls()[3..], ["pause", "resume", "guest park", "save", "kill"]);
    assert_eq!(ended(worker).await.1, ExitReason::Hibernated);
}

#[tokio::test]
async fn everybody_who_wants_to_hibernate_gets_the_same_answer() {
    let vmm = FakeVmm::new([Guest::Normal]).saves([Save::Hangs]);
    let worker = start(vmm).await;
    worker.ready().await;
    let meanwhile = async {
        worker.vmm.called("save").await;
        assert_eq!(worker.phase().await, Phase::Hibernating);
        assert_eq!(worker.stream("CONNECT 2\n").await.1, "ERR hibernating\n");
        assert!(worker.call(PAUSE).await.unwrap_err().to_string().contains("being hibernated"));
        let stop = async {
            // Behind the second request, which is refused nothing and answered by the same end.
            worker.stop(60_000).await
        };
        tokio::join!(worker.call(HIBERNATE), stop)
    };
    let (first, (second, stopped)) = tokio::join!(worker.call(HIBERNATE), meanwhile);
    assert_eq!(first.unwrap_err().to_string(), "the VM was stopped instead");
    assert_eq!(second.unwrap_err().to_string(), "the VM was stopped instead");
    stopped.unwrap();
    // Killed, however much grace there was: it may have been parked.
    assert!(!worker.vmm.calls().contains(&"guest shutdown".to_owned()));
    let (dir, reason) = ended(worker).await;
    assert_eq!((reason, leftovers(&dir).len()), (ExitReason::Stopped, 0));
}

#[tokio::test]
async fn a_vmm_that_dies_while_it_saves_leaves_no_saved_vm() {
    let vmm = FakeVmm::new([Guest::Normal]).saves([Save::Hangs]);
    let worker = start(vmm).await;
    worker.ready().await;
    let death = async {
        worker.vmm.called("save").await;
        worker.vmm.exit(aegis_vmm::VmExit::Died("signal 9".into()));
    };
    let (outcome, ()) = tokio::join!(worker.call(HIBERNATE), death);
    assert_eq!(outcome.unwrap_err().to_string(), "the VMM ended: signal 9");
    let (dir, reason) = ended(worker).await;
    assert_eq!((reason, leftovers(&dir).len()), (ExitReason::VmmDied, 0));
}

#[tokio::test]
async fn a_vm_without_a_memory_file_does_not_hibernate() {
    let worker = Worker::start([Guest::Normal]).await;
    worker.ready().await;
    let error = worker.call(HIBERNATE).await.unwrap_err().to_string();
    assert!(error.contains("its memory is not a file"), "{error}");
    assert_eq!(worker.phase().await, Phase::Running);
    worker.stop(0).await.unwrap();
    worker.ended().await;
}
