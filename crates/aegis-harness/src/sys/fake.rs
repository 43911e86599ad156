//! A machine for tests: processes are real ones of the host, everything else is written down.
//!
//! Dropping it, or [`FakeSys::destroy`], ends every process it started, as pulling the plug of a VM would.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use aegis_proto::hello::GuestNetwork;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, WaitOptions};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::sync::watch;

use super::{Child, Launch, Mount, Reaped, Sys, linux};

/// Something the harness did to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the calls")]
pub enum Call {
    Mount {
        kind: String,
        target: String,
    },
    LoadModule(String),
    SwitchRoot(String),
    LoopbackUp,
    ConfigureNetwork(GuestNetwork),
    SetHardwareAddress(String),
    RemoveNetwork,
    MakeReadOnly(String),
    WriteFile(PathBuf),
    /// [`Sys::cache_file`].
    CacheFile(PathBuf),
    Hostname(String),
    Clock(Duration),
    /// Number of bytes.
    Entropy(usize),
    SignalAll(u8),
    Sync,
    ReadOnly,
    GrowDisk(u64),
    PowerOff,
}

/// Length of the writable disk of a machine of which nothing else was said.
pub const DISK_BYTES: u64 = 10 << 30;

/// The fake machine.
pub struct FakeSys {
    state: Mutex<State>,
    powered_off: watch::Sender<bool>,
    started: Instant,
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    files: BTreeMap<PathBuf, Vec<u8>>,
    disks: BTreeSet<String>,
    /// Lengths that the writable disk has one after the other, each time that somebody looks.
    disk_bytes: VecDeque<u64>,
    broken_growth: bool,
    broken_mount: Option<String>,
    broken_file: Option<PathBuf>,
    /// The kernel's ends.
    fuse: BTreeMap<String, OwnedFd>,
    /// The host's end.
    fuse_port: Option<OwnedFd>,
    content_disk: Option<PathBuf>,
    /// Processes that were not reaped yet.
    children: BTreeSet<u32>,
    /// Process groups whose leader is gone and that still have members.
    orphaned_groups: BTreeSet<u32>,
}

impl Default for FakeSys {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeSys {
    /// A machine with both root disks and no modules.
    pub fn new() -> Self {
        let disks = ["aegis-root", "aegis-upper"].map(str::to_owned).into();
        let state = State { disks, ..State::default() };
        Self { state: Mutex::new(state), powered_off: watch::Sender::new(false), started: Instant::now() }
    }

    /// The same with this list of module file names.
    #[must_use]
    pub fn with_modules(self, names: &[&str]) -> Self {
        self.lock().files.insert("/modules/order".into(), names.join("\n").into_bytes());
        self
    }

    /// The same without disks.
    #[must_use]
    pub fn without_disks(self) -> Self {
        self.lock().disks.clear();
        self
    }

    /// The same with a writable disk that has these lengths one after the other, each time that somebody looks.
    #[must_use]
    pub fn with_disk_bytes(self, lengths: &[u64]) -> Self {
        self.lock().disk_bytes = lengths.iter().copied().collect();
        self
    }

    /// The same, but the file system of the writable disk cannot be grown.
    #[must_use]
    pub fn with_broken_growth(self) -> Self {
        self.lock().broken_growth = true;
        self
    }

    /// The same, but mounting this type of file system fails.
    #[must_use]
    pub fn with_broken_mount(self, kind: &str) -> Self {
        self.lock().broken_mount = Some(kind.to_owned());
        self
    }

    /// The same, but this file cannot be made for its owner alone.
    #[must_use]
    pub fn with_broken_file(self, path: &str) -> Self {
        self.lock().broken_file = Some(path.into());
        self
    }

    /// The same with a file.
    #[must_use]
    pub fn with_file(self, path: &str, contents: &[u8]) -> Self {
        self.lock().files.insert(path.into(), contents.to_vec());
        self
    }

    /// The same with a file as the disk with the content of open files.
    #[must_use]
    pub fn with_content_disk(self, path: &Path) -> Self {
        self.lock().content_disk = Some(path.to_owned());
        self
    }

    /// The kernel's end of the file system that is mounted there, once.
    pub fn take_fuse(&self, target: &str) -> Option<OwnedFd> {
        self.lock().fuse.remove(target)
    }

