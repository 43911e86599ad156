//! The daemon in this process with everything real but the machines: HTTP, registry, logs, worker processes, guest
//! link and harness. See the crate's documentation.
#![allow(clippy::unwrap_used, reason = "tests")]

mod adoption;
mod boot;
mod disk;
mod exec;
mod faults;
mod files;
mod flow;
mod images;
mod instance_images;
mod lifecycle;
mod reboot;
mod requests;
mod run;
mod secrets;
mod shutdown;
mod streams;
mod support;
mod templates;
