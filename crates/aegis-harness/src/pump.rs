//! Carries messages between the devices of mounted file systems, fuse(4), and the port to the host.
//!
//! ```text
//! kernel ─ read ─► a thread for each mount ─ write ─► port      not while the guest is being parked
//! kernel ◄─ write ─ one thread ◄─ read ─ port                   and what the host has to tell, by another thread
//! kernel ◄─ write ─ two threads ◄─ read ─ disk                  long reads, see `content`
//! ```
//! Threads and plain system calls, because that is the least that an exchange can cost: with an emulated CPU each message
//! that took the way of the link cost a guest twice as much.
//!
//! **Invariant:** whatever was read from a device is answered there, at the latest when its session ends: a process that
//! waits for an answer cannot be killed. Only the kernel's first request, without which it never asks anything, is kept for
//! the next session.

mod content;
mod fresh;
mod message;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread;

use aegis_proto::fuse::{END, MESSAGE_MAX, NONCE_BYTES, PLACE_BYTES, REQUEST_HEADER, after_nonce};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::sys::Sys;
use fresh::Fresh;
use message::{
    BATCH_FORGET, FORGET, Frame, GETXATTR, INIT, INTERRUPT, LOOKUP, MKDIR, NOTIFY_REPLY, READ, RELEASE, Read,
    answer, answer_header, frame, is_kernels_own, named, read, unique, word,
};

type Nonce = [u8; NONCE_BYTES];

/// Bytes that are read from the port at once.
const PORT_BYTES: usize = 64 * 1024;
/// A read of this size is one of a file that is read from beginning to end.
const LONG_READ: u32 = 64 * 1024;
/// A read of this size is cheaper from the disk than over the port.
const DISK_READ: u32 = 16 * 1024;
/// While one of them waits for the host, the other gives the kernel what it has got.
const READERS: usize = 2;
/// How far the kernel reads ahead then, in KiB; its default is 128. Two of the longest requests: the host reads for one while
/// the kernel takes what came for the other.
const READ_AHEAD_KIB: u32 = 2048;
/// What waits for the next request, at most.
const LATER_BYTES: usize = 16 * 1024;
/// How long it waits for one.
const LATER: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// None of them calls deep.
const STACK_BYTES: usize = 128 * 1024;

/// A mounted file system.
struct Mounted {
    place: u32,
    target: String,
    device: OwnedFd,
    reads_ahead: AtomicBool,
    fresh: Mutex<Fresh>,
}

impl Mounted {
    fn fresh(&self) -> MutexGuard<'_, Fresh> {
        self.fresh.lock().expect("no panic while held")
    }
}

/// A request without an answer.
#[derive(Default)]
struct Open {
    /// The message, where it can be sent again.
    again: Option<Vec<u8>>,
    makes_directory: bool,
}

/// A request that is answered from the disk.
struct LongRead {
    mounted: Arc<Mounted>,
    read: Read,
    /// As it would go over the port.
    frame: Vec<u8>,
}

#[derive(Default)]
struct State {
    mounts: Vec<Arc<Mounted>>,
    session: Option<Nonce>,
    /// Nothing more is sent.
    held: bool,
    /// By place of the mount and number.
    open: HashMap<(u32, u64), Open>,
    /// Threads that are writing to the port.
    writing: usize,
}

/// See the module.
pub(crate) struct Pump {
    sys: Arc<dyn Sys>,
    state: Mutex<State>,
    changed: Condvar,
    /// Whether nothing is open and nobody writes; kept while it is held.
    quiet: watch::Sender<bool>,
    port: OnceLock<File>,
    /// Held while a frame is written.
    turn: Mutex<()>,
    notices: OnceLock<Sender<(Arc<Mounted>, Vec<u8>)>>,
    /// To the threads that read the disk, where there is one.
    long_reads: OnceLock<Option<Sender<LongRead>>>,
}

