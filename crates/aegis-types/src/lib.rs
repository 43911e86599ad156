//! Names, ids, units and specs that every side of AegisVM agrees on.
//!
//! **Invariant:** no I/O and no async here. A value of one of these types has been checked: parse at the
//! edge, pass the type inside.
#![forbid(unsafe_code)]

mod digest;
mod duration;
mod exit;
mod files;
pub mod frame;
mod image_config;
mod image_name;
mod mounts;
mod names;
mod net;
mod policy;
mod ports;
mod process;
mod pull;
mod secret;
mod state;
mod units;
mod vm;

pub use digest::Digest;
pub use duration::{InvalidDuration, parse_duration};
pub use exit::ExitStatus;
pub use files::{CopyProblem, CopyReport, FileKind, FileStat, PROBLEMS_MAX};
pub use image_config::{ImageConfig, InvalidImageConfig, OciConfig, OciProcess, OciRootFs};
pub use image_name::ImageName;
pub use mounts::{InvalidMountPoint, MOUNTS_MAX, Mount, MountPoint, WORKSPACE};
pub use names::{Handle, InstanceId, InvalidName, VmId};
pub use net::{InvalidNet, NetEvent, NetMode, NetPolicy, NetRule, NetSetup, NetTarget, Proxies};
pub use policy::{IdlePolicy, Policy, RestartPolicy, UnknownPolicy};
pub use ports::{Expose, GuestPort, InvalidPort, Protocol, PublicPort};
pub use process::{ProcessInput, TerminalSize};
pub use pull::PullPolicy;
pub use secret::{
    InvalidSecretUse, SECRET_MAX, SECRETS_DIR, SECRETS_MAX, SecretBytes, SecretFile, SecretName, SecretPath,
    SecretUse, WantedSecrets,
};
pub use state::{InstanceState, StartKind, StopReason, UnknownStopReason};
pub use units::{DiskSize, InvalidUnit, Mib, Vcpus};
pub use vm::{Accelerator, Disk, DiskFormat, Ram, VmSpec};
