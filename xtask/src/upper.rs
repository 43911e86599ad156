//! The writable layer of a new instance: a sparse ext4 image that is copied, so that no `mkfs` runs when a VM starts.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::repo::Repo;
use crate::stamp::{Inputs, Stamp};
use crate::ui::{Step, human_bytes};
use crate::{cmd, files};

/// The smallest disk that an instance can have. The guest's kernel grows the file system in a longer copy; it cannot shrink
/// one.
const SIZE: &str = "64M";

/// * A journal of 8 MiB is enough for one guest's overlay and small enough to copy.
/// * Inode tables and journal are initialised here, so that the guest's kernel does not spend its first minutes (and
///   this file's holes) on it.
/// * Room for the group descriptors of 1 TiB, the largest disk (in blocks of 4 KiB): the file system grows without another
///   layout. What is fixed for every size is the number of inodes in a group: 4096, one for each 32 KiB of a grown disk.
/// * Fixed ids make the image the same on every machine; instances never see each other's disks.
const MKE2FS: &[&str] = &[
    "-q",
    "-F",
    "-t",
    "ext4",
    "-L",
    "aegis-upper",
    "-U",
    "61656769-732d-4570-8061-757070657231",
    "-b",
    "4096",
    "-m",
    "0",
    "-i",
    "16384",
    "-J",
    "size=8",
    "-E",
    "resize=268435456,lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0,\
     hash_seed=61656769-732d-4570-8061-757070657232",
];

/// Directories of the overlay, in the image's root.
const DIRECTORIES: &[&str] = &["upper", "work"];

/// Makes `lib/aegis/upper.ext4`.
pub(crate) fn build(repo: &Repo) -> Result<()> {
    let image = repo.asset("upper.ext4");
    let stamp = Stamp::new(repo, "upper", Inputs::new().with(include_str!("upper.rs")));
    if stamp.is_fresh(&[&image]) {
        return Ok(());
    }
    let step = Step::start("empty instance disk");
    files::replace_with(&image, |scratch| {
        let full = scratch.with_extension("full");
        let made = make(&full, scratch);
        drop(fs::remove_file(&full));
        made
    })?;
    stamp.record()?;
    let allocated = fs::metadata(&image)?.blocks() * 512;
    step.done(format!("{SIZE}iB, {} on disk", human_bytes(allocated)));
    Ok(())
}

fn make(full: &Path, sparse: &Path) -> Result<()> {
    // Times inside the image, for a reproducible result.
    let epoch = |command: &mut std::process::Command| {
        command.env("E2FSPROGS_FAKE_TIME", "1700000000").env("LC_ALL", "C");
    };
    drop(fs::remove_file(full));
    let mut mke2fs = cmd::tool("mke2fs")?;
    mke2fs.args(MKE2FS).arg(full).arg(SIZE);
    epoch(&mut mke2fs);
    cmd::output(&mut mke2fs).context("cannot make the instance disk")?;
    // debugfs rather than `mke2fs -d`: the directories belong to root whoever builds.
    for directory in DIRECTORIES {
        let mut debugfs = cmd::tool("debugfs")?;
        debugfs.args(["-w", "-R", &format!("mkdir {directory}")]).arg(full);
        epoch(&mut debugfs);
        cmd::output(&mut debugfs)?;
    }
    // debugfs succeeds whatever happens: look.
    let listed = cmd::output(cmd::tool("debugfs")?.args(["-R", "ls -p /"]).arg(full))?;
    for directory in DIRECTORIES {
        if !listed.contains(&format!("/040755/0/0/{directory}/")) {
            bail!("the instance disk lacks its directory `{directory}`:\n{listed}");
        }
    }
    // Initialised tables are zeros: as holes they are initialised all the same and cost nothing.
    cmd::output(cmd::tool("cp")?.args(["--sparse=always"]).arg(full).arg(sparse)).map(drop)
}
