//! The stream on which a guest asks for files. One that is registered as tokio does it, for both directions, wakes its thread
//! once more for each answer: when the VMM has taken it, and there is room again. So each half is registered for what it
//! waits for, and the half that writes only while there is no room.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// The halves of a stream.
///
/// # Errors
/// As for registering it.
pub(crate) fn split(stream: UnixStream) -> io::Result<(Requests, Answers)> {
    stream.set_nonblocking(true)?;
    let answers = Answers { stream: stream.try_clone()?, room: None };
    Ok((Requests(register(stream, Interest::READABLE)?), answers))
}

#[expect(
    deprecated,
    reason = "what replaces it is unsafe for descriptors that may change; a UnixStream's does not"
)]
fn register(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    AsyncFd::with_interest(stream, interest)
}

/// What the guest asks.
pub(crate) struct Requests(AsyncFd<UnixStream>);

impl AsyncRead for Requests {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            let read = ready.try_io(|stream| stream.get_ref().read(into.initialize_unfilled()));
            match read {
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(read) => return Poll::Ready(read.map(|count| into.advance(count))),
                Err(_would_block) => {}
            }
        }
    }
}

/// What it is told.
pub(crate) struct Answers {
    stream: UnixStream,
    /// There while there is none.
    room: Option<AsyncFd<UnixStream>>,
}

impl AsyncWrite for Answers {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            if let Some(room) = &self.room {
                // It is waited for anew if there is still none.
                ready!(room.poll_write_ready(cx))?.clear_ready();
            }
            match self.stream.write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if self.room.is_none() {
                        let stream = self.stream.try_clone()?;
                        self.room = Some(register(stream, Interest::WRITABLE)?);
                    }
                }
                written => {
                    self.room = None;
                    return Poll::Ready(written);
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.shutdown(std::net::Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn both_directions_go_on_when_one_is_full() {
        // More than any socket takes at once.
        const BYTES: usize = 8 << 20;
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut requests, mut answers) = split(ours).unwrap();
        let guest = std::thread::spawn(move || {
            let mut guest = theirs;
            guest.write_all(b"begin").unwrap();
            let mut received = vec![0; BYTES];
            guest.read_exact(&mut received).unwrap();
            guest.write_all(b"end").unwrap();
            received
        });
        let mut begin = [0; 5];
        requests.read_exact(&mut begin).await.unwrap();
        let sent: Vec<u8> = (0..BYTES).map(|at| u8::try_from(at % 251).unwrap()).collect();
        answers.write_all(&sent).await.unwrap();
        assert!(answers.room.is_none(), "nobody is woken for it any more");
        let mut rest = Vec::new();
        requests.read_to_end(&mut rest).await.unwrap();
        assert_eq!((&begin[..], &rest[..]), (&b"begin"[..], &b"end"[..]));
        assert!(guest.join().unwrap() == sent);
        assert!(answers.write_all(&sent).await.is_err(), "the other end is gone");
    }
}
