//! Output of guest processes on our own standard output and standard error, byte for byte.
//!
//! Writes happen in threads of the runtime, so that a pipe that nobody reads does not keep us from noticing
//! signals. Nothing is filtered: what a guest writes is what the terminal gets.

use std::io;

use aegis_api::LogStream;
use tokio::io::{AsyncWriteExt as _, BufWriter, Stderr, Stdout};

const BUFFER: usize = 64 << 10;

/// Both outputs. Call [`GuestOutput::flush`] whenever there is nothing else to do, and at the end.
pub(crate) struct GuestOutput {
    stdout: BufWriter<Stdout>,
    stderr: BufWriter<Stderr>,
    /// The output with bytes in its buffer.
    pending: Option<LogStream>,
}

impl GuestOutput {
    pub(crate) fn new() -> Self {
        Self {
            stdout: BufWriter::with_capacity(BUFFER, tokio::io::stdout()),
            stderr: BufWriter::with_capacity(BUFFER, tokio::io::stderr()),
            pending: None,
        }
    }

    /// Writes bytes; they may stay in a buffer. Both outputs may be the same terminal, so one is flushed before
    /// the other is written.
    pub(crate) async fn write(&mut self, stream: LogStream, bytes: &[u8]) -> io::Result<()> {
        if self.pending.is_some_and(|pending| pending != stream) {
            self.flush().await?;
        }
        self.pending = Some(stream);
        match stream {
            LogStream::Stdout => self.stdout.write_all(bytes).await,
            LogStream::Stderr => self.stderr.write_all(bytes).await,
        }
    }

    /// There are bytes to flush.
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Writes what is in the buffers. Cancel safe: a dropped call loses nothing and repeats nothing.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        match self.pending {
            Some(LogStream::Stdout) => self.stdout.flush().await?,
            Some(LogStream::Stderr) => self.stderr.flush().await?,
            None => {}
        }
        self.pending = None;
        Ok(())
    }
}
