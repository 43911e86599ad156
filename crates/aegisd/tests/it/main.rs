//! The daemon in this process, with workers and guests that follow a script.
#![allow(clippy::unwrap_used, reason = "tests")]

mod api;
mod fake;
mod restart;
mod support;
