//! Typed client of the daemon's API over its unix socket: the only way in for the command line and other
//! host programs.
//!
//! **Invariant:** every answer is bounded. One connection serves one request; dropping an answer closes it.
#![forbid(unsafe_code)]

mod client;
mod connection;
mod error;
mod files;
mod process;
mod stream;

pub use client::{Action, Client, Creation, LogQuery};
pub use error::ClientError;
pub use files::{Bytestream, Download};
pub use process::{Process, ProcessReceiver, ProcessSender};
pub use stream::{ExecEvent, ExecEvents, LogEntries, NetEvents, PullEvents};
