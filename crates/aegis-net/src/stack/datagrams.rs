//! Datagrams, echoes and queries: each decided once, when its socket is opened.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::task::{Context, Poll};

use smoltcp::wire::Icmpv4DstUnreachable;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Ends, QUERIES_MAX, Stack};
use crate::dns::Transport;
use crate::packet;
use crate::policy::Protocol;
use crate::udp::Pair;

impl<L: AsyncRead + AsyncWrite + Unpin> Stack<L> {
    /// Whether a datagram may be sent: on a socket that is open, or on one that is opened now.
    pub(super) fn allows_datagram(
        &mut self,
        pair: Pair,
        protocol: Protocol,
        to: SocketAddrV4,
        frame: &[u8],
    ) -> bool {
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
    pub(super) fn query(&mut self, ends: Ends, query: Vec<u8>) {
        if self.queries.len() >= QUERIES_MAX {
            return;
        }
        let resolver = Arc::clone(&self.resolver);
        self.queries.spawn(async move { (ends, resolver.answer(&query, Transport::Udp).await) });
    }

    pub(super) fn finish_queries(&mut self, cx: &mut Context<'_>) -> bool {
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
