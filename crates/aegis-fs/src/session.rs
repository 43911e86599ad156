//! A session with the guest, from its first bytes to its end: see [`aegis_proto::fuse`].

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use aegis_proto::fuse::{END, MESSAGE_MAX, NONCE_BYTES, REQUEST_HEADER};
use fuse_backend_rs::api::server::Server;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::Directory;
use crate::exchange::{Exchange, Request};
use crate::watch::Notice;

/// Requests that move much or wait for a disk, at the same time; each may need 2 MiB.
const LONG_MAX: usize = 4;
/// Exchanges that are kept for the next long request.
const SPARE_MAX: usize = 2;
/// Invalidations on their way to a guest; what does not fit is made up for by looking at everything once more.
const NOTICES_MAX: usize = 4096;
/// Bytes of earlier sessions before the first of this one.
const STALE_MAX: usize = 16 << 20;

/// Why a session ended before its guest took leave.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The stream broke.
    #[error("the stream to the guest broke")]
    Stream(#[from] io::Error),
    /// The guest sent what is no message.
    #[error("the guest sent a message of {0} bytes")]
    Length(usize),
    /// The guest sent something for a mount that it has not.
    #[error("the guest has no mount {0}")]
    Place(u32),
    /// The guest does not begin the session.
    #[error("the guest did not begin within {STALE_MAX} bytes")]
    NoBeginning,
}

/// Serves directories, each by its place, over the two halves of a stream until the guest takes leave. Only one session of
/// a directory at a time. If the future is dropped, requests that have begun are carried out, and the same stream serves
/// for the next session.
///
/// # Errors
/// See [`SessionError`]. The directories can be served again.
pub async fn serve<R, W>(
    directories: &[Arc<Directory>],
    nonce: [u8; NONCE_BYTES],
    reader: &mut BufReader<R>,
    writer: &Arc<AsyncMutex<W>>,
) -> Result<(), SessionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
{
    skip_to(reader, &nonce).await?;
    let (sender, notices) = mpsc::channel(NOTICES_MAX);
    let session = Arc::new(Session {
        servers: directories.iter().map(|directory| Arc::new(Server::new(Arc::clone(directory)))).collect(),
        writer: Arc::clone(writer),
        spare: Mutex::default(),
        long: Arc::new(Semaphore::new(LONG_MAX)),
    });
    session.send(None, &nonce).await?;
    let _listening: Vec<Listening<'_>> = (0..)
        .zip(directories)
        .map(|(place, directory)| {
            let listener = Listener { place, sender: sender.clone() };
            *directory.notices.lock().expect("no panic while held") = Some(listener);
            directory.watcher.wake();
            Listening(directory)
        })
        .collect();
    tokio::select! {
        outcome = session.requests(reader) => outcome,
        outcome = session.invalidations(notices, directories) => outcome,
    }
}

/// Where a directory tells of changes.
pub(crate) struct Listener {
    place: u32,
    sender: mpsc::Sender<(u32, Notice)>,
}

impl Listener {
    /// Whether it was taken.
    pub(crate) fn tell(&self, notice: Notice) -> bool {
        self.sender.try_send((self.place, notice)).is_ok()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.sender.capacity() > 0
    }
}

/// While it lives, a directory tells the guest of changes. Those that come later are found by looking.
struct Listening<'a>(&'a Directory);

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        *self.0.notices.lock().expect("no panic while held") = None;
        self.0.missed.store(true, Ordering::Relaxed);
    }
}

struct Session<W> {
    servers: Vec<Arc<Server<Arc<Directory>>>>,
    writer: Arc<AsyncMutex<W>>,
    spare: Mutex<Vec<Exchange>>,
    long: Arc<Semaphore>,
}

