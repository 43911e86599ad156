//! The real machine. The only module with unsafe code: what rustix offers is taken from there.
#![allow(unsafe_code, reason = "posix_spawn, ioctls and AsyncFd have no safe wrapper")]

use std::ffi::{CStr, CString, c_int, c_short, c_ulong};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Mutex;
use std::time::Duration;

use aegis_proto::fuse::CONTENT_DISK;
use aegis_proto::hello::GuestNetwork;
use aegis_types::{ExitStatus, TerminalSize};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, WaitStatus};
use rustix::system::RebootCommand;
use rustix::time::{ClockId, Timespec};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::port;

use super::{Child, ChildStreams, Credentials, Launch, LaunchStreams, Mount, Reaped, Sys, network};

/// Name of the port for messages of mounted directories.
const FUSE_PORT: &str = "aegis.fs";

/// The machine whose PID 1 this process is.
#[derive(Default)]
pub struct LinuxSys {
    /// Disks below the overlay, by descriptor because they have no name after the change of root.
    disks: Mutex<Vec<OwnedFd>>,
}

impl Sys for LinuxSys {
    fn mount(&self, mount: &Mount<'_>) -> io::Result<()> {
        fs::create_dir_all(mount.target)?;
        let options = CString::new(mount.options)?;
        rustix::mount::mount(mount.source, mount.target, mount.kind, mount.flags, options.as_c_str())?;
        Ok(())
    }

    fn mount_fuse(&self, target: &str, read_only: bool) -> io::Result<OwnedFd> {
        fs::create_dir_all(target)?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let device = rustix::fs::open("/dev/fuse", flags, Mode::empty())?;
        // For every user of the guest: the host does not tell them apart.
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
        flags.set(MountFlags::RDONLY, read_only);
        let options = CString::new(options)?;
        rustix::mount::mount("aegis", target, "fuse.aegis", flags, options.as_c_str())?;
        Ok(device)
    }

    fn make_read_only(&self, target: &str) -> io::Result<()> {
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        Ok(rustix::mount::mount_remount(target, flags, c"")?)
    }

    fn open_fuse_port(&self) -> io::Result<OwnedFd> {
        let path = port::find(FUSE_PORT).ok_or(io::ErrorKind::NotFound)?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY;
        Ok(rustix::fs::open(path, flags, Mode::empty())?)
    }

