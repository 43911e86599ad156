//! A row of the table `instances`.

use std::collections::BTreeMap;

use aegis_types::{DiskSize, Handle, ImageName, InstanceId, Mib, Mount, Policy, StopReason, Vcpus};
use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, Row, named_params};

use crate::StoreError;
use crate::columns::Columns;

/// What is remembered of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRow {
    /// Id.
    pub id: InstanceId,
    /// Name, unique.
    pub handle: Option<Handle>,
    /// Image of the root file system.
    pub image_ref: ImageName,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment of the command.
    pub env: BTreeMap<String, String>,
    /// Working directory of the command.
    pub workdir: Option<String>,
    /// User of the command.
    pub user: Option<String>,
    /// The command has a terminal.
    pub tty: bool,
    /// The command's standard input is open.
    pub stdin: bool,
    /// Entry point, command, working directory and user of the image count.
    pub oci_defaults: bool,
    /// Guest memory.
    pub memory: Mib,
    /// Size of the disk that the guest writes.
    pub disk: DiskSize,
    /// Virtual CPUs.
    pub vcpus: Vcpus,
    /// What it does by itself.
    pub policy: Policy,
    /// The instance that it belongs to.
    pub parent_id: Option<InstanceId>,
    /// Directories of the host that its guest mounts.
    pub mounts: Vec<Mount>,
    /// The first of them goes with the instance.
    pub auto_workspace: bool,
    /// Creation.
    pub created_at: Timestamp,
    /// It may be woken.
    pub enabled: bool,
    /// A VM was started and its end was not recorded.
    pub live: bool,
    /// Last change of state.
    pub updated_at: Timestamp,
    /// Last time that it was started or used.
    pub last_active_at: Option<Timestamp>,
    /// Last start that was not a restore.
    pub life_began_at: Option<Timestamp>,
    /// Crashes in a row.
    pub crashes: u8,
    /// End of the last VM.
    pub stopped_at: Option<Timestamp>,
    /// Why the last VM ended.
    pub stop_reason: Option<StopReason>,
    /// Exit code of the command.
    pub exit_code: Option<u8>,
    /// What went wrong last.
    pub last_error: Option<String>,
}

const UPSERT: &str = "
    INSERT INTO instances (id, handle, image_ref, command, env, workdir, user, tty, stdin, memory_mb, disk_mb, vcpus, policy, parent_id, mounts, auto_workspace,
        oci_defaults, created_at, enabled, live, updated_at, last_active_at, life_began_at, crashes, stopped_at, stop_reason, exit_code, last_error)
    VALUES (:id, :handle, :image_ref, :command, :env, :workdir, :user, :tty, :stdin, :memory_mb, :disk_mb, :vcpus, :policy, :parent_id, :mounts, :auto_workspace,
        :oci_defaults, :created_at, :enabled, :live, :updated_at, :last_active_at, :life_began_at, :crashes, :stopped_at, :stop_reason, :exit_code, :last_error)
    ON CONFLICT (id) DO UPDATE SET
        handle = excluded.handle, image_ref = excluded.image_ref, command = excluded.command, env = excluded.env,
        workdir = excluded.workdir, user = excluded.user, tty = excluded.tty, stdin = excluded.stdin, memory_mb = excluded.memory_mb, disk_mb = excluded.disk_mb, vcpus = excluded.vcpus, policy = excluded.policy,
        parent_id = excluded.parent_id, mounts = excluded.mounts, auto_workspace = excluded.auto_workspace,
        oci_defaults = excluded.oci_defaults, created_at = excluded.created_at, enabled = excluded.enabled, live = excluded.live,
        updated_at = excluded.updated_at, last_active_at = excluded.last_active_at,
        life_began_at = excluded.life_began_at, crashes = excluded.crashes,
        stopped_at = excluded.stopped_at, stop_reason = excluded.stop_reason, exit_code = excluded.exit_code,
        last_error = excluded.last_error";

