//! A carrier between two sessions: what is left of the earlier one must not be taken for the next.
//!
//! A host that gets no answer greets again, because opening a port throws away what was in it. Both greetings may
//! arrive; the second one then stands where the multiplexer is expected. The two cannot be confused: a message of
//! the multiplexer begins with its version, which is 0, and a line with anything else.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use aegis_link::Carrier;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// First byte of every message of yamux.
const MULTIPLEXER: u8 = 0;

/// A carrier whose reader skips lines before the first message of the multiplexer.
pub(crate) struct Settled<C> {
    carrier: C,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    LineStart,
    InLine,
    Multiplexer,
}

impl<C: Carrier> Settled<C> {
    pub(crate) fn new(carrier: C) -> Self {
        Self { carrier, state: State::LineStart }
    }
}

impl State {
    /// The part of the received bytes that belongs to the multiplexer.
    fn skip(&mut self, bytes: &[u8]) -> usize {
        for (at, &byte) in bytes.iter().enumerate() {
            *self = match (*self, byte) {
                (State::LineStart, MULTIPLEXER) => State::Multiplexer,
                (State::LineStart | State::InLine, b'\n') => State::LineStart,
                (State::LineStart | State::InLine, _) => State::InLine,
                (State::Multiplexer, _) => State::Multiplexer,
            };
            if *self == State::Multiplexer {
                return at;
            }
        }
        bytes.len()
    }
}

impl<C: Carrier> AsyncRead for Settled<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let before = buf.filled().len();
            ready!(Pin::new(&mut self.carrier).poll_read(cx, buf))?;
            let received = &buf.filled()[before..];
            if received.is_empty() || self.state == State::Multiplexer {
                return Poll::Ready(Ok(()));
            }
            let length = received.len();
            let skipped = self.state.skip(received);
            buf.filled_mut().copy_within(before + skipped.., before);
            buf.set_filled(before + length - skipped);
            if skipped < length {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<C: Carrier> AsyncWrite for Settled<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.carrier).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.carrier).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.carrier).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    #[tokio::test]
    async fn lines_before_the_multiplexer_are_skipped_however_they_are_cut() {
        for cut in 1..20 {
            let (guest, mut host) = duplex(cut);
            let sent =
                [&b"\n{\"aegis\":\"hello\"}\n\n{\"a\0\":1}\n"[..], &[0, 1, 2, b'\n', b'{', 0]].concat();
            tokio::spawn(async move { host.write_all(&sent).await.unwrap() });
            let mut received = Vec::new();
            Settled::new(guest).read_to_end(&mut received).await.unwrap();
            assert_eq!(received, [0, 1, 2, b'\n', b'{', 0]);
        }
    }
}
