//! Ports in memory, and a guest that speaks the real wires from a script.
#![allow(clippy::unwrap_used, reason = "tests")]

mod guest;
mod world;

pub(crate) use guest::{Guest, RunMode, ready};
pub(crate) use world::{Line, Port, World, alive, spec, with_policy};
