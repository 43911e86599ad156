//! The loop: frames in, decisions, bytes moved, frames out.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddrV4;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aegis_types::{NetMode, NetPolicy, NetSetup};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::socket::tcp::{Socket, State};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, Icmpv4DstUnreachable, IpCidr};
use tokio::io::{AsyncRead, AsyncWrite, duplex};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::address::{GATEWAY, GUEST_NETWORK};
use crate::dial::Dialer;
use crate::dns::{Resolver, Transport};
use crate::link::Link;
use crate::packet::{self, GATEWAY_MAC, Packet};
use crate::policy::{Destination, Grant, Protocol, Refusal, decide, decide_said, looks_at_names};
use crate::shared::Shared;
use crate::stale::Stale;
use crate::tcp::{Flow, HostStream, Pumped, accepting};
use crate::udp::{Datagrams, Pair};

const DNS_PORT: u16 = 53;
/// Frames that are taken from the guest before everybody else gets a turn.
const BATCH: usize = 256;
/// Connections at a time.
const FLOWS_MAX: usize = 512;
/// Connections that the host has not answered yet. More are not answered either: a guest tries again.
const DIALING_MAX: usize = 128;
/// Queries at a time.
const QUERIES_MAX: usize = 64;
/// A connection without a byte for so long gives way when there is no room for another.
const GIVES_WAY_AFTER: Duration = Duration::from_secs(15 * 60);
/// How often what is idle is looked for.
const TIDY: Duration = Duration::from_secs(10);
/// Between our name server and its TCP connections.
const OWN_BUFFER: usize = 64 * 1024;

/// A connection, by its two ends.
type Ends = (SocketAddrV4, SocketAddrV4);

/// Changes what a running network does. Clones are for the same one.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
    changed: Arc<Notify>,
    paused: Arc<watch::Sender<bool>>,
}

impl Control {
    /// Lets everything stand still while the guest's CPUs do, time included: what is open stays so for as long as that
    /// takes, and the other sides wait.
    pub fn set_paused(&self, paused: bool) {
        self.paused.send_replace(paused);
        self.changed.notify_one();
    }

    /// Puts another policy in force. Connections that it does not allow are reset.
    pub fn set_policy(&self, policy: NetPolicy) {
        self.shared.set_policy(policy);
        self.changed.notify_one();
    }
}

/// The network of one guest.
pub struct Network {
    shared: Arc<Shared>,
    /// The policy, or whether the guest is paused.
    changed: Arc<Notify>,
    paused: watch::Receiver<bool>,
    /// The guest comes from a rest.
    restored: bool,
}

impl Network {
    /// A network as `setup` says, on the sockets of `dialer`.
    pub fn new(setup: NetSetup, dialer: Arc<dyn Dialer>) -> (Self, Control) {
        let (shared, changed) = (Arc::new(Shared::new(setup, dialer)), Arc::new(Notify::new()));
        let (pause, paused) = watch::channel(false);
        let paused_by = Arc::new(pause);
        let control =
            Control { shared: Arc::clone(&shared), changed: Arc::clone(&changed), paused: paused_by };
        (Self { shared, changed, paused, restored: false }, control)
    }

    /// For a guest that was saved while another network served it: the connections that it had are reset.
    #[must_use]
    pub fn restored(self) -> Self {
        Self { restored: true, ..self }
    }

    /// Serves a guest until its link ends. `link` carries Ethernet frames, each after its length in four bytes, as
    /// QEMU's `-netdev stream` does.
    ///
    /// # Errors
    /// The link broke, or what comes on it are no frames.
    pub async fn run(mut self, link: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let mut stack = Stack::new(Arc::clone(&self.shared), link);
        let mut policy = self.shared.policy();
        let stale = Stale::take(&self.shared.log_dir);
        if self.restored && !stale.connections.is_empty() {
            stack.meet(EthernetAddress(stale.guest));
            stale.probes().for_each(|frame| stack.link.device.send(&frame));
        }
        let changed = self.changed;
        loop {
            let ended = tokio::select! {
                ended = poll_fn(|cx| stack.poll(cx)) => Some(ended),
                () = changed.notified() => None,
            };
            if let Some(ended) = ended {
                stack.stale().leave(&self.shared.log_dir);
                return ended;
            }
            let since = Instant::now();
            // Whoever could let it go on is gone at the end of the VM.
            if self.paused.wait_for(|paused| !paused).await.is_err() {
                return Ok(());
            }
            stack.stood_still(since.elapsed());
            if !Arc::ptr_eq(&policy, &self.shared.policy()) {
                policy = self.shared.policy();
                stack.policy_changed();
            }
        }
    }
}

