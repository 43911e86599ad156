//! What the build and the tests need from the host, and getting it where that is possible.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::cmd;
use crate::ui::Step;

/// Package lists older than this are refreshed before something is installed.
const LISTS_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Something the host must have.
pub(crate) struct Need {
    what: &'static str,
    probe: Probe,
    /// The Debian package that brings it.
    package: &'static str,
}

enum Probe {
    Program(&'static str),
    File(&'static str),
    /// A file that the C compiler finds among its libraries.
    Library(&'static str),
}

const fn program(name: &'static str, package: &'static str) -> Need {
    Need { what: name, probe: Probe::Program(name), package }
}

/// For building, running and testing.
pub(crate) const BASIC: &[Need] = &[
    program("qemu-system-x86_64", "qemu-system-x86"),
    program("mke2fs", "e2fsprogs"),
    program("debugfs", "e2fsprogs"),
    program("fsck.erofs", "erofs-utils"),
    program("cc", "gcc"),
    program("docker-registry", "docker-registry"),
    Need { what: "the static C library", probe: Probe::Library("libc.a"), package: "libc6-dev" },
    Need {
        what: "certificate authorities",
        probe: Probe::File("/etc/ssl/certs/ca-certificates.crt"),
        package: "ca-certificates",
    },
];

/// For compiling a kernel, in addition.
pub(crate) const KERNEL: &[Need] = &[
    program("make", "make"),
    program("bc", "bc"),
    program("flex", "flex"),
    program("bison", "bison"),
    program("xz", "xz-utils"),
    program("objcopy", "binutils"),
    Need { what: "libelf headers", probe: Probe::File("/usr/include/gelf.h"), package: "libelf-dev" },
    Need {
        what: "OpenSSL headers",
        probe: Probe::File("/usr/include/openssl/opensslv.h"),
        package: "libssl-dev",
    },
];

impl Need {
    fn is_met(&self) -> bool {
        match self.probe {
            Probe::Program(name) => cmd::find(name).is_some(),
            Probe::File(path) => Path::new(path).exists(),
            Probe::Library(name) => cmd::output(Command::new("cc").arg(format!("-print-file-name={name}")))
                .is_ok_and(|path| Path::new(path.trim()).is_absolute()),
        }
    }
}

/// `cargo xtask setup`: [`ensure`], and a word when there was nothing to do.
pub(crate) fn run() -> Result<()> {
    ensure(BASIC)?;
    eprintln!("✓ setup: everything that is needed is installed");
    Ok(())
}

/// Installs what is missing where that needs no question, otherwise says exactly what to install.
///
/// # Errors
/// Something is still missing.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let missing = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    let packages = packages(&missing);
    let Some(privileged) = privileged_apt() else { bail!(advice(&missing, &packages)) };
    let step = Step::start(format!("installing {}", packages.join(" ")));
    if !lists_are_recent() {
        cmd::run_noted(privileged().args(["--quiet", "update"]), &step)?;
    }
    let install = || {
        let mut apt = privileged();
        apt.args(["--quiet", "install", "--yes", "--no-install-recommends"]).args(&packages);
        cmd::run_noted(&mut apt, &step)
    };
    if install().is_err() {
        // Lists can be recent and already name versions that are gone.
        cmd::run_noted(privileged().args(["--quiet", "update"]), &step)?;
        install()?;
    }
    let still = self::missing(needs);
    if !still.is_empty() {
        bail!(advice(&still, &self::packages(&still)));
    }
    step.done(format!("{} packages", packages.len()));
    Ok(())
}

fn missing(needs: &[Need]) -> Vec<&Need> {
    needs.iter().filter(|need| !need.is_met()).collect()
}

fn packages(needs: &[&Need]) -> Vec<&'static str> {
    let mut packages: Vec<_> = needs.iter().map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn advice(missing: &[&Need], packages: &[&str]) -> String {
    let what: Vec<_> = missing.iter().map(|need| need.what).collect();
    let what = what.join(", ");
    let packages = packages.join(" ");
    format!(
        "missing: {what}\n  hint: sudo apt-get update && sudo apt-get install --no-install-recommends {packages}"
    )
}

/// A way to start `apt-get` with the rights to install, if there is one that asks nothing.
fn privileged_apt() -> Option<impl Fn() -> Command> {
    let apt = cmd::find("apt-get")?;
    let sudo = if rustix::process::geteuid().is_root() {
        None
    } else {
        let sudo = cmd::find("sudo")?;
        cmd::output(Command::new(&sudo).args(["-n", "true"])).ok()?;
        Some(sudo)
    };
    Some(move || {
        let mut command = match &sudo {
            // Through `env`, because sudo clears the environment.
            Some(sudo) => {
                let mut command = Command::new(sudo);
                command.args(["-n", "env", "DEBIAN_FRONTEND=noninteractive"]).arg(&apt);
                command
            }
            None => Command::new(&apt),
        };
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    })
}

fn lists_are_recent() -> bool {
    let Ok(entries) = fs::read_dir("/var/lib/apt/lists") else { return false };
    let recent = |entry: fs::DirEntry| {
        let age = entry.metadata().ok()?.modified().ok()?.elapsed().unwrap_or_default();
        Some(entry.file_name().to_string_lossy().contains("_Packages") && age < LISTS_AGE_MAX)
    };
    entries.filter_map(Result::ok).any(|entry| recent(entry).unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABSENT: Need =
        Need { what: "a thing", probe: Probe::File("/nonexistent/thing"), package: "thing-dev" };

    #[test]
    fn the_advice_names_each_package_once() {
        let needs = [ABSENT, ABSENT, Need { what: "root", probe: Probe::File("/"), package: "base" }];
        let missing = missing(&needs);
        let text = advice(&missing, &packages(&missing));
        assert!(text.starts_with("missing: a thing, a thing\n"), "{text}");
        assert!(text.ends_with("install --no-install-recommends thing-dev"), "{text}");
    }
}
