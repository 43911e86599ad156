//! The life of instances: what may happen is the pure function in `step`, what does happen is one driver task
//! per instance.
#![forbid(unsafe_code)]

pub mod ports;
pub mod record;
