//! The router on real sockets, with a backend that is a test.
#![allow(clippy::unwrap_used, reason = "tests")]

mod fake;
mod http;
mod http_bodies;
mod ports;
