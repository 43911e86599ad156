//! Archives in, images out, judged by others: `fsck.erofs`, a second EROFS implementation, GNU tar and, where it can
//! be asked, the kernel.
#![allow(clippy::unwrap_used, reason = "tests")]

mod fidelity;
mod hostile;
mod interop;
mod random;
mod store;
mod support;
