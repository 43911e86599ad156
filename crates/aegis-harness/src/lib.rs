//! Guest PID 1: mounts the root, starts and reaps processes, keeps their output, and answers the host on the
//! guest link.
//!
//! Everything that needs privileges or the guest's kernel is behind [`sys::Sys`]; the rest is ordinary async
//! code that tests drive over an in-memory pipe. [`Harness`] is the whole of it; [`pid1`] connects it to the
//! real machine.
//!
//! **Invariant:** the harness never ends by itself and never blocks on a process or on the host. A link that
//! breaks costs no process anything.
#![deny(unsafe_code)]

mod activity;
mod attach;
mod boot;
mod console;
mod control;
mod disk;
mod environment;
mod exec;
mod files;
mod harness;
mod identity;
mod input;
mod launch;
mod logs;
mod mounts;
mod output;
pub mod pid1;
pub mod port;
mod primary;
mod pump;
mod reaper;
mod ring;
mod secrets;
mod settle;
mod shutdown;
pub mod sys;
mod tasks;
mod tcp;
mod user;
mod warm;

pub use harness::{Harness, SessionEnd};

/// Version that the harness reports.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
