//! The Ethernet side: frames with their length before them, as QEMU's `-netdev stream` sends them, and the queues
//! between them and the protocol stack.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Largest IP packet of the link, in bytes.
pub const MTU: u16 = 65_520;
/// Length of an Ethernet header.
const HEADER: usize = 14;
const FRAME_MAX: usize = MTU as usize + HEADER;
const PREFIX: usize = 4;
/// Read from the VMM at once.
const READ: usize = 256 * 1024;
/// Bytes for the guest that wait; nothing is added by the stack beyond that, and datagrams are dropped.
const OUT_MAX: usize = 1 << 20;

/// A stream of frames.
pub(crate) struct Link<L> {
    stream: L,
    input: BytesMut,
    pub(crate) device: Queues,
}

/// What goes through the protocol stack.
#[derive(Default)]
pub(crate) struct Queues {
    incoming: VecDeque<Vec<u8>>,
    outgoing: BytesMut,
}

impl<L: AsyncRead + AsyncWrite + Unpin> Link<L> {
    pub(crate) fn new(stream: L) -> Self {
        Self { stream, input: BytesMut::new(), device: Queues::default() }
    }

    /// The next frame of the guest; `None` at the end of the link.
    ///
    /// # Errors
    /// The link broke, or what comes are no frames.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Vec<u8>>>> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Poll::Ready(Ok(Some(frame)));
            }
            let filled = self.input.len();
            self.input.resize(filled + READ, 0);
            let mut buffer = ReadBuf::new(&mut self.input[filled..]);
            let read = Pin::new(&mut self.stream).poll_read(cx, &mut buffer);
            let count = buffer.filled().len();
            self.input.truncate(filled + count);
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Ready(Ok(())) if count == 0 => return Poll::Ready(Ok(None)),
                Poll::Ready(Ok(())) => {}
            }
        }
    }

    fn take_frame(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(prefix) = self.input.first_chunk::<PREFIX>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        // QEMU's own limit is a little higher than ours, so what a driver sends beyond the MTU is skipped below.
        if length > 2 * FRAME_MAX {
            let message = format!("a frame of {length} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        if self.input.len() < PREFIX + length {
            return Ok(None);
        }
        self.input.advance(PREFIX);
        Ok(Some(self.input.split_to(length).to_vec()))
    }

    /// Writes what waits for the guest. Ready when nothing does.
    ///
    /// # Errors
    /// The link broke.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.device.outgoing.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.device.outgoing) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => self.device.outgoing.advance(count),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Queues {
    /// A frame of the guest for the stack.
    pub(crate) fn receive(&mut self, frame: Vec<u8>) {
        if (HEADER..=FRAME_MAX).contains(&frame.len()) {
            self.incoming.push_back(frame);
        }
    }

    /// A frame for the guest that was not made by the stack. Dropped when too much waits, as a network does.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        if self.has_room() && (HEADER..=FRAME_MAX).contains(&frame.len()) {
            put(&mut self.outgoing, frame.len(), |room| room.copy_from_slice(frame));
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.outgoing.len() < OUT_MAX
    }

    pub(crate) fn waiting(&self) -> usize {
        self.outgoing.len()
    }
}

fn put<R>(to: &mut BytesMut, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
    let prefix = u32::try_from(length).expect("frames are short");
    to.extend_from_slice(&prefix.to_be_bytes());
    let start = to.len();
    to.resize(start + length, 0);
    fill(&mut to[start..])
}

pub(crate) struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub(crate) struct Room<'a>(&'a mut BytesMut);

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        put(self.0, length, f)
    }
}

impl Device for Queues {
    type RxToken<'a> = Received;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Room<'_>)> {
        // An answer to what was received is short, and is taken beyond the limit.
        self.incoming.pop_front().map(|frame| (Received(frame), Room(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        self.has_room().then_some(Room(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_MAX;
        // Nothing is lost or changed on a socket of this machine: checking would cost more than all the rest.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.udp = Checksum::Tx;
        capabilities.checksum.icmpv4 = Checksum::Tx;
        capabilities
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    #[tokio::test]
    async fn frames_are_found_however_they_are_cut() {
        for cut in [1, 3, 64] {
            let (ours, mut guest) = duplex(cut);
            let mut link = Link::new(ours);
            let frames = [vec![1; 60], vec![], vec![2; 1000]];
            let sent: Vec<u8> = frames
                .iter()
                .flat_map(|f| [&u32::try_from(f.len()).unwrap().to_be_bytes()[..], f].concat())
                .collect();
            tokio::spawn(async move { guest.write_all(&sent).await.unwrap() });
            for frame in &frames {
                assert_eq!(poll_fn(|cx| link.poll_frame(cx)).await.unwrap().as_ref(), Some(frame));
            }
            assert_eq!(poll_fn(|cx| link.poll_frame(cx)).await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn what_is_no_frame_ends_the_link() {
        let (ours, mut guest) = duplex(64);
        guest.write_all(&[0xff; 4]).await.unwrap();
        let mut link = Link::new(ours);
        let error = poll_fn(|cx| link.poll_frame(cx)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn frames_for_the_guest_have_their_length_and_a_bound() {
        let (ours, mut guest) = duplex(4 << 20);
        let mut link = Link::new(ours);
        link.device.send(&[7; 20]);
        link.device.send(&[7; 3]);
        poll_fn(|cx| link.poll_flush(cx)).await.unwrap();
        let mut read = [0; 24];
        guest.read_exact(&mut read).await.unwrap();
        assert_eq!(read[..4], [0, 0, 0, 20]);
        for _ in 0..100 {
            link.device.send(&[7; 60_000]);
        }
        assert!(link.device.waiting() < OUT_MAX + FRAME_MAX + PREFIX && !link.device.has_room());
    }
}
