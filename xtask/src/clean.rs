//! `cargo xtask clean`: back to a fresh checkout.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result};

use crate::repo::Repo;

/// Removes everything that building made. With `keep_downloads`, the packages stay.
pub(crate) fn run(repo: &Repo, keep_downloads: bool) -> Result<()> {
    let mut made = vec![repo.bin(), repo.root().join("lib"), repo.target()];
    if keep_downloads {
        made.extend(["apt", "kernel", "stamps", "tailored"].map(|dir| repo.cache().join(dir)));
    } else {
        made.push(repo.cache());
    }
    for dir in made {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", dir.display()));
            }
            _ => {}
        }
    }
    Ok(())
}
