//! `aegis completions`.

use clap::CommandFactory as _;
use clap_complete::{Shell, generate};

use crate::args::Cli;
use crate::error::CliError;
use crate::ui;

pub(crate) fn run(shell: Shell) -> Result<(), CliError> {
    // `generate` panics when a write fails, so it writes to memory.
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "aegis", &mut script);
    ui::print_bytes(&script)
}
