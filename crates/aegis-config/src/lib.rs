//! Where things are and how they are set: the home directory, the settings with their provenance, and the
//! files that VMs need. Used by every host program.
//!
//! **Invariant:** nothing else in the workspace reads the environment. Each variable is declared in [`env`].
#![forbid(unsafe_code)]

mod asset;
pub mod env;
mod home;
mod memory;
mod mirrors;
#[cfg(test)]
mod reference;
mod settings;

pub use asset::{Asset, Located, NotFound, Origin, locate, locate_in};
pub use env::Environment;
pub use home::{Home, HomeError};
pub use memory::{RamBudget, host_memory_mib};
pub use mirrors::Mirrors;
pub use settings::{
    AcceleratorSetting, KeyStoreSetting, Setting, Settings, SettingsError, Source, TemplatesSetting,
};
