//! The life of instances: what may happen is the pure function in [`step`], what does happen is one driver task
//! per instance.
//!
//! [`Manager`] knows all instances, [`Instance`] is the handle to one. Work leaves through the traits of
//! [`ports`]; nothing here knows a VMM, HTTP or SQL.
//!
//! **Invariants:** an instance has at most one VM. Only its driver changes its state. A boot belongs to the
//! driver: a caller that goes away ends its own wait and nothing else. Whatever a guest sends can end that
//! guest's VM and nothing more.
#![forbid(unsafe_code)]

mod activity;
mod budget;
mod driver;
mod effects;
mod error;
mod exec;
mod family;
mod files;
mod guest_frames;
mod instance;
mod logs;
mod manager;
pub mod ports;
pub mod record;
mod restore;
mod session;
mod status;
pub mod step;
mod tcp;
mod text;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use error::{ConnectError, CopyError, CreateError, Denied, ExecError, ExecLost};
pub use exec::{ExecEvents, ExecInput, ExecSession};
pub use files::{Copying, FilePiece, FromGuest, ToGuest};
pub use instance::Instance;
pub use manager::{Limits, Manager, Ports};
pub use status::{Counters, Lease, Status, VmStatus};
pub use step::{Defaults, Rules, Users};
pub use tcp::{Connection, InUse, VmGone};