impl Pump {
    pub(crate) fn new(sys: Arc<dyn Sys>) -> Self {
        Self {
            sys,
            state: Mutex::default(),
            changed: Condvar::new(),
            quiet: watch::Sender::new(true),
            port: OnceLock::new(),
            turn: Mutex::default(),
            notices: OnceLock::new(),
            long_reads: OnceLock::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// Takes the messages of a mount over.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(crate) fn add(self: &Arc<Self>, place: u32, target: &str, device: OwnedFd) -> io::Result<()> {
        let mounted = Arc::new(Mounted {
            place,
            target: target.to_owned(),
            device,
            reads_ahead: AtomicBool::new(false),
            fresh: Mutex::default(),
        });
        self.lock().mounts.push(Arc::clone(&mounted));
        let pump = Arc::clone(self);
        spawn("fuse-requests", move || pump.requests(&mounted))
    }

    /// Opens the port, which otherwise the first session does.
    ///
    /// # Errors
    /// There is none, or no thread for it.
    pub(crate) fn open(self: &Arc<Self>) -> io::Result<()> {
        self.open_port().map(drop)
    }

    /// Begins a session: what waits is sent. The last one, if it has not ended, is over.
    ///
    /// # Errors
    /// The port cannot be used.
    pub(crate) fn begin(self: &Arc<Self>, nonce: Nonce) -> io::Result<()> {
        let port = self.open_port()?;
        {
            let mut state = self.lock();
            self.fail_open(&mut state);
            state.session = Some(nonce);
        }
        let _turn = self.turn.lock().expect("no panic while held");
        let mut port = port;
        port.write_all(&nonce)?;
        let mut state = self.lock();
        for (&(place, _), open) in &state.open {
            if let Some(message) = &open.again {
                port.write_all(&[&place.to_le_bytes()[..], message].concat())?;
            }
        }
        state.held = false;
        self.changed.notify_all();
        Ok(())
    }

    fn open_port(self: &Arc<Self>) -> io::Result<&File> {
        if let Some(port) = self.port.get() {
            return Ok(port);
        }
        let _turn = self.turn.lock().expect("no panic while held");
        if self.port.get().is_none() {
            let port = File::from(self.sys.open_fuse_port()?);
            let (pump, reader) = (Arc::clone(self), port.try_clone()?);
            spawn("fuse-answers", move || pump.answers(reader))?;
            let _ = self.port.set(port);
        }
        self.port.get().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Ends a session if it is still the current one.
    pub(crate) fn end(&self, nonce: Nonce) {
        let mut state = self.lock();
        if state.session == Some(nonce) {
            state.session = None;
            self.fail_open(&mut state);
        }
    }

    /// Sends nothing more until the next session.
    pub(crate) fn hold(&self) {
        let mut state = self.lock();
        state.held = true;
        self.note_quiet(&state);
    }

    /// Waits until everything that was sent has been answered.
    pub(crate) async fn quiet(&self) {
        // The sender is a field of `self`.
        let _ = self.quiet.subscribe().wait_for(|quiet| *quiet).await;
    }

    /// Tells the host that nothing more comes.
    ///
    /// # Errors
    /// The port cannot be used.
    pub(crate) fn say_end(&self) -> io::Result<()> {
        if self.lock().session.is_none() {
            return Ok(());
        }
        let _turn = self.turn.lock().expect("no panic while held");
        let Some(mut port) = self.port.get() else { return Ok(()) };
        let mut frame = [0; PLACE_BYTES + REQUEST_HEADER];
        frame[..PLACE_BYTES].copy_from_slice(&END.to_le_bytes());
        frame[PLACE_BYTES] = u8::try_from(REQUEST_HEADER).expect("40");
        port.write_all(&frame)
    }

    /// Carries what the kernel asks, for the life of a mount.
    fn requests(self: &Arc<Self>, mounted: &Arc<Mounted>) {
        let mut frame = vec![0; PLACE_BYTES + MESSAGE_MAX];
        frame[..PLACE_BYTES].copy_from_slice(&mounted.place.to_le_bytes());
        // Whoever asks waits, and then we run. What nobody waits for, as after closing a file, is no reason to interrupt
        // anybody: changing from one process to another is the larger part of what a message costs here.
        if let Err(error) = self.sys.interrupt_nobody() {
            debug!("messages of {} cost more than they need: {error}", mounted.target);
        }
        // What nobody waits for goes with the next request: a write to the port of its own costs as much as a request.
        let mut later = Vec::new();
        loop {
            if !later.is_empty() && !is_readable_soon(&mounted.device) {
                self.send(&mut later, &[]);
            }
            let length = match rustix::io::read(&mounted.device, &mut frame[PLACE_BYTES..]) {
                Ok(0) => return,
                Ok(length) if length >= REQUEST_HEADER => length,
                // A request was taken back by whoever made it.
                Ok(_) | Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => continue,
                // It was unmounted: `ENODEV`.
                Err(error) => return debug!("{} is not served any more: {error}", mounted.target),
            };
            self.request(mounted, &frame[..PLACE_BYTES + length], &mut later);
        }
    }

    fn request(self: &Arc<Self>, mounted: &Arc<Mounted>, frame: &[u8], later: &mut Vec<u8>) {
        let message = &frame[PLACE_BYTES..];
        let operation = word(message, 4);
        match operation {
            GETXATTR if is_kernels_own(message) => {
                return write(&mounted.device, &answer(unique(message), -libc::ENODATA));
            }
            READ => {
                let read = read(message).filter(|read| read.size >= DISK_READ);
                if read.is_some_and(|read| self.read_disk(mounted, read, frame)) {
                    return;
                }
            }
            RELEASE => write(&mounted.device, &answer(unique(message), 0)),
            _ => {}
        }
        if is_known_missing(mounted, message) {
            return write(&mounted.device, &answer(unique(message), -libc::ENOENT));
        }
        match operation {
            RELEASE | FORGET | BATCH_FORGET if later.len() + frame.len() <= LATER_BYTES => {
                later.extend_from_slice(frame);
            }
            RELEASE | FORGET | BATCH_FORGET | INTERRUPT | NOTIFY_REPLY => self.send(later, frame),
            _ => {
                let again = (operation == INIT).then(|| message.to_vec());
                let open = Open { again, makes_directory: operation == MKDIR };
                self.send_open(later, frame, (mounted.place, unique(message)), open);
            }
        }
    }

    fn send(&self, later: &mut Vec<u8>, frame: &[u8]) {
        self.write_frames(self.begin_writing(), later, frame);
    }

    /// Sends a request that will be answered.
    fn send_open(&self, later: &mut Vec<u8>, frame: &[u8], number: (u32, u64), open: Open) {
        let mut state = self.begin_writing();
        state.open.insert(number, open);
        self.write_frames(state, later, frame);
    }

    /// Waits until something may be sent.
    fn begin_writing(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while state.held || state.session.is_none() {
            state = self.changed.wait(state).expect("no panic while held");
        }
        state
    }

    fn write_frames(&self, mut state: MutexGuard<'_, State>, later: &mut Vec<u8>, frame: &[u8]) {
        state.writing += 1;
        drop(state);
        if let Some(mut port) = self.port.get() {
            let _turn = self.turn.lock().expect("no panic while held");
            let written = if later.is_empty() {
                port.write_all(frame)
            } else if frame.len() <= LATER_BYTES {
                later.extend_from_slice(frame);
                port.write_all(later)
            } else {
                port.write_all(later).and_then(|()| port.write_all(frame))
            };
            if let Err(error) = written {
                debug!("the port does not take a message: {error}");
            }
        }
        later.clear();
        let mut state = self.lock();
        state.writing -= 1;
        self.note_quiet(&state);
    }

    fn note_quiet(&self, state: &State) {
        // Nobody waits for it otherwise.
        if state.held {
            self.quiet.send_replace(state.writing == 0 && state.open.is_empty());
        }
    }

    /// Has a request answered from the disk. Whether it will be.
    fn read_disk(self: &Arc<Self>, mounted: &Arc<Mounted>, read: Read, frame: &[u8]) -> bool {
        if read.size >= LONG_READ {
            self.read_ahead(mounted);
        }
        let readers = || match self.start_readers() {
            Ok(sender) => Some(sender),
            Err(error) => {
                debug!("long reads come over the port: {error}");
                None
            }
        };
        let Some(sender) = self.long_reads.get_or_init(readers) else { return false };
        if !content::has(mounted.place, &read) {
            return false;
        }
        let number = (mounted.place, unique(&frame[PLACE_BYTES..]));
        self.begin_writing().open.insert(number, Open::default());
        // The threads do not end.
        sender.send(LongRead { mounted: Arc::clone(mounted), read, frame: frame.to_vec() }).is_ok()
    }

    fn start_readers(self: &Arc<Self>) -> io::Result<Sender<LongRead>> {
        let disk = Arc::new(self.sys.open_content_disk()?);
        let (sender, reads) = channel();
        let reads = Arc::new(Mutex::new(reads));
        for _ in 0..READERS {
            let (pump, disk, reads) = (Arc::clone(self), Arc::clone(&disk), Arc::clone(&reads));
            spawn("fuse-content", move || pump.long_reads(&disk, &reads))?;
        }
        Ok(sender)
    }

    /// Answers from the disk, for ever.
    fn long_reads(&self, disk: &OwnedFd, reads: &Mutex<Receiver<LongRead>>) {
        let mut buffer = content::Buffer::new();
        loop {
            let next = reads.lock().expect("no panic while held").recv();
            let Ok(LongRead { mounted, read, frame }) = next else { return };
            let number = unique(&frame[PLACE_BYTES..]);
            match buffer.fill(disk, mounted.place, &read) {
                Ok(Ok(count)) => buffer.answer(&mounted.device, &answer_header(number, 0, count), count),
                Ok(Err(error)) => write(&mounted.device, &answer(number, error)),
                Err(error) => {
                    debug!("a long read comes over the port: {error}");
                    // It has been asked for, so it is not held; without a session it has been answered.
                    self.write_frames(self.lock(), &mut Vec::new(), &frame);
                    continue;
                }
            }
            let mut state = self.lock();
            state.open.remove(&(mounted.place, number));
            self.note_quiet(&state);
        }
    }

    /// Done when it is of use, because it takes longer than a short command.
    fn read_ahead(&self, mounted: &Mounted) {
        if !mounted.reads_ahead.swap(true, Ordering::Relaxed)
            && let Err(error) = self.sys.set_read_ahead(&mounted.target, READ_AHEAD_KIB)
        {
            debug!("reading ahead in {} is as usual: {error}", mounted.target);
        }
    }

    /// Carries what the host says, for ever.
    fn answers(self: &Arc<Self>, mut port: File) {
        let mut received = Vec::new();
        let mut filled = 0;
        let mut current = None;
        loop {
            received.resize(received.len().max(filled + PORT_BYTES), 0);
            match port.read(&mut received[filled..]) {
                // The host is there for the life of the machine.
                Ok(0) => return warn!("the host has closed the port for its directories"),
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return warn!("directories of the host cannot be reached any more: {error}"),
            }
            let session = self.lock().session;
            let mut used = 0;
            if current != session {
                let Some(nonce) = session else {
                    filled = 0;
                    continue;
                };
                match after_nonce(&received[..filled], &nonce) {
                    Some(after) => (used, current) = (after, session),
                    None => {
                        // Its beginning may be there already.
                        let keep = filled.min(NONCE_BYTES - 1);
                        received.copy_within(filled - keep..filled, 0);
                        filled = keep;
                        continue;
                    }
                }
            }
            loop {
                match frame(&received[used..filled]) {
                    Frame::Complete(place, message) => {
                        self.answer(place, message);
                        used += PLACE_BYTES + message.len();
                    }
                    Frame::Partial => break,
                    Frame::Nonsense(length) => {
                        warn!("the host sent a message of {length} bytes");
                        (used, current) = (filled, None);
                        self.end(session.unwrap_or_default());
                        break;
                    }
                }
            }
            // Not for each piece of a long message.
            if used > 0 {
                received.copy_within(used..filled, 0);
                filled -= used;
            }
        }
    }

    fn answer(self: &Arc<Self>, place: u32, message: &[u8]) {
        let number = unique(message);
        let (mounted, open) = {
            let mut state = self.lock();
            let mounted = state.mounts.iter().find(|mounted| mounted.place == place).cloned();
            let open = (number != 0).then(|| state.open.remove(&(place, number))).flatten();
            self.note_quiet(&state);
            (mounted, open)
        };
        match mounted {
            Some(mounted) if number == 0 => {
                mounted.fresh().tell(message);
                self.tell_kernel(mounted, message.to_vec());
            }
            Some(mounted) => {
                if open.is_some_and(|open| open.makes_directory) {
                    mounted.fresh().made(message);
                }
                write(&mounted.device, message);
            }
            None => debug!("the host sent something for mount {place}, which is not there"),
        }
    }

    /// Passes on what the host has to tell. The kernel may wait for the lock of a directory whose user waits for an answer,
    /// so this must not be in the way of answers.
    fn tell_kernel(&self, mounted: Arc<Mounted>, message: Vec<u8>) {
        let notices = self.notices.get_or_init(|| {
            let (sender, receiver) = channel::<(Arc<Mounted>, Vec<u8>)>();
            let told =
                move || receiver.iter().for_each(|(mounted, message)| write(&mounted.device, &message));
            if let Err(error) = spawn("fuse-notices", told) {
                warn!("changes by the host are noticed late: {error}");
            }
            sender
        });
        // Without the thread it was said.
        let _ = notices.send((mounted, message));
    }

    /// Answers what nobody will answer any more.
    fn fail_open(&self, state: &mut State) {
        let State { open, mounts, .. } = state;
        mounts.iter().for_each(|mounted| mounted.fresh().clear());
        open.retain(|(place, number), open| {
            if open.again.is_none()
                && let Some(mounted) = mounts.iter().find(|mounted| mounted.place == *place)
            {
                write(&mounted.device, &answer(*number, -libc::EIO));
            }
            open.again.is_some()
        });
        self.note_quiet(state);
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(work).map(drop)
}

/// Whether a request looks for a name that is certainly not there. Otherwise notes what it says of names.
fn is_known_missing(mounted: &Mounted, message: &[u8]) -> bool {
    let Some(named) = named(message) else { return false };
    let mut fresh = mounted.fresh();
    match word(message, 4) {
        LOOKUP => return fresh.lacks(&named),
        MKDIR => fresh.begin(),
        _ => {}
    }
    fresh.puts(&named);
    false
}

/// Whether the kernel asks something within a moment.
fn is_readable_soon(device: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(device, PollFlags::IN)];
    poll(&mut fds, Some(&LATER)).is_ok_and(|ready| ready > 0)
}

/// Gives the kernel a message. What it does not take is about something that it does not know any more.
fn write(device: &impl AsFd, message: &[u8]) {
    match rustix::io::write(device, message) {
        Ok(_) | Err(Errno::NOENT) => {}
        Err(error) => debug!("the kernel does not take a message of {} bytes: {error}", message.len()),
    }
}
