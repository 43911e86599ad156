//! What is around the guest: a policy, and an internet of loopback sockets.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use aegis_types::{GuestPort, NetEvent, NetPolicy, NetSetup};
use async_trait::async_trait;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;

use super::guest::Guest;
use crate::link::Link;
use crate::{Control, Dialer, LOG_FILE, Network};

/// Knows which loopback socket stands for which address.
#[derive(Default)]
pub(super) struct Internet {
    real: Mutex<HashMap<SocketAddr, SocketAddr>>,
    pub(super) own: Mutex<HashSet<Ipv4Addr>>,
    /// Everything that was to be reached.
    pub(super) dialed: Mutex<Vec<SocketAddr>>,
    /// Connections to it are never answered.
    pub(super) silent: Mutex<HashSet<SocketAddr>>,
}

impl Internet {
    pub(super) fn put(&self, address: &str, real: SocketAddr) {
        self.real.lock().unwrap().insert(address.parse().unwrap(), real);
    }

    fn find(&self, to: SocketAddr) -> io::Result<SocketAddr> {
        self.dialed.lock().unwrap().push(to);
        if to.ip().is_loopback() {
            return Ok(to);
        }
        self.real.lock().unwrap().get(&to).copied().ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
    }
}

#[async_trait]
impl Dialer for Internet {
    async fn connect(&self, to: SocketAddr, _: Option<&str>) -> io::Result<TcpStream> {
        let real = self.find(to);
        if self.silent.lock().unwrap().contains(&to) {
            std::future::pending::<()>().await;
        }
        TcpStream::connect(real?).await
    }

    fn datagrams(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
        socket.set_nonblocking(true)?;
        socket.connect(self.find(to)?)?;
        UdpSocket::from_std(socket)
    }

    fn echo(&self, _: Ipv4Addr) -> io::Result<UdpSocket> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn is_own(&self, address: Ipv4Addr) -> bool {
        self.own.lock().unwrap().contains(&address)
    }
}

pub(super) struct World {
    pub(super) internet: Arc<Internet>,
    pub(super) guest: Guest,
    pub(super) control: Control,
    pub(super) running: JoinHandle<io::Result<()>>,
    pub(super) log: tempfile::TempDir,
}

impl World {
    pub(super) fn new(options: &[&str]) -> Self {
        Self::with(options, &[], &[])
    }

    pub(super) fn with(options: &[&str], host_ports: &[u16], name_servers: &[&str]) -> Self {
        let log = tempfile::tempdir().unwrap();
        let setup = NetSetup {
            policy: NetPolicy::parse(options).unwrap(),
            host_ports: host_ports.iter().map(|port| GuestPort::new(*port).unwrap()).collect(),
            name_servers: name_servers.iter().map(|server| server.parse().unwrap()).collect(),
            log_dir: log.path().to_owned(),
            ..NetSetup::default()
        };
        let internet = Arc::new(Internet::default());
        let (ours, theirs) = duplex(256 * 1024);
        let (network, control) = Network::new(setup, Arc::clone(&internet) as Arc<dyn Dialer>);
        let running = tokio::spawn(network.run(theirs));
        Self { internet, guest: Guest::new(ours), control, running, log }
    }

    /// The guest is saved, and goes on with another network.
    pub(super) async fn rest(&mut self) {
        let (ours, theirs) = duplex(256 * 1024);
        self.guest.link = Link::new(ours);
        (&mut self.running).await.unwrap().unwrap();
        let setup = NetSetup { log_dir: self.log.path().to_owned(), ..NetSetup::default() };
        let (network, control) = Network::new(setup, Arc::clone(&self.internet) as Arc<dyn Dialer>);
        self.running = tokio::spawn(network.restored().run(theirs));
        self.control = control;
    }

    /// Every decision that was logged.
    pub(super) fn logged(&self) -> Vec<NetEvent> {
        let text = std::fs::read_to_string(self.log.path().join(LOG_FILE)).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The last decision about a destination.
    pub(super) fn decision(&self, destination: &str) -> NetEvent {
        let found = self.logged().into_iter().rfind(|event| event.destination == destination);
        found.expect("it was logged")
    }

    pub(super) fn reason(&self, destination: &str) -> String {
        self.decision(destination).reason.unwrap_or_else(|| "allowed".to_owned())
    }

    /// A server behind this address that sends back what it gets, until it gets the end.
    pub(super) async fn echo_server(&self, address: &str) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.internet.put(address, listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                });
            }
        });
    }

    /// A listener behind this address.
    pub(super) async fn listener(&self, address: &str) -> TcpListener {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.internet.put(address, listener.local_addr().unwrap());
        listener
    }

    /// Reads a connection to its end.
    pub(super) async fn read_all(mut stream: TcpStream) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await?;
        Ok(bytes)
    }
}
