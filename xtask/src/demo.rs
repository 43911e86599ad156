//! `cargo xtask demo`: from a fresh checkout to the output of a command that ran in a VM.

use std::process::Command;

use anyhow::Result;

use crate::repo::Repo;
use crate::{build, cmd, setup};

/// Sets up, builds, starts the daemon and runs a command. The daemon stays, for whoever wants to try more.
pub(crate) fn run(repo: &Repo) -> Result<()> {
    setup::ensure(setup::BASIC)?;
    build::all(repo)?;
    let aegis = repo.bin().join("aegis");
    eprintln!("· aegis up");
    cmd::run(Command::new(&aegis).arg("up"))?;
    eprintln!("· aegis run -- echo \"hello from aegisvm\"");
    cmd::run(Command::new(&aegis).args(["run", "--", "echo", "hello from aegisvm"]))?;
    let aegis = aegis.display();
    eprintln!("✓ demo: the daemon keeps running; stop it with `{aegis} down`");
    eprintln!("  try next: {aegis} run -- python3 -c 'print(6 * 7)'");
    Ok(())
}
