//! The loop: frames in, decisions, bytes moved, frames out.

mod connections;
mod datagrams;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddrV4;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aegis_types::NetMode;
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::address::{GATEWAY, GUEST_NETWORK};
use crate::dns::Resolver;
use crate::link::Link;
use crate::packet::{self, GATEWAY_MAC, Packet};
use crate::policy::{Destination, Grant, Protocol, Refusal, decide};
use crate::shared::Shared;
use crate::stale::Stale;
use crate::tcp::Flow;
use crate::udp::{Datagrams, Pair};

const DNS_PORT: u16 = 53;
/// Frames that are taken from the guest before everybody else gets a turn.
const BATCH: usize = 256;
/// Queries at a time.
const QUERIES_MAX: usize = 64;
/// How often what is idle is looked for.
const TIDY: Duration = Duration::from_secs(10);

/// A connection, by its two ends.
pub(crate) type Ends = (SocketAddrV4, SocketAddrV4);

/// A connection that the host is asked for.
struct Dialing {
    /// The frame that asked for it.
    syn: Vec<u8>,
    grant: Grant,
}

/// The stack of one guest, behind this link.
pub(crate) struct Stack<L> {
    shared: Arc<Shared>,
    resolver: Arc<Resolver>,
    link: Link<L>,
    interface: Interface,
    sockets: SocketSet<'static>,
    flows: HashMap<Ends, Flow>,
    dialing: HashMap<Ends, Dialing>,
    dials: JoinSet<(Ends, io::Result<TcpStream>)>,
    datagrams: Datagrams,
    queries: JoinSet<(Ends, Option<Vec<u8>>)>,
    /// Name server connections.
    services: JoinSet<()>,
    /// Where the guest was heard last.
    guest: EthernetAddress,
    began: Instant,
    timer: Pin<Box<Sleep>>,
    tidied: Instant,
}

impl<L: AsyncRead + AsyncWrite + Unpin> Stack<L> {
    pub(crate) fn new(shared: Arc<Shared>, link: L) -> Self {
        let mut link = Link::new(link);
        let config = Config::new(HardwareAddress::Ethernet(GATEWAY_MAC));
        let mut interface = Interface::new(config, &mut link.device, StackInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let own = IpCidr::new(GATEWAY.into(), GUEST_NETWORK.prefix_len());
            addresses.push(own).expect("the first address fits");
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY).expect("the first route fits");
        // It stands for everybody.
        interface.set_any_ip(true);
        let now = Instant::now();
        Self {
            resolver: Arc::new(Resolver::new(Arc::clone(&shared))),
            shared,
            link,
            interface,
            sockets: SocketSet::new(Vec::new()),
            flows: HashMap::new(),
            dialing: HashMap::new(),
            dials: JoinSet::new(),
            datagrams: Datagrams::default(),
            queries: JoinSet::new(),
            services: JoinSet::new(),
            guest: EthernetAddress::BROADCAST,
            began: now,
            timer: Box::pin(sleep_until(now)),
            tidied: now,
        }
    }

    fn now(&self) -> StackInstant {
        StackInstant::from_micros(i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    /// The guest is there now. A stack that had to ask for it would lose what it has to say.
    fn meet(&mut self, guest: EthernetAddress) {
        self.guest = guest;
        self.link.device.receive(packet::introduction(guest));
    }

    /// Has the connections of a guest that comes from a rest reset.
    pub(crate) fn reset_stale(&mut self, stale: &Stale) {
        if !stale.connections.is_empty() {
            self.meet(EthernetAddress(stale.guest));
            stale.probes().for_each(|frame| self.link.device.send(&frame));
        }
    }

    /// What a guest that was saved now believes to have.
    pub(crate) fn stale(&self) -> Stale {
        Stale { guest: self.guest.0, connections: self.flows.keys().copied().collect() }
    }

    /// So much time did not count.
    pub(crate) fn stood_still(&mut self, time: Duration) {
        self.began += time;
        self.flows.values_mut().for_each(|flow| flow.active += time);
    }

    /// Does everything that can be done. Ready at the end of the link.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut moved = false;
            for taken in 0.. {
                if taken == BATCH {
                    moved = true;
                    break;
                }
                match self.link.poll_frame(cx)? {
                    Poll::Ready(Some(frame)) => self.take(frame),
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => break,
                }
            }
            moved |= self.finish_dials(cx) | self.finish_queries(cx);
            while let Poll::Ready(Some(_)) = self.services.poll_join_next(cx) {}
            self.turn();
            moved |= self.pump(cx);
            let device = &mut self.link.device;
            moved |= self.datagrams.poll_receive(self.guest, cx, |frame| device.send(frame));
            self.turn();
            let before = self.link.device.waiting();
            if self.link.poll_flush(cx)?.is_ready() && before > 0 {
                // There is room again.
                moved = true;
            }
            if !moved && !self.time_is_up(cx) {
                return Poll::Pending;
            }
        }
    }

