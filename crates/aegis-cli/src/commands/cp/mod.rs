//! `aegis cp`.
//!
//! Files travel as tar streams. This machine's side is packed and unpacked on a thread; the stream of a guest is hostile, see
//! [`aegis_copy`].

mod place;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use aegis_api::ErrorCode;
use aegis_client::{ClientError, Download};
use aegis_copy::{Owners, Unpacking, pack, stat, unpack};
use aegis_types::{CopyReport, FileKind, FileStat};
use bytes::Bytes;
use indicatif::ProgressBar;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio::task::{self, JoinHandle};

use self::place::{Landing, Place};
use super::Context;
use crate::args::Cp;
use crate::error::{CliError, Kind};
use crate::progress::byte_bar;
use crate::signals::Signals;
use crate::suggest::explain;
use crate::ui;

/// Pieces between the stream and the thread that reads or writes files.
const QUEUE: usize = 8;
/// Bytes of a piece that is sent.
const PIECE: usize = 64 << 10;

pub(crate) async fn run(context: &Context, args: Cp) -> Result<u8, CliError> {
    let (from, to) = (Place::parse(&args.source), Place::parse(&args.destination));
    let copy = Copy { context, archive: args.archive, follow: args.follow_link, signals: Signals::listen()? };
    let report = match (from, to) {
        (Place::Host(from), Place::Guest { instance, path }) => copy.upload(&from, &instance, &path).await?,
        (Place::Stdio, Place::Guest { instance, path }) => copy.upload_stdin(&instance, &path).await?,
        (Place::Guest { instance, path }, Place::Host(to)) => copy.download(&instance, &path, &to).await?,
        (Place::Guest { instance, path }, Place::Stdio) => copy.download_stdout(&instance, &path).await?,
        (Place::Guest { .. }, Place::Guest { .. }) => {
            return Err(CliError::new(Kind::Usage, "cannot copy from an instance to an instance")
                .hint("copy to this machine first, or through a pipe: `aegis cp A:/x - | aegis cp - B:/`"));
        }
        _ => {
            return Err(CliError::new(Kind::Usage, "one side of the copy must be in an instance")
                .hint("write it as INSTANCE:PATH, and a path here with `:` in it as ./PATH"));
        }
    };
    conclude(&report, args.archive, &args.destination)
}

/// Says what was copied, and what was not.
fn conclude(report: &CopyReport, archive: bool, destination: &str) -> Result<u8, CliError> {
    for problem in &report.problems {
        ui::warn(&format!("{} is not copied as it is: {}", problem.path, problem.error));
    }
    if report.more_problems > 0 {
        ui::warn(&format!("the same of {} more", report.more_problems));
    }
    if archive && report.owners_lost > 0 {
        ui::warn(&format!("the owners of {} file(s) could not be kept", report.owners_lost));
    }
    let told = format!("Copied {} file(s), {}, to {destination}\n", report.entries, ui::size(report.bytes));
    if destination != "-" {
        ui::print(&told)?;
    }
    Ok(if report.is_complete() { 0 } else { Kind::Failure.exit_code() })
}

struct Copy<'a> {
    context: &'a Context,
    archive: bool,
    follow: bool,
    signals: Signals,
}

