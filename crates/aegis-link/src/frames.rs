//! Binary frames over any stream.

use std::io;

use aegis_proto::frame::{Frame, FrameDecoder, FrameError};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

const READ_BYTES: usize = 32 * 1024;

/// Frames could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum FramesError {
    /// The peer broke the frame rules: the stream is of no use any more.
    #[error(transparent)]
    Violation(#[from] FrameError),
    /// The stream broke, or ended inside a frame.
    #[error("the stream broke")]
    Io(#[from] io::Error),
}

/// Reads frames.
pub struct FrameReader<R> {
    reader: R,
    decoder: FrameDecoder,
    buffer: Box<[u8]>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader at a frame boundary.
    pub fn new(reader: R) -> Self {
        Self { reader, decoder: FrameDecoder::default(), buffer: vec![0; READ_BYTES].into() }
    }

    /// The next frame; `None` when the stream ended between frames. Cancel-safe.
    ///
    /// # Errors
    /// See [`FramesError`].
    pub async fn next(&mut self) -> Result<Option<Frame>, FramesError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            let count = self.reader.read(&mut self.buffer).await?;
            if count == 0 {
                return if self.decoder.has_partial() {
                    Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
                } else {
                    Ok(None)
                };
            }
            self.decoder.push(&self.buffer[..count]);
        }
    }
}

/// Writes and flushes one frame. Not cancel-safe: a dropped future may leave half a frame behind.
///
/// # Errors
/// [`FramesError::Violation`] when the frame is too large; nothing was sent then.
pub async fn write_frame<W: AsyncWrite + Unpin>(writer: &mut W, frame: &Frame) -> Result<(), FramesError> {
    writer.write_all(&frame.encode()?).await?;
    writer.flush().await?;
    Ok(())
}
