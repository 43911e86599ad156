//! The registry as its user sees it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aegis_store::{ExposeRow, InstanceRow, Sealed, SecretRow, Store, StoreError};
use aegis_types::{
    DiskSize, GuestPort, Handle, IdlePolicy, ImageName, InstanceId, Mib, Mount, MountPoint, Policy, Protocol,
    PublicPort, RestartPolicy, SecretName, StopReason, Vcpus, WantedSecrets,
};
use jiff::Timestamp;

fn row(id: u64) -> InstanceRow {
    let at = |second| Timestamp::new(1_700_000_000 + second, 123_456_789).unwrap();
    InstanceRow {
        id: InstanceId::from_unix_nanos(id),
        handle: Some(Handle::parse(&format!("web-{id}")).unwrap()),
        image_ref: ImageName::parse("base:v1").unwrap(),
        command: vec!["sh".into(), "-c".into(), "echo \"ä\"\n".into()],
        env: [("K".to_owned(), "V=\u{1F600}".to_owned())].into(),
        workdir: Some("/srv".into()),
        user: Some("app:staff".into()),
        tty: true,
        stdin: true,
        memory: Mib::new(256).unwrap(),
        disk: DiskSize::new(2048).unwrap(),
        vcpus: Vcpus::new(2).unwrap(),
        policy: Policy { ephemeral: true, ..Policy::default() },
        parent_id: Some(InstanceId::from_unix_nanos(9)),
        mounts: vec![Mount { host: "/srv".into(), guest: MountPoint::workspace(), read_only: true }],
        auto_workspace: true,
        oci_defaults: true,
        created_at: at(i64::try_from(id).unwrap()),
        enabled: true,
        live: true,
        updated_at: at(1),
        last_active_at: Some(at(2)),
        life_began_at: None,
        crashes: 0,
        stopped_at: Some(at(3)),
        stop_reason: Some(StopReason::Exited),
        exit_code: Some(255),
        last_error: Some("no".into()),
    }
}

fn bare(id: u64) -> InstanceRow {
    InstanceRow {
        handle: None,
        workdir: None,
        user: None,
        tty: false,
        stdin: false,
        env: Default::default(),
        last_active_at: None,
        stopped_at: None,
        stop_reason: None,
        exit_code: None,
        last_error: None,
        live: false,
        enabled: false,
        ..row(id)
    }
}

fn home() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("aegis.db");
    (dir, path)
}

async fn loaded(path: &Path) -> Vec<InstanceRow> {
    Store::open(path).unwrap().load().await.unwrap()
}

#[tokio::test]
async fn rows_survive_a_reopen_exactly_and_oldest_first() {
    let (_dir, path) = home();
    let store = Store::open(&path).unwrap();
    for row in [row(3), bare(2), row(1)] {
        store.save(row).await.unwrap();
    }
    drop(store);
    assert_eq!(loaded(&path).await, [row(1), bare(2), row(3)]);
}

#[tokio::test]
async fn saving_again_replaces_and_deleting_is_idempotent() {
    let (_dir, path) = home();
    let store = Store::open(&path).unwrap();
    store.save(row(1)).await.unwrap();
    let changed = InstanceRow { live: false, exit_code: None, ..row(1) };
    store.save(changed.clone()).await.unwrap();
    assert_eq!(store.load().await.unwrap(), [changed]);
    store.delete(row(1).id).await.unwrap();
    store.delete(row(1).id).await.unwrap();
    assert_eq!(store.load().await.unwrap(), []);
}

#[tokio::test]
async fn a_handle_is_unique_and_its_absence_is_not() {
    let (_dir, path) = home();
    let store = Store::open(&path).unwrap();
    for id in [1, 2] {
        store.save(bare(id)).await.unwrap();
    }
    store.save(row(3)).await.unwrap();
    let twin = InstanceRow { handle: row(3).handle, ..row(4) };
    assert!(
        matches!(store.save(twin).await, Err(StoreError::HandleTaken(h)) if Some(&h) == row(3).handle.as_ref())
    );
    assert_eq!(store.load().await.unwrap().len(), 3);
}

#[tokio::test]
async fn every_file_is_private() {
    let (dir, path) = home();
    fs::write(&path, b"").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let store = Store::open(&path).unwrap();
    store.save(row(1)).await.unwrap();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
    }
}