impl Copy<'_> {
    async fn upload(mut self, from: &Path, instance: &str, to: &str) -> Result<CopyReport, CliError> {
        let cannot_read = |e| CliError::failure(format!("cannot read {}", from.display())).because(&e);
        let found = stat(from, self.follow).map_err(cannot_read)?;
        let text = from.as_os_str().as_encoded_bytes();
        let there = self.stat_guest(instance, to).await?;
        let landing = Landing::find(
            place::Source { kind: found.kind, contents: place::is_contents(text), name: name_here(from)? },
            place::Destination { path: to.as_bytes(), kind: there.map(|stat| stat.kind) },
        );
        let Landing { directory, root } = landing.map_err(|why| refused(to, why))?;
        let directory = String::from_utf8(directory).map_err(|_| refused(to, "it is not UTF-8"))?;
        let bar = byte_bar((found.kind == FileKind::File).then_some(found.size));
        let (pieces, queue) = mpsc::channel(QUEUE);
        let (source, follow, shown) = (from.to_owned(), self.follow, bar.clone());
        let packing = task::spawn_blocking(move || {
            let mut sink = Sink { pieces, bar: shown, buffer: Vec::with_capacity(PIECE) };
            let root = if root.is_empty() { b"." } else { &root[..] };
            pack(&source, root, follow, &mut sink)
        });
        let sent = self.send(instance, &directory, queue).await;
        bar.finish_and_clear();
        let theirs = sent?;
        let ours =
            finished(packing).await?.map_err(|e| CliError::failure("cannot send the files").because(&e))?;
        Ok(merged(theirs, ours))
    }

    async fn upload_stdin(mut self, instance: &str, to: &str) -> Result<CopyReport, CliError> {
        let bar = byte_bar(None);
        let (pieces, queue) = mpsc::channel(QUEUE);
        let shown = bar.clone();
        let mut reading = task::JoinSet::new();
        reading.spawn(async move {
            let mut stdin = tokio::io::stdin();
            loop {
                let mut piece = vec![0; PIECE];
                let read = match stdin.read(&mut piece).await {
                    Ok(0) => return,
                    Ok(count) => {
                        piece.truncate(count);
                        shown.inc(count as u64);
                        Ok(Bytes::from(piece))
                    }
                    Err(error) => Err(error),
                };
                let failed = read.is_err();
                if pieces.send(read).await.is_err() || failed {
                    return;
                }
            }
        });
        let sent = self.send(instance, to, queue).await;
        bar.finish_and_clear();
        sent
    }

    async fn send(
        &mut self,
        instance: &str,
        directory: &str,
        queue: mpsc::Receiver<io::Result<Bytes>>,
    ) -> Result<CopyReport, CliError> {
        let client = &self.context.client;
        let sent = tokio::select! {
            sent = client.write_files(instance, directory, self.archive, queue) => sent,
            signal = self.signals.next() => return Err(signal),
        };
        match sent {
            Ok(report) => Ok(report),
            Err(error) => Err(explain(client, instance, error).await),
        }
    }

    async fn download(mut self, instance: &str, from: &str, to: &Path) -> Result<CopyReport, CliError> {
        let mut download = self.open(instance, from).await?;
        let there = std::fs::metadata(to).ok().map(|found| kind_of(&found));
        let landing = Landing::find(
            place::Source {
                kind: download.stat.kind,
                contents: place::is_contents(from.as_bytes()),
                name: place::last_name(from.as_bytes()).unwrap_or(b"root").to_vec(),
            },
            place::Destination { path: to.as_os_str().as_encoded_bytes(), kind: there },
        );
        let shown = to.display().to_string();
        let Landing { directory, root } = landing.map_err(|why| refused(&shown, why))?;
        let directory = {
            use std::os::unix::ffi::OsStringExt as _;
            PathBuf::from(std::ffi::OsString::from_vec(directory))
        };
        let bar = bar_for(&download.stat);
        let (pieces, queue) = mpsc::channel(QUEUE);
        let owners = if self.archive { Owners::Keep } else { Owners::Caller };
        let unpacking = task::spawn_blocking(move || {
            let how = Unpacking { owners, special_bits: false, through_links: false, root: Some(&root) };
            unpack(&directory, Source { queue, piece: Bytes::new(), ended: false }, &how)
        });
        let received = self.receive(&mut download, &pieces, &bar).await;
        drop(pieces);
        let unpacked = finished(unpacking).await?;
        bar.finish_and_clear();
        // A stream that broke is the reason for what became of the files, unless those were one for the other.
        let ours = match (received, unpacked) {
            (_, Ok(report)) => report,
            (Err(Some(error)), Err(_)) => return Err(error),
            (_, Err(error)) => {
                return Err(CliError::failure(format!("cannot copy to {shown}")).because(&error));
            }
        };
        Ok(merged(ours, download.report().clone()))
    }

    /// Passes the stream on to the thread; an error is absent when the thread has one.
    async fn receive(
        &mut self,
        download: &mut Download,
        pieces: &mpsc::Sender<Option<Bytes>>,
        bar: &ProgressBar,
    ) -> Result<(), Option<CliError>> {
        loop {
            let piece = tokio::select! {
                piece = download.next() => piece.map_err(|e| Some(e.into()))?,
                signal = self.signals.next() => return Err(Some(signal)),
            };
            let ended = piece.is_none();
            bar.inc(piece.as_ref().map_or(0, |piece| piece.len() as u64));
            pieces.send(piece).await.map_err(|_| None)?;
            if ended {
                return Ok(());
            }
        }
    }

    async fn download_stdout(mut self, instance: &str, from: &str) -> Result<CopyReport, CliError> {
        let mut download = self.open(instance, from).await?;
        loop {
            let piece = tokio::select! {
                piece = download.next() => piece?,
                signal = self.signals.next() => return Err(signal),
            };
            match piece {
                Some(piece) => ui::print_bytes(&piece)?,
                None => return Ok(download.report().clone()),
            }
        }
    }

    async fn open(&mut self, instance: &str, from: &str) -> Result<Download, CliError> {
        let client = &self.context.client;
        let opened = tokio::select! {
            opened = client.read_files(instance, from, self.follow) => opened,
            signal = self.signals.next() => return Err(signal),
        };
        match opened {
            Ok(download) => Ok(download),
            Err(error) => Err(explain(client, instance, error).await),
        }
    }

    /// What is at the destination, if something is.
    async fn stat_guest(&mut self, instance: &str, path: &str) -> Result<Option<FileStat>, CliError> {
        let client = &self.context.client;
        let found = tokio::select! {
            found = client.file_stat(instance, path, true) => found,
            signal = self.signals.next() => return Err(signal),
        };
        match found {
            Ok(stat) => Ok(Some(stat)),
            Err(ClientError::Api { body, .. }) if body.code == ErrorCode::FileNotFound => Ok(None),
            Err(error) => Err(explain(client, instance, error).await),
        }
    }
}

