//! BusyBox as the provider of every command that no real package of the image has.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Context, Result};

use super::tree::Tree;
use crate::cmd;

const BUSYBOX: &str = "usr/bin/busybox";

/// Where commands live; a command in any of them is found.
const BIN_DIRS: &[&str] = &["usr/bin", "usr/sbin"];

/// Applets that make no sense in a guest whose PID 1, console and network belong to the harness.
const UNWANTED: &[&str] =
    &["init", "linuxrc", "getty", "login", "su", "sulogin", "udhcpc", "udhcpd", "syslogd", "klogd"];

/// Links every applet that has no real counterpart.
pub(super) fn link_applets(tree: &mut Tree) -> Result<()> {
    for applet in applets(tree)? {
        let (directory, name) = applet.rsplit_once('/').unwrap_or(("bin", &applet));
        let taken = BIN_DIRS.iter().any(|dir| tree.contains(&format!("{dir}/{name}")));
        if taken || UNWANTED.contains(&name) {
            continue;
        }
        let directory = if directory.ends_with("sbin") { "usr/sbin" } else { "usr/bin" };
        tree.symlink(&format!("{directory}/{name}"), "/usr/bin/busybox");
    }
    Ok(())
}

/// Asks the program itself: it is static, so it runs on any Linux of its architecture.
fn applets(tree: &Tree) -> Result<Vec<String>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("busybox");
    fs::write(&path, tree.contents(BUSYBOX)?)?;
    fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    let list =
        cmd::output(Command::new(&path).arg("--list-full")).context("cannot list BusyBox's applets")?;
    Ok(list.lines().map(str::to_owned).collect())
}
