//! `cargo xtask install`: copies what was built below a prefix. It builds nothing, so that `sudo make install` compiles
//! nothing as root.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::build::PROGRAMS;
use crate::repo::Repo;
use crate::ui::Step;
use crate::{cmd, files, manifest};

/// `cargo xtask install`: into `prefix`, below `destdir` if that is set.
pub(crate) fn run(repo: &Repo, prefix: &Path, destdir: Option<&Path>) -> Result<()> {
    let target = match destdir {
        Some(destdir) => destdir.join(prefix.strip_prefix("/").unwrap_or(prefix)),
        None => prefix.to_path_buf(),
    };
    let step = Step::start("install");
    copy_to(repo, &target)?;
    step.done(target.display().to_string());
    Ok(())
}

/// Copies programs to `prefix/bin` and assets to `prefix/lib/aegis`, readable for everybody.
pub(crate) fn copy_to(repo: &Repo, prefix: &Path) -> Result<()> {
    for (_, binary) in PROGRAMS {
        place(&repo.bin().join(binary), &prefix.join("bin").join(binary), 0o755)?;
    }
    let assets = prefix.join("lib/aegis");
    for name in manifest::ARTEFACTS.iter().copied().chain(["manifest.json"]) {
        let asset = repo.asset(name);
        if asset.exists() {
            place(&asset, &assets.join(name), 0o644)?;
        } else if !manifest::OPTIONAL.contains(&name) {
            bail!("{} does not exist; run `make` first", asset.display());
        }
    }
    Ok(())
}

fn place(from: &Path, to: &Path, mode: u32) -> Result<()> {
    if !from.exists() {
        bail!("{} does not exist; run `make` first", from.display());
    }
    files::replace_with(to, |scratch| {
        // Not `fs::copy`: the empty instance disk would take all of its 10 GiB.
        let mut cp = cmd::tool("cp")?;
        cmd::output(cp.args(["--sparse=always", "--reflink=auto"]).arg(from).arg(scratch))?;
        fs::set_permissions(scratch, Permissions::from_mode(mode)).context("cannot set the mode")
    })
}
