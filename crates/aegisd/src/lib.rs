//! The daemon: it introduces the lifecycle, the registry, the logs, the images and the workers to each other and
//! serves the API of `aegis-api` on a unix socket. `main` adds the command line and signals.
//!
//! **Invariants:** one daemon per home. Guest bulk data is never held in memory without a bound. Killing the
//! daemon kills no VM: the next one takes them over.
//!
//! It decides nothing about what may happen to an instance; `aegis-lifecycle` does.
#![forbid(unsafe_code)]

mod accel;
mod assets;
mod backends;
mod daemon;
mod digests;
mod exposes;
mod http;
mod images;
mod launcher;
mod lock;
mod logs;
mod networks;
mod process;
mod registry;
mod rotate;
mod saved;
mod secrets;
mod socket;
mod templates;
mod text;
mod workspaces;

pub use assets::AssetFlags;
pub use daemon::{Daemon, DaemonOptions, Running, StartError};
pub use lock::LockError;
pub use rotate::{DaemonLog, Rotation};
pub use templates::TemplateOptions;
