//! The multiplexer: yamux (<https://github.com/hashicorp/yamux/blob/master/spec.md>) behind a type of our own.
//!
//! One task drives the connection; everybody else talks to it through channels. The limits are measured: with
//! yamux's defaults a bulk stream adds 20 ms to every call beside it.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use yamux::{Config, Connection, ConnectionError, FrameDecodeError, Mode};

use crate::{Carrier, LinkError};

const SPLIT_SEND_BYTES: usize = 16 * 1024;
const STREAMS_MAX: usize = 128;
const RECEIVE_WINDOW_BYTES: usize = 32 * 1024 * 1024;
/// Inbound streams that nobody has accepted yet; more are reset. As many as there can be: those of all clients that wake
/// a VM are opened in one burst, which arrives before the accepting task has its first turn.
const BACKLOG: usize = STREAMS_MAX;

/// Why a link is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEnd {
    /// One side closed it, or the carrier went away.
    Closed,
    /// The peer broke the rules of the multiplexer.
    Violation(String),
}

impl fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed"),
            Self::Violation(what) => write!(f, "protocol violation: {what}"),
        }
    }
}

/// One multiplexed stream. Shutting it down half-closes it; dropping it closes it.
#[derive(Debug)]
pub struct Stream {
    inner: Compat<yamux::Stream>,
    /// The link is being closed by this side: yamux then leaves those waiting who wait on a stream. One for each
    /// direction, because each may have a task of its own to wake.
    read_over: Over,
    write_over: Over,
}

type Over = Pin<Box<WaitForCancellationFutureOwned>>;

impl Stream {
    fn new(stream: yamux::Stream, over: &CancellationToken) -> Self {
        let over = || Box::pin(over.clone().cancelled_owned());
        Self { inner: stream.compat(), read_over: over(), write_over: over() }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match Pin::new(&mut self.inner).poll_read(cx, buf) {
            // As when the peer closes.
            Poll::Pending => self.read_over.as_mut().poll(cx).map(Ok),
            read => read,
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match Pin::new(&mut self.inner).poll_write(cx, buf) {
            Poll::Pending => {
                self.write_over.as_mut().poll(cx).map(|()| Err(std::io::ErrorKind::BrokenPipe.into()))
            }
            written => written,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

type OpenReply = oneshot::Sender<Result<Stream, LinkError>>;

/// Which side of the connection this is. Only the host opens streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Host,
    Guest,
}

/// Handle of the driving task. All clones dropped: the connection is closed.
#[derive(Clone)]
pub(crate) struct Mux {
    opens: mpsc::Sender<OpenReply>,
    close: mpsc::Sender<()>,
    ended: watch::Receiver<Option<LinkEnd>>,
}

/// Streams that the peer opened, in order.
pub(crate) struct Inbound(mpsc::Receiver<Stream>);

impl Inbound {
    pub(crate) async fn next(&mut self) -> Option<Stream> {
        self.0.recv().await
    }
}

impl Mux {
    /// Starts driving a connection over the carrier.
    pub(crate) fn start<C: Carrier>(carrier: C, side: Side) -> (Mux, Inbound) {
        let mut config = Config::default();
        config.set_split_send_size(SPLIT_SEND_BYTES);
        config.set_max_num_streams(STREAMS_MAX);
        config.set_max_connection_receive_window(Some(RECEIVE_WINDOW_BYTES));
        let mode = if side == Side::Host { Mode::Client } else { Mode::Server };
        let connection = Connection::new(carrier.compat(), config, mode);
        let (opens_tx, opens) = mpsc::channel(STREAMS_MAX);
        let (close_tx, close) = mpsc::channel(1);
        let (inbound_tx, inbound_rx) = mpsc::channel(BACKLOG);
        let (ended_tx, ended) = watch::channel(None);
        let driver = Driver {
            connection,
            opens,
            close,
            inbound: (side == Side::Guest).then_some(inbound_tx),
            pending: VecDeque::new(),
            over: CancellationToken::new(),
        };
        tokio::spawn(async move {
            let end = driver.run().await;
            // The driver is gone here, and with it the carrier: whoever waits may open it again.
            let _ = ended_tx.send(Some(end));
        });
        (Mux { opens: opens_tx, close: close_tx, ended }, Inbound(inbound_rx))
    }

    pub(crate) async fn open(&self) -> Result<Stream, LinkError> {
        let (reply, answer) = oneshot::channel();
        if self.opens.send(reply).await.is_err() {
            return Err(LinkError::Ended(self.ended().await));
        }
        match answer.await {
            Ok(result) => result,
            Err(_) => Err(LinkError::Ended(self.ended().await)),
        }
    }

    /// Asks for an orderly close; [`Mux::ended`] tells when it is done.
    pub(crate) fn close(&self) {
        // A full channel means that somebody asked already.
        let _ = self.close.try_send(());
    }

    pub(crate) async fn ended(&self) -> LinkEnd {
        let mut ended = self.ended.clone();
        // The sender always reports before it goes; if its task was aborted with the runtime, closed is true.
        match ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(LinkEnd::Closed),
            Err(_) => LinkEnd::Closed,
        }
    }
}

struct Driver<C: Carrier> {
    connection: Connection<Compat<C>>,
    opens: mpsc::Receiver<OpenReply>,
    close: mpsc::Receiver<()>,
    inbound: Option<mpsc::Sender<Stream>>,
    pending: VecDeque<OpenReply>,
    /// Set when this side closes.
    over: CancellationToken,
}

impl<C: Carrier> Driver<C> {
    async fn run(mut self) -> LinkEnd {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<LinkEnd> {
        loop {
            // Both a request and the disappearance of every handle end the connection.
            if !self.over.is_cancelled() && self.close.poll_recv(cx).is_ready() {
                self.over.cancel();
            }
            if self.over.is_cancelled() {
                return self.connection.poll_close(cx).map(|_| LinkEnd::Closed);
            }
            while let Poll::Ready(Some(reply)) = self.opens.poll_recv(cx) {
                self.pending.push_back(reply);
            }
            while let Some(reply) = self.next_open() {
                match self.connection.poll_new_outbound(cx) {
                    Poll::Ready(result) => {
                        let result = result
                            .map(|s| Stream::new(s, &self.over))
                            .map_err(|e| LinkError::Ended(classify(&e)));
                        let _ = reply.send(result);
                    }
                    Poll::Pending => {
                        self.pending.push_front(reply);
                        break;
                    }
                }
            }
            match self.connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => {
                    // Dropping a stream resets it: the host takes none, the guest a bounded number.
                    if let Some(inbound) = &self.inbound {
                        let _ = inbound.try_send(Stream::new(stream, &self.over));
                    }
                }
                Poll::Ready(Some(Err(e))) => return Poll::Ready(classify(&e)),
                Poll::Ready(None) => return Poll::Ready(LinkEnd::Closed),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// The next open request, skipping those whose caller gave up.
    fn next_open(&mut self) -> Option<OpenReply> {
        while let Some(reply) = self.pending.pop_front() {
            if !reply.is_closed() {
                return Some(reply);
            }
        }
        None
    }
}

fn classify(error: &ConnectionError) -> LinkEnd {
    match error {
        // A peer that was killed leaves a cut connection behind, wherever that is noticed.
        ConnectionError::Io(e) | ConnectionError::Decode(FrameDecodeError::Io(e))
            if e.kind() != std::io::ErrorKind::InvalidData =>
        {
            LinkEnd::Closed
        }
        ConnectionError::Closed => LinkEnd::Closed,
        other => LinkEnd::Violation(other.to_string()),
    }
}