#[test]
fn a_file_that_is_no_database_is_refused_and_kept() {
    let (_dir, path) = home();
    let text = "not a database, but long enough to have a header of one hundred bytes ".repeat(4);
    fs::write(&path, &text).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Corrupt { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test]
async fn closing_leaves_one_file_and_refuses_later_calls() {
    let (dir, path) = home();
    let store = Store::open(&path).unwrap();
    store.save(row(1)).await.unwrap();
    store.close().await;
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(matches!(store.save(row(2)).await, Err(StoreError::Closed)));
    store.close().await;
    assert_eq!(loaded(&path).await, [row(1)]);
}

#[test]
fn a_newer_schema_is_refused() {
    let (_dir, path) = home();
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    assert!(matches!(Store::open(&path), Err(StoreError::NewerSchema { found: 99, .. })));
}

#[tokio::test]
async fn a_damaged_row_is_an_error_that_names_it() {
    let (_dir, path) = home();
    let store = Store::open(&path).unwrap();
    store.save(row(1)).await.unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute("UPDATE instances SET memory_mb = 1", []).unwrap();
    let error = store.load().await.unwrap_err();
    assert!(matches!(&error, StoreError::BadRow { column: "memory_mb", .. }), "{error}");
    assert!(error.to_string().contains("inst-1"), "{error}");
}

fn expose(instance: u64, guest: u16, public: u16) -> ExposeRow {
    ExposeRow {
        instance_id: InstanceId::from_unix_nanos(instance),
        guest: GuestPort::new(guest).unwrap(),
        public: PublicPort::new(public).unwrap(),
        chosen: guest == 80,
        protocol: if guest == 80 { Protocol::Http } else { Protocol::Grpc },
    }
}

#[tokio::test]
async fn every_policy_survives_a_reopen() {
    let (_dir, path) = home();
    let store = Store::open(&path).unwrap();
    let policy = Policy {
        pause_after: Some(Duration::from_millis(1500)),
        hibernate_after: Some(Duration::ZERO),
        never_pause: true,
        no_hibernate: true,
        max_lifetime: Some(Duration::from_secs(86_400)),
        restart: RestartPolicy::OnFailure,
        idle: IdlePolicy::LeasesOnly,
        ephemeral: false,
    };
    let row = InstanceRow { policy, life_began_at: Some(Timestamp::UNIX_EPOCH), ..row(1) };
    store.save(row.clone()).await.unwrap();
    drop(store);
    assert_eq!(loaded(&path).await, [row]);
}

#[tokio::test]
async fn exposed_ports_survive_a_reopen_exactly() {
    let (_dir, path) = home();
    let store = Store::open(&path).unwrap();
    for id in [1, 2] {
        store.save(row(id)).await.unwrap();
    }
    let all = [expose(1, 80, 8080), expose(1, 9000, 65535), expose(2, 80, 8081)];
    for row in all.iter().rev() {
        store.save_expose(row.clone()).await.unwrap();
    }
    drop(store);
    assert_eq!(Store::open(&path).unwrap().load_exposes().await.unwrap(), all);
}

#[tokio::test]
async fn exposing_again_replaces_and_deleting_is_idempotent() {
    let (_dir, path) = home();
    let store = Store::open(&path).unwrap();
    store.save(row(1)).await.unwrap();
    store.save_expose(expose(1, 80, 8080)).await.unwrap();
    store.save_expose(expose(1, 443, 8443)).await.unwrap();
    let changed = ExposeRow { chosen: false, protocol: Protocol::Tcp, ..expose(1, 80, 9090) };
    store.save_expose(changed.clone()).await.unwrap();
    for _ in 0..2 {
        store.delete_expose(row(1).id, GuestPort::new(443).unwrap()).await.unwrap();
    }
    assert_eq!(store.load_exposes().await.unwrap(), [changed]);
}

#[tokio::test]
async fn exposed_ports_go_with_their_instance_and_only_then() {
    let (_dir, path) = home();
    let store = Store::open(&path).unwrap();
    for id in [1, 2] {
        store.save(row(id)).await.unwrap();
        store.save_expose(expose(id, 80, 8080)).await.unwrap();
    }
    // A save must not be a deletion in disguise.
    store.save(InstanceRow { live: false, ..row(1) }).await.unwrap();
    assert_eq!(store.load_exposes().await.unwrap().len(), 2);
    store.delete(row(1).id).await.unwrap();
    assert_eq!(store.load_exposes().await.unwrap(), [expose(2, 80, 8080)]);
    let error = store.save_expose(expose(1, 80, 8080)).await.unwrap_err();
    assert!(matches!(&error, StoreError::NoInstance(id) if *id == row(1).id), "{error}");
}

/// The schema as the first version wrote it.
const VERSION_1: &str = "
    CREATE TABLE instances (
        id TEXT PRIMARY KEY, handle TEXT UNIQUE, image_ref TEXT NOT NULL, command TEXT NOT NULL, env TEXT NOT NULL,
        workdir TEXT, memory_mb INTEGER NOT NULL, vcpus INTEGER NOT NULL, created_at TEXT NOT NULL,
        enabled INTEGER NOT NULL, live INTEGER NOT NULL, updated_at TEXT NOT NULL, last_active_at TEXT,
        stopped_at TEXT, stop_reason TEXT, exit_code INTEGER, last_error TEXT
    ) STRICT;
    INSERT INTO instances VALUES ('inst-7', 'old', 'base', '[\"x\"]', '{}', NULL, 512, 1,
        '2026-01-01T00:00:00Z', 1, 0, '2026-01-02T00:00:00Z', NULL, '2026-01-02T00:00:00Z', 'exited', 3, NULL);
    PRAGMA user_version = 1;";

#[tokio::test]
async fn a_file_of_the_first_version_keeps_its_instances_and_takes_ports() {
    let (_dir, path) = home();
    rusqlite::Connection::open(&path).unwrap().execute_batch(VERSION_1).unwrap();
    let store = Store::open(&path).unwrap();
    let [old] = &store.load().await.unwrap()[..] else { panic!("one row") };
    assert_eq!((old.handle.as_ref().unwrap().as_str(), old.exit_code), ("old", Some(3)));
    assert_eq!((&old.policy, old.life_began_at), (&Policy::default(), None));
    assert_eq!(store.load_exposes().await.unwrap(), []);
    store.save_expose(expose(7, 80, 8080)).await.unwrap();
    store.delete(old.id.clone()).await.unwrap();
    assert_eq!(store.load_exposes().await.unwrap(), []);
}

#[tokio::test]
async fn a_damaged_port_is_an_error_that_names_it() {
    let (_dir, path) = home();
    let store = Store::open(&path).unwrap();
    store.save(row(1)).await.unwrap();
    store.save_expose(expose(1, 80, 8080)).await.unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    for (change, column) in [
        ("public_port = 0", "public_port"),
        ("public_port = 65536", "public_port"),
        ("public_port = 1, protocol = 'udp'", "protocol"),
    ] {
        other.execute(&format!("UPDATE exposes SET {change}"), []).unwrap();
        let error = store.load_exposes().await.unwrap_err();
        assert!(matches!(&error, StoreError::BadRow { column: c, .. } if *c == column), "{error}");
        assert!(error.to_string().contains("inst-1"), "{error}");
    }
}

fn secret(name: &str, value: &[u8]) -> SecretRow {
    SecretRow {
        name: SecretName::parse(name).unwrap(),
        value: value.to_vec(),
        created_at: Timestamp::UNIX_EPOCH,
    }
}

#[tokio::test]
async fn secrets_are_kept_by_name_and_all_that_is_sealed_changes_together() {
    let (_dir, path) = home();
    let store = Store::open(&path).unwrap();
    let (id, gone) = (InstanceId::from_unix_nanos(1), InstanceId::from_unix_nanos(2));
    store.save(row(1)).await.unwrap();
    let wanted = WantedSecrets { variables: vec!["A".parse().unwrap()], files: Vec::new() };
    for id in [&id, &gone] {
        store.save_wanted(id.clone(), wanted.clone()).await.unwrap();
        store.save_injected(id.clone(), Some(b"old".to_vec())).await.unwrap();
    }
    for (name, value) in [("B", b"1"), ("A", b"2"), ("B", b"3")] {
        store.save_secret(secret(name, value)).await.unwrap();
    }
    assert_eq!(store.load_secrets().await.unwrap(), [secret("A", b"2"), secret("B", b"3")]);
    let new = Sealed {
        check: Some(b"check".to_vec()),
        secrets: ["A", "B", "C"].map(|name| (SecretName::parse(name).unwrap(), b"new".to_vec())).into(),
        injected: vec![(id.clone(), b"new".to_vec())],
    };
    store.replace_sealed(new.clone()).await.unwrap();
    store.forget_secrets(None).await.unwrap();
    store.close().await;
    let store = Store::open(&path).unwrap();
    // What is not there is not made, and what belongs to no instance is gone.
    let expected = Sealed { secrets: new.secrets[..2].to_vec(), ..new };
    assert_eq!(store.load_sealed().await.unwrap(), expected);
    assert_eq!(store.load_wanted(id.clone()).await.unwrap(), wanted);
    assert!(store.load_wanted(gone).await.unwrap().is_empty());
    let a = SecretName::parse("A").unwrap();
    assert!(store.delete_secret(a.clone()).await.unwrap() && !store.delete_secret(a).await.unwrap());
    store.save_injected(id.clone(), None).await.unwrap();
    assert!(store.load_sealed().await.unwrap().injected.is_empty());
    store.delete(id.clone()).await.unwrap();
    assert!(store.load_wanted(id).await.unwrap().is_empty());
}
