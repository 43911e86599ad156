//! Taking over inherited descriptors, which the standard library cannot do safely.
#![expect(unsafe_code, reason = "a number has to be believed to be an owned descriptor")]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use rustix::io::FdFlags;

/// Takes a listening socket that the parent passed under this number. At most once per number, before anything
/// else opens descriptors.
pub(crate) fn take_listener(number: RawFd) -> io::Result<UnixListener> {
    // SAFETY: if the number is not open, the call below says so and nothing else is done with it.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    // The VMM must not inherit it.
    rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?;
    if !rustix::net::sockopt::socket_acceptconn(fd)? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a listening socket"));
    }
    // SAFETY: it is open, and the contract with the parent makes it ours; the caller takes each number once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) }.into())
}
