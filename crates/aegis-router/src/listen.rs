//! Listening on the host's loopback addresses.

use std::future::pending;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::sleep;

/// Clients that the kernel holds before we accept them.
const BACKLOG: u32 = 1024;
/// Another program may have one of two addresses; it will not have all of these.
const TRIES: usize = 32;
/// When no connection can be accepted, for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One port, on every address that belongs to it.
#[derive(Debug)]
pub(crate) struct Listener {
    first: TcpListener,
    /// The same port of `[::1]`, where the host has IPv6.
    second: Option<TcpListener>,
}

impl Listener {
    /// The port on `127.0.0.1` and `[::1]`; 0 is any that is free on both.
    pub(crate) fn on_loopback(port: u16) -> io::Result<Self> {
        let mut tries = 0;
        loop {
            let first = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
            let chosen = first.local_addr()?.port();
            match listen_v6(chosen) {
                Ok(second) => return Ok(Self { first, second }),
                Err(error) if port != 0 || tries == TRIES => return Err(error),
                Err(_) => tries += 1,
            }
        }
    }

    /// Exactly this address.
    pub(crate) fn on(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { first: listen(address)?, second: None })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.first.local_addr()
    }

    /// The next client. Cancel-safe.
    pub(crate) async fn accept(&self) -> (TcpStream, SocketAddr) {
        loop {
            let second = async {
                match &self.second {
                    Some(listener) => listener.accept().await,
                    None => pending().await,
                }
            };
            let accepted = tokio::select! {
                accepted = self.first.accept() => accepted,
                accepted = second => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    // Only latency is lost without it.
                    let _ = stream.set_nodelay(true);
                    return (stream, peer);
                }
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A daemon that comes back finds its ports although old connections linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// `None` on a host without IPv6.
fn listen_v6(port: u16) -> io::Result<Option<TcpListener>> {
    if TcpSocket::new_v6().is_err() {
        return Ok(None);
    }
    match listen(SocketAddr::from((Ipv6Addr::LOCALHOST, port))) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => Ok(None),
        Err(error) => Err(error),
    }
}
