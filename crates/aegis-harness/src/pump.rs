//! Carries the messages of one mounted file system between the kernel's device and a stream to the host: fuse(4).
//!
//! ```text
//! kernel ─ read ─► requests ──► stream      not while the guest is being parked
//! kernel ◄─ write ─ answers ◄── stream      and what the host has to tell, by a thread of its own
//! ```
//! **Invariant:** whatever was read from the device is answered there, at the latest when its stream ends: a process that
//! waits for an answer cannot be killed. Only the kernel's first request, without which it never asks anything, is kept for
//! the next stream.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread;

use aegis_link::Carrier;
use aegis_proto::fuse::{ANSWER_HEADER, MESSAGE_MAX, REQUEST_HEADER};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, Interest, split};
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::sys::{Sys, linux};

// Operations of `linux/fuse.h`.
const FORGET: u32 = 2;
const READ: u32 = 15;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const NOTIFY_REPLY: u32 = 41;
const BATCH_FORGET: u32 = 42;

/// Messages that arrive together are taken out of the stream together.
const READ_AHEAD_BYTES: usize = 64 * 1024;
/// A read of this size is one of a file that is read from beginning to end.
const LONG_READ: u32 = 64 * 1024;
/// How far the kernel reads ahead then, in KiB; its default is 128.
const READ_AHEAD_KIB: u32 = 1024;

/// A mounted file system.
pub(crate) struct Mounted {
    target: String,
    device: AsyncFd<OwnedFd>,
    /// Held by the stream that is served.
    stream: tokio::sync::Mutex<()>,
    /// Nothing more is read from the device.
    held: watch::Sender<bool>,
    /// Requests without an answer, by their number; the message where it can be sent again.
    open: Mutex<HashMap<u64, Option<Vec<u8>>>>,
    open_count: watch::Sender<usize>,
    notices: OnceLock<mpsc::Sender<Vec<u8>>>,
    reads_ahead: AtomicBool,
}

