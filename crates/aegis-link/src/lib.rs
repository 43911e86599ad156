//! The guest link: handshake, multiplexer and park on one byte stream per VM, and the small async helpers that
//! speak the wires of `aegis-proto` on top of it.
//!
//! Both ends live here: [`host`] is used by the worker, [`guest`] by the harness. What the streams carry is
//! none of this crate's business.
//!
//! **Invariant:** the peer is hostile. Streams, windows, lines and frames have bounds; a violation ends this
//! link and nothing else.
#![forbid(unsafe_code)]

pub mod frames;
pub mod guest;
pub mod host;
mod line;
mod mux;
pub mod rpc;
pub mod tcp;

use std::io;

use tokio::io::{AsyncRead, AsyncWrite, BufStream};

pub use mux::{LinkEnd, Stream};

/// A reliable byte stream between host and guest.
pub trait Carrier: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Carrier for T {}

/// Bytes that are read or written at once, in each direction.
const BUFFER_BYTES: usize = 32 * 1024;

/// A carrier of which bytes are taken and given in larger pieces. The multiplexer writes the head and the body of a frame
/// one after the other, and to a guest each write is a message of its own, with an interrupt.
pub fn buffered<C: Carrier>(carrier: C) -> BufStream<C> {
    BufStream::with_capacity(BUFFER_BYTES, BUFFER_BYTES, carrier)
}

/// The link could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The link has ended.
    #[error("the guest link ended: {0}")]
    Ended(LinkEnd),
    /// The handshake went wrong.
    #[error("handshake failed: {0}")]
    Handshake(String),
    /// The guest does not offer this service.
    #[error("the guest does not offer service {0}")]
    Refused(u16),
    /// The bytes could not be moved.
    #[error("the guest link broke")]
    Io(#[from] io::Error),
}
