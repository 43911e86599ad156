//! Datagrams and echoes of the guest: one socket of the host for each pair of addresses.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::{SendFlags, send};
use smoltcp::wire::EthernetAddress;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::time::Instant;

use crate::packet;

/// Longest datagram.
const DATAGRAM_MAX: usize = 65_535;
/// Datagrams that are taken from one socket at a time.
const BATCH: usize = 32;
/// Sockets at a time.
pub(crate) const SOCKETS_MAX: usize = 256;
/// Time without a datagram in either direction (RFC 4787, REQ-5, asks for two minutes at least).
const IDLE: Duration = Duration::from_secs(120);

/// What a socket stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Pair {
    Udp { from: SocketAddrV4, to: SocketAddrV4 },
    Echo { to: Ipv4Addr, identifier: u16 },
}

struct Open {
    socket: UdpSocket,
    active: Instant,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Datagrams {
    open: HashMap<Pair, Open>,
    buffer: Vec<u8>,
}

impl Datagrams {
    pub(crate) fn has(&self, pair: &Pair) -> bool {
        self.open.contains_key(pair)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.open.len() >= SOCKETS_MAX
    }

    pub(crate) fn open(&mut self, pair: Pair, socket: UdpSocket) {
        self.open.insert(pair, Open { socket, active: Instant::now() });
    }

    /// Sends on an open socket. What cannot be sent at once is lost, as it would be in any network.
    pub(crate) fn send(&mut self, pair: &Pair, payload: &[u8]) {
        if let Some(open) = self.open.get_mut(pair) {
            open.active = Instant::now();
            // Not through the runtime, which does not know yet that a new socket can send.
            let _ = send(&open.socket, payload, SendFlags::DONTWAIT);
        }
    }

    /// Gives everything that was received to `deliver`, as frames for the guest. Whether there was something.
    pub(crate) fn poll_receive(
        &mut self,
        guest: EthernetAddress,
        cx: &mut Context<'_>,
        mut deliver: impl FnMut(&[u8]),
    ) -> bool {
        let mut received = false;
        self.buffer.resize(DATAGRAM_MAX, 0);
        let buffer = &mut self.buffer;
        self.open.retain(|pair, open| {
            for _ in 0..BATCH {
                let mut room = ReadBuf::new(buffer);
                match open.socket.poll_recv(cx, &mut room) {
                    Poll::Pending => return true,
                    // Nobody listens there; the guest's next try makes a new socket.
                    Poll::Ready(Err(_)) => return false,
                    Poll::Ready(Ok(())) => {}
                }
                received = true;
                open.active = Instant::now();
                let frame = match *pair {
                    Pair::Udp { from, to } => packet::udp(guest, to, from, room.filled()),
                    Pair::Echo { to, identifier } => packet::echo_reply(guest, to, identifier, room.filled()),
                };
                if let Some(frame) = frame {
                    deliver(&frame);
                }
            }
            // The others first.
            cx.waker().wake_by_ref();
            true
        });
        received
    }

    /// Closes what was not used for long.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.open.retain(|_, open| now.duration_since(open.active) < IDLE);
    }

    /// Closes everything, because the policy has changed.
    pub(crate) fn clear(&mut self) {
        self.open.clear();
    }
}
