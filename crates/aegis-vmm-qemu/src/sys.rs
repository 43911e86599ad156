//! The two things that the standard library cannot do safely: preparing a child between fork and exec, and
//! reading the time-stamp counter.
#![expect(unsafe_code, reason = "pre_exec hooks and RDTSC have no safe form")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use rustix::io::FdFlags;
use rustix::process::Signal;
use tokio::process::Command;

/// Lets the child inherit `fds` under their numbers, and die with the calling thread.
pub(crate) fn inherit(command: &mut Command, fds: &[&OwnedFd]) {
    let fds: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let parent = rustix::process::getpid();
    let hook = move || {
        for &fd in &fds {
            // SAFETY: the child is a copy of the parent, in which the caller keeps these descriptors open until
            // the child was started.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
        }
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the line above: then no signal comes any more.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe system calls are made (fcntl, prctl, getppid); nothing
    // is allocated and no lock is taken.
    unsafe { command.pre_exec(hook) };
}

/// The time-stamp counter of this CPU.
#[cfg(target_arch = "x86_64")]
pub(crate) fn time_stamp_counter() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC; it reads a register and touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}
