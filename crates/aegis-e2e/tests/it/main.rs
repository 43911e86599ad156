//! Real VMs through the programs that users run. Names that start with `smoke` also run as an unprivileged user.
#![allow(clippy::unwrap_used, reason = "tests")]

mod bench;
mod boot;
mod crash;
mod crash_rest;
mod disk;
mod exec;
mod guest;
mod hibernate;
mod hostile;
mod image;
mod instance;
mod network;
mod races;
mod registry;
mod rest;
mod router;
mod run;
mod secrets;
mod templates;
mod terminal;
mod tools;
mod workspace;
