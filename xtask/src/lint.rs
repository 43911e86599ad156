//! `cargo xtask lint`: formatting and lints, as strict as review is.

use anyhow::Result;

use crate::cmd;
use crate::repo::Repo;

/// Checks everything and changes nothing.
pub(crate) fn run(repo: &Repo) -> Result<()> {
    cmd::run(cmd::cargo(repo.root()).args(["fmt", "--all", "--check"]))?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    cmd::run(cmd::cargo(repo.root()).args(clippy))
}
