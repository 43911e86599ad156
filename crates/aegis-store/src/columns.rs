//! Columns of rows as the types that they stand for.

use std::fmt::Display;
use std::str::FromStr;

use rusqlite::Row;
use rusqlite::types::FromSql;

use crate::StoreError;

/// Reads columns into their types; a misfit names the row and the column.
pub(crate) struct Columns<'a> {
    row: &'a Row<'a>,
    id: String,
}

impl<'a> Columns<'a> {
    /// Of a row whose instance is in this column.
    pub(crate) fn of(row: &'a Row<'a>, id: &'static str) -> Self {
        Self { row, id: row.get(id).unwrap_or_default() }
    }

    fn bad(&self, column: &'static str) -> impl Fn(&dyn Display) -> StoreError {
        let id = self.id.clone();
        move |reason| StoreError::BadRow { id: id.clone(), column, reason: reason.to_string() }
    }

    pub(crate) fn get<T: FromSql>(&self, column: &'static str) -> Result<T, StoreError> {
        self.row.get(column).map_err(|e| self.bad(column)(&e))
    }

    pub(crate) fn parsed<T: FromStr<Err: Display>>(&self, column: &'static str) -> Result<T, StoreError> {
        self.get::<String>(column)?.parse().map_err(|e: T::Err| self.bad(column)(&e))
    }

    pub(crate) fn parsed_option<T: FromStr<Err: Display>>(
        &self,
        column: &'static str,
    ) -> Result<Option<T>, StoreError> {
        let text: Option<String> = self.get(column)?;
        text.map(|text| text.parse().map_err(|e: T::Err| self.bad(column)(&e))).transpose()
    }

    pub(crate) fn json<T: for<'de> serde::Deserialize<'de>>(
        &self,
        column: &'static str,
    ) -> Result<T, StoreError> {
        serde_json::from_str(&self.get::<String>(column)?).map_err(|e| self.bad(column)(&e))
    }

    pub(crate) fn sized<T, E: Display>(
        &self,
        column: &'static str,
        check: impl Fn(u64) -> Result<T, E>,
    ) -> Result<T, StoreError> {
        check(u64::from(self.get::<u32>(column)?)).map_err(|e| self.bad(column)(&e))
    }

    pub(crate) fn port<T: TryFrom<u16, Error: Display>>(
        &self,
        column: &'static str,
    ) -> Result<T, StoreError> {
        T::try_from(self.get::<u16>(column)?).map_err(|e| self.bad(column)(&e))
    }
}
