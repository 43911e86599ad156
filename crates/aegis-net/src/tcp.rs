//! One TCP connection of the guest: a socket of the stack on its side, a stream of the host on the other.

use std::io;
use std::net::SocketAddrV4;
use std::pin::Pin;
use std::task::{Context, Poll};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Duration as StackDuration;
use smoltcp::wire::{IpAddress, IpListenEndpoint};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::policy::Grant;
use crate::said::{self, Said};

/// Bytes that wait in each direction. The memory is touched only as far as it is used.
const BUFFER: usize = 256 * 1024;
/// A guest that acknowledges nothing for so long is gone.
const SILENCE_MAX: StackDuration = StackDuration::from_secs(120);

/// The side of the host.
pub(crate) enum HostStream {
    Tcp(TcpStream),
    /// A service of ours.
    Own(DuplexStream),
}

impl HostStream {
    fn poll_read(&mut self, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, room),
            Self::Own(stream) => Pin::new(stream).poll_read(cx, room),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Own(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Own(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A connection that the host has accepted.
pub(crate) struct Flow {
    pub(crate) handle: SocketHandle,
    pub(crate) grant: Grant,
    host: HostStream,
    /// What the guest sends is held until it said which name it is for.
    pub(crate) looking: bool,
    host_ended: bool,
    /// The guest sends nothing after what is here.
    guest_finished: bool,
    /// The host has been told so.
    guest_ended: bool,
    pub(crate) active: Instant,
}

/// How it goes on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// Nothing could be done.
    Idle,
    /// Bytes moved.
    Moved,
    /// The guest said that this is for a name, which has to be decided.
    Said(String),
    /// It is over.
    Over,
}

/// A socket that accepts the connection that the guest is opening to this address.
pub(crate) fn accepting(to: SocketAddrV4) -> Socket<'static> {
    let buffer = || SocketBuffer::new(vec![0; BUFFER]);
    let mut socket = Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    socket.set_timeout(Some(SILENCE_MAX));
    let endpoint = IpListenEndpoint { addr: Some(IpAddress::Ipv4(*to.ip())), port: to.port() };
    // Port 0 is the only one that cannot be listened on; then nobody does, and the guest gets a reset.
    let _ = socket.listen(endpoint);
    socket
}

impl Flow {
    pub(crate) fn new(handle: SocketHandle, host: HostStream, grant: Grant, looking: bool) -> Self {
        Self {
            handle,
            grant,
            host,
            looking,
            host_ended: false,
            guest_finished: false,
            guest_ended: false,
            active: Instant::now(),
        }
    }

    /// Moves what can be moved.
    pub(crate) fn pump(&mut self, socket: &mut Socket<'_>, cx: &mut Context<'_>) -> Pumped {
        let over = match socket.state() {
            State::TimeWait => true,
            // As long as it has a peer, that one has not been told of the reset.
            State::Closed => socket.remote_endpoint().is_none(),
            _ => false,
        };
        self.guest_finished |=
            matches!(socket.state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
        if over && !self.guest_finished {
            self.reset_host();
            return Pumped::Over;
        }
        if self.looking
            && let Some(said) = self.look(socket)
        {
            return said;
        }
        let moved = self.feed_host(socket, cx) | self.feed_guest(socket, cx);
        // What the guest sent before its end may still wait for the host.
        if over && self.guest_ended {
            Pumped::Over
        } else if moved {
            self.active = Instant::now();
            Pumped::Moved
        } else {
            Pumped::Idle
        }
    }

    /// The host's side learns that the connection was cut, instead of an end that the guest never sent.
    fn reset_host(&mut self) {
        if let HostStream::Tcp(stream) = &self.host {
            // Then closing it sends a reset.
            let _ = rustix::net::sockopt::set_socket_linger(stream, Some(std::time::Duration::ZERO));
        }
    }

    fn look(&mut self, socket: &mut Socket<'_>) -> Option<Pumped> {
        let ends = self.guest_finished;
        match socket.peek(said::LOOK_MAX) {
            Ok(bytes) => match said::look(bytes) {
                Said::Name(name) => return Some(Pumped::Said(name)),
                Said::More if !ends => {}
                Said::More | Said::Nothing => self.looking = false,
            },
            Err(_) if ends => self.looking = false,
            Err(_) => {}
        }
        None
    }

    fn feed_host(&mut self, socket: &mut Socket<'_>, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while !self.looking && socket.can_recv() {
            let host = &mut self.host;
            let written = socket.recv(|bytes| match host.poll_write(cx, bytes) {
                Poll::Ready(Ok(count)) => (count, Some(count > 0)),
                Poll::Ready(Err(_)) => (0, Some(false)),
                Poll::Pending => (0, None),
            });
            match written {
                Ok(Some(true)) => moved = true,
                Ok(None) => return moved,
                // The host takes nothing any more: the guest must know.
                Ok(Some(false)) | Err(_) => {
                    socket.abort();
                    return true;
                }
            }
        }
        if !self.looking && self.guest_finished && !self.guest_ended && !socket.can_recv() {
            // Not a moment earlier: everything before the end has been written.
            self.guest_ended = self.host.poll_shutdown(cx).is_ready();
            moved |= self.guest_ended;
        }
        moved
    }

    fn feed_guest(&mut self, socket: &mut Socket<'_>, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while !self.host_ended && socket.can_send() {
            let host = &mut self.host;
            let read = socket.send(|room| {
                let mut buffer = ReadBuf::new(room);
                match host.poll_read(cx, &mut buffer) {
                    Poll::Ready(Ok(())) => (buffer.filled().len(), Some(Ok(buffer.filled().len()))),
                    Poll::Ready(Err(e)) => (0, Some(Err(e))),
                    Poll::Pending => (0, None),
                }
            });
            match read {
                Ok(None) => return moved,
                Ok(Some(Ok(0))) => {
                    self.host_ended = true;
                    socket.close();
                    return true;
                }
                Ok(Some(Ok(_))) => moved = true,
                // A connection that was cut is no connection that ended.
                Ok(Some(Err(_))) | Err(_) => {
                    self.host_ended = true;
                    socket.abort();
                    return true;
                }
            }
        }
        moved
    }
}