    fn open_content_disk(&self) -> io::Result<OwnedFd> {
        let path = self.find_disk(CONTENT_DISK)?.ok_or(io::ErrorKind::NotFound)?;
        // What is there changes: no page of it is to be kept.
        Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())?)
    }

    fn interrupt_nobody(&self) -> io::Result<()> {
        // SAFETY: plain data for which zero is valid, and the only priority of this policy.
        let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
        // SAFETY: takes a structure that lives during the call; 0 is the calling thread.
        check(unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) })
    }

    fn set_read_ahead(&self, target: &str, kib: u32) -> io::Result<()> {
        // Without asking the file system itself.
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        let found = rustix::fs::statx(CWD, target, flags, StatxFlags::TYPE)?;
        let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", found.stx_dev_major, found.stx_dev_minor);
        fs::write(path, kib.to_string())
    }

    fn load_module(&self, path: &Path) -> io::Result<()> {
        let file = File::open(path)?;
        match rustix::system::finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn find_disk(&self, serial: &str) -> io::Result<Option<PathBuf>> {
        for entry in fs::read_dir("/sys/block")? {
            let entry = entry?;
            let found = fs::read_to_string(entry.path().join("serial"));
            if found.is_ok_and(|found| found.trim_end() == serial) {
                return Ok(Some(Path::new("/dev").join(entry.file_name())));
            }
        }
        Ok(None)
    }

    fn switch_root(&self, new_root: &str, disks: &[&str]) -> io::Result<()> {
        let disks: Vec<OwnedFd> = disks
            .iter()
            .map(|disk| {
                rustix::fs::open(*disk, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            })
            .collect::<Result<_, _>>()?;
        *self.disks.lock().expect("no panic while held") = disks;
        for name in ["dev", "proc", "sys"] {
            let target = format!("{new_root}/{name}");
            fs::create_dir_all(&target)?;
            rustix::mount::mount_move(format!("/{name}"), &target)?;
        }
        // The initial file system cannot be unmounted, but its memory can be given back.
        free_tree(Path::new("/"), fs::metadata("/")?.dev());
        rustix::process::chdir(new_root)?;
        rustix::mount::mount_move(".", "/")?;
        rustix::process::chroot(".")?;
        rustix::process::chdir("/")?;
        Ok(())
    }

    fn disk_bytes(&self, serial: &str) -> io::Result<u64> {
        let device = self.find_disk(serial)?.ok_or(io::ErrorKind::NotFound)?;
        let name = device.file_name().ok_or(io::ErrorKind::NotFound)?;
        let sectors = fs::read_to_string(Path::new("/sys/block").join(name).join("size"))?;
        let sectors: u64 = sectors.trim_end().parse().map_err(io::Error::other)?;
        Ok(sectors.saturating_mul(SECTOR_BYTES))
    }

    fn grow_disk(&self, bytes: u64) -> io::Result<()> {
        let disks = self.disks.lock().expect("no panic while held");
        let disk = disks.first().ok_or(io::ErrorKind::NotFound)?;
        // The one that we have is for its name alone.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(disk, ".", flags, Mode::empty())?;
        let block_bytes = rustix::fs::fstatvfs(&root)?.f_bsize.max(1);
        let blocks: u64 = bytes / block_bytes;
        // SAFETY: the call reads one number, which lives during the call.
        check(unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_RESIZE_FS as _, &raw const blocks) })
    }

    fn loopback_up(&self) -> io::Result<()> {
        loopback_up()
    }

    fn configure_network(&self, network: &GuestNetwork) -> io::Result<()> {
        network::configure(network)
    }

    fn set_hardware_address(&self, mac: &str) -> io::Result<()> {
        set_hardware_address(&network::parse_mac(mac)?)
    }

    fn remove_network(&self, network: &GuestNetwork) -> io::Result<()> {
        network::remove(network)
    }

    fn remove_symlink(&self, path: &Path) -> io::Result<()> {
        if path.is_symlink() { fs::remove_file(path) } else { Ok(()) }
    }

    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn cache_file(&self, path: &Path, bytes_max: u64) -> io::Result<()> {
        // A pipe of that name must not hold the harness up.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let about = file.metadata()?;
        if !about.is_file() || about.len() > bytes_max {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        io::copy(&mut file.take(bytes_max), &mut io::sink()).map(drop)
    }

    fn write_file(&self, path: &Path, contents: &[u8]) -> io::Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        // Cutting a file off and letting it grow again is a transaction of the file system for each.
        let mut file = File::options().write(true).create(true).truncate(false).open(path)?;
        file.write_all(contents)?;
        let length = contents.len() as u64;
        if file.metadata()?.len() > length { file.set_len(length) } else { Ok(()) }
    }

    fn write_private_file(&self, path: &Path, contents: &[u8]) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        File::options().write(true).create_new(true).mode(0o400).open(path)?.write_all(contents)
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        match fs::create_dir(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        }
    }

    fn symlink(&self, target: &str, path: &Path) -> io::Result<()> {
        match symlink(target, path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        }
    }

    fn exists(&self, path: &Path) -> bool {
        path.symlink_metadata().is_ok()
    }

    fn set_hostname(&self, name: &str) -> io::Result<()> {
        Ok(rustix::system::sethostname(name.as_bytes())?)
    }

    fn set_clock(&self, since_epoch: Duration) -> io::Result<()> {
        let seconds = i64::try_from(since_epoch.as_secs()).map_err(io::Error::other)?;
        let time = Timespec { tv_sec: seconds, tv_nsec: since_epoch.subsec_nanos().into() };
        Ok(rustix::time::clock_settime(ClockId::Realtime, time)?)
    }

    fn add_entropy(&self, seed: &[u8]) -> io::Result<()> {
        add_entropy(seed)
    }

    fn boot_time(&self) -> Duration {
        let time = rustix::time::clock_gettime(ClockId::Boottime);
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
    }

    fn spawn(&self, launch: &Launch) -> io::Result<Child> {
        spawn(launch)
    }

    fn reap(&self) -> Reaped {
        let mut reaped = Reaped::default();
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    reaped
                        .ended
                        .extend(exit_status(status).map(|s| (pid.as_raw_nonzero().get().unsigned_abs(), s)));
                }
                Ok(None) => return reaped,
                Err(Errno::INTR) => {}
                Err(_) => {
                    reaped.none_left = true;
                    return reaped;
                }
            }
        }
    }

    fn signal_group(&self, pid: u32, signal: u8) -> io::Result<()> {
        signal_group(pid, signal)
    }

    fn signal_all(&self, signal: u8) -> io::Result<()> {
        kill(-1, signal)
    }

    fn sync(&self) {
        rustix::fs::sync();
    }

    fn remount_read_only(&self) -> io::Result<()> {
        // The overlay holds the disks below it open for writing, so it goes first.
        rustix::mount::mount_remount("/", MountFlags::RDONLY, c"")?;
        for disk in self.disks.lock().expect("no panic while held").iter() {
            let path = format!("/proc/self/fd/{}", disk.as_raw_fd());
            rustix::mount::mount_remount(path, MountFlags::RDONLY, c"")?;
        }
        Ok(())
    }

    fn power_off(&self) {
        // A kernel without ACPI takes "power off" for "halt", and the VMM would wait for ever. VMMs are started
        // so that a reset ends them.
        if Path::new("/sys/firmware/acpi").exists() {
            let _ = rustix::system::reboot(RebootCommand::PowerOff);
        }
        let _ = rustix::system::reboot(RebootCommand::Restart);
    }
}

