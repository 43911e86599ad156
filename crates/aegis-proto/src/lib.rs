//! The private wires of AegisVM: daemon ↔ harness (the guest wire) and daemon ↔ worker.
//!
//! Everything here is sans-I/O: types, and codecs that turn bytes into messages. Both ends of a wire compile
//! against the same types, so a message is declared once.
//!
//! **Invariant:** decoders are fed by hostile peers. Every buffer has a bound, and a violation is an error
//! that ends the stream it came on.
#![forbid(unsafe_code)]

pub mod activity;
pub mod control;
pub mod exec;
pub mod files;
pub mod fuse;
pub mod hello;
pub mod jsonrpc;
pub mod lines;
pub mod logs;
pub mod saved;
pub mod service;
pub mod tcp;
pub mod worker;

pub use aegis_types::frame;

/// Generation of the guest wire that this build speaks. The host sends its own in HELLO, the guest answers
/// with the lower of both, and both then speak that one: a restored VM keeps the harness it was saved with.
pub const GENERATION: u32 = 1;
