//! The program `aegis` as users see it, against scripted daemons in temporary homes.
#![allow(clippy::unwrap_used, reason = "tests")]

mod exec;
mod fake;
mod image;
mod listing;
mod rest;
mod run;
mod secret;
mod service;
mod streams;
mod terminal;
mod up;
mod usage;