impl InstanceRow {
    pub(crate) fn save(&self, connection: &Connection) -> Result<(), StoreError> {
        let text = |value: Option<Timestamp>| value.map(|t| t.to_string());
        let mut statement =
            connection.prepare_cached(UPSERT).map_err(StoreError::sqlite("save an instance"))?;
        let saved = statement.execute(named_params! {
            ":id": self.id.as_str(),
            ":handle": self.handle.as_ref().map(Handle::as_str),
            ":image_ref": self.image_ref.as_str(),
            ":command": serde_json::to_string(&self.command).expect("strings serialise"),
            ":env": serde_json::to_string(&self.env).expect("strings serialise"),
            ":workdir": self.workdir,
            ":user": self.user,
            ":tty": self.tty,
            ":stdin": self.stdin,
            ":memory_mb": self.memory.get(),
            ":disk_mb": self.disk.get(),
            ":vcpus": self.vcpus.get(),
            ":policy": serde_json::to_string(&self.policy).expect("plain data serialises"),
            ":parent_id": self.parent_id.as_ref().map(InstanceId::as_str),
            ":mounts": serde_json::to_string(&self.mounts).map_err(|e| StoreError::BadRow {
                id: self.id.to_string(),
                column: "mounts",
                reason: e.to_string(),
            })?,
            ":auto_workspace": self.auto_workspace,
            ":oci_defaults": self.oci_defaults,
            ":created_at": self.created_at.to_string(),
            ":enabled": self.enabled,
            ":live": self.live,
            ":updated_at": self.updated_at.to_string(),
            ":last_active_at": text(self.last_active_at),
            ":life_began_at": text(self.life_began_at),
            ":crashes": self.crashes,
            ":stopped_at": text(self.stopped_at),
            ":stop_reason": self.stop_reason.map(StopReason::as_str),
            ":exit_code": self.exit_code,
            ":last_error": self.last_error,
        });
        match (saved, &self.handle) {
            (Ok(_), _) => Ok(()),
            // The id cannot conflict in an upsert, so the handle is what is not unique.
            (Err(e), Some(handle)) if e.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                Err(StoreError::HandleTaken(handle.clone()))
            }
            (Err(e), _) => Err(StoreError::sqlite("save an instance")(e)),
        }
    }

    pub(crate) fn load_all(connection: &Connection) -> Result<Vec<InstanceRow>, StoreError> {
        let failed = StoreError::sqlite("read the registry");
        let mut statement =
            connection.prepare("SELECT * FROM instances ORDER BY created_at, id").map_err(&failed)?;
        let mut rows = statement.query([]).map_err(&failed)?;
        let mut all = Vec::new();
        while let Some(row) = rows.next().map_err(&failed)? {
            all.push(Self::read(row)?);
        }
        Ok(all)
    }

    fn read(row: &Row<'_>) -> Result<InstanceRow, StoreError> {
        let columns = Columns::of(row, "id");
        Ok(InstanceRow {
            id: columns.parsed("id")?,
            handle: columns.parsed_option("handle")?,
            image_ref: columns.parsed("image_ref")?,
            command: columns.json("command")?,
            env: columns.json("env")?,
            workdir: columns.get("workdir")?,
            user: columns.get("user")?,
            tty: columns.get("tty")?,
            stdin: columns.get("stdin")?,
            oci_defaults: columns.get("oci_defaults")?,
            memory: columns.sized("memory_mb", Mib::new)?,
            disk: columns.sized("disk_mb", DiskSize::new)?,
            vcpus: columns.sized("vcpus", Vcpus::new)?,
            policy: columns.json("policy")?,
            parent_id: columns.parsed_option("parent_id")?,
            mounts: columns.json("mounts")?,
            auto_workspace: columns.get("auto_workspace")?,
            created_at: columns.parsed("created_at")?,
            enabled: columns.get("enabled")?,
            live: columns.get("live")?,
            updated_at: columns.parsed("updated_at")?,
            last_active_at: columns.parsed_option("last_active_at")?,
            life_began_at: columns.parsed_option("life_began_at")?,
            crashes: columns.get("crashes")?,
            stopped_at: columns.parsed_option("stopped_at")?,
            stop_reason: columns.parsed_option("stop_reason")?,
            exit_code: columns.get("exit_code")?,
            last_error: columns.get("last_error")?,
        })
    }
}
