//! Where things are in a checkout. Everything this tool writes is below three git-ignored directories.

use std::env;
use std::path::{Path, PathBuf};

/// The checkout that is being built.
#[derive(Debug, Clone)]
pub(crate) struct Repo {
    root: PathBuf,
}

impl Repo {
    /// The checkout this program was compiled from.
    pub(crate) fn find() -> Repo {
        let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
        Repo { root: manifest_dir.parent().unwrap_or(manifest_dir).to_path_buf() }
    }

    /// The directory with the root manifest.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Release binaries.
    pub(crate) fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// Kernel, initramfs and disk images: where the binaries in `bin/` look for them.
    pub(crate) fn assets(&self) -> PathBuf {
        self.root.join("lib/aegis")
    }

    /// One file in [`Repo::assets`].
    pub(crate) fn asset(&self, name: &str) -> PathBuf {
        self.assets().join(name)
    }

    /// Downloads, unpacked intermediates and stamps.
    pub(crate) fn cache(&self) -> PathBuf {
        self.root.join(".cache")
    }

    /// Cargo's output directory.
    pub(crate) fn target(&self) -> PathBuf {
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), |dir| self.root.join(dir))
    }
}
