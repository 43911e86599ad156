//! A TCP connection on a stream: see [`aegis_proto::tcp`]. Both ends use it; the sockets are theirs.
//!
//! **Invariant:** a [`Reader`] says "end" only when the sender did. A stream that ends or breaks earlier is an error.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use aegis_proto::frame::{Frame, HEADER_LEN};
use aegis_proto::tcp::{Answer, Connect, DATA_MAX, Piece};
use aegis_types::GuestPort;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf, ReadHalf, WriteHalf, split};

use crate::Carrier;
use crate::frames::{FramesError, write_frame};

/// The largest first frame: a port, or the reason of a refusal.
const FIRST_MAX: usize = 4096;
const BUFFER_BYTES: usize = DATA_MAX + HEADER_LEN;

/// There is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The guest tried until the time was up.
    #[error("{0}")]
    Refused(String),
    /// The stream broke, or the guest does not speak the protocol.
    #[error("no answer about the connection")]
    Stream(#[from] FramesError),
}

/// The first bytes of a stream that asks the guest for a connection to one of its ports. The guest waits for somebody to
/// listen there for `wait`.
pub fn request(port: GuestPort, wait: Duration) -> Vec<u8> {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    Connect { port, wait_ms }.into_frame().encode().expect("a small frame")
}

/// Takes the answer to [`request`]. The caller has a deadline of its own: a guest may not answer at all.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connected<S: Carrier>(mut stream: S) -> Result<Connection<S>, ConnectError> {
    let answer = Answer::from_frame(&first_frame(&mut stream).await?).map_err(FramesError::from)?;
    match answer {
        Answer::Connected => Ok(Connection::new(stream)),
        Answer::Refused { message } => Err(ConnectError::Refused(message)),
    }
}

/// Reads the request of the host.
///
/// # Errors
/// The stream broke, or the host does not speak the protocol.
pub async fn receive<S: Carrier>(stream: &mut S) -> Result<Connect, FramesError> {
    Ok(Connect::from_frame(&first_frame(stream).await?)?)
}

/// Answers the request of the host.
///
/// # Errors
/// The stream broke.
pub async fn answer<W: AsyncWrite + Unpin>(writer: &mut W, answer: Answer) -> Result<(), FramesError> {
    write_frame(writer, &answer.into_frame()).await
}

/// Reads one frame and not a byte more: the connection's bytes may follow at once.
async fn first_frame<S: Carrier>(stream: &mut S) -> Result<Frame, FramesError> {
    let kind = stream.read_u8().await?;
    let length = stream.read_u32().await? as usize;
    if length > FIRST_MAX {
        return Err(aegis_proto::frame::FrameError::TooLarge { length }.into());
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    Ok(Frame::new(kind, payload))
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the connection was cut off")
}

/// What the peer sends.
#[derive(Debug)]
pub struct Reader<R> {
    reader: R,
    buffer: Box<[u8]>,
    /// Bytes of the buffer that were received and not looked at.
    held: std::ops::Range<usize>,
    /// Bytes of the current piece that are still to come.
    left: usize,
    ended: bool,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// A reader behind the answer.
    pub fn new(reader: R) -> Self {
        Self { reader, buffer: vec![0; BUFFER_BYTES].into(), held: 0..0, left: 0, ended: false }
    }

    /// Waits until the stream itself is over, or until the peer breaks the rules. To be called while nothing is to be
    /// read: before the answer, or after the end.
    pub async fn gone(&mut self) {
        std::future::poll_fn(|cx| self.poll_gone(cx)).await;
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.held.is_empty() {
            return Poll::Ready(());
        }
        // Whatever it is, it has no business here.
        self.poll_fill(cx).map(drop)
    }

    /// Receives at least one byte.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            self.held = 0..0;
        } else if self.held.end == self.buffer.len() {
            self.buffer.copy_within(self.held.clone(), 0);
            self.held = 0..self.held.len();
        }
        let mut buffer = ReadBuf::new(&mut self.buffer[self.held.end..]);
        ready!(Pin::new(&mut self.reader).poll_read(cx, &mut buffer))?;
        let count = buffer.filled().len();
        if count == 0 {
            return Poll::Ready(Err(cut_off()));
        }
        self.held.end += count;
        Poll::Ready(Ok(()))
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Reader<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.ended || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if this.left > 0 && !this.held.is_empty() {
                let count = this.left.min(this.held.len()).min(buf.remaining());
                buf.put_slice(&this.buffer[this.held.start..this.held.start + count]);
                this.held.start += count;
                this.left -= count;
                return Poll::Ready(Ok(()));
            }
            if this.left == 0
                && let Some(header) = this.buffer[this.held.clone()].first_chunk::<HEADER_LEN>()
            {
                match Piece::decode(*header).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))? {
                    Piece::Data(length) => this.left = length,
                    Piece::End => this.ended = true,
                }
                this.held.start += HEADER_LEN;
                continue;
            }
            ready!(this.poll_fill(cx))?;
        }
    }
}

