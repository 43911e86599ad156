//! Ways in for fuzzers. Nothing that they send is a panic.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use aegis_types::NetSetup;
use async_trait::async_trait;
use tokio::net::{TcpStream, UdpSocket};

use crate::dns::{Resolver, Transport};
use crate::shared::Shared;
use crate::{Dialer, Network, said};

/// A host without a network.
struct Nowhere;

#[async_trait]
impl Dialer for Nowhere {
    async fn connect(&self, _: SocketAddr, _: Option<&str>) -> io::Result<TcpStream> {
        Err(io::ErrorKind::ConnectionRefused.into())
    }

    fn datagrams(&self, _: SocketAddr) -> io::Result<UdpSocket> {
        Err(io::ErrorKind::NetworkUnreachable.into())
    }

    fn echo(&self, _: Ipv4Addr) -> io::Result<UdpSocket> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn is_own(&self, _: Ipv4Addr) -> bool {
        false
    }
}

fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime without threads can be made").block_on(work);
}

/// These bytes from the VMM.
pub fn link(bytes: &[u8]) {
    run(async {
        let (network, _control) = Network::new(NetSetup::default(), Arc::new(Nowhere));
        let _ = network.run(tokio::io::join(bytes, tokio::io::sink())).await;
    });
}

/// These bytes as a query, and as the beginning of a connection.
pub fn names(bytes: &[u8]) {
    said::look(bytes);
    run(async {
        let resolver = Resolver::new(Arc::new(Shared::new(NetSetup::default(), Arc::new(Nowhere))));
        resolver.answer(bytes, Transport::Udp).await;
    });
}
