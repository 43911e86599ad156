//! Taking over inherited descriptors, as `aegis-vmm-worker` does.
#![expect(unsafe_code, reason = "a number has to be believed to be an owned descriptor")]

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use rustix::io::FdFlags;

/// Takes the listening socket that the parent passed under this number. At most once per number, before anything
/// else opens descriptors.
pub(crate) fn take_listener(number: RawFd) -> io::Result<UnixListener> {
    // SAFETY: the contract with the parent makes it ours, and the caller takes each number once.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    // A process of the guest that inherits it would keep the socket alive.
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    let listener = UnixListener::from(fd);
    listener.set_nonblocking(true)?;
    Ok(listener)
}
