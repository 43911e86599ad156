#![allow(clippy::unwrap_used, reason = "tests")]

mod examples;
mod properties;
