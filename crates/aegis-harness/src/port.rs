//! The virtio-serial port that carries the guest link.
//!
//! Two properties of the kernel's driver shape this: a port has one opener at a time, and once the host has hung
//! up, polling says "readable" for ever while reads give 0. So a port is opened for each session, and a session
//! begins only when the host is there: waiting for that needs an edge, a level would spin.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::event::epoll;
use rustix::fs::{Mode, OFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::sys::linux;

const PORTS: &str = "/sys/class/virtio-ports";

/// The device of the port with this name. Names appear a moment after the driver was loaded.
pub fn find(name: &str) -> Option<PathBuf> {
    fs::read_dir(PORTS).ok()?.flatten().find_map(|entry| {
        let found = fs::read_to_string(entry.path().join("name")).ok()?;
        (found.trim_end() == name).then(|| Path::new("/dev").join(entry.file_name()))
    })
}

/// An open port with a host at its other end.
pub struct Port {
    descriptor: AsyncFd<OwnedFd>,
}

impl Port {
    /// Opens the port and waits for the host.
    ///
    /// # Errors
    /// The port cannot be opened; `ResourceBusy` while an earlier [`Port`] exists.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let descriptor = rustix::fs::open(path, flags, Mode::empty())?;
        wait_for_host(&descriptor).await?;
        Ok(Self { descriptor: linux::poll(descriptor, Interest::READABLE | Interest::WRITABLE)? })
    }
}

/// Waits for a report without a hang-up, on an edge-triggered epoll instance that is itself polled.
async fn wait_for_host(port: &OwnedFd) -> io::Result<()> {
    let edges = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let events = epoll::EventFlags::OUT | epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&edges, port, epoll::EventData::new_u64(0), events)?;
    let edges = linux::poll(edges, Interest::READABLE)?;
    loop {
        let mut guard = edges.readable().await?;
        let mut buffer = [MaybeUninit::<epoll::Event>::uninit(); 1];
        let (found, _) = epoll::wait(edges.as_fd(), &mut buffer, Some(&rustix::time::Timespec::default()))?;
        match found.first().map(|event| event.flags) {
            Some(flags) if !flags.contains(epoll::EventFlags::HUP) => return Ok(()),
            Some(_) => {}
            None => guard.clear_ready(),
        }
    }
}

impl AsyncRead for Port {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.descriptor.poll_read_ready(cx))?;
            let hung_up = guard.ready().is_read_closed();
            let read = guard.try_io(|port| Ok(rustix::io::read(port, buf.initialize_unfilled())?));
            match read {
                Ok(Ok(count)) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                // Readiness after a hang-up never clears: trying again would spin. The session is over even if
                // the host is back already.
                Err(_would_block) if hung_up => return Poll::Ready(Ok(())),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.descriptor.poll_write_ready(cx))?;
            // A write to a port without host gives "would block", for ever.
            if guard.ready().is_write_closed() {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if let Ok(written) = guard.try_io(|port| Ok(rustix::io::write(port, bytes)?)) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A port has no half-close; dropping it closes it.
        Poll::Ready(Ok(()))
    }
}