/// Removes everything below `directory` that is on the file system `device`.
fn free_tree(directory: &Path, device: u64) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(found) = path.symlink_metadata() else { continue };
        if found.dev() != device {
            continue;
        }
        if found.is_dir() {
            free_tree(&path, device);
            // Fails for directories that carry a mount; they stay.
            let _ = fs::remove_dir(&path);
        } else if !found.file_type().is_socket() {
            let _ = fs::remove_file(&path);
        }
    }
}

pub(super) fn exit_status(status: WaitStatus) -> Option<ExitStatus> {
    let byte = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(ExitStatus::exited(byte(code))),
        (None, Some(signal)) => Some(ExitStatus::killed(byte(signal))),
        (None, None) => None,
    }
}

pub(super) fn signal_group(pid: u32, signal: u8) -> io::Result<()> {
    match i32::try_from(pid).ok().and_then(Pid::from_raw) {
        Some(pid) if !pid.is_init() => kill(-pid.as_raw_nonzero().get(), signal),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn kill(pid: i32, signal: u8) -> io::Result<()> {
    // SAFETY: takes and touches no memory.
    check(unsafe { libc::kill(pid, signal.into()) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Starts a process of the session `launch` describes. Needs no privileges.
///
/// posix_spawn, because it shares memory with the child until exec (a fork would copy page tables), and because
/// unlike execvp it does not hand a file without `#!` to a shell.
pub(super) fn spawn(launch: &Launch) -> io::Result<Child> {
    match &launch.credentials {
        None => spawn_as_caller(launch),
        // The kernel knows credentials of threads only; a child has those of the thread that starts it.
        Some(credentials) => std::thread::scope(|scope| {
            let spawning = std::thread::Builder::new().spawn_scoped(scope, || {
                let streams = StreamsOfChild::new(launch.streams, Some(credentials))?;
                take_on(credentials)?;
                spawn_with(launch, streams)
            })?;
            spawning.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts it failed")))
        }),
    }
}

fn spawn_as_caller(launch: &Launch) -> io::Result<Child> {
    spawn_with(launch, StreamsOfChild::new(launch.streams, None)?)
}

/// Gives the calling thread, and no other, the credentials. There is no way back.
fn take_on(credentials: &Credentials) -> io::Result<()> {
    use rustix::process::{Gid, Uid};
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let (uid, gid) = (Uid::from_raw(credentials.uid), Gid::from_raw(credentials.gid));
    let groups: Vec<Gid> = credentials.groups.iter().map(|&group| Gid::from_raw(group)).collect();
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    Ok(set_thread_res_uid(uid, uid, uid)?)
}

/// The standard streams of a process before it is there.
struct StreamsOfChild {
    ours: ChildStreams,
    actions: FileActions,
    /// Open until the child has copies of them.
    _theirs: Vec<OwnedFd>,
}

impl StreamsOfChild {
    fn new(streams: LaunchStreams, owner: Option<&Credentials>) -> io::Result<Self> {
        match streams {
            LaunchStreams::Pipes { stdin } => Self::pipes(stdin),
            LaunchStreams::Terminal(size) => Self::terminal(size, owner),
        }
    }

    fn pipes(stdin: bool) -> io::Result<Self> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC);
        let (stdout, stdout_theirs) = pipe()?;
        let (stderr, stderr_theirs) = pipe()?;
        let mut actions = FileActions::new()?;
        let mut theirs = Vec::new();
        let stdin = if stdin {
            let (read, write) = pipe()?;
            actions.duplicate(&read, libc::STDIN_FILENO)?;
            theirs.push(read);
            Some(write)
        } else {
            actions.open(libc::STDIN_FILENO, c"/dev/null", libc::O_RDONLY)?;
            None
        };
        actions.duplicate(&stdout_theirs, libc::STDOUT_FILENO)?;
        actions.duplicate(&stderr_theirs, libc::STDERR_FILENO)?;
        theirs.extend([stdout_theirs, stderr_theirs]);
        Ok(Self { ours: ChildStreams::Pipes { stdin, stdout, stderr }, actions, _theirs: theirs })
    }

    fn terminal(size: TerminalSize, owner: Option<&Credentials>) -> io::Result<Self> {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        resize(&master, size)?;
        let slave = ptsname(&master, Vec::new())?;
        if let Some(Credentials { uid, gid, .. }) = owner {
            std::os::unix::fs::chown(slave.to_str().map_err(io::Error::other)?, Some(*uid), Some(*gid))?;
        }
        let mut actions = FileActions::new()?;
        // In the new session: the first terminal that its leader opens becomes the controlling one.
        actions.open(libc::STDIN_FILENO, &slave, libc::O_RDWR)?;
        for descriptor in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
            actions.duplicate_number(libc::STDIN_FILENO, descriptor)?;
        }
        Ok(Self { ours: ChildStreams::Terminal(master), actions, _theirs: Vec::new() })
    }
}

/// Tells a terminal its size, and the processes in its foreground that it has changed.
pub(crate) fn resize(terminal: impl AsFd, size: TerminalSize) -> io::Result<()> {
    let TerminalSize { rows, cols } = size;
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

fn spawn_with(launch: &Launch, streams: StreamsOfChild) -> io::Result<Child> {
    let StreamsOfChild { ours, mut actions, _theirs } = streams;
    actions.enter(&launch.workdir)?;
    let attributes = Attributes::new()?;
    let arguments = pointers(&launch.arguments);
    let environment = pointers(&launch.environment);
    let mut pid = 0;
    // SAFETY: both arrays end with a null pointer and point to strings that `launch` keeps alive; actions and
    // attributes were initialised by their constructors.
    let error = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            launch.program.as_ptr(),
            actions.0.as_ptr(),
            attributes.0.as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
        )
    };
    code(error)?;
    Ok(Child { pid: pid.unsigned_abs(), streams: ours })
}

/// The calls of the posix_spawn family return their error.
fn code(error: c_int) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

fn pointers(strings: &[CString]) -> Vec<*mut libc::c_char> {
    strings.iter().map(|s| s.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
}

struct FileActions(MaybeUninit<libc::posix_spawn_file_actions_t>);

impl FileActions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: initialises the memory it is given.
        code(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        Ok(Self(actions))
    }

    fn duplicate(&mut self, from: impl AsFd, to: c_int) -> io::Result<()> {
        self.duplicate_number(from.as_fd().as_raw_fd(), to)
    }

    /// As [`FileActions::duplicate`], for a descriptor that is open in the child alone.
    fn duplicate_number(&mut self, from: c_int, to: c_int) -> io::Result<()> {
        // SAFETY: `self` is initialised.
        code(unsafe { libc::posix_spawn_file_actions_adddup2(self.0.as_mut_ptr(), from, to) })
    }

    fn open(&mut self, descriptor: c_int, path: &CStr, flags: c_int) -> io::Result<()> {
        let actions = self.0.as_mut_ptr();
        // SAFETY: `self` is initialised, and the path is copied.
        code(unsafe { libc::posix_spawn_file_actions_addopen(actions, descriptor, path.as_ptr(), flags, 0) })
    }

    fn enter(&mut self, directory: &CStr) -> io::Result<()> {
        // SAFETY: `self` is initialised, and the path is copied.
        code(unsafe { libc::posix_spawn_file_actions_addchdir_np(self.0.as_mut_ptr(), directory.as_ptr()) })
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: initialised by `new` and destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(self.0.as_mut_ptr()) };
    }
}

