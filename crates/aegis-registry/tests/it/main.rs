//! The client against registries on loopback that keep to the protocol, and others that do not.
#![allow(clippy::unwrap_used, reason = "tests")]

mod access;
mod content;
mod documents;
mod layers;
mod login;
mod mirrors;
mod server;
mod tls;
