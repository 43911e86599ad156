//! Running other programs, with errors that show the command and what it last said.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::ui::Step;

/// Lines of a failed program's output that are worth showing.
const TAIL_LINES: usize = 30;

/// The program's path, also looking where an ordinary user's `PATH` does not (`mke2fs` is in `/sbin`).
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(more).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// A command for a program that must exist; the error names the way to get it.
pub(crate) fn tool(program: &str) -> Result<Command> {
    let path = find(program).with_context(|| format!("cannot find `{program}`; `make setup` installs it"))?;
    Ok(Command::new(path))
}

/// The cargo that runs us, in the checkout.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// Runs with our terminal; the program reports its own progress.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run `{}`", show(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", show(command));
    }
    Ok(())
}

/// Runs silently and returns standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run `{}`", show(command)))?;
    if !output.status.success() {
        bail!("`{}` failed ({})\n{}", show(command), output.status, tail(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs for a long time: each line of output becomes a note on `step`, the last ones are shown on failure.
pub(crate) fn run_noted(command: &mut Command, step: &Step) -> Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run `{}`", show(command)))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let said = thread::scope(|scope| {
        let stderr = scope.spawn(|| stderr.map(|pipe| follow(pipe, step)).unwrap_or_default());
        let mut said = stdout.map(|pipe| follow(pipe, step)).unwrap_or_default();
        said.extend(stderr.join().unwrap_or_default());
        said
    });
    let status = child.wait()?;
    if !status.success() {
        bail!("`{}` failed ({status})\n{}", show(command), Vec::from(said).join("\n"));
    }
    Ok(())
}

fn follow(pipe: impl Read, step: &Step) -> VecDeque<String> {
    let mut last = VecDeque::with_capacity(TAIL_LINES);
    for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        step.note(line.trim_start());
        if last.len() == TAIL_LINES {
            last.pop_front();
        }
        last.push_back(line);
    }
    last
}

fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// The command line, for messages.
fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
