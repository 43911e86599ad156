//! A guest: the same protocol stack on the other side of the link.

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::task::Poll;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use tokio::io::DuplexStream;
use tokio::time::{Instant, timeout};

use crate::address::{GATEWAY, GUEST};
use crate::link::Link;

const PATIENCE: Duration = Duration::from_secs(60);
pub(super) const MAC: EthernetAddress = EthernetAddress([2, 9, 9, 9, 9, 9]);

pub(super) struct Guest {
    pub(super) link: Link<DuplexStream>,
    interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    began: Instant,
    next_port: u16,
    /// Frames that came, newest last, while somebody looks at them.
    pub(super) seen: Option<Vec<Vec<u8>>>,
}

impl Guest {
    pub(super) fn new(link: DuplexStream) -> Self {
        let mut link = Link::new(link);
        let mut interface =
            Interface::new(Config::new(HardwareAddress::Ethernet(MAC)), &mut link.device, StackInstant::ZERO);
        interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(GUEST.into(), 24)).unwrap());
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        Self {
            link,
            interface,
            sockets: SocketSet::new(Vec::new()),
            began: Instant::now(),
            next_port: 10_000,
            seen: None,
        }
    }

    /// Works until `find` finds something.
    pub(super) async fn until<T>(
        &mut self,
        what: &str,
        mut find: impl FnMut(&mut SocketSet<'static>, &mut Option<Vec<Vec<u8>>>) -> Option<T>,
    ) -> T {
        let work = async {
            loop {
                let found = poll_fn(|cx| {
                    while let Poll::Ready(frame) = self.link.poll_frame(cx) {
                        let frame = frame.unwrap().expect("the network lives");
                        if let Some(seen) = &mut self.seen {
                            seen.push(frame.clone());
                        }
                        self.link.device.receive(frame);
                    }
                    let now =
                        StackInstant::from_micros(i64::try_from(self.began.elapsed().as_micros()).unwrap());
                    self.interface.poll(now, &mut self.link.device, &mut self.sockets);
                    let found = find(&mut self.sockets, &mut self.seen);
                    self.interface.poll(now, &mut self.link.device, &mut self.sockets);
                    let _ = self.link.poll_flush(cx).map(Result::unwrap);
                    Poll::Ready(found)
                })
                .await;
                match found {
                    Some(found) => return found,
                    None => tokio::time::sleep(Duration::from_micros(200)).await,
                }
            }
        };
        timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("no {what}"))
    }

    /// Begins to connect.
    pub(super) fn dial(&mut self, to: SocketAddrV4) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 128 * 1024]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        let handle = self.sockets.add(socket);
        self.next_port += 1;
        let port = self.next_port;
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        socket.connect(self.interface.context(), (*to.ip(), to.port()), port).unwrap();
        handle
    }

    /// Whether it was accepted, when that is known.
    pub(super) async fn outcome(&mut self, handle: SocketHandle) -> bool {
        self.until("outcome", |sockets, _| match sockets.get::<Socket<'_>>(handle).state() {
            State::SynSent => None,
            state => Some(state != State::Closed),
        })
        .await
    }

    pub(super) async fn connect(&mut self, to: SocketAddrV4) -> Option<SocketHandle> {
        let handle = self.dial(to);
        if self.outcome(handle).await { Some(handle) } else { None }
    }

    pub(super) async fn connect_to(&mut self, address: &str, port: u16) -> Option<SocketHandle> {
        let address: Ipv4Addr = address.parse().unwrap();
        self.connect(SocketAddrV4::new(address, port)).await
    }

    pub(super) async fn send(&mut self, handle: SocketHandle, mut bytes: &[u8]) {
        self.until("room to send", |sockets, _| {
            let socket = sockets.get_mut::<Socket<'_>>(handle);
            assert!(socket.may_send(), "the connection ended: {}", socket.state());
            if socket.can_send() {
                let sent = socket.send_slice(bytes).unwrap();
                bytes = &bytes[sent..];
            }
            bytes.is_empty().then_some(())
        })
        .await;
    }

    pub(super) async fn receive(&mut self, handle: SocketHandle, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.until("more bytes", |sockets, _| {
            let socket = sockets.get_mut::<Socket<'_>>(handle);
            while bytes.len() < length && socket.can_recv() {
                let wanted = length - bytes.len();
                socket
                    .recv(|part| {
                        let taken = part.len().min(wanted);
                        bytes.extend_from_slice(&part[..taken]);
                        (taken, ())
                    })
                    .unwrap();
            }
            assert!(bytes.len() == length || socket.may_recv(), "it ended after {} bytes", bytes.len());
            (bytes.len() == length).then_some(())
        })
        .await;
        bytes
    }

    /// Until the other side has ended in order (`true`) or by force.
    pub(super) async fn end(&mut self, handle: SocketHandle) -> bool {
        self.until("end", |sockets, _| {
            let socket = sockets.get_mut::<Socket<'_>>(handle);
            match socket.state() {
                State::Closed => Some(false),
                State::CloseWait | State::LastAck | State::TimeWait => (!socket.can_recv()).then_some(true),
                _ => None,
            }
        })
        .await
    }

    pub(super) fn close(&mut self, handle: SocketHandle) {
        self.sockets.get_mut::<Socket<'_>>(handle).close();
    }

    /// Sends a frame that the stack knows nothing of.
    pub(super) async fn send_frame(&mut self, frame: &[u8]) {
        self.link.device.send(frame);
        self.until("room in the link", |_, _| Some(())).await;
    }
}
