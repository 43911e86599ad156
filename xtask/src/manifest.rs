//! `lib/aegis/manifest.json`: what the assets are, so that anyone can check that they are still that.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::repo::Repo;
use crate::ui::{Step, human_bytes};
use crate::{cmd, files, kernel};

/// Files in `lib/aegis`.
pub(crate) const ARTEFACTS: &[&str] =
    &["vmlinux", "initramfs.cpio", "base.erofs", "upper.ext4", "vmlinux-tailored", "initramfs-tailored.cpio"];

/// Those of [`ARTEFACTS`] that exist only where somebody compiled a kernel.
pub(crate) const OPTIONAL: &[&str] = &["vmlinux-tailored", "initramfs-tailored.cpio"];

/// Writes the manifest for the artefacts that exist. Those that did not change since the last time (same size and
/// modification time) are not read again.
pub(crate) fn write(repo: &Repo) -> Result<()> {
    let known_path = repo.cache().join("hashes.json");
    let known: Value =
        fs::read(&known_path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let mut now_known = Map::new();
    let mut artefacts = Map::new();
    for &name in ARTEFACTS {
        let Ok(meta) = fs::metadata(repo.asset(name)) else { continue };
        let version = format!("{} bytes, {}.{:09}", meta.len(), meta.mtime(), meta.mtime_nsec());
        let entry = if known[name]["version"] == version.as_str() {
            known[name]["entry"].clone()
        } else {
            describe(&repo.asset(name), &meta)?
        };
        artefacts.insert(name.to_owned(), entry.clone());
        now_known.insert(name.to_owned(), json!({ "version": version, "entry": entry }));
    }
    write_json(&known_path, &Value::Object(now_known))?;
    let manifest = json!({
        "kernel": kernel::version(repo)?,
        "revision": revision(repo),
        "artefacts": artefacts,
    });
    write_json(&repo.asset("manifest.json"), &manifest)
}

fn describe(path: &Path, meta: &Metadata) -> Result<Value> {
    let step = Step::start(format!("hash of {}", path.display()));
    let is_sparse = meta.blocks() * 512 < meta.len() / 2;
    // A key of its own, so that nobody compares it with what `sha256sum` says.
    let (key, hash) = if is_sparse {
        ("sha256_blocks", files::sha256_blocks(path)?)
    } else {
        ("sha256", files::sha256(path)?)
    };
    step.done(human_bytes(meta.len()));
    Ok(json!({ "size": meta.len(), key: hash }))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot format JSON")?;
    files::write(path, (text + "\n").as_bytes())
}

/// The checkout the harness was built from; absent in a source archive.
fn revision(repo: &Repo) -> Option<String> {
    let mut git = Command::new(cmd::find("git")?);
    let described =
        cmd::output(git.args(["describe", "--always", "--dirty", "--tags"]).current_dir(repo.root()));
    described.ok().map(|text| text.trim().to_owned())
}
