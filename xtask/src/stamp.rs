//! Build only when inputs changed: an asset is fresh while its outputs exist and the hash of its inputs is the one
//! recorded when they were made.
//!
//! Inputs are what this checkout decides (recipes, sources, the guest binary), not what an archive offers today: a
//! second build works offline and does not change under a running test. `--update` asks for newer packages.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::files;
use crate::repo::Repo;

/// The inputs of one asset.
pub(crate) struct Inputs(Sha256);

impl Inputs {
    /// No inputs yet.
    pub(crate) fn new() -> Inputs {
        Inputs(Sha256::new())
    }

    /// Adds bytes; the length keeps neighbours apart.
    #[must_use]
    pub(crate) fn with(mut self, bytes: impl AsRef<[u8]>) -> Inputs {
        self.0.update((bytes.as_ref().len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// Adds the contents of a file.
    pub(crate) fn with_file(self, path: &Path) -> Result<Inputs> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(self.with(bytes))
    }
}

/// The record of one asset's last build.
pub(crate) struct Stamp {
    path: PathBuf,
    hash: String,
}

impl Stamp {
    /// The stamp of asset `name` for these inputs.
    pub(crate) fn new(repo: &Repo, name: &str, inputs: Inputs) -> Stamp {
        Stamp { path: repo.cache().join("stamps").join(name), hash: files::hex(&inputs.0.finalize()) }
    }

    /// Whether `outputs` exist and were made from the same inputs.
    pub(crate) fn is_fresh(&self, outputs: &[&Path]) -> bool {
        outputs.iter().all(|path| path.exists())
            && fs::read_to_string(&self.path).is_ok_and(|recorded| recorded == self.hash)
    }

    /// Records a finished build.
    pub(crate) fn record(&self) -> Result<()> {
        files::write(&self.path, self.hash.as_bytes())
    }
}