/// A connection that the host is asked for.
struct Dialing {
    /// The frame that asked for it.
    syn: Vec<u8>,
    grant: Grant,
}

struct Stack<L> {
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
    fn new(shared: Arc<Shared>, link: L) -> Self {
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

    /// What a guest that was saved now believes to have.
    fn stale(&self) -> Stale {
        Stale { guest: self.guest.0, connections: self.flows.keys().copied().collect() }
    }

    /// So much time did not count.
    fn stood_still(&mut self, time: Duration) {
        self.began += time;
        self.flows.values_mut().for_each(|flow| flow.active += time);
    }

    /// Does everything that can be done. Ready at the end of the link.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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

    /// The guest opens a connection. It is answered when the host has an answer.
    fn open(&mut self, from: SocketAddrV4, to: SocketAddrV4, syn: Vec<u8>) {
        let ends = (from, to);
        if self.flows.contains_key(&ends) {
            return self.link.device.receive(syn);
        }
        if self.dialing.contains_key(&ends) {
            return;
        }
        if self.flows.len() >= FLOWS_MAX && !self.make_room() {
            self.note(Protocol::Tcp, to, None, Some(format!("{FLOWS_MAX} connections are open")));
            return self.link.device.receive(syn);
        }
        if *to.ip() == GATEWAY && to.port() == DNS_PORT {
            let (ours, theirs) = duplex(OWN_BUFFER);
            let resolver = Arc::clone(&self.resolver);
            if self.services.len() < QUERIES_MAX {
                self.services.spawn(async move { resolver.serve(theirs).await });
            }
            return self.accept(ends, HostStream::Own(ours), Dialing { syn, grant: Grant::Address });
        }
        if self.dialing.len() >= DIALING_MAX {
            return;
        }
        let forwarded =
            *to.ip() == GATEWAY && self.shared.host_ports.iter().any(|port| port.get() == to.port());
        let (target, grant, name) = if forwarded {
            self.note(Protocol::Tcp, to, Some(crate::dns::HOST_NAME), None);
            (SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, to.port()), Grant::Address, None)
        } else {
            match self.decide(Protocol::Tcp, to) {
                Ok((grant, mut names)) => (to, grant, names.pop()),
                // Nobody listens in the stack: it answers with a reset.
                Err(_) => return self.link.device.receive(syn),
            }
        };
        self.dialing.insert(ends, Dialing { syn, grant });
        let shared = Arc::clone(&self.shared);
        self.dials.spawn(async move { (ends, shared.dialer.connect(target.into(), name.as_deref()).await) });
    }

    fn finish_dials(&mut self, cx: &mut Context<'_>) -> bool {
        let mut finished = false;
        while let Poll::Ready(Some(done)) = self.dials.poll_join_next(cx) {
            finished = true;
            let Ok((ends, outcome)) = done else { continue };
            let Some(dialing) = self.dialing.remove(&ends) else { continue };
            match outcome {
                Ok(stream) => self.accept(ends, HostStream::Tcp(stream), dialing),
                Err(error) => {
                    tracing::debug!(%error, to = %ends.1, "the host cannot connect");
                    self.refuse(dialing.syn, &error);
                }
            }
        }
        finished
    }

    /// Tells the guest what the host was told.
    fn refuse(&mut self, syn: Vec<u8>, error: &io::Error) {
        let why = match error.kind() {
            io::ErrorKind::HostUnreachable | io::ErrorKind::TimedOut => Icmpv4DstUnreachable::HostUnreachable,
            io::ErrorKind::NetworkUnreachable => Icmpv4DstUnreachable::NetUnreachable,
            _ => return self.link.device.receive(syn),
        };
        if let Some(frame) = packet::unreachable(self.guest, &syn, why) {
            self.link.device.send(&frame);
        }
    }

    /// Answers the guest's SYN, now that the other side is there.
    fn accept(&mut self, ends: Ends, host: HostStream, dialing: Dialing) {
        // What was received before must not meet the new socket: it may be a SYN to the same address.
        self.turn();
        let handle = self.sockets.add(accepting(ends.1));
        self.link.device.receive(dialing.syn);
        self.turn();
        let socket = self.sockets.get::<Socket<'_>>(handle);
        let answered = !matches!(socket.state(), State::Listen | State::Closed)
            && socket.remote_endpoint().is_some_and(|remote| remote.port == ends.0.port());
        if !answered {
            self.sockets.remove(handle);
            return;
        }
        let is_forwarded = *ends.1.ip() == GATEWAY;
        let looking = !is_forwarded && looks_at_names(&self.shared.policy(), dialing.grant);
        self.flows.insert(ends, Flow::new(handle, host, dialing.grant, looking));
    }

