//! The default kernel: Debian's cloud kernel, downloaded and unpacked, never installed.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::apt::{self, Apt};
use crate::modules::{self, Modules};
use crate::repo::Repo;
use crate::stamp::{Inputs, Stamp};
use crate::ui::{Step, human_bytes};
use crate::{bzimage, deb, decompress, files};

/// The package whose dependency is the newest kernel of the release.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// What else the kernel step leaves behind for the initramfs: `order`, `version` and the modules.
pub(crate) fn modules_dir(repo: &Repo) -> PathBuf {
    repo.cache().join("kernel")
}

/// The version that `uname -r` will report in the guest.
pub(crate) fn version(repo: &Repo) -> Result<String> {
    let path = modules_dir(repo).join("version");
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Makes `lib/aegis/vmlinux` and the modules that belong to it.
pub(crate) fn build(repo: &Repo, update: bool) -> Result<()> {
    let vmlinux = repo.asset("vmlinux");
    let order = modules_dir(repo).join("order");
    let inputs = Inputs::new()
        .with(META_PACKAGE)
        .with(modules::WANTED.join(" "))
        .with(include_str!("kernel.rs"))
        .with(include_str!("modules.rs"));
    let stamp = Stamp::new(repo, "kernel", inputs);
    if !update && stamp.is_fresh(&[&vmlinux, &order]) {
        return Ok(());
    }
    let step = Step::start("kernel (Debian's cloud kernel)");
    let package = apt::with_lists(repo, |apt| download(apt, &step))?;
    step.note("unpacking");
    let unpacked = unpack(&package)?;
    let bootable = bzimage::extract_vmlinux(&unpacked.bzimage)?;
    let names = unpacked.modules.load_order(modules::WANTED, &unpacked.builtin)?;
    for name in &names {
        let contents = unpacked.modules.contents(name).context("a module in the load order exists")?;
        files::write(&modules_dir(repo).join(format!("{name}.ko")), contents)?;
    }
    files::write(&modules_dir(repo).join("version"), unpacked.version.as_bytes())?;
    files::write(&order, (names.join("\n") + "\n").as_bytes())?;
    files::write(&vmlinux, &bootable)?;
    stamp.record()?;
    let size = human_bytes(bootable.len() as u64);
    step.done(format!("{}, {size}, {} modules", unpacked.version, names.len()));
    Ok(())
}

fn download(apt: &Apt, step: &Step) -> Result<PathBuf> {
    let meta = apt.show_one(META_PACKAGE)?;
    let depends = meta.depends.iter().flatten().find(|name| name.starts_with("linux-image-"));
    let package = apt.show_one(depends.with_context(|| format!("{META_PACKAGE} names no kernel"))?)?;
    apt.download(&[package], step)?.pop().context("one file per package")
}

struct Unpacked {
    version: String,
    bzimage: Vec<u8>,
    modules: Modules,
    builtin: Vec<String>,
}

fn unpack(package: &Path) -> Result<Unpacked> {
    let mut unpacked = Unpacked {
        version: String::new(),
        bzimage: Vec::new(),
        modules: Modules::default(),
        builtin: Vec::new(),
    };
    deb::for_each_entry(package, |mut entry| {
        let path = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        let file_name = path.rsplit('/').next().unwrap_or_default();
        if !entry.header().entry_type().is_file() {
            return Ok(());
        }
        if let Some(version) = path.strip_prefix("boot/vmlinuz-") {
            version.clone_into(&mut unpacked.version);
            entry.read_to_end(&mut unpacked.bzimage)?;
        } else if file_name.ends_with(".ko") || file_name.contains(".ko.") {
            let mut contents = Vec::new();
            decompress::reader(entry)?.read_to_end(&mut contents)?;
            unpacked.modules.insert(&path, contents);
        } else if file_name == "modules.builtin" {
            let mut list = String::new();
            entry.read_to_string(&mut list)?;
            unpacked.builtin = list.lines().map(modules::module_name).collect();
        }
        Ok(())
    })?;
    if unpacked.bzimage.is_empty() {
        bail!("{} holds no kernel", package.display());
    }
    Ok(unpacked)
}
