//! The worker with a VMM that exists only in memory, and a guest that speaks the real link.
#![allow(clippy::unwrap_used, reason = "tests")]

mod fake;
mod hibernation;
mod support;
mod worker;