fn refused(path: &str, why: &str) -> CliError {
    CliError::failure(format!("cannot copy to {path}")).cause(why)
}

/// The name that a file of this machine has in a copy.
fn name_here(path: &Path) -> Result<Vec<u8>, CliError> {
    if let Some(name) = path.file_name() {
        return Ok(name.as_encoded_bytes().to_vec());
    }
    // `..` and the like have another name than the one that was written.
    let cannot = |e| CliError::failure(format!("cannot find {}", path.display())).because(&e);
    let real = path.canonicalize().map_err(cannot)?;
    Ok(real.file_name().map_or(b"root".to_vec(), |name| name.as_encoded_bytes().to_vec()))
}

fn kind_of(found: &std::fs::Metadata) -> FileKind {
    if found.is_dir() { FileKind::Directory } else { FileKind::File }
}

fn bar_for(stat: &FileStat) -> ProgressBar {
    byte_bar((stat.kind == FileKind::File).then_some(stat.size))
}

/// The report of the side that made the files, with what the other side could not read.
fn merged(mut made: CopyReport, read: CopyReport) -> CopyReport {
    for problem in read.problems {
        made.problem(problem.path, problem.error);
    }
    made.more_problems += read.more_problems;
    made
}

async fn finished<T>(thread: JoinHandle<T>) -> Result<T, CliError> {
    thread.await.map_err(|e| CliError::failure("the copy failed in an unexpected way").because(&e))
}

/// A stream to a guest, for a thread that writes.
struct Sink {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    bar: ProgressBar,
    buffer: Vec<u8>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == PIECE {
            self.flush()?;
        }
        let count = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
            self.bar.inc(piece.len() as u64);
            self.pieces.blocking_send(Ok(piece.into())).map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        Ok(())
    }
}

/// A stream from a guest, for a thread that reads.
struct Source {
    /// `None` is its end; a queue that just ends was cut off.
    queue: mpsc::Receiver<Option<Bytes>>,
    piece: Bytes,
    ended: bool,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.queue.blocking_recv() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => self.ended = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = buffer.len().min(self.piece.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}
