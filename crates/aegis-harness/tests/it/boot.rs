//! Boot order, and what the host hears when the root cannot be made.

use aegis_harness::sys::fake::{Call, DISK_BYTES, FakeSys};
use aegis_link::rpc::CallError;
use aegis_proto::control::StartFailureKind;

use crate::vm::{Vm, hello, sh};

fn position(calls: &[Call], wanted: &Call) -> usize {
    calls.iter().position(|call| call == wanted).unwrap_or_else(|| panic!("{wanted:?} is not in {calls:?}"))
}

fn mounts(calls: &[Call]) -> Vec<&str> {
    let mut targets = Vec::new();
    for call in calls {
        if let Call::Mount { target, .. } = call {
            targets.push(target.as_str());
        }
    }
    targets
}

#[tokio::test]
async fn the_root_is_complete_before_a_process_runs() {
    let vm =
        Vm::on(FakeSys::new().with_modules(&["virtio.ko", "virtio_console.ko", "virtio_blk.ko", "erofs.ko"]));
    let host = vm.link().await;
    host.run(sh("true")).await.unwrap();
    let calls = vm.sys.calls();
    assert_eq!(
        mounts(&calls),
        [
            "/dev",
            "/proc",
            "/sys",
            "/aegis/lower",
            "/aegis/upper",
            "/aegis/root",
            "/dev/pts",
            "/dev/shm",
            "/tmp",
            "/run",
            "/sys/fs/cgroup",
            "/dev/mqueue"
        ]
    );
    let at = |call: Call| position(&calls, &call);
    let module = |name: &str| at(Call::LoadModule(format!("/modules/{name}")));
    let mounted =
        |kind: &str, target: &str| at(Call::Mount { kind: kind.to_owned(), target: target.to_owned() });
    assert!(mounted("sysfs", "/sys") < module("virtio.ko"));
    assert!(module("virtio_console.ko") < module("virtio_blk.ko"));
    assert!(module("erofs.ko") < mounted("erofs", "/aegis/lower"));
    assert!(mounted("overlay", "/aegis/root") < at(Call::SwitchRoot("/aegis/root".to_owned())));
    assert!(at(Call::SwitchRoot("/aegis/root".to_owned())) < mounted("devpts", "/dev/pts"));
    let grown = at(Call::GrowDisk(DISK_BYTES));
    assert!(at(Call::SwitchRoot("/aegis/root".to_owned())) < grown);
    assert!(grown < at(Call::WriteFile("/etc/machine-id".into())));
    // The greeting did not wait for the disks, and the files of the identity did.
    assert!(at(Call::Hostname("web".to_owned())) < module("virtio_blk.ko"));
    assert!(at(Call::LoopbackUp) < at(Call::WriteFile("/etc/machine-id".into())));
    assert_eq!(vm.sys.file("/etc/machine-id").unwrap(), format!("{}\n", hello().machine_id).as_bytes());
    assert_eq!(vm.sys.file("/etc/hostname").unwrap(), b"web\n");
    assert!(vm.sys.file("/etc/hosts").unwrap().starts_with(b"127.0.0.1\tlocalhost\n127.0.1.1\tweb\n"));
}

#[tokio::test]
async fn a_disk_that_cannot_be_filled_is_used_as_it_is() {
    let vm = Vm::on(FakeSys::new().with_broken_growth());
    vm.link().await.run(sh("true")).await.unwrap();
}

#[tokio::test]
async fn files_of_the_image_are_left_alone() {
    let sys = FakeSys::new().with_file("/etc/hosts", b"mine");
    let vm = Vm::on(sys);
    vm.link().await.run(sh("true")).await.unwrap();
    assert_eq!(vm.sys.file("/etc/hosts").unwrap(), b"mine");
}

#[tokio::test]
async fn the_root_is_prepared_without_a_host() {
    let vm = Vm::new();
    crate::vm::within(async {
        while !vm.sys.calls().contains(&Call::LoopbackUp) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn missing_disks_are_reported_on_a_working_link() {
    let vm = Vm::on(FakeSys::new().without_disks());
    let host = vm.link().await;
    let Err(CallError::Rpc(error)) = host.run(sh("true")).await else { panic!("it must fail") };
    assert!(error.message.contains("no disk has the serial number `aegis-root`"), "{error}");
    assert_eq!(host.status().await.primary_pid, None);
}

#[tokio::test]
async fn a_broken_root_is_reported_on_a_working_link() {
    let vm = Vm::on(FakeSys::new().with_broken_mount("overlay"));
    let host = vm.link().await;
    let Err(CallError::Rpc(error)) = host.run(sh("true")).await else { panic!("it must fail") };
    assert!(error.message.contains("cannot mount the root file system: Invalid argument"), "{error}");
    let failure = host.exec(sh("true"), false).await.refused().await;
    assert_eq!(failure.kind, StartFailureKind::Resources);
    assert!(!vm.sys.calls().iter().any(|call| matches!(call, Call::SwitchRoot(_))));
}

#[tokio::test]
async fn mounts_that_programs_can_do_without_are_optional() {
    let vm = Vm::on(FakeSys::new().with_broken_mount("mqueue"));
    vm.link().await.run(sh("true")).await.unwrap();
}
