//! `cargo xtask test`: everything that proves the project works, on the machine at hand.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::repo::Repo;
use crate::{build, cmd, files, install, setup};

/// The crate whose tests start real VMs.
const E2E: &str = "aegis-e2e";

/// Tests with this in their names are also run without privileges.
const SMOKE: &str = "smoke";

/// The user and group that own nothing.
const NOBODY: u32 = 65534;

/// Unit tests, then real VMs.
pub(crate) fn all(repo: &Repo) -> Result<()> {
    setup::ensure(setup::BASIC)?;
    unit(repo)?;
    integration(repo, &[])
}

/// Everything that needs no VM.
pub(crate) fn unit(repo: &Repo) -> Result<()> {
    eprintln!("· unit tests");
    cmd::run(cmd::cargo(repo.root()).args(["test", "--workspace", "--exclude", E2E]))
}

/// Real VMs, with the programs of `bin/`: as the current user, and if that is root, a part of it again as nobody,
/// because nothing may need root. `args` go to the test program.
pub(crate) fn integration(repo: &Repo, args: &[OsString]) -> Result<()> {
    setup::ensure(setup::BASIC)?;
    build::all(repo)?;
    eprintln!("· tests with real VMs");
    let mut cargo = cmd::cargo(repo.root());
    cargo.args(["test", "--package", E2E, "--"]).args(args).env("AEGIS_E2E_BIN_DIR", repo.bin());
    cmd::run(&mut cargo)?;
    if rustix::process::geteuid().is_root() && args.is_empty() {
        unprivileged(repo)?;
    }
    Ok(())
}

/// Runs the smoke tests as nobody, who may not even be able to enter the checkout: from a copy.
fn unprivileged(repo: &Repo) -> Result<()> {
    eprintln!("· smoke tests as an unprivileged user");
    // A short name: sockets below the home have to fit into 108 bytes.
    let dir = tempfile::Builder::new().prefix("aegis-").tempdir()?;
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
    let prefix = dir.path().join("p");
    install::copy_to(repo, &prefix)?;
    for own in ["home", "tmp"] {
        files::ensure_dir(&dir.path().join(own))?;
        chown(dir.path().join(own), Some(NOBODY), Some(NOBODY))?;
    }
    let mut run = 0;
    for (index, program) in test_programs(repo)?.iter().enumerate() {
        let program_copy = prefix.join(format!("e2e-{index}"));
        files::copy(program, &program_copy)?;
        fs::set_permissions(&program_copy, Permissions::from_mode(0o755))?;
        let listed = cmd::output(as_nobody(&program_copy, dir.path()).args([SMOKE, "--list"]))?;
        run += listed.lines().filter(|line| line.ends_with(": test")).count();
        cmd::run(as_nobody(&program_copy, dir.path()).arg(SMOKE))?;
    }
    if run == 0 {
        bail!("no test of {E2E} has `{SMOKE}` in its name: nothing was tested as an unprivileged user");
    }
    Ok(())
}

fn as_nobody(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir(dir)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .env("HOME", dir.join("home"))
        .env("TMPDIR", dir.join("tmp"))
        .env("AEGIS_E2E_BIN_DIR", dir.join("p/bin"));
    command
}

/// The compiled test programs of the crate with real-VM tests.
fn test_programs(repo: &Repo) -> Result<Vec<PathBuf>> {
    let mut cargo = cmd::cargo(repo.root());
    cargo.args(["test", "--package", E2E, "--tests", "--no-run", "--message-format=json"]);
    cargo.stderr(Stdio::inherit());
    let messages = cmd::output(&mut cargo)?;
    let messages = messages.lines().map(serde_json::from_str::<Value>);
    let mut programs = Vec::new();
    for message in messages {
        let message = message.context("unreadable message from cargo")?;
        if message["profile"]["test"] == true
            && let Some(program) = message["executable"].as_str()
        {
            programs.push(PathBuf::from(program));
        }
    }
    Ok(programs)
}
