//! A row of the table `exposes`.

use aegis_types::{GuestPort, InstanceId, Protocol, PublicPort};
use rusqlite::{Connection, ErrorCode, Row, named_params};

use crate::StoreError;
use crate::columns::Columns;

/// A guest port that is reachable from the host. It goes with its instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExposeRow {
    /// Whose port; an instance of the registry.
    pub instance_id: InstanceId,
    /// Inside. One row for each.
    pub guest: GuestPort,
    /// Outside.
    pub public: PublicPort,
    /// The user chose the public port.
    pub chosen: bool,
    /// Label.
    pub protocol: Protocol,
}

const UPSERT: &str = "
    INSERT INTO exposes (instance_id, guest_port, public_port, chosen, protocol)
    VALUES (:instance_id, :guest_port, :public_port, :chosen, :protocol)
    ON CONFLICT (instance_id, guest_port) DO UPDATE SET
        public_port = excluded.public_port, chosen = excluded.chosen, protocol = excluded.protocol";

impl ExposeRow {
    pub(crate) fn save(&self, connection: &Connection) -> Result<(), StoreError> {
        let failed = StoreError::sqlite("save an exposed port");
        let mut statement = connection.prepare_cached(UPSERT).map_err(&failed)?;
        let saved = statement.execute(named_params! {
            ":instance_id": self.instance_id.as_str(),
            ":guest_port": self.guest.get(),
            ":public_port": self.public.get(),
            ":chosen": self.chosen,
            ":protocol": self.protocol.as_str(),
        });
        match saved {
            Ok(_) => Ok(()),
            // Values of these types fit their columns, so it is the reference that leads nowhere.
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                Err(StoreError::NoInstance(self.instance_id.clone()))
            }
            Err(e) => Err(failed(e)),
        }
    }

    pub(crate) fn delete(
        connection: &Connection,
        instance: &InstanceId,
        guest: GuestPort,
    ) -> Result<(), StoreError> {
        let sql = "DELETE FROM exposes WHERE instance_id = ?1 AND guest_port = ?2";
        let deleted = connection.execute(sql, (instance.as_str(), guest.get()));
        deleted.map(|_| ()).map_err(StoreError::sqlite("delete an exposed port"))
    }

    pub(crate) fn load_all(connection: &Connection) -> Result<Vec<ExposeRow>, StoreError> {
        let failed = StoreError::sqlite("read the exposed ports");
        let sql = "SELECT * FROM exposes ORDER BY instance_id, guest_port";
        let mut statement = connection.prepare(sql).map_err(&failed)?;
        let mut rows = statement.query([]).map_err(&failed)?;
        let mut all = Vec::new();
        while let Some(row) = rows.next().map_err(&failed)? {
            all.push(Self::read(row)?);
        }
        Ok(all)
    }

    fn read(row: &Row<'_>) -> Result<ExposeRow, StoreError> {
        let columns = Columns::of(row, "instance_id");
        Ok(ExposeRow {
            instance_id: columns.parsed("instance_id")?,
            guest: columns.port("guest_port")?,
            public: columns.port("public_port")?,
            chosen: columns.get("chosen")?,
            protocol: columns.parsed("protocol")?,
        })
    }
}
