//! `aegis bench` becomes the program `aegis-bench`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use aegis_config::{Asset, env, locate};

use super::Context;
use crate::error::CliError;

/// Returns only when the program could not be started.
pub(crate) fn run(context: &Context, args: Vec<OsString>) -> CliError {
    let program = match locate(Asset::Bench, None, &context.home) {
        Ok(located) => located.path,
        Err(error) => return error.into(),
    };
    let error = Command::new(&program).args(args).env(env::HOME, context.home.root()).exec();
    CliError::failure(format!("cannot start {}", program.display())).because(&error)
}
