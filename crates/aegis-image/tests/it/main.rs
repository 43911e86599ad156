//! Archives in, images out, judged by others: `fsck.erofs`, a second EROFS implementation, GNU tar and, where it can
//! be asked, the kernel.
#![allow(clippy::unwrap_used, reason = "tests")]

mod archives;
mod fidelity;
mod garbage;
mod hostile;
mod hostile_archives;
mod interop;
mod layers;
mod random;
mod random_layers;
mod stack;
mod store;
mod support;
