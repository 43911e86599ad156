//! Everything of AegisVM but the virtual machine, for tests that need no hypervisor.
//!
//! A [`TestDaemon`] is the real daemon inside the test process, on a [`TestHome`] of its own, with the real HTTP
//! API. It starts `aegis-fake-worker`: the real worker library on a [`FakeVmm`], whose guests are the real harness
//! with host processes in place of guest processes. What the wires carry, what a crash leaves behind and what is
//! found again is therefore the real thing; only the machine is made up, and does what a [`Guest`] script says.
//!
//! **Invariant:** a test leaves nothing: processes carry the path of their home, and the end of a [`TestHome`]
//! fails the test if one is left.
#![forbid(unsafe_code)]

mod daemon;
mod gate;
mod guest;
mod home;
mod liar;
mod registry;
mod remote;
mod vmm;

pub use daemon::TestDaemon;
pub use guest::Guest;
pub use home::TestHome;
pub use registry::{StoppedRegistry, TestImage, TestRegistry, layer};
pub use remote::VmRemote;
pub use vmm::FakeVmm;
