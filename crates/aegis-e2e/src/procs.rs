//! Finding the processes and sockets of one home.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A live process.
#[derive(Debug, Clone)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// File name of the program.
    pub program: String,
}

impl Process {
    /// Sends SIGKILL.
    pub fn kill(&self) {
        self.signal("KILL");
    }

    /// Sends a signal by name. A process that is gone already is fine.
    pub fn signal(&self, name: &str) {
        let _ = Command::new("kill").args([&format!("-{name}"), &self.pid.to_string()]).output();
    }
}

/// Programs of ours, and VMMs, whose command line or environment names a path below this directory.
pub(crate) fn mentioning(home: &Path) -> Vec<Process> {
    let home = home.to_str().expect("temporary directories are UTF-8");
    let own = std::process::id();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let command = String::from_utf8_lossy(&read("cmdline")).into_owned();
        let program = command.split('\0').next().unwrap_or_default();
        let program = Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let ours =
            program.starts_with("aegisd") || program.starts_with("aegis-") || program.starts_with("qemu-");
        // A zombie has no command line; it is somebody's to reap and runs nothing.
        if pid != own
            && ours
            && (command.contains(home) || String::from_utf8_lossy(&read("environ")).contains(home))
        {
            found.push(Process { pid, program });
        }
    }
    found
}

/// Sockets anywhere below a directory.
pub(crate) fn sockets_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(sockets_below(&entry.path())),
            Ok(kind) if kind.is_socket() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}