impl Mounted {
    /// Must be called in a tokio runtime.
    pub(crate) fn new(target: &str, device: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            target: target.to_owned(),
            device: linux::poll(device, Interest::READABLE)?,
            stream: tokio::sync::Mutex::default(),
            held: watch::Sender::new(false),
            open: Mutex::default(),
            open_count: watch::Sender::new(0),
            notices: OnceLock::new(),
            reads_ahead: AtomicBool::new(false),
        })
    }

    pub(crate) fn target(&self) -> &str {
        &self.target
    }

    /// Reads nothing more from the device until the next stream.
    pub(crate) fn hold(&self) {
        self.held.send_replace(true);
    }

    /// Waits until everything that was read has been answered.
    pub(crate) async fn answered(&self) {
        // The sender is a field of `self`.
        let _ = self.open_count.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Serves a stream to its end. One that is still served is waited for: its end is on its way.
    pub(crate) async fn pump<S: Carrier>(&self, sys: &Arc<dyn Sys>, stream: S) {
        let _turn = self.stream.lock().await;
        self.held.send_replace(false);
        let (reader, writer) = split(stream);
        let ended = tokio::select! {
            ended = self.requests(sys, writer) => ended,
            ended = self.answers(reader) => ended,
        };
        if let Err(error) = ended {
            debug!("the stream of {} broke: {error}", self.target);
        }
        self.fail_open();
    }

    async fn requests<W: AsyncWrite + Unpin>(&self, sys: &Arc<dyn Sys>, mut stream: W) -> io::Result<()> {
        let kept: Vec<Vec<u8>> = self.lock().values().flatten().cloned().collect();
        for message in kept {
            stream.write_all(&message).await?;
        }
        stream.flush().await?;
        let mut held = self.held.subscribe();
        let mut buffer = vec![0; MESSAGE_MAX];
        loop {
            // The sender is a field of `self`.
            let _ = held.wait_for(|held| !*held).await;
            let mut ready = tokio::select! {
                _ = held.changed() => continue,
                ready = self.device.readable() => ready?,
            };
            let read = ready.try_io(|device| Ok(rustix::io::read(device, &mut buffer[..])?));
            let length = match read {
                Ok(Ok(length)) => length,
                // A request was taken back by whoever made it.
                Ok(Err(e)) if Errno::from_io_error(&e) == Some(Errno::NOENT) => continue,
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => continue,
                // Nobody uses it any more: `ENODEV`.
                Ok(Err(e)) => return Err(e),
                Err(_not_ready) => continue,
            };
            if length < REQUEST_HEADER {
                return Ok(());
            }
            let message = &buffer[..length];
            self.note(sys, message);
            stream.write_all(message).await?;
            stream.flush().await?;
        }
    }

    /// Notes a request whose answer somebody waits for.
    fn note(&self, sys: &Arc<dyn Sys>, message: &[u8]) {
        let word = |at: usize| u32::from_le_bytes(message[at..at + 4].try_into().expect("four bytes"));
        let operation = word(4);
        if operation == READ && message.len() >= REQUEST_HEADER + 20 && word(REQUEST_HEADER + 16) >= LONG_READ
        {
            self.read_ahead(sys);
        }
        if matches!(operation, FORGET | BATCH_FORGET | INTERRUPT | NOTIFY_REPLY) {
            return;
        }
        let mut open = self.lock();
        open.insert(unique(message), (operation == INIT).then(|| message.to_vec()));
        self.open_count.send_replace(open.len());
    }

    /// Done when it is of use, because it takes longer than a short command.
    fn read_ahead(&self, sys: &Arc<dyn Sys>) {
        if self.reads_ahead.swap(true, Ordering::Relaxed) {
            return;
        }
        let (sys, target) = (Arc::clone(sys), self.target.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = sys.set_read_ahead(&target, READ_AHEAD_KIB) {
                debug!("reading ahead in {target} is as usual: {error}");
            }
        });
    }

    async fn answers<R: AsyncRead + Unpin>(&self, stream: R) -> io::Result<()> {
        let mut stream = BufReader::with_capacity(READ_AHEAD_BYTES, stream);
        let mut message = Vec::new();
        loop {
            let length = match stream.read_u32_le().await {
                Ok(length) => length as usize,
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(e) => return Err(e),
            };
            if !(ANSWER_HEADER..=MESSAGE_MAX).contains(&length) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("a message of {length} bytes"),
                ));
            }
            message.resize(length, 0);
            message[..4].copy_from_slice(&u32::try_from(length).expect("checked above").to_le_bytes());
            stream.read_exact(&mut message[4..]).await?;
            match unique(&message) {
                0 => self.tell_kernel(message.clone()),
                number => {
                    write(&self.device, &message);
                    self.close(number);
                }
            }
        }
    }

    fn close(&self, number: u64) {
        let mut open = self.lock();
        open.remove(&number);
        self.open_count.send_replace(open.len());
    }

    /// Passes on what the host has to tell. The kernel may wait for the lock of a directory whose user waits for an answer,
    /// so this must not be in the way of answers.
    fn tell_kernel(&self, message: Vec<u8>) {
        let notices = self.notices.get_or_init(|| {
            let (sender, receiver) = mpsc::channel::<Vec<u8>>();
            match self.device.get_ref().try_clone() {
                Ok(device) => {
                    let told = move || receiver.iter().for_each(|message| write(&device, &message));
                    if let Err(error) = thread::Builder::new().name("fuse-notices".to_owned()).spawn(told) {
                        warn!("changes by the host are noticed late: {error}");
                    }
                }
                Err(error) => warn!("changes by the host are noticed late: {error}"),
            }
            sender
        });
        // Without the thread it was said.
        let _ = notices.send(message);
    }

    /// Answers what nobody will answer any more.
    fn fail_open(&self) {
        let mut open = self.lock();
        open.retain(|number, kept| {
            if kept.is_none() {
                write(&self.device, &failure(*number));
            }
            kept.is_some()
        });
        self.open_count.send_replace(open.len());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Option<Vec<u8>>>> {
        self.open.lock().expect("no panic while held")
    }
}

/// The number of a request, which is that of its answer: at the same place in both headers.
fn unique(message: &[u8]) -> u64 {
    u64::from_le_bytes(message[8..16].try_into().expect("eight bytes"))
}

fn failure(number: u64) -> Vec<u8> {
    let length = u32::try_from(ANSWER_HEADER).expect("16");
    [&length.to_le_bytes()[..], &(-libc::EIO).to_le_bytes(), &number.to_le_bytes()].concat()
}

/// Gives the kernel a message. What it does not take is about something that it does not know any more.
fn write(device: &impl std::os::fd::AsFd, message: &[u8]) {
    match rustix::io::write(device.as_fd(), message) {
        Ok(_) | Err(Errno::NOENT) => {}
        Err(error) => debug!("the kernel does not take a message of {} bytes: {error}", message.len()),
    }
}
