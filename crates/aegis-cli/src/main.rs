//! `aegis`, the command line of AegisVM: arguments in, words out. Everything it knows about instances comes
//! from the daemon through [`aegis_client`].
//!
//! **Invariant:** standard output carries only what was asked for; everything else goes to standard error.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod daemon;
mod detach_keys;
mod error;
mod guest_output;
mod limits;
mod progress;
#[cfg(test)]
mod reference;
mod secret_input;
mod signals;
mod standard_input;
mod streams;
mod suggest;
mod terminal;
mod ui;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};

use crate::args::Cli;
use crate::error::{CliError, Kind};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let code = run(cli).unwrap_or_else(|error| {
        ui::report(&error);
        error.kind().exit_code()
    });
    ExitCode::from(code)
}

fn run(cli: Cli) -> Result<u8, CliError> {
    let Some(command) = cli.command else {
        ui::print(&Cli::command().render_help().ansi().to_string())?;
        return Ok(1);
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::failure("cannot start the async runtime").because(&e))?;
    let code = runtime.block_on(commands::run(cli.home, command));
    // A write to a pipe that nobody reads may still be blocked in a thread; it must not hold up the exit.
    runtime.shutdown_background();
    code
}

/// Help and version are answers; a group without subcommand is a question (1); the rest is misuse (2).
fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render().ansi().to_string();
    let (code, printed) = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => (0, ui::print(&text)),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => (1, ui::print(&text)),
        _ => {
            ui::eprint(&text);
            (Kind::Usage.exit_code(), Ok(()))
        }
    };
    ExitCode::from(printed.map_or_else(|error| error.kind().exit_code(), |()| code))
}
