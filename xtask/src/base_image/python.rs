//! Python's standard library, compiled. Debian compiles it on installation; without that, every first import in every
//! VM compiles again, which costs seconds under emulation.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use super::tree::Tree;
use crate::cmd;
use crate::ui::Step;

const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
const INTERPRETER: &str = "usr/bin/python3.11";
const STDLIB: &str = "usr/lib/python3.11";

/// Adds the bytecode of the standard library, made by the image's own interpreter: bytecode belongs to one version.
/// It runs here with the image's own loader and libraries, so the host needs none of them.
pub(super) fn compile_stdlib(tree: &mut Tree, step: &Step) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let root = dir.path();
    tree.export(root, &[LIBRARIES, INTERPRETER, STDLIB])?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut compile = Command::new(root.join(LOADER));
    compile
        .arg("--library-path")
        .arg(root.join(LIBRARIES))
        .arg(root.join(INTERPRETER))
        .args(["-m", "compileall", "-q", "-p", "/", "-j", &jobs.to_string(), "-s"])
        .args([root, &root.join(STDLIB)])
        .env_clear()
        .env("PYTHONHOME", root.join("usr"))
        // What the compiler itself imports is compiled like the rest, not saved by the import with this path in it.
        .env("PYTHONDONTWRITEBYTECODE", "1")
        // Sets and dictionaries end up in bytecode: the same source must give the same image.
        .env("PYTHONHASHSEED", "0");
    cmd::run_noted(&mut compile, step).context("cannot compile Python's standard library")?;
    let sources: Vec<String> =
        tree.below(STDLIB).filter_map(|(path, _)| path.strip_suffix(".py")).map(str::to_owned).collect();
    for source in sources {
        let (directory, module) = source.rsplit_once('/').unwrap_or((STDLIB, &source));
        let path = format!("{directory}/__pycache__/{module}.cpython-311.pyc");
        // A few files of the library are not valid programs (templates, tests of the parser); they have no bytecode.
        if let Ok(bytecode) = fs::read(root.join(&path)) {
            tree.file(&path, 0o644, bytecode);
        }
    }
    Ok(())
}