    /// Lets the protocol stack work.
    fn turn(&mut self) {
        let now = self.now();
        self.interface.poll(now, &mut self.link.device, &mut self.sockets);
    }

    /// Whether the stack wants to do something now; arms the timer otherwise.
    fn time_is_up(&mut self, cx: &mut Context<'_>) -> bool {
        let now = Instant::now();
        if now.duration_since(self.tidied) >= TIDY {
            self.tidied = now;
            self.datagrams.expire(now);
        }
        // With a full queue it waits for the guest to read, not for the time.
        let delay = match self.interface.poll_delay(self.now(), &self.sockets) {
            Some(delay) if self.link.device.has_room() => Duration::from_micros(delay.total_micros()),
            _ => TIDY,
        };
        self.timer.as_mut().reset(now + delay.min(TIDY));
        self.timer.as_mut().poll(cx).is_ready()
    }

    /// Takes a frame of the guest.
    fn take(&mut self, frame: Vec<u8>) {
        if self.shared.policy().mode == NetMode::None {
            return;
        }
        let (packet, from) = packet::look(&frame);
        if let Some(from) = from.filter(|from| *from != self.guest) {
            self.meet(from);
        }
        match packet {
            Packet::Plain => self.link.device.receive(frame),
            Packet::Foreign => {}
            Packet::Syn { from, to } => self.open(from, to, frame),
            Packet::Udp { from, to, payload } if *to.ip() == GATEWAY && to.port() == DNS_PORT => {
                self.query((from, to), payload.to_vec());
            }
            Packet::Udp { from, to, payload } => {
                let pair = Pair::Udp { from, to };
                if self.allows_datagram(pair, Protocol::Udp, to, &frame) {
                    self.datagrams.send(&pair, payload);
                }
            }
            Packet::Echo { to, identifier, message } => {
                let pair = Pair::Echo { to, identifier };
                if self.allows_datagram(pair, Protocol::Icmp, SocketAddrV4::new(to, 0), &frame) {
                    self.datagrams.send(&pair, message);
                }
            }
        }
    }

    /// Decides, and logs the decision.
    fn decide(&self, protocol: Protocol, to: SocketAddrV4) -> Result<(Grant, Vec<String>), Refusal> {
        let names = self.shared.names().of(*to.ip(), Instant::now());
        let policy = self.shared.policy();
        let mut destination =
            Destination { protocol, address: *to.ip(), port: to.port(), names: &names, own: false };
        let mut verdict = decide(&policy, &destination);
        // Asking the kernel costs something, so only what would be allowed otherwise is asked for.
        if verdict.is_ok() && self.shared.dialer.is_own(*to.ip()) {
            destination.own = true;
            verdict = decide(&policy, &destination);
        }
        let name = names.last().map(String::as_str);
        let reason = verdict.as_ref().err().map(Refusal::to_string);
        self.note(protocol, to, name, reason);
        verdict.map(|grant| (grant, names))
    }

    fn note(&self, protocol: Protocol, to: SocketAddrV4, name: Option<&str>, reason: Option<String>) {
        let to = if protocol == Protocol::Icmp { to.ip().to_string() } else { to.to_string() };
        self.shared.journal().note(protocol.as_str(), to, name, reason);
    }
}

#[cfg(test)]
mod tests {
    use aegis_types::{NetSetup, Proxies};
    use tokio::io::duplex;

    use super::*;
    use crate::HostDialer;

    #[tokio::test(start_paused = true)]
    async fn time_that_the_guest_did_not_have_does_not_count() {
        let dialer = Arc::new(HostDialer::new(&Proxies::default()));
        let shared = Arc::new(Shared::new(NetSetup::default(), dialer));
        let (link, _guest) = duplex(64);
        let mut stack = Stack::new(shared, link);
        tokio::time::advance(Duration::from_secs(3)).await;
        let before = stack.now();
        tokio::time::advance(Duration::from_secs(3600)).await;
        stack.stood_still(Duration::from_secs(3600));
        assert_eq!(stack.now(), before);
    }
}
