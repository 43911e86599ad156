//! `cargo xtask build`: the release binaries in `bin/` and everything they need in `lib/aegis/`.

use anyhow::{Context, Result};

use crate::repo::Repo;
use crate::ui::Step;
use crate::{assets, cmd, files};

/// Package and binary of each program.
pub(crate) const PROGRAMS: &[(&str, &str)] = &[
    ("aegis-cli", "aegis"),
    ("aegisd", "aegisd"),
    ("aegis-vmm-worker", "aegis-vmm-worker"),
    ("aegis-bench", "aegis-bench"),
];

/// Makes programs and assets.
pub(crate) fn all(repo: &Repo) -> Result<()> {
    programs(repo)?;
    assets::build(repo, false)
}

/// Compiles the programs and puts them into `bin/`.
pub(crate) fn programs(repo: &Repo) -> Result<()> {
    let mut cargo = cmd::cargo(repo.root());
    cargo.args(["build", "--release"]);
    for (package, binary) in PROGRAMS {
        cargo.args(["--package", package, "--bin", binary]);
    }
    cmd::run(&mut cargo).context("cannot build the programs")?;
    let step = Step::start("programs");
    for (_, binary) in PROGRAMS {
        files::copy_if_changed(&repo.target().join("release").join(binary), &repo.bin().join(binary))?;
    }
    step.done(repo.bin().display().to_string());
    Ok(())
}
