//! The whole network between a guest made of smoltcp and servers on loopback.
#![allow(clippy::unwrap_used, reason = "tests")]

mod decisions;
mod guest;
mod names;
mod streams;
mod world;
