//! The way out: sockets of the host. Behind a trait, so that tests can put something else at the other end.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::Duration;

use async_trait::async_trait;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::proxy::Proxy;

/// A host that has not answered by then will not.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);

/// Makes connections of the host.
#[async_trait]
pub trait Dialer: Send + Sync + 'static {
    /// Connects to an address, for which the guest knows `name`.
    ///
    /// # Errors
    /// As connect(2).
    async fn connect(&self, to: SocketAddr, name: Option<&str>) -> io::Result<TcpStream>;

    /// A socket that sends to this address and receives from nobody else.
    ///
    /// # Errors
    /// As socket(2) and connect(2).
    fn datagrams(&self, to: SocketAddr) -> io::Result<UdpSocket>;

    /// The same for ICMP echo messages without an identifier of their own (icmp(7)).
    ///
    /// # Errors
    /// As socket(2): not every host lets its users do this.
    fn echo(&self, to: Ipv4Addr) -> io::Result<UdpSocket>;

    /// Whether this is an address of the host itself.
    fn is_own(&self, address: Ipv4Addr) -> bool;
}

/// The host's own network.
pub struct HostDialer {
    proxy: Proxy,
}

impl HostDialer {
    /// Reaches what these proxies are for through them.
    pub fn new(proxies: &aegis_types::Proxies) -> Self {
        Self { proxy: Proxy::new(proxies) }
    }
}

#[async_trait]
impl Dialer for HostDialer {
    async fn connect(&self, to: SocketAddr, name: Option<&str>) -> io::Result<TcpStream> {
        let connected = async {
            // What is on this machine is never reached through a proxy.
            match self.proxy.way(to, name).filter(|_| !to.ip().is_loopback()) {
                Some(way) => way.connect(to, name).await,
                None => TcpStream::connect(to).await,
            }
        };
        let stream = timeout(CONNECT_DEADLINE, connected).await??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn datagrams(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        connected(std::net::UdpSocket::bind((any, 0))?, to)
    }

    fn echo(&self, to: Ipv4Addr) -> io::Result<UdpSocket> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd =
            socket_with(AddressFamily::INET, SocketType::DGRAM, flags, Some(ipproto::ICMP))?;
        connected(socket.into(), SocketAddrV4::new(to, 0).into())
    }

    fn is_own(&self, address: Ipv4Addr) -> bool {
        // The kernel chooses the source address when a socket is connected, and sends nothing. To itself it is the same.
        let source = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
            socket.connect((address, 9))?;
            socket.local_addr()
        });
        source.is_ok_and(|source| source.ip() == address)
    }
}

fn connected(socket: std::net::UdpSocket, to: SocketAddr) -> io::Result<UdpSocket> {
    socket.set_nonblocking(true)?;
    socket.connect(to)?;
    UdpSocket::from_std(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_knows_its_own_addresses() {
        let dialer = HostDialer::new(&aegis_types::Proxies::default());
        assert!(dialer.is_own(Ipv4Addr::LOCALHOST));
        assert!(!dialer.is_own(Ipv4Addr::new(192, 0, 2, 1)));
    }
}
