//! Commands with streams: frames in both directions over a connection that was a request before.

use std::io;

use aegis_api::ProcessOutput;
use aegis_types::ProcessInput;
use aegis_types::frame::{Frame, FrameDecoder, FrameError};
use bytes::BytesMut;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::ClientError;
use crate::connection::Answer;

/// How much is read at once.
const READ: usize = 64 << 10;

/// A process with streams. The connection lasts until both sides of it are dropped.
pub struct Process {
    /// What it is told.
    pub input: ProcessSender,
    /// What it says.
    pub output: ProcessReceiver,
}

impl Process {
    /// Takes over the connection of an answer that switched protocols.
    pub(crate) async fn new(answer: Answer) -> Result<Self, ClientError> {
        let parts = answer
            .into_upgraded()
            .await?
            .downcast::<TokioIo<UnixStream>>()
            .map_err(|_| ClientError::Protocol("it came over another connection".into()))?;
        let (read, write) = parts.io.into_inner().into_split();
        let mut decoder = FrameDecoder::default();
        // What came together with the head.
        decoder.push(&parts.read_buf);
        let buffer = BytesMut::with_capacity(READ);
        let output = ProcessReceiver { half: read, decoder, buffer, state: State::Fresh };
        Ok(Self { input: ProcessSender { half: write }, output })
    }
}

/// The way to a process.
pub struct ProcessSender {
    half: OwnedWriteHalf,
}

impl ProcessSender {
    /// Tells the process something; waits while it does not take it. **Not** cancel safe: a dropped call leaves a part of a
    /// message behind, and then the connection is of no use any more.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send(&mut self, input: ProcessInput) -> Result<(), ClientError> {
        let bytes = input.into_frame().encode().map_err(frame_error)?;
        self.half.write_all(&bytes).await.map_err(ClientError::Cut)
    }

    /// Says that nothing more will come.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn close(mut self) -> Result<(), ClientError> {
        self.half.shutdown().await.map_err(ClientError::Cut)
    }
}

enum State {
    Fresh,
    Running,
    Done,
}

/// The way from a process.
pub struct ProcessReceiver {
    half: OwnedReadHalf,
    /// Holds less than one frame and one read.
    decoder: FrameDecoder,
    buffer: BytesMut,
    state: State,
}

impl ProcessReceiver {
    /// What the process says next: [`ProcessOutput::Started`] first, none after [`ProcessOutput::Done`]. Cancel safe.
    ///
    /// # Errors
    /// The connection broke, a message makes no sense, or the stream ended before the command.
    pub async fn next(&mut self) -> Result<Option<ProcessOutput>, ClientError> {
        if matches!(self.state, State::Done) {
            return Ok(None);
        }
        let frame = self.frame().await?;
        let output = ProcessOutput::from_frame(frame).map_err(frame_error)?;
        self.state = match (&self.state, &output) {
            (State::Fresh, ProcessOutput::Started(_)) => State::Running,
            (State::Running, ProcessOutput::Done(_)) => State::Done,
            (State::Running, ProcessOutput::Stdout(_) | ProcessOutput::Stderr(_)) => State::Running,
            _ => return Err(ClientError::Protocol("it begins again, or without a beginning".into())),
        };
        Ok(Some(output))
    }

    async fn frame(&mut self) -> Result<Frame, ClientError> {
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(frame_error)? {
                return Ok(frame);
            }
            self.buffer.clear();
            self.buffer.reserve(READ);
            match self.half.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(cut_off(&self.decoder)),
                Ok(_) => self.decoder.push(&self.buffer),
                Err(error) => return Err(ClientError::Cut(error)),
            }
        }
    }
}

fn cut_off(decoder: &FrameDecoder) -> ClientError {
    let place = if decoder.has_partial() { "inside a frame" } else { "before the command does" };
    ClientError::Cut(io::Error::new(io::ErrorKind::UnexpectedEof, format!("the stream ends {place}")))
}

fn frame_error(error: FrameError) -> ClientError {
    ClientError::Protocol(error.to_string())
}
