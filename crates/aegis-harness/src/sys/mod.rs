//! What the harness needs from the machine it runs on.
//!
//! [`linux::LinuxSys`] does it; `fake::FakeSys` (feature `fake`) writes down what needs privileges and starts
//! real processes of the host.

#[cfg(feature = "fake")]
pub mod fake;
pub mod linux;
mod network;

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aegis_proto::hello::GuestNetwork;
use aegis_types::{ExitStatus, TerminalSize};
pub use rustix::mount::MountFlags;

/// A file system to mount. Its mount point is made when it is missing.
#[derive(Debug, Clone, Copy)]
pub struct Mount<'a> {
    /// Device, or a name for people when there is none.
    pub source: &'a str,
    /// Absolute mount point.
    pub target: &'a str,
    /// File system type.
    pub kind: &'a str,
    /// Flags of mount(2).
    pub flags: MountFlags,
    /// Options of the file system.
    pub options: &'a str,
}

/// A process to start, checked and complete.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Absolute path of the executable.
    pub program: CString,
    /// Arguments, the program's name first.
    pub arguments: Vec<CString>,
    /// The whole environment as `KEY=value`.
    pub environment: Vec<CString>,
    /// Absolute working directory.
    pub workdir: CString,
    /// What its standard streams are.
    pub streams: LaunchStreams,
    /// Whose process it is; root's when absent.
    pub credentials: Option<Credentials>,
}

/// What the standard streams of a process are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaunchStreams {
    /// Pipes; standard input is `/dev/null` if it is not asked for.
    Pipes {
        /// Standard input is a pipe as well.
        stdin: bool,
    },
    /// A terminal of this size, which is the controlling one of its session.
    Terminal(TerminalSize),
}

/// Whose process it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// All groups.
    pub groups: Vec<u32>,
}

/// A started process, leader of a session and process group of its own.
#[derive(Debug)]
pub struct Child {
    /// Process id.
    pub pid: u32,
    /// Our ends of its standard streams.
    pub streams: ChildStreams,
}

/// Our ends of the standard streams of a process.
#[derive(Debug)]
pub enum ChildStreams {
    /// Of pipes.
    Pipes {
        /// Write end of its standard input, if it was asked for.
        stdin: Option<OwnedFd>,
        /// Read end of its standard output.
        stdout: OwnedFd,
        /// Read end of its standard error.
        stderr: OwnedFd,
    },
    /// The master side of its terminal, see pty(7). Closing all copies of it hangs the terminal up.
    Terminal(OwnedFd),
}

/// What [`Sys::reap`] found.
#[derive(Debug, Default)]
pub struct Reaped {
    /// Processes that ended, orphans included.
    pub ended: Vec<(u32, ExitStatus)>,
    /// No process is left.
    pub none_left: bool,
}

/// The machine. Every call is short enough for the task that makes it, but mounting and loading modules, which
/// happen on a thread of their own.
pub trait Sys: Send + Sync + 'static {
    /// Mounts a file system.
    fn mount(&self, mount: &Mount<'_>) -> io::Result<()>;
    /// Mounts a file system of which the harness answers for, and gives the descriptor for its messages: fuse(4).
    fn mount_fuse(&self, target: &str, read_only: bool) -> io::Result<OwnedFd>;
    /// Lets nothing be written to a mounted file system any more.
    fn make_read_only(&self, target: &str) -> io::Result<()>;
    /// Opens the port for the messages of such file systems. Once.
    fn open_fuse_port(&self) -> io::Result<OwnedFd>;
    /// Opens the disk on which the host shows the content of open files, for reads that are whole sectors.
    fn open_content_disk(&self) -> io::Result<OwnedFd>;
    /// From now on the calling thread interrupts nobody when it wakes; it runs as soon as somebody waits.
    fn interrupt_nobody(&self) -> io::Result<()>;
    /// Has the kernel read ahead this many KiB in the file system that is mounted there.
    fn set_read_ahead(&self, target: &str, kib: u32) -> io::Result<()>;
    /// Loads a kernel module; one that is loaded already is fine.
    fn load_module(&self, path: &Path) -> io::Result<()>;
    /// The device of the disk with this serial number.
    fn find_disk(&self, serial: &str) -> io::Result<Option<PathBuf>>;
    /// Makes `new_root` the root of every process, takes `/dev`, `/proc` and `/sys` along and frees the initial
    /// file system. `disks` are mount points that cannot be reached by name afterwards.
    fn switch_root(&self, new_root: &str, disks: &[&str]) -> io::Result<()>;
    /// Length in bytes of the disk with this serial number.
    fn disk_bytes(&self, serial: &str) -> io::Result<u64>;
    /// Has the file system of the first disk that was given to [`Sys::switch_root`] fill so many bytes of it. One that does
    /// is left alone, a larger one is an error.
    fn grow_disk(&self, bytes: u64) -> io::Result<()>;
    /// Brings the loopback interface up.
    fn loopback_up(&self) -> io::Result<()>;
    /// Gives the other interface its addresses and its routes, and brings it up. Idempotent.
    fn configure_network(&self, network: &GuestNetwork) -> io::Result<()>;
    /// Gives the other interface another hardware address, six bytes in hexadecimal with colons between them. What it is
    /// set up for stays.
    fn set_hardware_address(&self, mac: &str) -> io::Result<()>;
    /// Takes the other interface down, and the address and routes of this network from it.
    fn remove_network(&self, network: &GuestNetwork) -> io::Result<()>;
    /// Removes a symbolic link; anything else, and nothing, is left as it is.
    fn remove_symlink(&self, path: &Path) -> io::Result<()>;

    /// Reads a small file.
    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Has the kernel read a regular file of at most so many bytes and keep it in memory.
    fn cache_file(&self, path: &Path, bytes_max: u64) -> io::Result<()>;
    /// Writes a small file and makes its directory when that is missing.
    fn write_file(&self, path: &Path, contents: &[u8]) -> io::Result<()>;
    /// Makes a file that its owner may read and nobody may write.
    fn write_private_file(&self, path: &Path, contents: &[u8]) -> io::Result<()>;
    /// Makes a directory; an existing name is fine.
    fn make_directory(&self, path: &Path) -> io::Result<()>;
    /// Makes a symbolic link; an existing name is fine.
    fn symlink(&self, target: &str, path: &Path) -> io::Result<()>;
    /// Whether the name exists, dangling links included.
    fn exists(&self, path: &Path) -> bool;

    /// Sets the host name of the kernel.
    fn set_hostname(&self, name: &str) -> io::Result<()>;
    /// Sets the realtime clock to this time since the Unix epoch.
    fn set_clock(&self, since_epoch: Duration) -> io::Result<()>;
    /// Adds random bytes to the kernel's generator, credits them and makes it reseed.
    fn add_entropy(&self, seed: &[u8]) -> io::Result<()>;
    /// Time since the kernel started, suspended time included.
    fn boot_time(&self) -> Duration;

    /// Starts a process. An error is the one of the step that failed, which may be exec(2).
    fn spawn(&self, launch: &Launch) -> io::Result<Child>;
    /// Collects every process that has ended.
    fn reap(&self) -> Reaped;
    /// Sends a signal to a process group.
    fn signal_group(&self, pid: u32, signal: u8) -> io::Result<()>;
    /// Sends a signal to every process but this one.
    fn signal_all(&self, signal: u8) -> io::Result<()>;

    /// Writes everything that is cached to the disks.
    fn sync(&self);
    /// Makes the disks clean as far as possible.
    fn remount_read_only(&self) -> io::Result<()>;
    /// Switches the machine off. Returns on a fake machine only.
    fn power_off(&self);
}
