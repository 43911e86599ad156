//! The network of one guest, without privileges: what it sends is taken apart here and leaves as connections of this
//! process, if the policy allows it.
//!
//! ```text
//! guest ─ frames ─► link ─► stack ─┬─ TCP ──► smoltcp ◄─► tcp ◄──► Dialer ──► the host's network
//!                                  ├─ UDP, echo ───────► udp ◄──┘
//!                                  └─ port 53 ─► dns: policy by name, names learned
//!                 every beginning ─► policy (addresses, names) ─► journal
//! ```
//!
//! Used by the worker, which has one [`Network`] for its VM. The guest has the address [`GUEST`], and [`GATEWAY`] is its
//! gateway and name server. A SYN is answered when the host's connection succeeded, so that what the guest sees of a
//! connection is true. What is denied is refused at once.
//!
//! **Invariant:** nothing that the guest sends is a panic, makes a queue grow without a bound, or reaches an address
//! that [`aegis_types::NetPolicy`] does not allow. There is no IPv6: names have no such addresses and frames of it are dropped.
#![forbid(unsafe_code)]

mod address;
mod dial;
mod dns;
#[cfg(fuzzing)]
pub mod fuzz;
mod journal;
mod link;
mod names;
mod network;
mod packet;
mod policy;
mod proxy;
mod said;
mod shared;
mod stack;
mod stale;
mod tcp;
mod udp;

#[cfg(test)]
mod tests;

pub use address::{GATEWAY, GUEST, GUEST_NETWORK};
pub use dial::{Dialer, HostDialer};
pub use dns::HOST_NAME;
pub use journal::{LOG_FILE, OLD_LOG_FILE};
pub use link::MTU;
pub use network::{Control, Network};
