//! The image that instances get when nobody names another: a small Debian, made from its packages without root and
//! without running anything of theirs as an installation would.

mod busybox;
mod closure;
mod config;
mod python;
mod tree;

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use aegis_image::{Limits, build_erofs};
use anyhow::{Context, Result};

use crate::apt;
use crate::files;
use crate::repo::Repo;
use crate::stamp::{Inputs, Stamp};
use crate::ui::{Step, human_bytes};
use tree::Tree;

/// What the image is made of, besides dependencies.
const PACKAGES: &[&str] = &[
    "base-files",
    "base-passwd",
    "bash",
    "busybox-static",
    "ca-certificates",
    "coreutils",
    "dash",
    "diffutils",
    "findutils",
    "grep",
    "gzip",
    "libc-bin",
    "netbase",
    "procps",
    "python3",
    "sed",
    "tar",
    "tzdata",
];

/// Dependencies that serve maintainer scripts, or that BusyBox satisfies (`awk`).
const UNNEEDED: &[&str] =
    &["awk", "debconf", "debianutils", "dpkg", "init-system-helpers", "lsb-base", "openssl", "perl-base"];

/// Documentation and translations; licences stay.
const DROPPED: &[&str] = &[
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/menu",
    "usr/share/pixmaps",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/python3.11/pydoc_data",
];

/// Makes `lib/aegis/base.erofs`.
pub(crate) fn build(repo: &Repo, update: bool) -> Result<()> {
    let image = repo.asset("base.erofs");
    let inputs = [
        include_str!("base_image.rs"),
        include_str!("base_image/busybox.rs"),
        include_str!("base_image/config.rs"),
        include_str!("base_image/python.rs"),
        include_str!("base_image/tree.rs"),
    ];
    let stamp = Stamp::new(repo, "base-image", inputs.iter().fold(Inputs::new(), Inputs::with));
    if !update && stamp.is_fresh(&[&image]) {
        return Ok(());
    }
    let step = Step::start("base image (Debian packages)");
    let debs = apt::with_lists(repo, |apt| {
        step.note("resolving dependencies");
        let packages = closure::resolve(apt, PACKAGES, UNNEEDED)?;
        apt.download(&packages, &step)
    })?;
    let tree = unpack(&debs, &step)?;
    step.note("writing the image");
    write_image(repo, &tree, &image)?;
    stamp.record()?;
    let (files, image) = (human_bytes(tree.bytes()), human_bytes(image.metadata()?.len()));
    step.done(format!("{} packages, {files} of files, image {image}", debs.len()));
    Ok(())
}

fn unpack(debs: &[PathBuf], step: &Step) -> Result<Tree> {
    let mut tree = Tree::new();
    for deb in debs {
        step.note(&format!("unpacking {}", deb.file_name().unwrap_or_default().to_string_lossy()));
        tree.add_package(deb, is_kept)?;
    }
    config::apply(&mut tree)?;
    busybox::link_applets(&mut tree)?;
    step.note("compiling Python's standard library");
    python::compile_stdlib(&mut tree, step)?;
    Ok(tree)
}

fn is_kept(path: &str) -> bool {
    let dropped = DROPPED.iter().any(|dir| path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/')));
    !dropped || path.ends_with("/copyright")
}

fn write_image(repo: &Repo, tree: &Tree, image: &Path) -> Result<()> {
    let tar = tempfile::NamedTempFile::new_in(repo.cache())?;
    tree.write(std::io::BufWriter::with_capacity(1 << 20, tar.as_file()))?;
    let reader = BufReader::with_capacity(1 << 20, File::open(tar.path())?);
    files::replace_with(image, |scratch| {
        build_erofs(reader, scratch, &Limits::default()).map(drop).context("cannot make the image")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documentation_is_dropped_but_licences_are_kept() {
        assert!(!is_kept("usr/share/doc/bash/README"));
        assert!(is_kept("usr/share/doc/bash/copyright"));
        assert!(is_kept("usr/share/docile"));
        assert!(!is_kept("usr/share/locale/de/x.mo"));
    }
}
