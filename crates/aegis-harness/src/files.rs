//! Files of the guest for the host, in and out: see [`aegis_proto::files`].
//!
//! Files are read and written on a thread of their own, because a disk or a mounted directory may be slow and the harness has
//! only one thread for everything else. The thread waits for the stream, so the host's pace is its own.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_copy::{Owners, Unpacking, pack, stat, unpack};
use aegis_link::Carrier;
use aegis_link::frames::{FrameReader, write_frame};
use aegis_proto::files::{Answer, DATA_MAX, Piece, Request};
use aegis_types::{CopyReport, FileKind, FileStat};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::debug;

use crate::harness::Core;

/// From the beginning of the stream to the request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// Copies at a time, each with a thread; others wait.
static SLOTS: Semaphore = Semaphore::const_new(8);

/// Serves a stream from its request to the report.
pub(crate) async fn serve<S: Carrier>(core: Arc<Core>, stream: S) {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut frames = FrameReader::new(reader);
    let request = match timeout(REQUEST_DEADLINE, frames.next()).await {
        Ok(Ok(Some(frame))) => match Request::from_frame(&frame) {
            Ok(request) => request,
            Err(error) => return debug!("files were not asked for properly: {error}"),
        },
        Ok(Ok(None)) => return,
        Ok(Err(error)) => return debug!("a stream for files broke: {error}"),
        Err(_) => return debug!("a stream for files asked for none"),
    };
    // Never closed.
    let Ok(_slot) = SLOTS.acquire().await else { return };
    let answer = match core.ready_to_start().await {
        Ok(()) => look(&request).await,
        Err(message) => Answer::Refused { not_found: false, message },
    };
    let refused = matches!(answer, Answer::Refused { .. });
    if let Err(error) = write_frame(&mut writer, &answer.into_frame()).await {
        return debug!("nobody wants the files any more: {error}");
    }
    if !refused {
        let handle = Handle::current();
        let copying = tokio::task::spawn_blocking(move || {
            let report = match request {
                Request::Stat { .. } => None,
                Request::Read { path, follow } => Some(read(&path, follow, &handle, &mut writer)),
                Request::Write { path, keep_owners } => Some(write(&path, keep_owners, &handle, &mut frames)),
            };
            // Dropping the reader would look to the host as if nobody was here any more.
            (report, writer, frames)
        });
        let Ok((report, back, _frames)) = copying.await else { return debug!("a copy panicked") };
        writer = back;
        if let Some(report) = report {
            // Whoever went away does not want to know.
            let _ = write_frame(&mut writer, &Piece::Report(report).into_frame()).await;
        }
    }
    let _ = writer.shutdown().await;
}

/// What is at the path, if the request fits it.
async fn look(request: &Request) -> Answer {
    let (path, follow) = match request {
        Request::Stat { path, follow } | Request::Read { path, follow } => (path.clone(), *follow),
        Request::Write { path, .. } => (path.clone(), true),
    };
    let found = tokio::task::spawn_blocking(move || stat(Path::new(&path), follow)).await;
    match (found, request) {
        (Ok(Ok(FileStat { kind, .. })), Request::Write { .. }) if kind != FileKind::Directory => {
            Answer::Refused { not_found: false, message: "it is not a directory".to_owned() }
        }
        (Ok(Ok(stat)), _) => Answer::Found { stat },
        (Ok(Err(error)), _) => {
            let missing = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
            Answer::Refused { not_found: missing, message: error.to_string() }
        }
        (Err(error), _) => Answer::Refused { not_found: false, message: error.to_string() },
    }
}

fn read<W: AsyncWrite + Unpin>(path: &str, follow: bool, handle: &Handle, writer: &mut W) -> CopyReport {
    let path = Path::new(path);
    let name = path.file_name().map_or(&b"root"[..], |name| name.as_encoded_bytes());
    let mut sink = Sink { handle, writer, buffer: Vec::with_capacity(DATA_MAX) };
    pack(path, name, follow, &mut sink).unwrap_or_else(|error| failed(&error))
}

fn write<R: AsyncRead + Unpin>(
    path: &str,
    keep_owners: bool,
    handle: &Handle,
    frames: &mut FrameReader<R>,
) -> CopyReport {
    let how = Unpacking {
        owners: if keep_owners { Owners::Keep } else { Owners::Caller },
        special_bits: true,
        // Who made the links of this root is its own business.
        through_links: true,
        root: None,
    };
    let source = Source { handle, frames, piece: Vec::new(), read: 0, ended: false };
    unpack(Path::new(path), source, &how).unwrap_or_else(|error| failed(&error))
}

fn failed(error: &dyn std::error::Error) -> CopyReport {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let text = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
    CopyReport { failure: Some(text), ..CopyReport::default() }
}

/// The stream to the host, for a thread that writes.
struct Sink<'a, W> {
    handle: &'a Handle,
    writer: &'a mut W,
    buffer: Vec<u8>,
}

impl<W: AsyncWrite + Unpin> Write for Sink<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == DATA_MAX {
            self.flush()?;
        }
        let count = bytes.len().min(DATA_MAX - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(DATA_MAX));
        let sent = self.handle.block_on(write_frame(self.writer, &Piece::Data(piece).into_frame()));
        sent.map_err(io::Error::other)
    }
}

/// The stream from the host, for a thread that reads.
struct Source<'a, R> {
    handle: &'a Handle,
    frames: &'a mut FrameReader<R>,
    piece: Vec<u8>,
    read: usize,
    ended: bool,
}

impl<R: AsyncRead + Unpin> Read for Source<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.piece.len() && !self.ended {
            let frame = self.handle.block_on(self.frames.next()).map_err(io::Error::other)?;
            // Without its last frame the host went away, which must not look like the end of an archive.
            let frame = frame.ok_or(io::ErrorKind::UnexpectedEof)?;
            match Piece::from_frame(frame).map_err(io::Error::other)? {
                Piece::Data(bytes) => (self.piece, self.read) = (bytes, 0),
                Piece::End => self.ended = true,
                Piece::Report(_) => return Err(io::Error::other("a report from the host")),
            }
        }
        let count = buffer.len().min(self.piece.len() - self.read);
        buffer[..count].copy_from_slice(&self.piece[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}
