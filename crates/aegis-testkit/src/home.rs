//! A home of its own for each test, with an installation whose files are made up.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use aegis_config::Home;
use aegis_proto::worker::{IDENTITY_FILE, WorkerIdentity};
use aegis_types::InstanceId;
use aegisd::AssetFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::{Guest, VmRemote};

/// Variable in the environment of every command that [`TestHome::marker`] was given to.
const MARKER: &str = "AEGIS_TEST_HOME";

/// A temporary home and the files of a made-up installation. Dropping it removes everything and fails the test if
/// a process of it is left.
#[derive(Debug)]
pub struct TestHome {
    dir: tempfile::TempDir,
    home: Home,
    worker: PathBuf,
}

impl TestHome {
    /// A fresh home whose VMs are run by this `aegis-fake-worker`.
    ///
    /// # Panics
    /// There is no room for temporary files.
    pub fn new(worker: &str) -> Self {
        // Not below `TMPDIR`, which may be too long for the paths of sockets.
        let dir =
            tempfile::Builder::new().prefix("aegis-").tempdir_in("/tmp").expect("a temporary directory");
        let home = Home::resolve(Some(dir.path().join("home"))).expect("short and absolute");
        let lib = dir.path().join("lib");
        fs::create_dir_all(lib.join("guests")).expect("it is ours");
        for name in ["vmlinux", "initramfs", "base", "upper", "qemu"] {
            fs::write(lib.join(name), name).expect("it is ours");
        }
        fs::set_permissions(lib.join("qemu"), fs::Permissions::from_mode(0o755)).expect("it is ours");
        Self { dir, home, worker: worker.into() }
    }

    /// The home.
    pub fn home(&self) -> &Home {
        &self.home
    }

    fn lib(&self, name: &str) -> PathBuf {
        self.dir.path().join("lib").join(name)
    }

    /// The installation.
    pub fn assets(&self) -> AssetFlags {
        AssetFlags {
            kernel: Some(self.lib("vmlinux")),
            initramfs: Some(self.lib("initramfs")),
            base_image: Some(self.lib("base")),
            disk_template: Some(self.lib("upper")),
            qemu: Some(self.lib("qemu")),
            worker: Some(self.worker.clone()),
        }
    }

    /// From its next start on, the instance of this name has these guests, one after the other; the last one again
    /// and again. Each start begins with the first.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn script(&self, handle: &str, guests: &[Guest]) {
        let path = self.lib("guests").join(format!("{handle}.json"));
        let text = serde_json::to_vec(guests).expect("plain data serialises");
        fs::write(path, text).expect("it is ours");
    }

    /// A directory for the test's own files.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// For the environment of commands, so that their processes are recognised and none is left behind.
    pub fn marker(&self) -> (String, String) {
        (MARKER.to_owned(), self.dir.path().display().to_string())
    }

    /// The VM of an instance.
    pub fn vm(&self, id: &InstanceId) -> VmRemote {
        VmRemote::new(&self.home.run_dir(id))
    }

    /// Process id of the worker of an instance.
    ///
    /// # Panics
    /// It has none.
    pub fn worker_pid(&self, id: &InstanceId) -> Pid {
        worker_of(&self.home.run_dir(id)).expect("the instance has a worker")
    }

    /// What the worker of an instance wrote to its log; empty if it has none.
    pub fn worker_log(&self, id: &InstanceId) -> String {
        fs::read_to_string(self.home.run_dir(id).join("worker.log")).unwrap_or_default()
    }

    /// All workers, dead ones included whose directory is still there.
    pub(crate) fn workers(&self) -> Vec<Pid> {
        let entries = fs::read_dir(self.home.run()).into_iter().flatten().flatten();
        entries.filter_map(|entry| worker_of(&entry.path())).collect()
    }

    /// Live processes that belong to this home: workers and what runs in their VMs, with their command lines.
    pub fn processes(&self) -> Vec<(Pid, String)> {
        let path = self.dir.path().as_os_str().as_bytes();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            let Some(pid) = pid.filter(|&pid| pid != rustix::process::getpid()) else { continue };
            // Others may be ending, or not ours to read. What has ended has an empty command line.
            let Ok(command) = fs::read(entry.path().join("cmdline")) else { continue };
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let names_us = |text: &[u8]| text.windows(path.len()).any(|window| window == path);
            if !command.is_empty() && (names_us(&command) || names_us(&environment)) {
                found.push((pid, String::from_utf8_lossy(&command).replace('\0', " ")));
            }
        }
        found
    }

    /// Waits for the end of processes that are about to end, and kills the rest; gives those that had to be killed.
    fn end_processes(&self) -> Vec<(Pid, String)> {
        // A test that failed left them in the middle of something.
        let patience = if std::thread::panicking() { 0 } else { 500 };
        for _ in 0..patience {
            if self.processes().is_empty() {
                return Vec::new();
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let left = self.processes();
        for (pid, _) in &left {
            // It carries our path, so it is ours.
            let _ = kill_process(*pid, Signal::KILL);
        }
        left
    }
}

impl Drop for TestHome {
    fn drop(&mut self) {
        let left = self.end_processes();
        if !std::thread::panicking() {
            assert!(left.is_empty(), "processes were left behind: {left:?}");
        }
    }
}

fn worker_of(run_dir: &Path) -> Option<Pid> {
    let identity = fs::read(run_dir.join(IDENTITY_FILE)).ok()?;
    let identity: WorkerIdentity = serde_json::from_slice(&identity).ok()?;
    i32::try_from(identity.pid).ok().and_then(Pid::from_raw)
}

/// Files below `dir` that this process holds open.
pub(crate) fn open_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let descriptors = fs::read_dir("/proc/self/fd")?;
    let targets = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    Ok(targets.filter(|target| target.starts_with(dir)).collect())
}
