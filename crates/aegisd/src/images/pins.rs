//! Which image an instance has: written at its first boot, beside the disk that belongs to it. Everything here blocks.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use aegis_config::Home;
use aegis_types::{Digest, InstanceId, PullPolicy};
use serde::{Deserialize, Serialize};

use crate::launcher::files;

const FILE: &str = "image.json";

/// What is kept of the image of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Whether its registry is asked before its first boot; absent: nobody said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pull: Option<PullPolicy>,
    /// The image of its disk, from its first boot on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pin: Option<Pin>,
}

/// An image, whatever it is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pin {
    /// `sha256:` and the hexadecimal digest of the root image.
    pub(crate) digest: String,
    /// What registries know it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) manifest: Option<Digest>,
}

/// Where it is kept.
pub(super) fn path(home: &Home, id: &InstanceId) -> PathBuf {
    home.instance_dir(id).join(FILE)
}

impl Kept {
    /// Nothing is kept of instances of before there were registries.
    pub(super) fn load(path: &Path) -> io::Result<Kept> {
        match std::fs::read(path) {
            // A crash of the host may have left a file without its content; the disk is then as new.
            Ok(bytes) if bytes.is_empty() => Ok(Kept::default()),
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| io::Error::new(ErrorKind::InvalidData, format!("it is damaged: {e}"))),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Kept::default()),
            Err(e) => Err(e),
        }
    }

    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        if let Some(dir) = path.parent() {
            files::make_dir(dir)?;
        }
        files::write_atomically(path, &serde_json::to_vec(self)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_is_kept_comes_back_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inst-1").join(FILE);
        assert_eq!(Kept::load(&path).unwrap(), Kept::default());
        let wanted = Kept { pull: Some(PullPolicy::Always), pin: None };
        wanted.save(&path).unwrap();
        assert_eq!(Kept::load(&path).unwrap(), wanted);
        let manifest = Digest::parse(&format!("sha256:{}", "a".repeat(64))).unwrap();
        let pinned =
            Kept { pull: None, pin: Some(Pin { digest: "sha256:1".to_owned(), manifest: Some(manifest) }) };
        pinned.save(&path).unwrap();
        assert_eq!(Kept::load(&path).unwrap(), pinned);
        std::fs::write(&path, "").unwrap();
        assert_eq!(Kept::load(&path).unwrap(), Kept::default());
        std::fs::write(&path, "{").unwrap();
        assert_eq!(Kept::load(&path).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
