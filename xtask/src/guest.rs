//! The guest's PID 1: a static executable, because it runs before there is a root file system.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cmd;
use crate::repo::Repo;

const TARGET: &str = "x86_64-unknown-linux-gnu";
const BINARY: &str = "aegis-harness";

/// Compiles the harness and returns its path. Cargo decides whether anything has to be done.
pub(crate) fn build(repo: &Repo) -> Result<PathBuf> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        anyhow::bail!("the guest can be built on Linux x86_64 only");
    }
    // A directory of its own: other flags for the same crates would make cargo rebuild everything back and forth.
    let target_dir = repo.target().join("guest-build");
    let mut cargo = cmd::cargo(repo.root());
    cargo
        .args(["build", "--profile", "guest", "--target", TARGET, "-p", BINARY, "--bin", BINARY])
        .arg("--target-dir")
        .arg(&target_dir)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", rustflags());
    cmd::run(&mut cargo).context("cannot build the guest harness")?;
    Ok(target_dir.join(TARGET).join("guest").join(BINARY))
}

fn rustflags() -> String {
    format!("{} -C target-feature=+crt-static", env::var("RUSTFLAGS").unwrap_or_default()).trim().to_owned()
}