struct Attributes(MaybeUninit<libc::posix_spawnattr_t>);

impl Attributes {
    /// A session of its own, no signal blocked and none ignored.
    fn new() -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: initialises the memory it is given.
        code(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        let mut attributes = Self(attributes);
        let flags = libc::POSIX_SPAWN_SETSID
            | c_short::try_from(libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK)
                .expect("the flags of posix_spawn fit its parameter");
        let mut signals = MaybeUninit::<libc::sigset_t>::uninit();
        let this = attributes.0.as_mut_ptr();
        // SAFETY: `attributes` is initialised; the set is an array of bits, initialised before each use. All bits
        // instead of sigfillset, which leaves out the two signals of glibc's threads: they would be ignored then.
        unsafe {
            code(libc::posix_spawnattr_setflags(this, flags))?;
            signals.as_mut_ptr().write_bytes(0xff, 1);
            code(libc::posix_spawnattr_setsigdefault(this, signals.as_ptr()))?;
            check(libc::sigemptyset(signals.as_mut_ptr()))?;
            code(libc::posix_spawnattr_setsigmask(this, signals.as_ptr()))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised by `new` and destroyed once.
        unsafe { libc::posix_spawnattr_destroy(self.0.as_mut_ptr()) };
    }
}

/// A socket for requests about an interface, and such a request: netdevice(7).
fn about_interface(name: &str) -> io::Result<(OwnedFd, libc::ifreq)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: `ifreq` is plain data for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok((socket, request))
}

