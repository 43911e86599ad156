//! The schema and its history. Steps only go forward; `user_version` counts those that a file has seen.

use rusqlite::Connection;

use crate::StoreError;

/// One SQL script per version. **Invariant:** a published step is never edited; a change is a new step.
pub(crate) const STEPS: &[&str] = &[
    "
    CREATE TABLE instances (
        id             TEXT PRIMARY KEY,
        handle         TEXT UNIQUE,
        image_ref      TEXT NOT NULL,
        command        TEXT NOT NULL,     -- JSON array
        env            TEXT NOT NULL,     -- JSON object
        workdir        TEXT,
        memory_mb      INTEGER NOT NULL,
        vcpus          INTEGER NOT NULL,
        created_at     TEXT NOT NULL,     -- times are RFC 3339, UTC
        enabled        INTEGER NOT NULL,
        live           INTEGER NOT NULL,
        updated_at     TEXT NOT NULL,
        last_active_at TEXT,
        stopped_at     TEXT,
        stop_reason    TEXT,
        exit_code      INTEGER,
        last_error     TEXT
    ) STRICT;
",
    "
    ALTER TABLE instances ADD COLUMN policy TEXT NOT NULL DEFAULT '{}'; -- JSON object
    ALTER TABLE instances ADD COLUMN life_began_at TEXT;
    ALTER TABLE instances ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE exposes (
        instance_id    TEXT NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
        guest_port     INTEGER NOT NULL,
        public_port    INTEGER NOT NULL,
        chosen         INTEGER NOT NULL,  -- the user chose the public port
        protocol       TEXT NOT NULL,
        PRIMARY KEY (instance_id, guest_port)
    ) STRICT;
",
    "
    ALTER TABLE instances ADD COLUMN parent_id TEXT;
",
    "
    ALTER TABLE instances ADD COLUMN mounts TEXT NOT NULL DEFAULT '[]'; -- JSON array
    ALTER TABLE instances ADD COLUMN auto_workspace INTEGER NOT NULL DEFAULT 0;
",
    "
    CREATE TABLE secrets (
        name           TEXT PRIMARY KEY,
        value          BLOB NOT NULL,     -- encrypted
        created_at     TEXT NOT NULL
    ) STRICT;
    CREATE TABLE secrets_key (
        id             INTEGER PRIMARY KEY CHECK (id = 0),
        value          BLOB NOT NULL      -- what only the right key opens
    ) STRICT;
    -- A row is there before its instance: the first boot needs it.
    CREATE TABLE instance_secrets (
        instance_id    TEXT PRIMARY KEY,
        wanted         TEXT NOT NULL,     -- JSON object of names
        injected       BLOB               -- encrypted values that its current boot was given
    ) STRICT;
",
    "
    ALTER TABLE instances ADD COLUMN disk_mb INTEGER NOT NULL DEFAULT 10240; -- what all had
",
    "
    ALTER TABLE instances ADD COLUMN user TEXT;
    ALTER TABLE instances ADD COLUMN tty INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE instances ADD COLUMN stdin INTEGER NOT NULL DEFAULT 0;
",
    "
    ALTER TABLE instances ADD COLUMN oci_defaults INTEGER NOT NULL DEFAULT 0;
",
];

/// Brings the file to the newest version of `steps`. Each step is applied completely or not at all.
pub(crate) fn migrate(connection: &mut Connection, steps: &[&str]) -> Result<(), StoreError> {
    let failed = StoreError::sqlite("migrate the registry");
    let known = u32::try_from(steps.len()).expect("there are few steps");
    let found: u32 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(&failed)?;
    if found > known {
        return Err(StoreError::NewerSchema { found, known });
    }
    for version in found..known {
        let transaction = connection.transaction().map_err(&failed)?;
        transaction.execute_batch(steps[version as usize]).map_err(&failed)?;
        transaction.pragma_update(None, "user_version", version + 1).map_err(&failed)?;
        transaction.commit().map_err(&failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn version(connection: &Connection) -> u32 {
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_file_of_the_first_version_gets_the_later_steps_and_keeps_its_rows() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, &["CREATE TABLE t (a TEXT)"]).unwrap();
        connection.execute("INSERT INTO t VALUES ('kept')", []).unwrap();
        let steps = ["CREATE TABLE t (a TEXT)", "ALTER TABLE t ADD COLUMN b INTEGER NOT NULL DEFAULT 7"];
        migrate(&mut connection, &steps).unwrap();
        migrate(&mut connection, &steps).unwrap();
        let row = connection.query_row("SELECT a, b FROM t", [], |r| Ok((r.get(0)?, r.get(1)?))).unwrap();
        assert_eq!((row, version(&connection)), (("kept".to_owned(), 7), 2));
    }

    #[test]
    fn a_failed_step_changes_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        let broken = "CREATE TABLE t (a TEXT); CREATE TABLE t (a TEXT)";
        assert!(migrate(&mut connection, &[broken]).is_err());
        assert_eq!(version(&connection), 0);
        migrate(&mut connection, &["CREATE TABLE t (a TEXT)"]).unwrap();
    }
}
