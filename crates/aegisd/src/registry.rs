//! The registry of the lifecycle, kept in `aegis-store`.

use aegis_lifecycle::ports::{Registry, RegistryError};
use aegis_lifecycle::record::{InstanceSpec, LastStop, Record};
use aegis_store::{InstanceRow, Store};
use aegis_types::InstanceId;
use async_trait::async_trait;

use crate::text::chain;

/// Converts between records and rows.
pub(crate) struct StoredRegistry(pub(crate) Store);

#[async_trait]
impl Registry for StoredRegistry {
    async fn save(&self, record: &Record) -> Result<(), RegistryError> {
        self.0.save(to_row(record.clone())).await.map_err(|e| RegistryError(chain(&e)))
    }

    async fn delete(&self, id: &InstanceId) -> Result<(), RegistryError> {
        self.0.delete(id.clone()).await.map_err(|e| RegistryError(chain(&e)))
    }
}

fn to_row(record: Record) -> InstanceRow {
    let Record { spec, enabled, live, updated_at, last_active_at, life_began_at, crashes, last_stop } =
        record;
    let (stopped_at, stop_reason, exit_code, last_error) = match last_stop {
        Some(stop) => (Some(stop.at), Some(stop.reason), stop.exit_code, stop.error),
        None => (None, None, None, None),
    };
    InstanceRow {
        id: spec.id,
        handle: spec.handle,
        image_ref: spec.image,
        command: spec.command,
        env: spec.env,
        workdir: spec.workdir,
        user: spec.user,
        tty: spec.tty,
        stdin: spec.stdin,
        oci_defaults: spec.oci_defaults,
        memory: spec.memory,
        disk: spec.disk,
        vcpus: spec.vcpus,
        policy: spec.policy,
        parent_id: spec.parent,
        mounts: spec.mounts,
        auto_workspace: spec.auto_workspace,
        created_at: spec.created_at,
        enabled,
        live,
        updated_at,
        last_active_at,
        life_began_at,
        crashes,
        stopped_at,
        stop_reason,
        exit_code,
        last_error,
    }
}

/// The record of a row.
pub(crate) fn to_record(row: InstanceRow) -> Record {
    let last_stop = match (row.stopped_at, row.stop_reason) {
        (Some(at), Some(reason)) => {
            Some(LastStop { at, reason, exit_code: row.exit_code, error: row.last_error })
        }
        _ => None,
    };
    Record {
        spec: InstanceSpec {
            id: row.id,
            handle: row.handle,
            image: row.image_ref,
            command: row.command,
            env: row.env,
            workdir: row.workdir,
            user: row.user,
            tty: row.tty,
            stdin: row.stdin,
            oci_defaults: row.oci_defaults,
            memory: row.memory,
            disk: row.disk,
            vcpus: row.vcpus,
            policy: row.policy,
            parent: row.parent_id,
            mounts: row.mounts,
            auto_workspace: row.auto_workspace,
            created_at: row.created_at,
        },
        enabled: row.enabled,
        live: row.live,
        updated_at: row.updated_at,
        last_active_at: row.last_active_at,
        life_began_at: row.life_began_at,
        crashes: row.crashes,
        last_stop,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use aegis_types::{DiskSize, Handle, ImageName, Mib, Mount, MountPoint, Policy, StopReason, Vcpus};
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_record_survives_its_row() {
        let spec = InstanceSpec {
            id: InstanceId::from_unix_nanos(1),
            handle: Some(Handle::parse("web").unwrap()),
            image: ImageName::parse("base").unwrap(),
            command: vec!["true".into()],
            env: [("K".to_owned(), "V".to_owned())].into(),
            workdir: Some("/srv".into()),
            user: Some("app".into()),
            tty: true,
            stdin: true,
            oci_defaults: true,
            memory: Mib::DEFAULT,
            disk: DiskSize::new(300).unwrap(),
            vcpus: Vcpus::DEFAULT,
            policy: Policy { no_hibernate: true, ..Policy::default() },
            parent: Some(InstanceId::from_unix_nanos(7)),
            mounts: vec![Mount { host: "/srv".into(), guest: MountPoint::workspace(), read_only: true }],
            auto_workspace: true,
            created_at: Timestamp::UNIX_EPOCH,
        };
        let stop = LastStop {
            at: Timestamp::UNIX_EPOCH,
            reason: StopReason::Exited,
            exit_code: Some(3),
            error: Some("no".into()),
        };
        for last_stop in [Some(stop), None] {
            let record = Record {
                spec: spec.clone(),
                enabled: true,
                live: false,
                updated_at: Timestamp::UNIX_EPOCH,
                last_active_at: Some(Timestamp::UNIX_EPOCH),
                life_began_at: Some(Timestamp::UNIX_EPOCH),
                crashes: 2,
                last_stop,
            };
            assert_eq!(to_record(to_row(record.clone())), record);
        }
    }
}