/// Through rtnetlink, an emulated CPU would be busy with it for milliseconds.
fn set_hardware_address(mac: &[u8; 6]) -> io::Result<()> {
    let (socket, mut request) = about_interface(network::INTERFACE)?;
    // SAFETY: `sockaddr` is plain data for which zero is valid.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    address.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in address.sa_data.iter_mut().zip(mac) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_hwaddr = address;
    // SAFETY: the call takes an `ifreq`, and reads the address of its union.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFHWADDR, &raw const request) })
}

fn loopback_up() -> io::Result<()> {
    let (socket, mut request) = about_interface("lo")?;
    // SAFETY: both calls take an `ifreq`; the first one fills in the flags that the union is then read as.
    unsafe {
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request))?;
        request.ifr_ifru.ifru_flags |= c_short::try_from(libc::IFF_UP).expect("the flag is a bit of a short");
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request))
    }
}

/// What sysfs counts disks in, whatever the sectors of a disk are.
const SECTOR_BYTES: u64 = 512;
/// `_IOW('f', 16, __u64)`: Documentation/filesystems/ext4 of the kernel. Its argument is a number of blocks.
const EXT4_IOC_RESIZE_FS: c_ulong = 0x4008_6610;

/// random(4).
const RNDADDENTROPY: c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: c_ulong = 0x5207;
const SEED_BYTES_MAX: usize = 512;

/// `struct rand_pool_info` with room for the seed.
#[repr(C)]
struct Seed {
    entropy_bits: c_int,
    bytes: c_int,
    data: [u8; SEED_BYTES_MAX],
}

fn add_entropy(seed: &[u8]) -> io::Result<()> {
    let length = seed.len().min(SEED_BYTES_MAX);
    let bytes = c_int::try_from(length).expect("bounded above");
    let mut request = Seed { entropy_bits: bytes * 8, bytes, data: [0; SEED_BYTES_MAX] };
    request.data[..length].copy_from_slice(&seed[..length]);
    let result = File::options().write(true).open("/dev/urandom").and_then(|device| {
        // SAFETY: the first call reads the structure as long as its `bytes` says, the second takes nothing.
        unsafe {
            check(libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, &raw const request))?;
            check(libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _))
        }
    });
    request.data.fill(0);
    std::hint::black_box(&request.data);
    result
}

/// Registers a descriptor with the runtime.
pub(crate) fn poll(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives, and nothing takes it out of the
    // `AsyncFd` that owns it from here on.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}
