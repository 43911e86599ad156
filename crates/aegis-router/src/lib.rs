//! The way in from the host: listeners on loopback that wake instances and carry bytes to their ports.
//!
//! [`Ports`] has one listener per exposed port and relays plain TCP; [`HttpRouter`] has one address for all instances
//! and picks one by the request. Both hold a client while its instance wakes, and see instances only through
//! [`Backend`]. The daemon owns them and decides what is exposed.
//!
//! **Invariant:** a listener does not care whether its instance runs, and a connection is counted (by the backend)
//! before anything is woken for it. A client never gets an end of stream that no server sent: what fails, or is cut off,
//! is a reset (or an HTTP error). Everything that waits has a bound and a deadline, and every task ends with its owner.
#![forbid(unsafe_code)]

mod backend;
mod gate;
mod http;
mod listen;
mod ports;
mod relay;

pub use backend::{Backend, Connection, Io, Refusal, Revoked, Target};
pub use gate::{Gate, Limits};
pub use http::{BindError, HttpRouter};
pub use ports::{OpenError, OpenPort, Ports};
