//! The logs of instances: what their commands and execs printed, and what AegisVM has to say about them.
//!
//! ```text
//! append ─► buffer in memory ─► thread `logs` ─► data/logs/<id>.ndjson ─► <id>.ndjson.1, .2, …
//!              │                                       │
//! Reader ◄─────┴─── far behind or after a restart ─────┘
//! ```
//! Every record has a number that counts up by one per instance. A [`Reader`] asks for the next number and takes it
//! from wherever it is, so nothing is read twice and what is really gone is noticed as a jump.
//!
//! **Invariant:** nobody who appends waits for a reader, and no failure of the disk reaches an instance: the buffer
//! goes on without the file. A record leaves the buffer only after the file had its chance to take it.
//!
//! Values of secrets are replaced before anything is appended ([`mask`]); beyond that it does not interpret lines.

mod file;
mod follow;
mod instance;
mod mask;
mod record;
mod store;

pub(crate) use file::CONSOLE_SUFFIX;
pub(crate) use follow::Reader;
pub(crate) use mask::Mask;
pub(crate) use store::LogStore;
