//! A byte stream that can be halted, as the port of a guest whose CPUs do not run, and spoilt.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Controls all [`Gated`] streams made with it.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    halted: bool,
    garbling: bool,
    waiting: Vec<Waker>,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while held")
    }

    pub(crate) fn halt(&self) {
        self.state().halted = true;
    }

    pub(crate) fn go_on(&self) {
        let mut state = self.state();
        state.halted = false;
        state.waiting.drain(..).for_each(Waker::wake);
    }

    /// From now on every byte that is written is another one.
    pub(crate) fn garble(&self) {
        self.state().garbling = true;
    }

    /// Ready with "write garbage" unless halted.
    fn poll(&self, cx: &Context<'_>) -> Poll<bool> {
        let mut state = self.state();
        if !state.halted {
            return Poll::Ready(state.garbling);
        }
        if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// A stream behind a [`Gate`].
pub(crate) struct Gated<C> {
    inner: C,
    gate: Gate,
}

impl<C> Gated<C> {
    pub(crate) fn new(inner: C, gate: Gate) -> Self {
        Self { inner, gate }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Gated<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.gate.poll(cx) {
            Poll::Ready(_) => Pin::new(&mut self.inner).poll_read(cx, buf),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Gated<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.gate.poll(cx) {
            Poll::Ready(false) => Pin::new(&mut self.inner).poll_write(cx, bytes),
            Poll::Ready(true) => {
                let spoilt: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
                Pin::new(&mut self.inner).poll_write(cx, &spoilt)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.gate.poll(cx) {
            Poll::Ready(_) => Pin::new(&mut self.inner).poll_flush(cx),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn a_halted_stream_waits_and_goes_on_without_loss() {
        let gate = Gate::default();
        let (guest, mut host) = duplex(64);
        let mut guest = Gated::new(guest, gate.clone());
        gate.halt();
        let mut write = std::pin::pin!(guest.write_all(b"late"));
        let early = std::future::poll_fn(|cx| Poll::Ready(write.as_mut().poll(cx).is_ready())).await;
        assert!(!early);
        let mut text = [0; 4];
        let (wrote, read, ()) = tokio::join!(write, host.read_exact(&mut text), async { gate.go_on() });
        wrote.unwrap();
        read.unwrap();
        assert_eq!(&text, b"late");
    }
}