impl<W: AsyncWrite + Unpin + Send + 'static> Session<W> {
    async fn requests<R: AsyncRead + Unpin>(self: &Arc<Self>, reader: &mut R) -> Result<(), SessionError> {
        let mut exchange = Exchange::new()?;
        let mut long = JoinSet::new();
        while let Some((place, request)) = receive(reader).await? {
            let server = usize::try_from(place).ok().and_then(|place| self.servers.get(place));
            let server = Arc::clone(server.ok_or(SessionError::Place(place))?);
            if !request.is_long() {
                let answer = exchange.answer(&server, request)?;
                self.send(Some(place), &answer).await?;
                continue;
            }
            let permit = Arc::clone(&self.long).acquire_owned().await.expect("never closed");
            let session = Arc::clone(self);
            // Those that were answered are let go of; an error of their stream is ours as well.
            while long.try_join_next().is_some() {}
            long.spawn(async move {
                let _permit = permit;
                let mut exchange = session.exchange()?;
                let answered =
                    tokio::task::spawn_blocking(move || (exchange.answer(&server, request), exchange)).await;
                let (answer, exchange) = answered.map_err(io::Error::other)?;
                let sent = session.send(Some(place), &answer?).await;
                session.give_back(exchange);
                sent
            });
        }
        while long.join_next().await.is_some() {}
        Ok(())
    }

    async fn invalidations(
        &self,
        mut notices: mpsc::Receiver<(u32, Notice)>,
        directories: &[Arc<Directory>],
    ) -> Result<(), SessionError> {
        let mut exchange = Exchange::new()?;
        while let Some((place, notice)) = notices.recv().await {
            let Some(server) = usize::try_from(place).ok().and_then(|place| self.servers.get(place)) else {
                continue;
            };
            let message = exchange.invalidation(server, &notice)?;
            self.send(Some(place), &message).await?;
            if notices.is_empty() {
                let missed = directories.iter().filter(|directory| directory.missed.load(Ordering::Relaxed));
                missed.for_each(|directory| directory.watcher.wake());
            }
        }
        std::future::pending().await
    }

    async fn send(&self, place: Option<u32>, message: &[u8]) -> io::Result<()> {
        if message.is_empty() {
            return Ok(());
        }
        let place = place.map(u32::to_le_bytes);
        // In one piece: each write is a message to the guest.
        let frame = [place.as_ref().map(<[u8; 4]>::as_slice).unwrap_or_default(), message].concat();
        let mut writer = self.writer.lock().await;
        writer.write_all(&frame).await?;
        writer.flush().await
    }

    fn exchange(&self) -> io::Result<Exchange> {
        let spare = self.spare.lock().expect("no panic while held").pop();
        spare.map_or_else(Exchange::new, Ok)
    }

    fn give_back(&self, exchange: Exchange) {
        let mut spare = self.spare.lock().expect("no panic while held");
        if spare.len() < SPARE_MAX {
            spare.push(exchange);
        }
    }
}

/// Skips what is left of earlier sessions, and the bytes that begin this one.
async fn skip_to<R: AsyncRead + Unpin>(
    reader: &mut BufReader<R>,
    nonce: &[u8; NONCE_BYTES],
) -> Result<(), SessionError> {
    let mut last = [0; NONCE_BYTES];
    reader.read_exact(&mut last).await?;
    for _ in 0..STALE_MAX {
        if last == *nonce {
            return Ok(());
        }
        last.rotate_left(1);
        last[NONCE_BYTES - 1] = reader.read_u8().await?;
    }
    Err(SessionError::NoBeginning)
}

/// The next request; `None` when the guest takes leave.
async fn receive<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Option<(u32, Request)>, SessionError> {
    let place = reader.read_u32_le().await?;
    let length = reader.read_u32_le().await?;
    let size = length as usize;
    if !(REQUEST_HEADER..=MESSAGE_MAX).contains(&size) {
        return Err(SessionError::Length(size));
    }
    let mut message = vec![0; size];
    message[..4].copy_from_slice(&length.to_le_bytes());
    reader.read_exact(&mut message[4..]).await?;
    if place == END {
        return Ok(None);
    }
    Ok(Request::new(message).map(|request| (place, request)))
}