    /// Moves bytes of every connection, and forgets those that are over.
    fn pump(&mut self, cx: &mut Context<'_>) -> bool {
        let (mut moved, policy) = (false, self.shared.policy());
        let (sockets, shared) = (&mut self.sockets, &self.shared);
        self.flows.retain(|(_, to), flow| {
            let socket = sockets.get_mut::<Socket<'_>>(flow.handle);
            let mut pumped = flow.pump(socket, cx);
            if let Pumped::Said(name) = &pumped {
                flow.looking = false;
                if let Err(refusal) = decide_said(&policy, flow.grant, name, to.port()) {
                    shared.journal().note("tcp", to.to_string(), Some(name), Some(refusal.to_string()));
                    socket.abort();
                }
                pumped = flow.pump(socket, cx);
                moved = true;
            }
            moved |= pumped == Pumped::Moved;
            let over = pumped == Pumped::Over;
            if over {
                sockets.remove(flow.handle);
            }
            !over
        });
        moved
    }

    /// Ends the connection that was idle for longest, if one was for long enough.
    fn make_room(&mut self) -> bool {
        let idle =
            self.flows.iter().min_by_key(|(_, flow)| flow.active).map(|(ends, flow)| (*ends, flow.active));
        match idle {
            Some((ends, active)) if active.elapsed() >= GIVES_WAY_AFTER => {
                self.reset(&ends);
                true
            }
            _ => false,
        }
    }

    /// Ends a connection by force, on both sides.
    fn reset(&mut self, ends: &Ends) {
        if let Some(flow) = self.flows.remove(ends) {
            self.sockets.get_mut::<Socket<'_>>(flow.handle).abort();
            self.turn();
            self.sockets.remove(flow.handle);
        }
    }

    /// What the new policy does not allow ends.
    fn policy_changed(&mut self) {
        // The guest's next datagram is decided anew, and so is every connection that waits for the host.
        self.datagrams.clear();
        self.dialing.clear();
        self.dials = JoinSet::new();
        let ends: Vec<Ends> = self.flows.keys().copied().filter(|(_, to)| *to.ip() != GATEWAY).collect();
        for ends in ends {
            match self.decide(Protocol::Tcp, ends.1) {
                Ok((grant, _)) => {
                    if let Some(flow) = self.flows.get_mut(&ends) {
                        flow.grant = grant;
                    }
                }
                Err(_) => self.reset(&ends),
            }
        }
    }

    /// Whether a datagram may be sent: on a socket that is open, or on one that is opened now.
    fn allows_datagram(&mut self, pair: Pair, protocol: Protocol, to: SocketAddrV4, frame: &[u8]) -> bool {
        if self.datagrams.has(&pair) {
            return true;
        }
        if self.datagrams.is_full() {
            // As a network that is too busy.
            return false;
        }
        let why = match self.decide(protocol, to) {
            Err(_) => Icmpv4DstUnreachable::CommProhibited,
            Ok(_) => {
                let socket = match protocol {
                    Protocol::Icmp => self.shared.dialer.echo(*to.ip()),
                    Protocol::Udp | Protocol::Tcp => self.shared.dialer.datagrams(to.into()),
                };
                match socket {
                    Ok(socket) => {
                        self.datagrams.open(pair, socket);
                        return true;
                    }
                    Err(error) => {
                        tracing::debug!(%error, %to, "the host makes no socket");
                        Icmpv4DstUnreachable::HostUnreachable
                    }
                }
            }
        };
        if let Some(answer) = packet::unreachable(self.guest, frame, why) {
            self.link.device.send(&answer);
        }
        false
    }

    /// Answers a query when there is an answer.
    fn query(&mut self, ends: Ends, query: Vec<u8>) {
        if self.queries.len() >= QUERIES_MAX {
            return;
        }
        let resolver = Arc::clone(&self.resolver);
        self.queries.spawn(async move { (ends, resolver.answer(&query, Transport::Udp).await) });
    }

    fn finish_queries(&mut self, cx: &mut Context<'_>) -> bool {
        let mut finished = false;
        while let Poll::Ready(Some(done)) = self.queries.poll_join_next(cx) {
            finished = true;
            if let Ok(((from, to), Some(answer))) = done
                && let Some(frame) = packet::udp(self.guest, to, from, &answer)
            {
                self.link.device.send(&frame);
            }
        }
        finished
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostDialer;

    #[tokio::test(start_paused = true)]
    async fn time_that_the_guest_did_not_have_does_not_count() {
        let dialer = Arc::new(HostDialer::new(&aegis_types::Proxies::default()));
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