    /// The host's end of the port for messages of such file systems, once it was opened.
    pub fn take_fuse_port(&self) -> Option<OwnedFd> {
        self.lock().fuse_port.take()
    }

    /// Everything that was done so far, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// Contents of a file that the harness wrote or that was there before.
    pub fn file(&self, path: &str) -> Option<Vec<u8>> {
        self.lock().files.get(Path::new(path)).cloned()
    }

    /// Waits until the harness switched the machine off.
    pub async fn powered_off(&self) {
        // The sender lives as long as `self`.
        let _ = self.powered_off.subscribe().wait_for(|off| *off).await;
    }

    /// Kills every process at once and reaps those that are ours.
    pub fn destroy(&self) {
        let mut state = self.lock();
        for &group in state.children.iter().chain(&state.orphaned_groups) {
            // Whatever has ended already needs no signal.
            let _ = linux::signal_group(group, 9);
        }
        for &pid in &state.children {
            let _ = rustix::process::waitpid(pid_of(pid), WaitOptions::empty());
        }
        state.children.clear();
        state.orphaned_groups.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    fn record(&self, call: Call) -> io::Result<()> {
        self.lock().calls.push(call);
        Ok(())
    }
}

impl Drop for FakeSys {
    fn drop(&mut self) {
        self.destroy();
    }
}

fn pid_of(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

fn has_members(group: u32) -> bool {
    pid_of(group).is_some_and(|group| rustix::process::test_kill_process_group(group).is_ok())
}

impl Sys for FakeSys {
    fn mount(&self, mount: &Mount<'_>) -> io::Result<()> {
        let mut state = self.lock();
        state.calls.push(Call::Mount { kind: mount.kind.to_owned(), target: mount.target.to_owned() });
        if state.broken_mount.as_deref() == Some(mount.kind) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Ok(())
    }

    fn mount_fuse(&self, target: &str, _: bool) -> io::Result<OwnedFd> {
        let kind = "fuse".to_owned();
        let mut state = self.lock();
        let broken = state.broken_mount.as_ref() == Some(&kind);
        state.calls.push(Call::Mount { kind, target: target.to_owned() });
        if broken {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        // As the device does, a pair keeps messages apart.
        let flags = SocketFlags::CLOEXEC;
        let (ours, kernel) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        state.fuse.insert(target.to_owned(), kernel);
        Ok(ours)
    }

    fn make_read_only(&self, target: &str) -> io::Result<()> {
        self.record(Call::MakeReadOnly(target.to_owned()))
    }

    fn open_fuse_port(&self) -> io::Result<OwnedFd> {
        let (ours, host) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        self.lock().fuse_port = Some(host);
        Ok(ours)
    }

    fn interrupt_nobody(&self) -> io::Result<()> {
        Ok(())
    }

    fn open_content_disk(&self) -> io::Result<OwnedFd> {
        let disk = self.lock().content_disk.clone().ok_or(io::ErrorKind::NotFound)?;
        Ok(std::fs::File::open(disk)?.into())
    }

    fn set_read_ahead(&self, _: &str, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn load_module(&self, path: &Path) -> io::Result<()> {
        self.record(Call::LoadModule(path.display().to_string()))
    }

    fn find_disk(&self, serial: &str) -> io::Result<Option<PathBuf>> {
        Ok(self.lock().disks.contains(serial).then(|| Path::new("/dev").join(serial)))
    }

    fn switch_root(&self, new_root: &str, _: &[&str]) -> io::Result<()> {
        self.record(Call::SwitchRoot(new_root.to_owned()))
    }

    fn disk_bytes(&self, serial: &str) -> io::Result<u64> {
        let mut state = self.lock();
        if !state.disks.contains(serial) {
            return Err(io::ErrorKind::NotFound.into());
        }
        // The last one stays.
        let next = if state.disk_bytes.len() > 1 { state.disk_bytes.pop_front() } else { None };
        Ok(next.or_else(|| state.disk_bytes.front().copied()).unwrap_or(DISK_BYTES))
    }

    fn grow_disk(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.calls.push(Call::GrowDisk(bytes));
        if state.broken_growth { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
    }

    fn loopback_up(&self) -> io::Result<()> {
        self.record(Call::LoopbackUp)
    }

    fn configure_network(&self, network: &GuestNetwork) -> io::Result<()> {
        self.record(Call::ConfigureNetwork(network.clone()))
    }

    fn set_hardware_address(&self, mac: &str) -> io::Result<()> {
        self.record(Call::SetHardwareAddress(mac.to_owned()))
    }

    fn remove_network(&self, _: &GuestNetwork) -> io::Result<()> {
        self.record(Call::RemoveNetwork)
    }

    fn remove_symlink(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.lock().files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn cache_file(&self, path: &Path, _: u64) -> io::Result<()> {
        self.record(Call::CacheFile(path.to_owned()))
    }

    fn write_file(&self, path: &Path, contents: &[u8]) -> io::Result<()> {
        self.lock().files.insert(path.to_owned(), contents.to_vec());
        self.record(Call::WriteFile(path.to_owned()))
    }

    fn write_private_file(&self, path: &Path, contents: &[u8]) -> io::Result<()> {
        if self.lock().broken_file.as_deref() == Some(path) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.write_file(path, contents)
    }

    fn make_directory(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn symlink(&self, target: &str, path: &Path) -> io::Result<()> {
        self.lock().files.insert(path.to_owned(), target.into());
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        self.lock().files.contains_key(path)
    }

    fn set_hostname(&self, name: &str) -> io::Result<()> {
        self.record(Call::Hostname(name.to_owned()))
    }

    fn set_clock(&self, since_epoch: Duration) -> io::Result<()> {
        self.record(Call::Clock(since_epoch))
    }

    fn add_entropy(&self, seed: &[u8]) -> io::Result<()> {
        self.record(Call::Entropy(seed.len()))
    }

    fn boot_time(&self) -> Duration {
        self.started.elapsed()
    }

    fn spawn(&self, launch: &Launch) -> io::Result<Child> {
        let mut state = self.lock();
        let child = linux::spawn(launch)?;
        state.children.insert(child.pid);
        Ok(child)
    }

    fn reap(&self) -> Reaped {
        let mut state = self.lock();
        let mut ended = Vec::new();
        for &pid in &state.children {
            // Only its own: the test has other children.
            if let Ok(Some((_, status))) = rustix::process::waitpid(pid_of(pid), WaitOptions::NOHANG) {
                ended.extend(linux::exit_status(status).map(|status| (pid, status)));
            }
        }
        for (pid, _) in &ended {
            state.children.remove(pid);
            if has_members(*pid) {
                state.orphaned_groups.insert(*pid);
            }
        }
        Reaped { ended, none_left: state.children.is_empty() }
    }

    fn signal_group(&self, pid: u32, signal: u8) -> io::Result<()> {
        linux::signal_group(pid, signal)
    }

    fn signal_all(&self, signal: u8) -> io::Result<()> {
        let mut state = self.lock();
        state.calls.push(Call::SignalAll(signal));
        state.orphaned_groups.retain(|group| has_members(*group));
        for &group in state.children.iter().chain(&state.orphaned_groups) {
            // One that has just ended needs no signal.
            let _ = linux::signal_group(group, signal);
        }
        Ok(())
    }

    fn sync(&self) {
        self.lock().calls.push(Call::Sync);
    }

    fn remount_read_only(&self) -> io::Result<()> {
        self.record(Call::ReadOnly)
    }

    fn power_off(&self) {
        self.lock().calls.push(Call::PowerOff);
        self.powered_off.send_replace(true);
    }
}

/// A port that can be opened again and again while its host end stays connected, as a virtio port can.
#[derive(Clone)]
pub struct FakePort(Arc<Mutex<DuplexStream>>);

impl FakePort {
    /// A port, and the host's end of it.
    pub fn new() -> (Self, DuplexStream) {
        let (guest, host) = duplex(256 * 1024);
        (Self(Arc::new(Mutex::new(guest))), host)
    }

    fn with<T>(&self, poll: impl FnOnce(Pin<&mut DuplexStream>) -> T) -> T {
        poll(Pin::new(&mut self.0.lock().expect("no panic while held")))
    }
}

impl AsyncRead for FakePort {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for FakePort {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Closing a virtio port does not hang up the host.
        self.poll_flush(cx)
    }
}
