//! Taking over inherited descriptors, which the standard library cannot do safely.
#![expect(unsafe_code, reason = "a number has to be believed to be an owned descriptor")]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use rustix::fs::SealFlags;
use rustix::io::FdFlags;

/// What keeps a memory file from being changed by anybody who can open it.
const SEALS: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

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

/// Takes a sealed memory file that the parent passed under this number. At most once per number, and before anything
/// is started that could inherit it.
pub(crate) fn take_sealed_memory(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: if the number is not open, the call below says so and nothing else is done with it.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    // Only memory files have seals: anything else is refused by the kernel.
    if !rustix::fs::fcntl_get_seals(fd)?.contains(SEALS) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not sealed"));
    }
    rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and the contract with the parent makes it ours; the caller takes each number once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
