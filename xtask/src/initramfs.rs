//! The initial file system: the harness as `/init`, the modules of the kernel it is for, and nothing else.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::repo::Repo;
use crate::stamp::{Inputs, Stamp};
use crate::ui::{Step, human_bytes};
use crate::{cpio, files, kernel};

/// Makes `lib/aegis/initramfs.cpio` around `init`, for the default kernel.
pub(crate) fn build(repo: &Repo, init: &Path) -> Result<()> {
    let dir = kernel::modules_dir(repo);
    let order = fs::read_to_string(dir.join("order")).context("the kernel step has not run")?;
    let mut modules = Vec::new();
    for name in order.lines().map(|name| format!("{name}.ko")) {
        let contents = fs::read(dir.join(&name)).with_context(|| format!("cannot read module {name}"))?;
        modules.push((name, contents));
    }
    pack(repo, "initramfs.cpio", init, &modules)
}

/// Makes the initramfs `name` with `modules` in load order.
pub(crate) fn pack(repo: &Repo, name: &str, init: &Path, modules: &[(String, Vec<u8>)]) -> Result<()> {
    let path = repo.asset(name);
    let mut inputs = Inputs::new().with(include_str!("initramfs.rs")).with_file(init)?;
    for (name, contents) in modules {
        inputs = inputs.with(name).with(contents);
    }
    let stamp = Stamp::new(repo, name, inputs);
    if stamp.is_fresh(&[&path]) {
        return Ok(());
    }
    let step = Step::start(format!("initramfs ({name})"));
    let init = fs::read(init).with_context(|| format!("cannot read {}", init.display()))?;
    files::write_with(&path, |out| write(out, &init, modules).context("cannot write the archive"))?;
    stamp.record()?;
    step.done(human_bytes(fs::metadata(&path)?.len()));
    Ok(())
}

fn write(out: &mut dyn Write, init: &[u8], modules: &[(String, Vec<u8>)]) -> std::io::Result<()> {
    let mut archive = cpio::Writer::new(out);
    for directory in ["dev", "proc", "sys", "modules"] {
        archive.directory(directory)?;
    }
    // Until devtmpfs is mounted, PID 1 has nothing else to talk to.
    archive.device("dev/console", 0o600, (5, 1))?;
    archive.device("dev/null", 0o666, (1, 3))?;
    archive.device("dev/kmsg", 0o600, (1, 11))?;
    for (name, contents) in modules {
        archive.file(&format!("modules/{name}"), 0o644, contents)?;
    }
    let order: String = modules.iter().map(|(name, _)| format!("{name}\n")).collect();
    archive.file("modules/order", 0o644, order.as_bytes())?;
    archive.file("init", 0o755, init)?;
    archive.finish().map(drop)
}
