//! Output and end of one process, in an order that can be relied on: the end comes after all output.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use aegis_proto::logs::OutputStream;
use aegis_types::ExitStatus;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

/// A process left in the background may hold the pipes for ever; the end is reported after this long.
const DRAIN_WAIT: Duration = Duration::from_secs(1);
/// What can be in a pipe at the deadline: the largest one that the kernel gives without privileges.
const PIPE_BYTES_MAX: usize = 1 << 20;

/// What a process did.
#[derive(Debug)]
pub(crate) enum OutputEvent {
    /// It wrote this many bytes into the caller's buffer.
    Data(OutputStream, usize),
    /// It ended, and nothing follows.
    Ended(ExitStatus),
}

pub(crate) struct Output {
    stdout: Pipe,
    stderr: Pipe,
    exit: oneshot::Receiver<ExitStatus>,
    ended: Option<(ExitStatus, Instant)>,
}

impl Output {
    pub(crate) fn pipes(
        stdout: OwnedFd,
        stderr: OwnedFd,
        exit: oneshot::Receiver<ExitStatus>,
    ) -> io::Result<Self> {
        Ok(Self { stdout: Pipe::new(stdout)?, stderr: Pipe::new(stderr)?, exit, ended: None })
    }

    /// What a terminal shows, as standard output.
    pub(crate) fn terminal(master: OwnedFd, exit: oneshot::Receiver<ExitStatus>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&master, true)?;
        // To the runtime it is a descriptor that can be read and polled, as a pipe is.
        let receiver = Receiver::from_owned_fd_unchecked(master)?;
        let stdout = Pipe { receiver: Some(receiver), rest: None };
        Ok(Self { stdout, stderr: Pipe { receiver: None, rest: None }, exit, ended: None })
    }

    /// The next event. Cancel-safe. After [`OutputEvent::Ended`] it must not be called again.
    pub(crate) async fn next(&mut self, buffer: &mut [u8]) -> OutputEvent {
        loop {
            match self.ended {
                Some((status, _)) if self.stdout.is_closed() && self.stderr.is_closed() => {
                    return OutputEvent::Ended(status);
                }
                Some((_, deadline)) if Instant::now() >= deadline => {
                    self.stdout.close_after_rest();
                    self.stderr.close_after_rest();
                }
                _ => {}
            }
            let deadline = self.ended.map(|(_, deadline)| deadline);
            let ready = tokio::select! {
                () = self.stdout.ready() => OutputStream::Stdout,
                () = self.stderr.ready() => OutputStream::Stderr,
                status = &mut self.exit, if self.ended.is_none() => {
                    // The reaper lives as long as the harness; if it went away, there is nothing better to say.
                    let status = status.unwrap_or(ExitStatus::killed(9));
                    self.ended = Some((status, Instant::now() + DRAIN_WAIT));
                    continue;
                }
                () = until(deadline) => continue,
            };
            let pipe = if ready == OutputStream::Stdout { &mut self.stdout } else { &mut self.stderr };
            if let Some(count) = pipe.read(buffer) {
                return OutputEvent::Data(ready, count);
            }
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        // Once it has passed, the pipes are always ready.
        Some(deadline) if Instant::now() < deadline => sleep_until(deadline).await,
        _ => std::future::pending().await,
    }
}

/// Our end of a pipe of the process.
struct Pipe {
    receiver: Option<Receiver>,
    /// Bytes that may still be read, without waiting; set when the process ended a while ago.
    rest: Option<usize>,
}

impl Pipe {
    fn new(descriptor: OwnedFd) -> io::Result<Self> {
        Ok(Self { receiver: Some(Receiver::from_owned_fd(descriptor)?), rest: None })
    }

    fn is_closed(&self) -> bool {
        self.receiver.is_none()
    }

    /// From now on reads what is there and closes at the first pause.
    fn close_after_rest(&mut self) {
        self.rest.get_or_insert(PIPE_BYTES_MAX);
    }

    async fn ready(&self) {
        match &self.receiver {
            Some(_) if self.rest.is_some() => {}
            // An error shows up in the read that follows.
            Some(receiver) => drop(receiver.readable().await),
            None => std::future::pending().await,
        }
    }

    /// Reads without waiting. `None`: nothing there, perhaps for good.
    fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let limit = self.rest.unwrap_or(buffer.len()).min(buffer.len());
        match self.receiver.as_ref()?.try_read(&mut buffer[..limit]) {
            Ok(count) if count > 0 => {
                self.rest = self.rest.map(|rest| rest - count);
                Some(count)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && self.rest.is_none() => None,
            // The end, an error (a terminal that nobody has open any more gives EIO), or nothing more to wait for.
            _ => {
                self.receiver = None;
                None
            }
        }
    }
}
