//! The harness over an in-memory pipe: real processes, a fake machine, the real host end of the link.
#![allow(clippy::unwrap_used, reason = "tests")]

mod activity;
mod boot;
mod exec;
mod fuse;
mod primary;
mod sessions;
mod shutdown;
mod tcp;
mod terminal;
mod vm;
