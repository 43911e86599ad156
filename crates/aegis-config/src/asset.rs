//! Where the files that VMs need and the companion programs are. The daemon uses what is found here and
//! `aegis doctor` reports it, so both always speak of the same file.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::Home;
use crate::env::{self, Environment};

/// Something that AegisVM needs from its installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Asset {
    /// Guest kernel.
    Kernel,
    /// Guest initramfs with the harness.
    Initramfs,
    /// Root image of the image `base`.
    BaseImage,
    /// Empty file system from which the disks of instances are copied.
    DiskTemplate,
    /// Program of the VMM.
    Vmm,
    /// Program that owns one VM.
    Worker,
    /// Program of the daemon.
    Daemon,
    /// Program that measures.
    Bench,
}

#[cfg(target_arch = "aarch64")]
const QEMU: &str = "qemu-system-aarch64";
#[cfg(not(target_arch = "aarch64"))]
const QEMU: &str = "qemu-system-x86_64";

const SYSTEM_DIRS: [&str; 3] = ["/usr/lib/aegisvm", "/usr/libexec", "/usr/local/bin"];

impl Asset {
    /// Name in messages and in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
            Self::BaseImage => "base image",
            Self::DiskTemplate => "disk template",
            Self::Vmm => "vmm",
            Self::Worker => "worker",
            Self::Daemon => "daemon",
            Self::Bench => "bench",
        }
    }

    /// Name of the file.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Kernel => "vmlinux",
            Self::Initramfs => "initramfs.cpio",
            Self::BaseImage => "base.erofs",
            Self::DiskTemplate => "upper.ext4",
            Self::Vmm => QEMU,
            Self::Worker => "aegis-vmm-worker",
            Self::Daemon => "aegisd",
            Self::Bench => "aegis-bench",
        }
    }

    /// The environment variable that names it.
    pub fn variable(self) -> &'static str {
        match self {
            Self::Kernel => env::KERNEL,
            Self::Initramfs => env::INITRAMFS,
            Self::BaseImage => env::BASE_IMAGE,
            Self::DiskTemplate => env::DISK_TEMPLATE,
            Self::Vmm => env::QEMU,
            Self::Worker => env::WORKER,
            Self::Daemon => env::DAEMON,
            Self::Bench => env::BENCH,
        }
    }

    fn is_program(self) -> bool {
        matches!(self, Self::Vmm | Self::Worker | Self::Daemon | Self::Bench)
    }

    fn hint(self) -> String {
        let name = self.variable();
        match self {
            Self::Kernel => format!("`make all` in the source tree fetches one; or name one with {name}"),
            Self::Initramfs | Self::DiskTemplate => {
                format!("`make all` in the source tree builds it; or name one with {name}")
            }
            Self::BaseImage => {
                format!("`make base-image` in the source tree builds it; or name one with {name}")
            }
            Self::Vmm => format!(
                "install QEMU (Debian, Ubuntu: `apt-get install qemu-system-x86`); or name the program with {name}"
            ),
            Self::Worker | Self::Daemon | Self::Bench => format!(
                "it belongs beside `aegis`: `make all` or `make install` puts it there; or name it with {name}"
            ),
        }
    }
}

impl fmt::Display for Asset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a file was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Named on the command line.
    Flag,
    /// Named by this variable.
    Env(&'static str),
    /// In `lib` of the home.
    Home,
    /// Part of the installation that the running program belongs to.
    Installation,
    /// In `PATH`.
    Path,
    /// In a directory of the system.
    System,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "command line",
            Self::Env(name) => name,
            Self::Home => "home",
            Self::Installation => "installation",
            Self::Path => "PATH",
            Self::System => "system",
        })
    }
}

/// A file that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Where; absolute.
    pub path: PathBuf,
    /// How it was found.
    pub origin: Origin,
}

/// A file that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotFound {
    /// What was looked for.
    pub asset: Asset,
    /// Where, in order.
    pub tried: Vec<PathBuf>,
    /// Who named the file; absent when the usual places were searched.
    pub named_by: Option<Origin>,
    /// What to do.
    pub hint: String,
}

impl std::error::Error for NotFound {}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wanted = if self.asset.is_program() { "a program" } else { "a file" };
        match (self.named_by, self.tried.first()) {
            (Some(by), Some(path)) => {
                write!(f, "the {} `{}` named by {by} is not {wanted}", self.asset, path.display())
            }
            _ => {
                write!(f, "no {} ({}) in", self.asset, self.asset.file_name())?;
                let mut dirs: Vec<&Path> = Vec::new();
                for dir in self.tried.iter().filter_map(|path| path.parent()) {
                    if !dirs.contains(&dir) {
                        dirs.push(dir);
                    }
                }
                for (i, dir) in dirs.iter().enumerate() {
                    write!(f, "{} {}", if i == 0 { "" } else { "," }, dir.display())?;
                }
                Ok(())
            }
        }
    }
}

/// Finds a file or a program.
///
/// Files: flag, variable, `lib` in the home, `../lib/aegis` beside the running program. The VMM: flag,
/// variable, `PATH`. Our own programs: flag, variable, beside the running program, `PATH`, system directories.
///
/// # Errors
/// [`NotFound`]. A flag or variable that names something else than a file is an error, never skipped.
pub fn locate(asset: Asset, flag: Option<&Path>, home: &Home) -> Result<Located, NotFound> {
    let exe = std::env::current_exe().ok();
    let exe_dir = exe.as_deref().and_then(Path::parent);
    locate_in(asset, flag, home, &Environment::process(), exe_dir)
}

