//! The executable of the guest's PID 1.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    aegis_harness::pid1::main()
}
