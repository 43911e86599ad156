//! The tables of secrets. Values are ciphertext here: nothing in this crate could read them.

use aegis_types::{InstanceId, SecretName, WantedSecrets};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::StoreError;
use crate::columns::Columns;

/// A stored secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRow {
    /// Name, unique.
    pub name: SecretName,
    /// Encrypted value.
    pub value: Vec<u8>,
    /// When it got this value.
    pub created_at: Timestamp,
}

/// Everything that is encrypted with the master key, so that all of it can get another one at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sealed {
    /// By which a key is recognised; absent until there was one.
    pub check: Option<Vec<u8>>,
    /// Secrets by name.
    pub secrets: Vec<(SecretName, Vec<u8>)>,
    /// What the current boots of instances were given.
    pub injected: Vec<(InstanceId, Vec<u8>)>,
}

impl SecretRow {
    pub(crate) fn save(&self, connection: &Connection) -> Result<(), StoreError> {
        let sql = "INSERT INTO secrets (name, value, created_at) VALUES (?1, ?2, ?3)
            ON CONFLICT (name) DO UPDATE SET value = excluded.value, created_at = excluded.created_at";
        let saved =
            connection.execute(sql, params![self.name.as_str(), self.value, self.created_at.to_string()]);
        saved.map(|_| ()).map_err(StoreError::sqlite("save a secret"))
    }

    pub(crate) fn load_all(connection: &Connection) -> Result<Vec<SecretRow>, StoreError> {
        let failed = StoreError::sqlite("read the secrets");
        let mut statement = connection.prepare("SELECT * FROM secrets ORDER BY name").map_err(&failed)?;
        let mut rows = statement.query([]).map_err(&failed)?;
        let mut all = Vec::new();
        while let Some(row) = rows.next().map_err(&failed)? {
            all.push(Self::read(row)?);
        }
        Ok(all)
    }

    fn read(row: &Row<'_>) -> Result<SecretRow, StoreError> {
        let columns = Columns::of(row, "name");
        Ok(SecretRow {
            name: columns.parsed("name")?,
            value: columns.get("value")?,
            created_at: columns.parsed("created_at")?,
        })
    }
}

/// Whether there was one.
pub(crate) fn delete(connection: &Connection, name: &SecretName) -> Result<bool, StoreError> {
    let deleted = connection.execute("DELETE FROM secrets WHERE name = ?1", [name.as_str()]);
    deleted.map(|rows| rows > 0).map_err(StoreError::sqlite("delete a secret"))
}

impl Sealed {
    pub(crate) fn load(connection: &Connection) -> Result<Sealed, StoreError> {
        let failed = StoreError::sqlite("read the secrets");
        let check = connection.query_row("SELECT value FROM secrets_key", [], |row| row.get(0)).optional();
        let secrets = SecretRow::load_all(connection)?.into_iter().map(|row| (row.name, row.value)).collect();
        let sql = "SELECT instance_id, injected FROM instance_secrets WHERE injected IS NOT NULL";
        let mut statement = connection.prepare(sql).map_err(&failed)?;
        let mut rows = statement.query([]).map_err(&failed)?;
        let mut injected = Vec::new();
        while let Some(row) = rows.next().map_err(&failed)? {
            let columns = Columns::of(row, "instance_id");
            injected.push((columns.parsed("instance_id")?, columns.get("injected")?));
        }
        Ok(Sealed { check: check.map_err(&failed)?, secrets, injected })
    }

    /// Replaces the values of what is there, and the check, all or nothing.
    pub(crate) fn replace(&self, connection: &mut Connection) -> Result<(), StoreError> {
        let failed = StoreError::sqlite("encrypt the secrets anew");
        let transaction = connection.transaction().map_err(&failed)?;
        if let Some(check) = &self.check {
            let sql = "INSERT INTO secrets_key (id, value) VALUES (0, ?1)
                ON CONFLICT (id) DO UPDATE SET value = excluded.value";
            transaction.execute(sql, params![check]).map_err(&failed)?;
        }
        for (name, value) in &self.secrets {
            let sql = "UPDATE secrets SET value = ?2 WHERE name = ?1";
            transaction.execute(sql, params![name.as_str(), value]).map_err(&failed)?;
        }
        for (id, value) in &self.injected {
            let sql = "UPDATE instance_secrets SET injected = ?2 WHERE instance_id = ?1";
            transaction.execute(sql, params![id.as_str(), value]).map_err(&failed)?;
        }
        transaction.commit().map_err(&failed)
    }
}

pub(crate) fn save_wanted(
    connection: &Connection,
    id: &InstanceId,
    wanted: &WantedSecrets,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO instance_secrets (instance_id, wanted) VALUES (?1, ?2)
        ON CONFLICT (instance_id) DO UPDATE SET wanted = excluded.wanted";
    let wanted = serde_json::to_string(wanted).expect("plain data serialises");
    let saved = connection.execute(sql, params![id.as_str(), wanted]);
    saved.map(|_| ()).map_err(StoreError::sqlite("save which secrets an instance wants"))
}

pub(crate) fn load_wanted(connection: &Connection, id: &InstanceId) -> Result<WantedSecrets, StoreError> {
    let sql = "SELECT wanted FROM instance_secrets WHERE instance_id = ?1";
    let text: Option<String> = connection
        .query_row(sql, [id.as_str()], |row| row.get(0))
        .optional()
        .map_err(StoreError::sqlite("read which secrets an instance wants"))?;
    let Some(text) = text else { return Ok(WantedSecrets::default()) };
    serde_json::from_str(&text).map_err(|e| StoreError::BadRow {
        id: id.to_string(),
        column: "wanted",
        reason: e.to_string(),
    })
}

/// `None`: it was given nothing.
pub(crate) fn save_injected(
    connection: &Connection,
    id: &InstanceId,
    value: Option<&[u8]>,
) -> Result<(), StoreError> {
    let sql = "UPDATE instance_secrets SET injected = ?2 WHERE instance_id = ?1";
    let saved = connection.execute(sql, params![id.as_str(), value]);
    saved.map(|_| ()).map_err(StoreError::sqlite("save which secrets an instance was given"))
}

/// Removes what belongs to an instance, or, without one, to instances that are not in the registry.
pub(crate) fn forget(connection: &Connection, id: Option<&InstanceId>) -> Result<(), StoreError> {
    let forgotten = match id {
        Some(id) => connection.execute("DELETE FROM instance_secrets WHERE instance_id = ?1", [id.as_str()]),
        None => connection
            .execute("DELETE FROM instance_secrets WHERE instance_id NOT IN (SELECT id FROM instances)", []),
    };
    forgotten.map(|_| ()).map_err(StoreError::sqlite("forget which secrets an instance wants"))
}
