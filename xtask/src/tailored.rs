//! `cargo xtask kernel`: a kernel of our own, from Debian's sources and `kernel/aegis.fragment`. It boots a cold VM in
//! half the time of the default one and needs no modules. Optional: compiling takes minutes.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};

use crate::apt::{self, Apt};
use crate::repo::Repo;
use crate::stamp::{Inputs, Stamp};
use crate::ui::{Step, human_bytes};
use crate::{assets, bzimage, cmd, deb, decompress, files, guest, initramfs, manifest, setup};

/// Source packages, best first: a release may have the newer one, and always has the other.
const SOURCES: &[&str] = &["linux-source-6.12", "linux-source"];

/// Makes `lib/aegis/vmlinux-tailored` and the initramfs for it.
pub(crate) fn build(repo: &Repo, jobs: Option<usize>) -> Result<()> {
    setup::ensure(setup::BASIC)?;
    // A lock of its own for the minutes of compiling, during which other assets can be made.
    let _compiling = files::lock(&repo.cache().join("tailored.lock"))?;
    let vmlinux = repo.asset("vmlinux-tailored");
    let fragment = repo.root().join("kernel/aegis.fragment");
    let inputs = Inputs::new().with(include_str!("tailored.rs")).with_file(&fragment)?;
    let stamp = Stamp::new(repo, "tailored-kernel", inputs);
    if !stamp.is_fresh(&[&vmlinux]) {
        setup::ensure(setup::KERNEL)?;
        compile(repo, &fragment, &vmlinux, jobs)?;
        stamp.record()?;
    }
    let _lock = files::lock(&assets::lock_path(repo))?;
    initramfs::pack(repo, "initramfs-tailored.cpio", &guest::build(repo)?, &[])?;
    manifest::write(repo)?;
    let assets = repo.assets();
    let assets = assets.display();
    eprintln!("  to use it: export AEGIS_KERNEL={assets}/vmlinux-tailored");
    eprintln!("             export AEGIS_INITRAMFS={assets}/initramfs-tailored.cpio");
    Ok(())
}

fn compile(repo: &Repo, fragment: &Path, vmlinux: &Path, jobs: Option<usize>) -> Result<()> {
    let step = Step::start("kernel sources");
    let package = apt::with_lists(repo, |apt| download(apt, &step))?;
    step.note("unpacking");
    let tree = unpack(repo, &package)?;
    step.done(tree.file_name().unwrap_or_default().to_string_lossy());

    let step = Step::start("tailored kernel");
    let jobs = jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let make = |targets: &[&str]| {
        let mut make = Command::new("make");
        // Not the flags of the `make` that may have started us, and the same result for whoever builds.
        make.env_remove("MAKEFLAGS").env_remove("MFLAGS").env_remove("MAKELEVEL");
        make.env("KBUILD_BUILD_USER", "aegis").env("KBUILD_BUILD_HOST", "aegis");
        make.env("KBUILD_BUILD_TIMESTAMP", "1970-01-01");
        make.current_dir(&tree).env("KCONFIG_ALLCONFIG", fragment).arg(format!("-j{jobs}")).args(targets);
        cmd::run_noted(&mut make, &step)
    };
    make(&["allnoconfig"])?;
    check_config(&fs::read_to_string(fragment)?, &fs::read_to_string(tree.join(".config"))?)?;
    make(&["vmlinux"])?;
    files::replace_with(vmlinux, |scratch| {
        let mut objcopy = cmd::tool("objcopy")?;
        cmd::output(objcopy.args(["--strip-all", "-R", ".comment"]).arg(tree.join("vmlinux")).arg(scratch))?;
        bzimage::check_bootable(&fs::read(scratch)?)
    })?;
    let size = human_bytes(vmlinux.metadata()?.len());
    step.done(size);
    // 1.5 GB that only another change of the fragment would need.
    fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))
}

fn download(apt: &Apt, step: &Step) -> Result<PathBuf> {
    let names: Vec<String> = SOURCES.iter().map(|&name| name.to_owned()).collect();
    let known = apt.show(&names)?;
    let package =
        SOURCES.iter().find_map(|&name| known.get(name)).context("no kernel sources in the package lists")?;
    // The unversioned package only points to the real one.
    let real = package.depends.iter().flatten().find(|name| name.starts_with("linux-source-"));
    let package = match real {
        Some(name) => apt.show_one(name)?,
        None => package.clone(),
    };
    apt.download(&[package], step)?.pop().context("one file per package")
}

/// Unpacks the archive inside the package and returns the source tree.
fn unpack(repo: &Repo, package: &Path) -> Result<PathBuf> {
    let dir = repo.cache().join("tailored");
    drop(fs::remove_dir_all(&dir));
    files::ensure_dir(&dir)?;
    let archive = dir.join("source.tar.xz");
    deb::for_each_entry(package, |mut entry| {
        let path = entry.path()?.into_owned();
        if path.to_string_lossy().ends_with(".tar.xz") {
            entry.unpack(&archive)?;
        }
        Ok(())
    })?;
    let file = File::open(&archive).context("the source package holds no archive")?;
    tar::Archive::new(decompress::reader(BufReader::new(file))?).unpack(&dir)?;
    fs::remove_file(&archive)?;
    let mut trees = fs::read_dir(&dir)?.filter_map(Result::ok).map(|entry| entry.path());
    trees.find(|path| path.join("Kconfig").exists()).context("the source archive holds no kernel")
}

/// Kconfig silently drops what it does not know or what lacks a dependency: that is an error here.
fn check_config(fragment: &str, config: &str) -> Result<()> {
    let is_set = |option: &str| config.lines().any(|line| line == option);
    let ignored: Vec<&str> = fragment
        .lines()
        .filter(|line| line.starts_with("CONFIG_"))
        .filter(|line| match line.strip_suffix("=n") {
            Some(name) => {
                config.lines().any(|set| set.strip_prefix(name).is_some_and(|rest| rest.starts_with('=')))
            }
            None => !is_set(line),
        })
        .collect();
    if !ignored.is_empty() {
        bail!("the kernel's configuration ignores {}", ignored.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn options_that_kconfig_ignored_are_named() {
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\n";
        check_config("# a comment\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_GONE=n\n", config).unwrap();
        let error = check_config("CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=n\n", config).unwrap_err().to_string();
        assert_eq!(error, "the kernel's configuration ignores CONFIG_B=y, CONFIG_C=n");
    }
}