/// What we send. Shutting it down tells the peer that we have finished; dropping it without is a cut.
#[derive(Debug)]
pub struct Writer<W> {
    writer: W,
    /// One piece on its way.
    buffer: Vec<u8>,
    sent: usize,
    finished: bool,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// A writer behind the answer.
    pub fn new(writer: W) -> Self {
        Self { writer, buffer: Vec::with_capacity(BUFFER_BYTES), sent: 0, finished: false }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.buffer.len() {
            let count = ready!(Pin::new(&mut self.writer).poll_write(cx, &self.buffer[self.sent..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += count;
        }
        self.buffer.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    fn put(&mut self, piece: Piece, bytes: &[u8]) {
        self.buffer.extend_from_slice(&piece.encode());
        self.buffer.extend_from_slice(bytes);
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Writer<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(this.poll_drain(cx))?;
        let bytes = &buf[..buf.len().min(DATA_MAX)];
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        this.put(Piece::Data(bytes.len()), bytes);
        // What does not go out now goes with the next call, at the latest with a flush.
        if let Poll::Ready(Err(error)) = this.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_drain(cx))?;
        if !this.finished {
            this.finished = true;
            this.put(Piece::End, &[]);
        }
        // The stream itself stays open in both directions: that is what makes a cut visible.
        Pin::new(this).poll_flush(cx)
    }
}

/// Both directions as one.
#[derive(Debug)]
pub struct Connection<S> {
    reader: Reader<ReadHalf<S>>,
    writer: Writer<WriteHalf<S>>,
}

impl<S: Carrier> Connection<S> {
    /// The connection that was answered with [`Answer::Connected`] on this stream.
    pub fn new(stream: S) -> Self {
        let (reader, writer) = split(stream);
        Self { reader: Reader::new(reader), writer: Writer::new(writer) }
    }
}

impl<S: Carrier> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl<S: Carrier> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // Nobody reads any more after the peer's end, so this is where a cut is noticed.
        if self.reader.ended && self.reader.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(cut_off()));
        }
        Pin::new(&mut self.writer).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use tokio::io::{AsyncWriteExt as _, duplex};

    #[tokio::test]
    async fn only_an_end_is_an_end() {
        let (near, far) = duplex(64);
        let (mut near, mut far) = (Connection::new(near), Connection::new(far));
        near.write_all(b"all").await.unwrap();
        near.shutdown().await.unwrap();
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"all");
        // This direction had none, so the other side was cut off.
        far.write_all(b"some").await.unwrap();
        far.flush().await.unwrap();
        drop(far);
        received.clear();
        let error = near.read_to_end(&mut received).await.unwrap_err();
        assert_eq!((received.as_slice(), error.kind()), (&b"some"[..], io::ErrorKind::ConnectionReset));
    }

    #[tokio::test]
    async fn any_sizes_arrive_in_order() {
        // Smaller than a piece and not a multiple of anything.
        let (near, far) = duplex(1_009);
        let (mut near, mut far) = (Connection::new(near), Connection::new(far));
        let sent: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
        let send = async {
            for chunk in sent.chunks(37_003) {
                near.write_all(chunk).await.unwrap();
            }
            near.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let ((), read) = tokio::join!(send, far.read_to_end(&mut received));
        read.unwrap();
        assert!(received == sent);
    }

    #[tokio::test]
    async fn a_cut_after_the_end_of_the_peer_is_noticed_when_writing() {
        let (near, far) = duplex(1 << 20);
        let (mut near, mut far) = (Connection::new(near), Connection::new(far));
        far.shutdown().await.unwrap();
        assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
        near.write_all(b"still there").await.unwrap();
        drop(far);
        assert!(near.write_all(b"gone").await.is_err());
    }

    #[tokio::test]
    async fn nonsense_is_an_error() {
        for bytes in
            [&b"\x07\0\0\0\x01x"[..], b"\x02\0\0\0\0", b"\x02\xff\0\0\0", b"\x03\0\0\0\x01x", b"\x02\0\0"]
        {
            let mut reader = Reader::new(bytes);
            assert!(reader.read_to_end(&mut Vec::new()).await.is_err(), "{bytes:?}");
        }
    }
}
