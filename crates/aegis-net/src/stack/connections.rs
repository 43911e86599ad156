//! TCP connections: from a SYN of the guest to the end.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use smoltcp::socket::tcp::{Socket, State};
use smoltcp::wire::Icmpv4DstUnreachable;
use tokio::io::{AsyncRead, AsyncWrite, duplex};
use tokio::task::JoinSet;

use super::{DNS_PORT, Dialing, Ends, QUERIES_MAX, Stack};
use crate::address::GATEWAY;
use crate::dns::HOST_NAME;
use crate::packet;
use crate::policy::{Grant, Protocol, decide_said, looks_at_names};
use crate::tcp::{Flow, HostStream, Pumped, accepting};

/// Connections at a time.
const FLOWS_MAX: usize = 512;
/// Connections that the host has not answered yet. More are not answered either: a guest tries again.
const DIALING_MAX: usize = 128;
/// A connection without a byte for so long gives way when there is no room for another.
const GIVES_WAY_AFTER: Duration = Duration::from_secs(15 * 60);
/// Between our name server and its TCP connections.
const OWN_BUFFER: usize = 64 * 1024;

impl<L: AsyncRead + AsyncWrite + Unpin> Stack<L> {
    /// The guest opens a connection. It is answered when the host has an answer.
    pub(super) fn open(&mut self, from: SocketAddrV4, to: SocketAddrV4, syn: Vec<u8>) {
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
            self.note(Protocol::Tcp, to, Some(HOST_NAME), None);
            (SocketAddrV4::new(Ipv4Addr::LOCALHOST, to.port()), Grant::Address, None)
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

    pub(super) fn finish_dials(&mut self, cx: &mut Context<'_>) -> bool {
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
    pub(super) fn refuse(&mut self, syn: Vec<u8>, error: &io::Error) {
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
    pub(super) fn accept(&mut self, ends: Ends, host: HostStream, dialing: Dialing) {
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
    pub(super) fn pump(&mut self, cx: &mut Context<'_>) -> bool {
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
    pub(super) fn make_room(&mut self) -> bool {
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
    pub(super) fn reset(&mut self, ends: &Ends) {
        if let Some(flow) = self.flows.remove(ends) {
            self.sockets.get_mut::<Socket<'_>>(flow.handle).abort();
            self.turn();
            self.sockets.remove(flow.handle);
        }
    }

    /// What the new policy does not allow ends.
    pub(crate) fn policy_changed(&mut self) {
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
}
