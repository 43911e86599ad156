//! The errors of this crate.

use std::io;
use std::path::PathBuf;

use aegis_types::{Handle, InstanceId};

/// The registry could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file could not be created or opened.
    #[error("cannot open the registry {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not a database, or a damaged one.
    #[error("the registry {} is damaged: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A newer version wrote the file.
    #[error(
        "the registry has schema version {found}, this aegisd knows versions up to {known}: use the newer aegisd"
    )]
    NewerSchema {
        /// Version of the file.
        found: u32,
        /// Highest version that this build knows.
        known: u32,
    },
    /// A row cannot be read back.
    #[error("the registry entry of `{id}` is damaged: column `{column}`: {reason}")]
    BadRow {
        /// Id of the row, as it is stored.
        id: String,
        /// The column.
        column: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Another instance has this name.
    #[error("another instance is named `{0}`")]
    HandleTaken(Handle),
    /// A port of an instance that is not in the registry, such as one that was deleted meanwhile.
    #[error("there is no instance `{0}` in the registry")]
    NoInstance(InstanceId),
    /// SQLite failed.
    #[error("cannot {action}")]
    Sqlite {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: rusqlite::Error,
    },
    /// The registry was closed.
    #[error("the registry is closed")]
    Closed,
}

impl StoreError {
    pub(crate) fn sqlite(action: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
        move |source| StoreError::Sqlite { action, source }
    }
}
