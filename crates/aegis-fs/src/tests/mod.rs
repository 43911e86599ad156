//! Tests against the kernel's side of the wire.
#![allow(clippy::unwrap_used, reason = "tests")]

mod changes;
mod disk;
mod hostile;
mod kernel;
mod meaning;
mod rest;
