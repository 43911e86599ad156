//! Sizes of disks: what was asked for is how long the file is, and it only grows.

use aegis_api::{CreateInstance, ErrorCode, UpdateInstance};
use aegis_client::Action;
use aegis_types::{DiskSize, InstanceId, InstanceState};

use crate::support::{Host, refusal, within};

fn mib(mib: u64) -> DiskSize {
    DiskSize::new(mib).unwrap()
}

/// Length of an instance's disk and what it takes, in bytes.
async fn disk(host: &Host, id: &InstanceId) -> (u64, u64) {
    let stats = within(host.client.stats()).await.unwrap();
    let taken = stats.instances.iter().find(|stats| stats.id == *id).unwrap().disk_bytes;
    let path = host.home.home().instance_dir(id).join("upper.ext4");
    (std::fs::metadata(path).unwrap().len(), taken)
}

async fn start(host: &Host, handle: &str, disk: Option<DiskSize>) -> InstanceId {
    let wanted = CreateInstance { disk_mb: disk, ..host.instance(handle, &["sleep", "100000"]) };
    let id = host.create(&wanted).await;
    host.reach(&id, InstanceState::Running).await;
    id
}

fn to(size: DiskSize) -> UpdateInstance {
    UpdateInstance { disk_mb: Some(size), ..UpdateInstance::default() }
}

#[tokio::test]
async fn a_disk_is_as_long_as_was_asked_for_and_takes_what_is_in_it() {
    let host =
        Host::start_with(|options| options.settings.default_disk.value = DiskSize::new(5000).unwrap()).await;
    for (handle, wanted, has) in [
        ("default", None, mib(5000)),
        ("small", Some(mib(64)), mib(64)),
        ("large", Some(DiskSize::MAX), DiskSize::MAX),
    ] {
        let id = start(&host, handle, wanted).await;
        assert_eq!(host.info(&id).await.disk_mb, has);
        let (length, taken) = disk(&host, &id).await;
        assert_eq!(length, has.bytes(), "{handle}");
        assert!(taken < 1 << 20, "{handle}: {taken}");
    }
    host.end().await;
}

#[tokio::test]
async fn a_disk_grows_at_the_next_boot_and_outlives_the_daemon() {
    let mut host = Host::start().await;
    let id = start(&host, "web", Some(mib(300))).await;
    let updated = within(host.client.update("web", &to(mib(400)))).await.unwrap();
    assert!(updated.restart_required && updated.warnings.is_empty(), "{updated:?}");
    assert_eq!(host.info(&id).await.disk_mb, mib(400));
    assert_eq!(disk(&host, &id).await.0, mib(300).bytes(), "its VM has the one that it knows");
    host.crash().await;
    host.up().await;
    assert_eq!(host.info(&id).await.disk_mb, mib(400));
    within(host.client.action("web", Action::Restart)).await.unwrap();
    host.reach(&id, InstanceState::Running).await;
    assert_eq!(disk(&host, &id).await.0, mib(400).bytes());
    host.end().await;
}

#[tokio::test]
async fn a_disk_never_shrinks() {
    let host = Host::start().await;
    let id = start(&host, "web", Some(mib(300))).await;
    for size in [mib(299), DiskSize::MIN] {
        let error = within(host.client.update("web", &to(size))).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("its disk has 300 MiB and cannot shrink to"), "{text}");
        assert_eq!(refusal(error).1, ErrorCode::InvalidRequest);
    }
    // Not even with something else that would be fine.
    let both = UpdateInstance { never_pause: true, ..to(mib(100)) };
    within(host.client.update("web", &both)).await.unwrap_err();
    let info = host.info(&id).await;
    assert!(info.disk_mb == mib(300) && !info.never_pause);
    // The same size is nothing to wait for.
    let same = within(host.client.update("web", &to(mib(300)))).await.unwrap();
    assert!(!same.restart_required);
    host.end().await;
}
