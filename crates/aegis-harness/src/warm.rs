//! What nearly every command needs first, done in a template, so that its clones need not: files are in the page cache, and
//! threads of the harness there.
//!
//! Files are only read. A template must not have run anything of its image: what a hostile program left behind would
//! be in every clone.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use tokio::time::sleep;

use crate::environment::DEFAULT_PATH;
use crate::sys::Sys;

/// The C library and its loader, a shell, BusyBox where that is every command, and what is written into a clone. Names that
/// an image does not have are known not to be there then.
const FILES: &[&str] = &[
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib/aarch64-linux-gnu/libc.so.6",
    "/lib64/libc.so.6",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
    "/etc/ld.so.cache",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/machine-id",
    "/etc/resolv.conf",
    "/bin/sh",
    "/bin/busybox",
];

/// Nothing of the kind is larger.
const BYTES_MAX: u64 = 8 << 20;

/// What a clone does on threads before its command runs: becomes somebody, serves its mounts, starts the command.
const THREADS: usize = 3;

/// Has so many blocking threads wait for work. The runtime keeps them for some seconds, which go on in the clone.
pub(crate) async fn start_threads() {
    let all = Arc::new(Barrier::new(THREADS));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let all = Arc::clone(&all);
            tokio::task::spawn_blocking(move || all.wait())
        })
        .collect();
    for thread in threads {
        // Nothing there can fail.
        let _ = thread.await;
    }
}

/// What the kernel thinks of the network interface.
const INTERFACE_STATE: &str = "/sys/class/net/eth0/operstate";
const UP: &[u8] = b"up\n";
const STATE_POLL: Duration = Duration::from_millis(50);
const STATE_POLLS: u32 = 60;

/// Waits until the kernel has noticed that the interface is up, which it does at its leisure: in each clone otherwise.
pub(crate) async fn wait_for_network(sys: &dyn Sys) {
    for _ in 0..STATE_POLLS {
        match sys.read_file(Path::new(INTERFACE_STATE)) {
            Ok(state) if state != UP => sleep(STATE_POLL).await,
            // There may be no interface.
            _ => return,
        }
    }
}

/// Reads them.
pub(crate) fn read_common_files(sys: &dyn Sys) {
    // Wherever a command is, the directories before it are looked through.
    let commands = DEFAULT_PATH.split(':').map(|directory| Path::new(directory).join("true"));
    for path in FILES.iter().map(PathBuf::from).chain(commands) {
        // A missing one is another image's, and an odd one does not help.
        let _ = sys.cache_file(&path, BYTES_MAX);
    }
}
