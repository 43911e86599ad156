//! A client of OCI registries: it finds the image of a name for an architecture and downloads its layers.
//!
//! The daemon calls it to pull. [`Registry::resolve`] turns a name into a manifest, a configuration and a list of
//! layers; [`Registry::fetch`] brings one layer into a file, and several may run at a time. What is done with layers is
//! not known here.
//!
//! **Invariant:** a registry is hostile. Everything it sends has a bound in size and time, nothing is handed on before
//! its digest was verified, and nothing it says makes this client talk plain HTTP beyond this machine, or sends
//! credentials to another host than the registry they belong to and the token service that it names.
//!
//! The protocol is that of the OCI distribution specification 1.1 with Docker's token authentication;
//! `docs/design/registries.md` has the decisions.
#![forbid(unsafe_code)]

mod authorization;
mod blob;
mod challenge;
mod credentials;
mod endpoint;
mod error;
mod http;
mod manifest;
mod options;
mod partial;
mod platform;
mod registry;
mod resolve;
mod retry;
mod text;
mod token;

pub use credentials::{Credential, CredentialError, CredentialStore, Login};
pub use endpoint::{InvalidMirror, InvalidRegistry, Mirror, registry_host};
pub use error::{Problem, RegistryError};
pub use options::{Options, Retries, Timeouts};
pub use registry::Registry;
pub use resolve::{LayerMedia, RemoteLayer, Resolved};
