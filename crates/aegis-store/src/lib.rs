//! The registry of instances, their ports and encrypted secrets: one SQLite file, `$AEGIS_HOME/data/aegis.db`.
//!
//! The daemon is the only user. SQLite blocks, so one thread named `registry` owns the connection and the async
//! [`Store`] sends it work over a bounded channel.
//!
//! **Invariant:** what a call of [`Store`] reported as done survives a crash of the daemon and a loss of power.
//! This is why the file is opened with `synchronous=FULL`: with `NORMAL` a WAL commit may be rolled back by a power
//! loss, and a deleted instance would come back without its disk. A write happens once per change of state, so the
//! extra flush costs nothing that anybody waits for often.
//!
//! It does not know what the columns mean for the life of an instance.
#![forbid(unsafe_code)]

mod columns;
mod error;
mod expose;
mod row;
mod schema;
mod secret;
mod store;

pub use error::StoreError;
pub use expose::ExposeRow;
pub use row::InstanceRow;
pub use secret::{Sealed, SecretRow};
pub use store::Store;