/// [`locate`] with another environment and directory of the running program.
///
/// # Errors
/// As [`locate`].
pub fn locate_in(
    asset: Asset,
    flag: Option<&Path>,
    home: &Home,
    vars: &Environment,
    exe_dir: Option<&Path>,
) -> Result<Located, NotFound> {
    let named = flag.map(|path| (path.to_owned(), Origin::Flag));
    let named = named.or_else(|| {
        let name = asset.variable();
        vars.path(name).map(|path| (path, Origin::Env(name)))
    });
    if let Some((path, origin)) = named {
        let path = std::path::absolute(&path).unwrap_or(path);
        return if usable(asset, &path) {
            Ok(Located { path, origin })
        } else {
            Err(NotFound { asset, tried: vec![path], named_by: Some(origin), hint: asset.hint() })
        };
    }
    let mut tried = Vec::new();
    for (dir, origin) in places(asset, home, vars, exe_dir) {
        let path = dir.join(asset.file_name());
        if usable(asset, &path) {
            return Ok(Located { path, origin });
        }
        tried.push(path);
    }
    Err(NotFound { asset, tried, named_by: None, hint: asset.hint() })
}

fn places(asset: Asset, home: &Home, vars: &Environment, exe_dir: Option<&Path>) -> Vec<(PathBuf, Origin)> {
    let mut places = Vec::new();
    if !asset.is_program() {
        places.push((home.lib(), Origin::Home));
        // By parent() instead of `..`, so that messages show the path as people write it.
        if let Some(prefix) = exe_dir.and_then(Path::parent) {
            places.push((prefix.join("lib/aegis"), Origin::Installation));
        }
        return places;
    }
    let companion = asset != Asset::Vmm;
    if companion && let Some(dir) = exe_dir {
        places.push((dir.to_owned(), Origin::Installation));
    }
    let search: OsString = vars.get(env::PATH).unwrap_or_default();
    // A relative entry would make the choice depend on the current directory.
    let absolute = std::env::split_paths(&search).filter(|dir| dir.is_absolute());
    places.extend(absolute.map(|dir| (dir, Origin::Path)));
    if companion {
        places.extend(SYSTEM_DIRS.map(|dir| (PathBuf::from(dir), Origin::System)));
    }
    places
}

fn usable(asset: Asset, path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && (!asset.is_program() || meta.permissions().mode() & 0o111 != 0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::fs;

    use super::*;
    use crate::env::table;

    struct Place {
        dir: tempfile::TempDir,
        home: Home,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let home = Home::resolve_in(Some(dir.path().join("home")), &table(&[])).unwrap();
            Self { dir, home }
        }

        fn file(&self, path: &str, mode: u32) -> PathBuf {
            let path = self.dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        }

        fn locate(
            &self,
            asset: Asset,
            flag: Option<&Path>,
            vars: &[(&str, &Path)],
        ) -> Result<Located, NotFound> {
            let vars: Vec<_> = vars.iter().map(|(name, path)| (*name, path.to_str().unwrap())).collect();
            locate_in(asset, flag, &self.home, &table(&vars), Some(&self.dir.path().join("bin")))
        }
    }

    #[test]
    fn files_are_found_in_order() {
        let place = Place::new();
        assert_eq!(place.locate(Asset::Kernel, None, &[]).unwrap_err().tried.len(), 2);
        let installed = place.file("lib/aegis/vmlinux", 0o644);
        let found = place.locate(Asset::Kernel, None, &[]).unwrap();
        assert_eq!(found, Located { path: installed, origin: Origin::Installation });
        let own = place.file("home/lib/vmlinux", 0o644);
        assert_eq!(place.locate(Asset::Kernel, None, &[]).unwrap().path, own);
        let named = place.file("k", 0o644);
        let found = place.locate(Asset::Kernel, None, &[("AEGIS_KERNEL", &named)]).unwrap();
        assert_eq!(found, Located { path: named.clone(), origin: Origin::Env("AEGIS_KERNEL") });
        let flag = place.file("f", 0o644);
        let found = place.locate(Asset::Kernel, Some(&flag), &[("AEGIS_KERNEL", &named)]).unwrap();
        assert_eq!(found.origin, Origin::Flag);
    }

    #[test]
    fn a_named_file_that_is_missing_is_an_error_although_another_exists() {
        let place = Place::new();
        place.file("lib/aegis/vmlinux", 0o644);
        let error = place.locate(Asset::Kernel, None, &[("AEGIS_KERNEL", Path::new("/no/k"))]).unwrap_err();
        assert_eq!(error.to_string(), "the kernel `/no/k` named by AEGIS_KERNEL is not a file");
        assert!(place.locate(Asset::Kernel, Some(Path::new("/no/k")), &[]).is_err());
    }

    #[test]
    fn programs_must_be_executable_and_come_from_beside_us_first() {
        let place = Place::new();
        place.file("bin/aegisd", 0o644);
        let in_path = place.file("path/aegisd", 0o755);
        let path = place.dir.path().join("path");
        assert_eq!(place.locate(Asset::Daemon, None, &[("PATH", &path)]).unwrap().path, in_path);
        let beside = place.file("bin/aegisd", 0o755);
        assert_eq!(place.locate(Asset::Daemon, None, &[("PATH", &path)]).unwrap().path, beside);
    }

    #[test]
    fn the_vmm_is_searched_in_absolute_path_entries_only() {
        let place = Place::new();
        place.file(&format!("bin/{QEMU}"), 0o755);
        let error = place.locate(Asset::Vmm, None, &[("PATH", Path::new("bin:.:/no/such"))]).unwrap_err();
        assert_eq!(error.tried, [Path::new("/no/such").join(QEMU)]);
        assert!(error.hint.contains("AEGIS_QEMU"));
    }
}
