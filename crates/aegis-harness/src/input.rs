//! Input of one process: its pipe, or our side of its terminal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aegis_types::TerminalSize;
use rustix::io::fcntl_dupfd_cloexec;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe::Sender;
use tokio::sync::mpsc;

use crate::sys::linux;

/// Pieces that the process has not read yet. Signals behind more than this wait for it.
const QUEUE: usize = 16;

/// Input of a process that was started.
pub(crate) struct Input {
    sink: Option<Sender>,
    terminal: Option<OwnedFd>,
}

impl Input {
    /// Of a process with pipes; without one there is nothing to be read.
    pub(crate) fn pipe(stdin: Option<OwnedFd>) -> io::Result<Self> {
        Ok(Self { sink: stdin.map(Sender::from_owned_fd).transpose()?, terminal: None })
    }

    /// Of a process with a terminal.
    pub(crate) fn terminal(master: impl AsFd) -> io::Result<Self> {
        let copy = || fcntl_dupfd_cloexec(&master, 0);
        let sink = copy()?;
        rustix::io::ioctl_fionbio(&sink, true)?;
        // To the runtime it is a descriptor that can be written and polled, as a pipe is.
        Ok(Self { sink: Some(Sender::from_owned_fd_unchecked(sink)?), terminal: Some(copy()?) })
    }

    /// What is to be run so that pieces arrive, where they are put, and the terminal.
    pub(crate) fn split(self) -> (impl Future<Output = ()>, mpsc::Sender<Vec<u8>>, Option<Terminal>) {
        let (pieces, queue) = mpsc::channel(QUEUE);
        (write(self.sink, queue), pieces, self.terminal.map(Terminal))
    }
}

async fn write(sink: Option<Sender>, mut queue: mpsc::Receiver<Vec<u8>>) {
    // A process that never had an input, or closed it, misses nothing.
    let Some(mut sink) = sink else { return };
    while let Some(bytes) = queue.recv().await {
        if sink.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// Our side of the terminal of a process.
pub(crate) struct Terminal(OwnedFd);

impl Terminal {
    /// Gives it a size, and tells the processes in its foreground.
    pub(crate) fn resize(&self, size: TerminalSize) -> io::Result<()> {
        linux::resize(&self.0, size)
    }
}
